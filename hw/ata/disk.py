# SPDX-License-Identifier: GPL-2.0-or-later
"""An ATA disk: what stands behind its registers, which are native (``hw/native/ata/disk.cpp``)."""

from functools import partial

from coremesh.core._native import IdeDrive
from coremesh.hw.ata.identify import identify_disk
from coremesh.hw.ata.registers import SECTOR
from coremesh.hw.backend.block import BlockBackend, RawImage
from coremesh.hw.state import Stateful


class Disk(Stateful):
    """A fixed disk of ``medium.size`` bytes, rounded down to sectors of 512."""

    def __init__(self, medium: BlockBackend, serial: str = "1") -> None:
        sectors = medium.size // SECTOR
        can_trim = medium.can_discard and not medium.read_only
        self.native = IdeDrive.disk(
            medium,
            sectors=sectors,
            read_only=medium.read_only,
            can_trim=can_trim,
            # It holds nothing of this object, which holds it.
            identify=partial(identify_disk, sectors, serial, can_trim),
            fd=medium.fd if isinstance(medium, RawImage) else None,
        )

    def reset(self) -> None:
        """The RESET- pin; the registers are the channel's."""
