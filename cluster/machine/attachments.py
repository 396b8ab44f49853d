# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices whose code is in the driver's process, as the host with the devices keeps them.

The driver calls these methods over the way on which it calls every other one; launch/attached.py is its end.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coremesh.core.errors import ConfigurationError, MachineStateError
from coremesh.core.memory_layout import Region
from coremesh.core.x86.memory_map import ECAM, LAPIC_BASE, PCI_WINDOW_END
from coremesh.hw.attached import Answer, AttachedDevice, Request
from coremesh.hw.decode import MMIO, SPACE_NAMES, At
from coremesh.hw.memory import BusMasterError, GuestMemory, Segment

if TYPE_CHECKING:
    from coremesh.core.engine import Host
    from coremesh.core.memory_layout import MemoryLayout
    from coremesh.hw.node import DeviceNode

#: One thread of the host's process serves each of them.
MOST_ATTACHED: Final = 16

Range = tuple[int, int, int]  # space, first, last


@dataclass(frozen=True)
class Wanted:
    """A device to attach: where it answers, (space, first, last) each, and its ISA interrupt, or None.

    The first range begins at the device's offset 0, and each further one where the one before it ends.
    `timeout` is how many seconds an access waits for the code at most. Unless the name is `exact`, a number
    is added where another device has it.
    """

    name: str
    ranges: tuple[Range, ...]
    irq: int | None
    timeout: float
    exact: bool = True


class Attachments:
    """The attached devices by name. Any thread; `_lock` guards the table, never a device's answer."""

    def __init__(self, node: DeviceNode, host: Host, layout: MemoryLayout) -> None:
        self._node = node
        self._memory = GuestMemory(host)
        self._layout = layout
        self._lock = threading.Lock()
        self._devices: dict[str, tuple[AttachedDevice, int | None]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._devices)

    def attach(self, wanted: Wanted) -> str:
        """Let the device answer; return its name. vCPUs reach it when their host has claimed its addresses.

        Raises :class:`ConfigurationError` for a place or an interrupt that is taken.
        """
        from coremesh.hw.board import pc  # only the host with the devices needs the board

        with self._lock:
            if self._closed:
                raise MachineStateError("the machine does not run.")
            if len(self._devices) == MOST_ATTACHED:
                raise ConfigurationError(f"{MOST_ATTACHED} devices are attached; detach one of them.")
            for space, first, last in wanted.ranges:
                self._require_free(space, first, last)
            line = None
            if wanted.irq is not None:
                taken = {irq for _, irq in self._devices.values()}
                spare = [irq for irq in pc.spare_irqs(self._node) if irq not in taken]
                if wanted.irq not in spare:
                    raise ConfigurationError(
                        f"interrupt {wanted.irq} is taken; free are {', '.join(map(str, spare)) or 'none'}."
                    )
                line = pc.spare_line(self._node, wanted.irq)
            name = wanted.name if wanted.exact else self._free_name(wanted.name)
            device = AttachedDevice(name, line, wanted.timeout)
            mappings, offset = [], 0
            for space, first, last in wanted.ranges:
                mappings.append(At(space, first, last - first + 1, device, offset))
                offset += last - first + 1
            self._node.add(device, mappings)
            self._devices[name] = device, wanted.irq
            return name

    def detach(self, name: str) -> None:
        """Let the device answer nowhere any more, its line low. Nothing for one that is not attached."""
        with self._lock:
            device, _ = self._devices.pop(name, (None, None))
        if device is not None:
            self._node.remove(device)
            device.close()
            device.set_irq(False)

    def exchange(self, name: str, answers: list[Answer], timeout: float) -> tuple[list[Request], int] | None:
        """As :meth:`AttachedDevice.exchange`; None also for one that is not attached any more."""
        device, _ = self._devices.get(name, (None, None))
        return None if device is None else device.exchange(answers, timeout)

    def set_irq(self, name: str, level: bool | None) -> None:
        """Drive its interrupt line; None is a pulse."""
        device, irq = self._find(name)
        if irq is None:
            raise ConfigurationError(f"{name} has no interrupt line; attach it with irq=NUMBER.")
        if level is None:
            device.pulse_irq()
        else:
            device.set_irq(level)

    def dma_read(self, gpa: int, length: int) -> bytes:
        """Return guest RAM as a bus master sees it. Raises :class:`ConfigurationError` elsewhere."""
        try:
            return self._memory.gather([Segment(gpa, length)])
        except BusMasterError:
            raise self._no_ram(gpa, length) from None

    def dma_write(self, gpa: int, data: bytes) -> None:
        """Write guest RAM as a bus master does. Raises :class:`ConfigurationError` elsewhere."""
        try:
            self._memory.scatter([Segment(gpa, len(data))], data)
        except BusMasterError:
            raise self._no_ram(gpa, len(data)) from None

    def close(self) -> None:
        """The machine ends: no vCPU waits for the code any more. The counters stay."""
        with self._lock:
            self._closed = True
            for device, _ in self._devices.values():
                device.close()

    def _find(self, name: str) -> tuple[AttachedDevice, int | None]:
        try:
            return self._devices[name]
        except KeyError:
            raise MachineStateError(f"{name} is not attached to the machine; attach it again.") from None

    def _free_name(self, name: str) -> str:
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        return next(free for free in itertools.chain([name], numbered) if free not in self._node.devices)

    def _require_free(self, space: int, first: int, last: int) -> None:
        def refuse(owner: str) -> ConfigurationError:
            return ConfigurationError(
                f"{SPACE_NAMES[space]} {first:#x} to {last:#x} is taken by {owner}; choose another place, "
                "such as memory from 0xFED00000 or ports from 0x240."
            )

        for name, named, low, high in self._node.map():
            if named == SPACE_NAMES[space] and first <= high and low <= last:
                raise refuse(name)
        if space != MMIO:
            return
        wanted = Region(first, last - first + 1)
        for region in self._layout.regions:
            if wanted.overlaps(Region(region.gpa, region.bytes)):
                raise refuse(f"the guest's {region.kind.name}")
        if wanted.overlaps(Region(LAPIC_BASE, 1 << 20)):
            raise refuse("the local APICs, whose interrupt messages go there")
        if wanted.overlaps(Region(ECAM.start, PCI_WINDOW_END - ECAM.start)):
            raise refuse("the PCI bus, where the guest puts devices as it likes")

    @staticmethod
    def _no_ram(gpa: int, length: int) -> ConfigurationError:
        return ConfigurationError(f"{length} bytes at {gpa:#x} are not all RAM of this guest.")
