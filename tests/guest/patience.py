# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting for what a guest does in its own time."""

import time
from collections.abc import Callable


def until(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether ``holds`` comes to hold within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held
