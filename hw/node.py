# SPDX-License-Identifier: GPL-2.0-or-later
"""The device node: which device answers at which address, called by the threads of the vCPUs.

There is no global lock. An access takes the lock of the one device that it reaches; how often that lock was
taken already is counted and can be shown. Tables are built once and never change, so looking up needs no
lock.
"""

import logging
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coremesh.core.errors import ConfigurationError
from coremesh.hw.device import Device
from coremesh.hw.i8259a import Pic8259A
from coremesh.hw.ioapic import IoApic82093AA
from coremesh.hw.request import MMIO, PORT, Kind, Reply, Request

logger = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8)
ONES = {size: (1 << 8 * size) - 1 for size in SIZES}
SPACE_NAMES = {PORT: "port", MMIO: "memory"}
LAST = {PORT: 0xFFFF, MMIO: (1 << 64) - 1}


@dataclass(frozen=True)
class At:
    """``length`` addresses of ``space`` from ``base`` reach ``device`` from its ``offset`` on.

    ``widths`` narrows the access sizes that are decoded here; by default those of the device.
    """

    space: int
    base: int
    length: int
    device: Device
    offset: int = 0
    widths: tuple[int, ...] = ()

    @property
    def last(self) -> int:
        """The last address, inclusive."""
        return self.base + self.length - 1


_Target = tuple[Device, threading.Lock, Callable[[int, int], int], Callable[[int, int, int], None], int, int]


class DeviceNode:
    """All devices of one machine. Every method may be called from any thread."""

    def __init__(self, mappings: Iterable[At], ioapic: IoApic82093AA, pic: Pic8259A) -> None:
        """Raises ConfigurationError when two mappings decode the same access."""
        self._mappings = sorted(mappings, key=lambda m: (m.space, m.base, m.offset))
        self._ioapic = ioapic
        self._pic = pic
        self.devices: dict[str, Device] = {m.device.name: m.device for m in self._mappings}
        # A port access is one look-up by (port, size) ...
        self._ports: dict[tuple[int, int], _Target] = {}
        for mapping in self._mappings:
            if mapping.space == PORT:
                self._decode_ports(mapping)
        # ... a memory access a binary search among sorted, disjoint ranges.
        self._memory = [m for m in self._mappings if m.space == MMIO]
        self._memory_bases = [m.base for m in self._memory]
        for below, above in zip(self._memory, self._memory[1:], strict=False):
            if below.last >= above.base:
                raise ConfigurationError(
                    f"{below.device.name} and {above.device.name} overlap at {above.base:#x}; separate them"
                )

    def _decode_ports(self, mapping: At) -> None:
        device = mapping.device
        for size in mapping.widths or device.widths:
            for port in range(mapping.base, mapping.last - size + 2):
                # A bus of `size` bytes takes aligned accesses only; others come as narrower ones.
                if port % size:
                    continue
                other = self._ports.get((port, size))
                if other is not None:
                    raise ConfigurationError(
                        f"{device.name} and {other[0].name} both answer at port {port:#x}; move one of them"
                    )
                offset = mapping.offset + port - mapping.base
                self._ports[port, size] = (device, device.lock, device.read, device.write, offset, ONES[size])

    def access(self, space: int, address: int, size: int, is_write: bool, value: int) -> int:
        """One access of a vCPU: the value read, 0 for a write. Never raises.

        What no device decodes at this size is split in halves, down to single bytes, as an ISA bus does;
        bytes that nobody decodes read as ones and swallow what is written.
        """
        target = self._ports.get((address, size)) if space == 0 else self._memory_target(address, size)
        if target is None:
            return self._undecoded(space, address, size, is_write, value)
        device, lock, read, write, offset, ones = target
        if not lock.acquire(False):
            lock.acquire()
            device.contended += 1
        try:
            device.accesses += 1
            if is_write:
                write(offset, size, value & ones)
                return 0
            return read(offset, size)
        except Exception:
            device.faults += 1
            if device.faults == 1:
                logger.exception(
                    "%s: access at offset %#x failed, answered with all ones", device.name, offset
                )
            return 0 if is_write else ones
        finally:
            lock.release()

    def _memory_target(self, address: int, size: int) -> _Target | None:
        index = bisect_right(self._memory_bases, address) - 1
        if index < 0:
            return None
        mapping = self._memory[index]
        device = mapping.device
        if (
            address + size - 1 > mapping.last
            or size not in (mapping.widths or device.widths)
            or address % size
        ):
            return None
        offset = mapping.offset + address - mapping.base
        return device, device.lock, device.read, device.write, offset, ONES[size]

    def _undecoded(self, space: int, address: int, size: int, is_write: bool, value: int) -> int:
        if size not in SIZES:
            return 0 if is_write or size < 1 else ONES[8]  # no processor makes such an access
        if size == 1 or not 0 <= address <= LAST.get(space, -1):
            return 0 if is_write else ONES[size]
        half = size // 2
        low = self.access(space, address, half, is_write, value & ONES[half])
        high = self.access(space, address + half, half, is_write, value >> 8 * half & ONES[half])
        return low | high << 8 * half

    def eoi(self, vector: int) -> None:
        """EOI broadcast: a local APIC ended a level-triggered interrupt."""
        self._ioapic.eoi(vector)

    def acknowledge(self) -> int:
        """INTA cycle: the vector of the 8259A pair."""
        return self._pic.acknowledge()

    def serve(self, request: Request) -> Reply:
        """The same for a message from another host."""
        value = 0
        if request.kind is Kind.ACCESS:
            value = self.access(request.space, request.address, request.size, request.is_write, request.value)
        elif request.kind is Kind.EOI:
            self.eoi(request.value)
        else:
            value = self.acknowledge()
        return Reply(request.ticket, value)

    def claims(self) -> list[tuple[int, int, int]]:
        """Return ``(space, first, last)`` of every range that devices answer in.

        Inclusive, sorted, neighbours joined.
        """
        joined: list[tuple[int, int, int]] = []
        for m in self._mappings:
            if joined and joined[-1][0] == m.space and m.base <= joined[-1][2] + 1:
                joined[-1] = (m.space, joined[-1][1], max(joined[-1][2], m.last))
            else:
                joined.append((m.space, m.base, m.last))
        return joined

    def map(self) -> list[tuple[str, str, int, int]]:
        """``(device, space, first, last)`` of every mapping, sorted by address, for a person."""
        return [(m.device.name, SPACE_NAMES[m.space], m.base, m.last) for m in self._mappings]

    def start(self) -> None:
        """Start the devices' threads."""
        for device in self.devices.values():
            for alarm in device.alarms:
                alarm.start()

    def stop(self) -> None:
        """Stop them; returns when none runs any more. Accesses are still answered."""
        for device in self.devices.values():
            for alarm in device.alarms:
                alarm.stop()

    def reset(self) -> None:
        """The reset line of the board: every device, in no particular order. The vCPUs must be parked."""
        for device in self.devices.values():
            with device.lock:
                device.reset()

    def counters(self) -> dict[str, dict[str, int]]:
        """By device: accesses, how many of them waited for the device's lock, and faults of the model."""
        return {
            name: {"accesses": d.accesses, "contended": d.contended, "faults": d.faults}
            for name, d in self.devices.items()
        }
