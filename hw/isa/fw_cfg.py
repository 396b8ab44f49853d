# SPDX-License-Identifier: GPL-2.0-or-later
"""fw_cfg: what the machine tells its firmware, and files for it, behind ports 0x510 to 0x51B.

The interface is that of QEMU's fw_cfg device, which SeaBIOS, OVMF and Linux know (QEMU, docs/specs/fw_cfg).
Offsets: 0 the selector (16 bits), 1 the data (8 bits), 4 the DMA address (64 bits, big-endian; the write of
its lower half starts a transfer). Nothing can be written into an item.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coremesh.core.errors import ConfigurationError
from coremesh.hw.device import Device
from coremesh.hw.memory import BusMasterError, GuestMemory, Segment
from coremesh.hw.registers import Bit, Bits, Register

SIGNATURE: Final = b"QEMU"
DMA_SIGNATURE: Final = int.from_bytes(b"QEMU CFG", "big")
LONGEST_NAME: Final = 55
_CHUNK: Final = 1 << 20
_CONTROL: Final = struct.Struct(">IIQ")  # of a DMA access: control, length, address


class Item:
    """Keys of items (the numbers are the interface's)."""

    SIGNATURE, ID, UUID, RAM_SIZE, NOGRAPHIC, NB_CPUS = range(6)
    KERNEL_SIZE, INITRD_SIZE, NUMA, BOOT_MENU, MAX_CPUS = 0x08, 0x0B, 0x0D, 0x0E, 0x0F
    KERNEL_DATA, INITRD_DATA, CMDLINE_SIZE, CMDLINE_DATA = 0x11, 0x12, 0x14, 0x15
    SETUP_SIZE, SETUP_DATA = 0x17, 0x18
    FILE_DIR, FILE_FIRST = 0x19, 0x20


@dataclass(frozen=True)
class ForFirmware:
    """What a machine leaves for its firmware: items by key and files by name, and cells of the CMOS RAM."""

    items: Mapping[int, bytes]
    files: Mapping[str, bytes]
    cells: Mapping[int, int]


class SELECTOR(Register):
    """Which item the data port shows."""

    offset = 0
    writable = 0xFFFF
    KEY = Bits(13, 0)
    WRITE = Bit(14)
    ARCH_LOCAL = Bit(15)


class DMA_ADDRESS(Register):
    """Where the description of the next transfer is, guest-physical."""

    offset = 4


class DMA_CONTROL(Register):
    """The first word of a transfer's description, in RAM."""

    ERROR = Bit(0)
    READ = Bit(1)
    SKIP = Bit(2)
    SELECT = Bit(3)
    WRITE = Bit(4)
    KEY = Bits(31, 16)


class FwCfg(Device):
    """Items by key, and files by name. They do not change while the machine runs."""

    REGISTERS = (SELECTOR, DMA_ADDRESS)
    STATE = ("_position",)
    widths = (1, 2, 4, 8)
    selector: int
    dma_address: int

    def __init__(
        self,
        memory: GuestMemory,
        items: Mapping[int, bytes],
        files: Mapping[str, bytes],
        name: str = "fw-cfg",
    ) -> None:
        """``files`` appear in the order of their names.

        Raises ConfigurationError for a name that is too long.
        """
        super().__init__(name)
        self._memory = memory
        self._items = {
            Item.SIGNATURE: SIGNATURE,
            Item.ID: struct.pack("<I", 0b11),  # selector and data port, DMA
            **items,
            Item.FILE_DIR: _directory(files),
            **{Item.FILE_FIRST + n: files[file] for n, file in enumerate(sorted(files))},
        }
        self.transfers = 0
        self.reset()

    def reset(self) -> None:
        """The signature is selected."""
        super().reset()
        self._position = 0

    def counts(self) -> dict[str, int]:
        """With the DMA transfers."""
        return {**super().counts(), "transfers": self.transfers}

    @property
    def _item(self) -> bytes:
        return self._items.get(self.selector & ~SELECTOR.WRITE, b"")

    def _next(self, length: int) -> bytes:
        """The item's next bytes; behind its end are zeros without an end."""
        part = self._item[self._position : self._position + length]
        self._position = min(self._position + length, len(self._item))
        return part

    def read(self, offset: int, size: int) -> int:
        """The data port gives the item's next byte, the DMA register its signature; else nothing drives."""
        if offset == 1 and size == 1:
            return int.from_bytes(self._next(1).ljust(1, b"\0"), "big")
        if offset >= DMA_ADDRESS.offset and size in (4, 8):
            # Big-endian, seen by a little-endian processor.
            whole = DMA_SIGNATURE.to_bytes(8, "big")
            at = offset - DMA_ADDRESS.offset
            return int.from_bytes(whole[at : at + size].ljust(size, b"\0"), "little")
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Select an item, or start a transfer; the data port takes nothing."""
        if offset == SELECTOR.offset and size == 2:
            self._select(value)
        elif offset == DMA_ADDRESS.offset and size == 4:
            self.dma_address = _swapped(value, 4) << 32
        elif offset == DMA_ADDRESS.offset + 4 and size == 4:
            self._transfer(self.dma_address | _swapped(value, 4))
        elif offset == DMA_ADDRESS.offset and size == 8:
            self._transfer(_swapped(value, 8))

    def _select(self, key: int) -> None:
        self.selector = SELECTOR.merge(self.selector, key)
        self._position = 0

    def _transfer(self, at: int) -> None:
        """One DMA access. The lock is held: no vCPU needs it to give a page up, and a second one waits.

        The interface has the guest poll the control word, whose error bit, or zero, is written last.
        """
        self.dma_address = 0
        self.transfers += 1
        try:
            control, length, address = _CONTROL.unpack(self._memory.gather([Segment(at, _CONTROL.size)]))
        except BusMasterError:
            return  # nowhere to report it
        error = 0
        if control & DMA_CONTROL.SELECT:
            self._select(DMA_CONTROL.KEY.of(control))
        try:
            if control & DMA_CONTROL.READ:
                self._copy(address, length)
            elif control & DMA_CONTROL.SKIP:
                self._position = min(self._position + length, len(self._item))
            elif control & DMA_CONTROL.WRITE:
                error = int(DMA_CONTROL.ERROR)  # no item can be written
        except BusMasterError:
            error = int(DMA_CONTROL.ERROR)
        try:
            self._memory.scatter([Segment(at, 4)], error.to_bytes(4, "big"))
        except BusMasterError:
            return

    def _copy(self, address: int, length: int) -> None:
        """The item's next bytes into RAM. What a guest may ask for is bounded by its RAM, not by ours."""
        while length:
            part = self._next(min(length, _CHUNK)).ljust(min(length, _CHUNK), b"\0")
            self._memory.scatter([Segment(address, len(part))], part)
            address += len(part)
            length -= len(part)


def _swapped(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "little"), "big")


def _directory(files: Mapping[str, bytes]) -> bytes:
    entries = [struct.pack(">I", len(files))]
    for number, name in enumerate(sorted(files)):
        if len(name) > LONGEST_NAME or not name.isascii():
            raise ConfigurationError(
                f"{name!r} cannot name a fw_cfg file; give at most {LONGEST_NAME} letters"
            )
        entries.append(
            struct.pack(">IHH56s", len(files[name]), Item.FILE_FIRST + number, 0, name.encode("ascii"))
        )
    return b"".join(entries)
