# SPDX-License-Identifier: GPL-2.0-or-later
"""The names that ``import coremesh`` gives, each imported when it is first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coremesh.cluster.console import Console
    from coremesh.cluster.ending import MachineEnd
    from coremesh.cluster.images import DebianImage, fetch_debian
    from coremesh.cluster.machine import Machine
    from coremesh.cluster.session import shutdown
    from coremesh.cluster.shell import CommandResult
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
        OutputError,
        PlatformError,
    )

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
    "OutputError",
    "PlatformError",
    "fetch_debian",
    "shutdown",
]

_ERRORS = "coremesh.core.errors"
_HOMES = {
    "CommandResult": "coremesh.cluster.shell",
    "Console": "coremesh.cluster.console",
    "DebianImage": "coremesh.cluster.images",
    "Machine": "coremesh.cluster.machine",
    "MachineEnd": "coremesh.cluster.ending",
    "fetch_debian": "coremesh.cluster.images",
    "shutdown": "coremesh.cluster.session",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'coremesh' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, _ERRORS)), name)
    globals()[name] = value
    return value
