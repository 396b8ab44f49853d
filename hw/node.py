# SPDX-License-Identifier: GPL-2.0-or-later
"""The device node: which device answers at which address, called by the threads of the vCPUs.

There is no global lock. An access takes the lock of the one device that it reaches; how often that lock was
taken already is counted and can be shown. Addresses are looked up in a table that never changes; a device
that moves replaces the table whole.
"""

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from coremesh.core._native import step_out
from coremesh.core.errors import ConfigurationError
from coremesh.core.state import State, check_keys
from coremesh.hw.decode import LAST, ONES, PORT, SIZES, SPACE_NAMES, At, DecodeTable
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.isa.i8259a import Pic8259A
from coremesh.hw.isa.ioapic import IoApic82093AA

logger = logging.getLogger(__name__)

_NO_VCPU = 255  # kNoVcpu of core/native/bus/device_meter.hpp


class Meter(Protocol):
    """What counts the accesses where they come from: :class:`coremesh.core._native.DeviceMeter`."""

    def place(self, places: Sequence[tuple[int, int, int, int]]) -> None:
        """Devices answer there from now on: (space, first, last, number from 1) each."""

    def uses(self) -> Sequence[tuple[int, int, int, int, int]]:
        """(device, vCPU, accesses, bytes, ns) of each pair that has met; vCPU 255 is any other thread."""

    def depths(self) -> Sequence[tuple[int, int, int]]:
        """(device, accesses under way, the most at once) of each device."""


class DeviceNode:
    """All devices of one machine. Every method may be called from any thread."""

    def __init__(
        self,
        mappings: Iterable[At],
        ioapic: IoApic82093AA,
        pic: Pic8259A,
        *,
        movable: Iterable[Device] = (),
        windows: Iterable[tuple[int, int, int]] = (),
    ) -> None:
        """``movable`` are devices that come to answer later, somewhere in ``windows``: (space, first, last).

        Raises ConfigurationError when two mappings decode the same access, or two devices have one name.
        """
        self._table = DecodeTable(mappings)
        self._windows = tuple(windows)
        self._moving = threading.Lock()  # one move at a time; look-ups do not take it
        self._ioapic = ioapic
        self._pic = pic
        self._meter: Meter | None = None
        # Of devices, for the meter, which keeps what it has counted: none is given twice. Guarded by _moving.
        self._numbers: dict[str, int] = {}
        self._next_number = itertools.count(1)
        self.devices: dict[str, Device] = {}
        for device in [*(m.device for m in self._table.mappings), *movable]:
            if self.devices.setdefault(device.name, device) is not device:
                raise ConfigurationError(f"two devices are called {device.name}; rename one of them")

    def access(self, space: int, address: int, size: int, is_write: bool, value: int) -> int:
        """One access of a vCPU: the value read, 0 for a write. Never raises.

        What no device decodes at this size is split in halves, down to single bytes, as an ISA bus does;
        bytes that no device decodes read as ones, and writes to them are lost.
        """
        table = self._table
        target = table.ports.get((address, size)) if space == PORT else table.memory(address, size)
        if target is None:
            return self._undecoded(space, address, size, is_write, value)
        device, lock, read, write, offset, ones = target
        if not lock.acquire(False):
            begin = time.monotonic_ns()
            step_out()
            lock.acquire()
            device.contended += 1
            device.waited_ns += time.monotonic_ns() - begin
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

    def _undecoded(self, space: int, address: int, size: int, is_write: bool, value: int) -> int:
        if size not in SIZES:
            return 0 if is_write or size < 1 else ONES[8]  # no processor makes such an access
        if size == 1 or not 0 <= address <= LAST.get(space, -1):
            return 0 if is_write else ONES[size]
        half = size // 2
        low = self.access(space, address, half, is_write, value & ONES[half])
        high = self.access(space, address + half, half, is_write, value >> 8 * half & ONES[half])
        return low | high << 8 * half

    def move(self, device: Device, mappings: Iterable[At]) -> None:
        """Let ``device`` answer at ``mappings``, and nowhere else, from now on.

        An access that was looked up before still reaches it. Raises ConfigurationError when another device
        answers there: nothing has changed then.
        """
        with self._moving:
            self._table = self._table.moved(device, mappings)
            self.devices[device.name] = device
            self._tell_meter()

    def remove(self, device: Device) -> None:
        """Let ``device`` answer nowhere any more, and forget it; an access that has reached it goes on."""
        with self._moving:
            self._table = self._table.moved(device, ())
            # Replaced whole: another thread may be going through it.
            self.devices = {name: other for name, other in self.devices.items() if other is not device}
            self._numbers = {name: n for name, n in self._numbers.items() if name != device.name}
            self._tell_meter()

    def add(self, device: Device, mappings: Iterable[At]) -> None:
        """One more device, while the others are accessed. Its alarms and workers are its owner's to start.

        Raises ConfigurationError when another device has its name or answers at its addresses.
        """
        with self._moving:
            if device.name in self.devices:
                raise ConfigurationError(f"the machine has a device called {device.name}; give another name")
            self._table = self._table.moved(device, mappings)
            self.devices = {**self.devices, device.name: device}
            self._tell_meter()

    def line(self, irq: int, pin: int) -> IrqLine:
        """A wire to input ``irq`` of the 8259A pair and to ``pin`` of the I/O APIC; one device drives it."""
        return IrqLine(self._pic.irq(irq), self._ioapic.pin(pin))

    def eoi(self, vector: int) -> None:
        """EOI broadcast: a local APIC ended a level-triggered interrupt."""
        self._ioapic.eoi(vector)

    def acknowledge(self) -> int:
        """INTA cycle: the vector of the 8259A pair."""
        return self._pic.acknowledge()

    def claims(self) -> list[tuple[int, int, int]]:
        """Return ``(space, first, last)`` of every range that devices answer in, or may come to.

        Sorted and joined.
        """
        return self._table.claims(self._windows)

    def map(self) -> list[tuple[str, str, int, int]]:
        """``(device, space, first, last)`` of every mapping, sorted by address, for a person."""
        return [(m.device.name, SPACE_NAMES[m.space], m.base, m.last) for m in self._table.mappings]

    def start(self) -> None:
        """Start the devices' threads."""
        for device in self.devices.values():
            for alarm in device.alarms:
                alarm.start()
            device.start()

    def stop(self) -> None:
        """Stop them; returns when none runs any more. Accesses are still answered."""
        for device in self.devices.values():
            for alarm in device.alarms:
                alarm.stop()
            device.stop()

    def reset(self) -> None:
        """The reset line of the board: every device, in no particular order. The vCPUs must be parked."""
        for device in self.devices.values():
            with device.lock:
                device.reset()

    def save(self) -> State:
        """The state of every device by name, as plain data. The vCPUs must be parked and the node stopped."""
        return {name: device.save() for name, device in self.devices.items()}

    def load(self, state: Mapping[str, State]) -> None:
        """Continue from what :meth:`save` of a node with the same devices returned. Not while it runs.

        Raises :class:`~coremesh.core.state.StateError` for a state of another machine.
        """
        check_keys(state, set(self.devices), "the device node")
        for name, device in self.devices.items():
            device.load(state[name])
        for device in self.devices.values():
            with device.lock:
                device.resume()

    def count_with(self, meter: Meter) -> None:
        """Let ``meter`` know the devices by their addresses, now and whenever one moves."""
        with self._moving:
            self._meter = meter
            self._tell_meter()

    def _tell_meter(self) -> None:
        if self._meter is None:
            return
        for mapping in self._table.mappings:
            if mapping.device.name not in self._numbers:
                self._numbers = {**self._numbers, mapping.device.name: next(self._next_number)}
        self._meter.place(
            [(m.space, m.base, m.last, self._numbers[m.device.name]) for m in self._table.mappings]
        )

    def counters(self) -> dict[str, dict[str, int]]:
        """By device: accesses, waits for its lock, faults of the model, and what it counts itself.

        With a meter also 'access_bytes', 'access_ns' (from the first instruction of an access to its last,
        the wait for the lock and for the interpreter included), 'at_once' (accesses under way now),
        'most_at_once', and 'vcpus' (how many have used it); 'accesses' are then those of native code too.
        """
        found = {name: device.counts() for name, device in self.devices.items()}
        if self._meter is None:
            return found
        names = {number: name for name, number in self._numbers.items()}
        for device, now, most in self._meter.depths():
            if (row := found.get(names.get(device, ""))) is not None:
                row |= {"accesses": 0, "access_bytes": 0, "access_ns": 0, "vcpus": 0}
                row |= {"at_once": now, "most_at_once": most}
        for name, vcpu, accesses, size, ns in self.uses():
            if (row := found.get(name)) is not None:
                row["accesses"] += accesses
                row["access_bytes"] += size
                row["access_ns"] += ns
                row["vcpus"] += vcpu is not None
        return found

    def uses(self) -> list[tuple[str, int | None, int, int, int]]:
        """(device, vCPU, accesses, bytes, ns) of each pair that has met; None is a thread that is no vCPU's.

        Empty without a meter.
        """
        if self._meter is None:
            return []
        names = {number: name for name, number in self._numbers.items()}
        return [
            (names[device], vcpu if vcpu < _NO_VCPU else None, accesses, size, ns)
            for device, vcpu, accesses, size, ns in self._meter.uses()
            if device in names  # it may have been detached
        ]
