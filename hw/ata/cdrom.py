# SPDX-License-Identifier: GPL-2.0-or-later
"""An ATAPI CD-ROM drive: packets in, answers out.

How they pass the task file is native (``hw/native/ata/cdrom.cpp``); what they mean stands in
:mod:`coremesh.hw.ata.mmc`, which is called once for a packet, on the channel's worker.
"""

from functools import partial

from coremesh.core._native import IdeDrive
from coremesh.hw.ata.identify import identify_packet_device
from coremesh.hw.ata.mmc import BLOCK, Player, Sense
from coremesh.hw.backend.block import BlockBackend, RawImage
from coremesh.hw.state import Stateful


class Cdrom(Stateful):
    """A drive with ``medium`` in its tray, or with none."""

    STATE = ("player",)

    def __init__(self, medium: BlockBackend | None, serial: str = "1") -> None:
        blocks = 0 if medium is None else medium.size // BLOCK
        self.player = Player(blocks)
        self.native = IdeDrive.cdrom(
            medium,
            blocks=blocks,
            # They hold nothing of this object, which holds them.
            identify=partial(identify_packet_device, serial),
            packet=partial(_answer, self.player),
            unreadable=self.player.sense.unreadable,
            fd=medium.fd if isinstance(medium, RawImage) else None,
        )

    def reset(self) -> None:
        """The RESET- pin; the registers are the channel's."""
        self.player.reset()


def _answer(player: Player, packet: bytes) -> tuple[int, bytes, int, int]:
    """(sense key, data, first block, blocks); a key of 0 is success."""
    answer = player.packet(packet)
    if isinstance(answer, Sense):
        return answer.key, b"", 0, 0
    return 0, answer.data, answer.lba, answer.blocks
