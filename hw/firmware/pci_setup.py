# SPDX-License-Identifier: GPL-2.0-or-later
"""What firmware does to the PCI bus before it starts a kernel: addresses, interrupt steering, decoding.

It works as firmware does, through the ports of configuration mechanism #1. Linux keeps the addresses it
finds; a small kernel that assigns none of its own finds its devices all the same.

Source: PCI Firmware Specification 3.0; Intel 82371SB datasheet (PIRQRC, ELCR).
"""

from typing import Protocol

from coremesh.core.x86.memory_map import PCI_WINDOW_BASE, PCI_WINDOW_END
from coremesh.hw.ata.piix3_ide import IDETIM
from coremesh.hw.board.board import Board
from coremesh.hw.decode import PORT
from coremesh.hw.pci.config_space import BAR, COMMAND, HEADER_TYPE, INTERRUPT_LINE, INTERRUPT_PIN
from coremesh.hw.pci.function import pirq_of
from coremesh.hw.pci.piix3 import PIRQRC

_NOTHING = 0xFFFF
_ELCR = 0x4D0
_ONES = 0xFFFF_FFFF


class Ports(Protocol):
    """What the processor does port accesses on: the device node."""

    def access(self, space: int, address: int, size: int, is_write: bool, value: int) -> int:
        """See :meth:`coremesh.hw.node.DeviceNode.access`."""


class PciSetup:
    """One run over bus 0, before any vCPU runs; call :meth:`run`."""

    def __init__(self, ports: Ports, board: Board) -> None:
        self._ports = ports
        self._board = board
        self._configuration = board["pci"].base
        self._free = {True: board.pci_ports[0], False: PCI_WINDOW_BASE}  # by whether it is for I/O
        self._end = {True: board.pci_ports[1] + 1, False: PCI_WINDOW_END}

    def run(self) -> None:
        """Steer the four lines, then give every function addresses, an interrupt line, and let it answer."""
        for slot in range(32):
            if self._read(slot, 0, 0, 2) == _NOTHING:
                continue
            several = self._read(slot, 0, HEADER_TYPE.offset, 1) & HEADER_TYPE.MULTIFUNCTION
            for function in range(8 if several else 1):
                if self._read(slot, function, 0, 2) != _NOTHING:
                    self._set_up(slot, function)

    def _set_up(self, slot: int, function: int) -> None:
        if self._read(slot, function, 0, 4) == 0x7000_8086:
            self._steer(slot, function)
        allowed = 0
        if self._read(slot, function, 0, 4) == 0x7010_8086:
            for channel in range(2):  # let both answer at the PC's old ports
                self._write(slot, function, IDETIM.offset + 2 * channel, 2, IDETIM.IDE)
        index = 0
        while index < BAR.COUNT:
            at = BAR.offset + 4 * index
            flags = self._read(slot, function, at, 4)
            self._write(slot, function, at, 4, _ONES)
            sized = self._read(slot, function, at, 4)
            is_io, wide = bool(flags & BAR.IO), bool(flags & BAR.WIDE) and not flags & BAR.IO
            mask = sized & (0xFFFF_FFFC if is_io else 0xFFFF_FFF0)
            if mask:
                length = mask & -mask
                base = -(-self._free[is_io] // length) * length
                fits = base + length <= self._end[is_io]
                self._write(slot, function, at, 4, base if fits else 0)
                if fits:
                    self._free[is_io] = base + length
                    allowed |= COMMAND.IO if is_io else COMMAND.MEMORY
            index += 2 if wide else 1
        if pin := self._read(slot, function, INTERRUPT_PIN, 1):
            irq = self._board.pirq_irqs[pirq_of(slot, pin)]
            self._write(slot, function, INTERRUPT_LINE, 1, irq)
        if allowed:
            command = self._read(slot, function, COMMAND.offset, 2)
            self._write(slot, function, COMMAND.offset, 2, command | allowed)

    def _steer(self, slot: int, function: int) -> None:
        levels = (
            self._ports.access(PORT, _ELCR, 1, False, 0)
            | self._ports.access(PORT, _ELCR + 1, 1, False, 0) << 8
        )
        for number, irq in enumerate(self._board.pirq_irqs):
            self._write(slot, function, PIRQRC.offset + number, 1, irq)
            levels |= 1 << irq
        self._ports.access(PORT, _ELCR, 1, True, levels & 0xFF)
        self._ports.access(PORT, _ELCR + 1, 1, True, levels >> 8)

    def _select(self, slot: int, function: int, at: int) -> None:
        self._ports.access(
            PORT, self._configuration, 4, True, 1 << 31 | slot << 11 | function << 8 | at & 0xFC
        )

    def _read(self, slot: int, function: int, at: int, size: int) -> int:
        self._select(slot, function, at)
        return self._ports.access(PORT, self._configuration + 4 + at % 4, size, False, 0)

    def _write(self, slot: int, function: int, at: int, size: int, value: int) -> None:
        self._select(slot, function, at)
        self._ports.access(PORT, self._configuration + 4 + at % 4, size, True, value)
