# SPDX-License-Identifier: GPL-2.0-or-later
"""The names that ``import coremesh`` gives, each imported when it is first asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coremesh.cluster.experiments import loads
    from coremesh.cluster.experiments.experiment import Command
    from coremesh.cluster.experiments.result import SweepResult
    from coremesh.cluster.experiments.sweep import sweep
    from coremesh.cluster.experiments.sweep_async import sweep_async
    from coremesh.cluster.launch.attached import Attachment, PythonDevice
    from coremesh.cluster.launch.machine import Machine
    from coremesh.cluster.launch.report import report
    from coremesh.cluster.launch.session import shutdown
    from coremesh.cluster.machine.console import Console
    from coremesh.cluster.machine.consoles import ConsoleDevice
    from coremesh.cluster.machine.disks import Disk
    from coremesh.cluster.machine.ending import MachineEnd
    from coremesh.cluster.machine.folders import Folder
    from coremesh.cluster.machine.images.debian_image import DebianImage, fetch_debian
    from coremesh.cluster.machine.networks import Network
    from coremesh.cluster.machine.shell import CommandResult
    from coremesh.core.errors import (
        ConfigurationError,
        ConsoleTimeoutError,
        CoremeshError,
        DeviceError,
        DiskError,
        GuestCrashError,
        GuestImageError,
        HostLostError,
        ImageFetchError,
        InternalError,
        MachineStateError,
        NetworkError,
        OutputError,
        PlatformError,
    )
    from coremesh.hw.backend.network.switch import Switch
    from coremesh.hw.backend.screen import TextScreen

__all__ = [
    "Attachment",
    "Command",
    "CommandResult",
    "ConfigurationError",
    "Console",
    "ConsoleDevice",
    "ConsoleTimeoutError",
    "CoremeshError",
    "DebianImage",
    "DeviceError",
    "Disk",
    "DiskError",
    "Folder",
    "GuestCrashError",
    "GuestImageError",
    "HostLostError",
    "ImageFetchError",
    "InternalError",
    "Machine",
    "MachineEnd",
    "MachineStateError",
    "Network",
    "NetworkError",
    "OutputError",
    "PlatformError",
    "PythonDevice",
    "SweepResult",
    "Switch",
    "TextScreen",
    "fetch_debian",
    "loads",
    "report",
    "shutdown",
    "sweep",
    "sweep_async",
]

_ERRORS = "coremesh.core.errors"
_HOMES = {
    "Attachment": "coremesh.cluster.launch.attached",
    "PythonDevice": "coremesh.cluster.launch.attached",
    "Command": "coremesh.cluster.experiments.experiment",
    "SweepResult": "coremesh.cluster.experiments.result",
    "sweep": "coremesh.cluster.experiments.sweep",
    "sweep_async": "coremesh.cluster.experiments.sweep_async",
    "CommandResult": "coremesh.cluster.machine.shell",
    "Console": "coremesh.cluster.machine.console",
    "ConsoleDevice": "coremesh.cluster.machine.consoles",
    "Folder": "coremesh.cluster.machine.folders",
    "Disk": "coremesh.cluster.machine.disks",
    "Network": "coremesh.cluster.machine.networks",
    "Switch": "coremesh.hw.backend.network.switch",
    "TextScreen": "coremesh.hw.backend.screen",
    "DebianImage": "coremesh.cluster.machine.images.debian_image",
    "Machine": "coremesh.cluster.launch.machine",
    "MachineEnd": "coremesh.cluster.machine.ending",
    "fetch_debian": "coremesh.cluster.machine.images.debian_image",
    "report": "coremesh.cluster.launch.report",
    "shutdown": "coremesh.cluster.launch.session",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'coremesh' has no attribute {name!r}")
    if name == "loads":  # a module itself
        value = importlib.import_module("coremesh.cluster.experiments.loads")
    else:
        value = getattr(importlib.import_module(_HOMES.get(name, _ERRORS)), name)
    globals()[name] = value
    return value
