# SPDX-License-Identifier: GPL-2.0-or-later
"""The names that ``import coremesh`` gives. What needs Ray or pandas is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from coremesh.core.errors import (
    ConfigurationError,
    ConsoleTimeoutError,
    CoremeshError,
    GuestCrashError,
    GuestImageError,
    HostLostError,
    ImageFetchError,
    InternalError,
    MachineStateError,
    PlatformError,
)

if TYPE_CHECKING:
    from coremesh.cluster.console import Console
    from coremesh.cluster.ending import MachineEnd
    from coremesh.cluster.images import DebianImage, fetch_debian
    from coremesh.cluster.machine import Machine
    from coremesh.cluster.session import shutdown
    from coremesh.cluster.shell import CommandResult

__all__ = [
    "CommandResult",
    "ConfigurationError",
    "Console",
    "ConsoleTimeoutError",
    "CoremeshError",
    "DebianImage",
    "GuestCrashError",
    "GuestImageError",
    "HostLostError",
    "ImageFetchError",
    "InternalError",
    "Machine",
    "MachineEnd",
    "MachineStateError",
    "PlatformError",
    "fetch_debian",
    "shutdown",
]

_HOMES = {
    "CommandResult": "shell",
    "Console": "console",
    "DebianImage": "images",
    "Machine": "machine",
    "MachineEnd": "ending",
    "fetch_debian": "images",
    "shutdown": "session",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"coremesh.cluster.{home}"), name)
    globals()[name] = value
    return value
