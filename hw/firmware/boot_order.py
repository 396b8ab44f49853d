# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices as firmware's boot order names them: paths of Open Firmware, a line each in fw_cfg's ``bootorder``.

Source: SeaBIOS docs/Runtime_config.md, src/boot.c (which parts of a path it looks at); IEEE 1275-1994.
"""

from collections.abc import Iterable
from typing import Final

FILE: Final = "bootorder"
_ROOT: Final = "/pci@i0cf8"
_IDE: Final = (1, 1)
"""Slot and function of the IDE controller."""


def ide_path(place: int) -> str:
    """The drive at ``place``: 0 and 1 on the first channel, 2 and 3 on the second."""
    slot, function = _IDE
    return f"{_ROOT}/ide@{slot},{function}/drive@{place // 2}/disk@{place % 2}"


def virtio_disk_path(slot: int) -> str:
    """The virtio disk in a slot of bus 0."""
    return f"{_ROOT}/scsi@{slot:x}/disk@0,0"


def boot_order(paths: Iterable[str]) -> bytes:
    """The file's content."""
    return "\n".join(paths).encode() + b"\0"
