# SPDX-License-Identifier: GPL-2.0-or-later
"""The device node: which device answers at which address, called by the threads of the vCPUs.

There is no global lock. An access takes the lock of the one device that it reaches; how often that lock was
taken already is counted and can be shown. Addresses are looked up in a table that never changes; a device
that moves replaces the table whole.
"""

import logging
import threading
from collections.abc import Iterable, Mapping

from coremesh.core.errors import ConfigurationError
from coremesh.core.state import State, check_keys
from coremesh.hw.decode import LAST, ONES, PORT, SIZES, SPACE_NAMES, At, DecodeTable
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.isa.i8259a import Pic8259A
from coremesh.hw.isa.ioapic import IoApic82093AA

logger = logging.getLogger(__name__)


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

    def remove(self, device: Device) -> None:
        """Let ``device`` answer nowhere any more, and forget it; an access that has reached it goes on."""
        with self._moving:
            self._table = self._table.moved(device, ())
            # Replaced whole: another thread may be going through it.
            self.devices = {name: other for name, other in self.devices.items() if other is not device}

    def add(self, device: Device, mappings: Iterable[At]) -> None:
        """One more device, while the others are accessed. Its alarms and workers are its owner's to start.

        Raises ConfigurationError when another device has its name or answers at its addresses.
        """
        with self._moving:
            if device.name in self.devices:
                raise ConfigurationError(f"the machine has a device called {device.name}; give another name")
            self._table = self._table.moved(device, mappings)
            self.devices = {**self.devices, device.name: device}

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

    def counters(self) -> dict[str, dict[str, int]]:
        """By device: accesses, waits for its lock, faults of the model, and what it counts itself."""
        return {name: device.counts() for name, device in self.devices.items()}
