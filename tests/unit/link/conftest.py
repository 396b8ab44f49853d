# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of links share: linked_hosts.py beside this file, and hosts that are closed at the end."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from linked_hosts import Linked, link_up


@pytest.fixture
def connect() -> Iterator[Callable[..., Linked]]:
    """Makes linked hosts; all are closed at the end."""
    made: list[Linked] = []

    def make(*args: Any, **options: Any) -> Linked:
        made.append(link_up(*args, **options))
        return made[-1]

    yield make
    for linked in made:
        linked.close()
