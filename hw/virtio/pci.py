# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio over PCI, modern interface: the registers of one device, and what its driver does with them.

Source: VIRTIO 1.2, section 4.1. The driver's notifications are doorbells: core/native/bus/doorbell.hpp
answers them before this code is asked, except in a machine without a native host, as tests are.
``pci_function.py`` says which register is at which offset.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from coremesh.core._native import BusMaster, Doorbells, DoorbellWindow, Interrupts, VirtQueue
from coremesh.core.state import State, StateError
from coremesh.hw.decode import At
from coremesh.hw.registers import Bit, Register
from coremesh.hw.state import Stateful
from coremesh.hw.virtio.model import EVENT_IDX, INDIRECT_DESC, VERSION_1, VirtioModel
from coremesh.hw.virtio.pci_function import (
    COMMON,
    COMMON_BYTES,
    CONFIG,
    ISR,
    MSIX,
    NOTIFY,
    NOTIFY_STRIDE,
    REGION,
    Transport,
    VirtioFunction,
)

logger = logging.getLogger(__name__)

NO_VECTOR: Final = 0xFFFF
_LONGEST_RESET: Final = 20.0  # seconds a request may take that is under way when the device is to be still


class DEVICE_STATUS(Register):
    """2.1: how far the driver has come."""

    offset = 20
    ACKNOWLEDGE = Bit(0)
    DRIVER = Bit(1)
    DRIVER_OK = Bit(2)
    FEATURES_OK = Bit(3)
    NEEDS_RESET = Bit(6)
    FAILED = Bit(7)


class DEVICE_FEATURE_SELECT(Register):
    """Which 32 feature bits DEVICE_FEATURE shows."""

    offset = 0
    writable = 0xFFFF_FFFF


class DRIVER_FEATURE_SELECT(Register):
    """Which 32 feature bits DRIVER_FEATURE takes."""

    offset = 8
    writable = 0xFFFF_FFFF


class CONFIG_MSIX_VECTOR(Register):
    """The vector of configuration changes."""

    offset = 16
    reset = NO_VECTOR
    writable = 0xFFFF


class CONFIG_GENERATION(Register):
    """Changes with the device's configuration."""

    offset = 21
    writable = 0


class QUEUE_SELECT(Register):
    """Which queue the registers behind are of."""

    offset = 22
    writable = 0xFFFF


_QUEUE_SIZE, _QUEUE_VECTOR, _QUEUE_ENABLE, _QUEUE_NOTIFY_OFF = 24, 26, 28, 30
_QUEUE_DESCRIPTORS, _QUEUE_DRIVER, _QUEUE_DEVICE = 32, 40, 48
_ALIGNMENT: Final = {"descriptors": 16, "driver": 2, "device": 4}


class QueueRegisters(Stateful):
    """What the driver has set of one queue."""

    STATE = ("size", "vector", "enabled", "descriptors", "driver", "device", "position")

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.reset()

    def reset(self) -> None:
        """As at the start."""
        self.size = self.largest
        self.vector = NO_VECTOR
        self.enabled = False
        self.descriptors = self.driver = self.device = 0
        self.position: tuple[int, int, int] = (0, 0, 0)

    @property
    def aligned(self) -> bool:
        """Whether the three parts lie as 2.7 wants them."""
        return not any(getattr(self, part) % by for part, by in _ALIGNMENT.items())


class VirtioPci(Transport):
    """The transport of one device. ``function`` goes onto the PCI bus."""

    REGISTERS = (
        DEVICE_STATUS,
        DEVICE_FEATURE_SELECT,
        DRIVER_FEATURE_SELECT,
        CONFIG_MSIX_VECTOR,
        CONFIG_GENERATION,
        QUEUE_SELECT,
    )
    STATE = ("_driver_features", "_queue_registers", "_resetting", "_config", "_interrupts_state", "model")
    widths = (1, 2, 4, 8)
    device_status: int
    device_feature_select: int
    driver_feature_select: int
    config_msix_vector: int
    config_generation: int
    queue_select: int

    def __init__(self, model: VirtioModel, bus: BusMaster, doorbells: Doorbells | None = None) -> None:
        super().__init__(model.name)
        self.model = model
        self.function = VirtioFunction(self, model)
        self.interrupts = Interrupts(bus, len(model.queue_sizes) + 1, self.function.set_interrupt)
        self.queues = [VirtQueue(bus, self.interrupts) for _ in model.queue_sizes]
        self._window: DoorbellWindow | None = None
        if doorbells is not None:
            self._window = doorbells.add(list(self.queues), NOTIFY_STRIDE)
        self._queue_registers = [QueueRegisters(size) for size in model.queue_sizes]
        self._driver_features = 0
        self._resetting = False
        self._config = bytearray(len(model.config))
        self._interrupts_state: tuple[Any, ...] = ()
        self.resets_needed = 0
        model.bind(self, self.queues)
        self.use_bus(False)
        super().reset()

    # --- the guest: the lock is held ---------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """See the top of this file for what is where."""
        if offset >= MSIX:
            return self.interrupts.read(offset - MSIX, size) if size >= 4 else (1 << 8 * size) - 1
        region, at = offset & ~(REGION - 1), offset % REGION
        if region == COMMON and at + size <= COMMON_BYTES:
            return int.from_bytes(self._common()[at : at + size], "little")
        if region == ISR and at == 0:
            return self.interrupts.take_isr()
        if region == CONFIG:
            return int.from_bytes(self.model.config[at : at + size], "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The same, writing."""
        if offset >= MSIX:
            if size >= 4:
                self.interrupts.write(offset - MSIX, size, value)
            return
        region, at = offset & ~(REGION - 1), offset % REGION
        if region == COMMON and at + size <= COMMON_BYTES:
            self._write_common(at, size, value)
        elif region == CONFIG and at + size <= len(self.model.config):
            self.model.write_config(at, value.to_bytes(size, "little"))
        elif region == NOTIFY and at // NOTIFY_STRIDE < len(self.queues):
            self.queues[at // NOTIFY_STRIDE].ring()

    def _common(self) -> bytes:
        """The common configuration as bytes: it is read as a driver starts, and never after."""
        selected = self._selected()
        features = (
            self.model.features >> 32 * self.device_feature_select if self.device_feature_select < 2 else 0
        )
        driver = (
            self._driver_features >> 32 * self.driver_feature_select if self.driver_feature_select < 2 else 0
        )
        data = bytearray(COMMON_BYTES)

        def put(at: int, size: int, value: int) -> None:
            data[at : at + size] = value.to_bytes(size, "little")

        put(0, 4, self.device_feature_select)
        put(4, 4, features & 0xFFFF_FFFF)
        put(8, 4, self.driver_feature_select)
        put(12, 4, driver & 0xFFFF_FFFF)
        put(16, 2, self.config_msix_vector)
        put(18, 2, len(self.queues))
        put(20, 1, self._read_status())
        put(21, 1, self.config_generation)
        put(22, 2, self.queue_select)
        if selected is not None:  # 4.1.4.3.1: of a queue that is not there the size reads zero
            put(_QUEUE_SIZE, 2, selected.size)
            put(_QUEUE_VECTOR, 2, selected.vector)
            put(_QUEUE_ENABLE, 2, int(selected.enabled))
            put(_QUEUE_NOTIFY_OFF, 2, self.queue_select)
            put(_QUEUE_DESCRIPTORS, 8, selected.descriptors)
            put(_QUEUE_DRIVER, 8, selected.driver)
            put(_QUEUE_DEVICE, 8, selected.device)
        return bytes(data)

    def _selected(self) -> QueueRegisters | None:
        return (
            self._queue_registers[self.queue_select]
            if self.queue_select < len(self._queue_registers)
            else None
        )

    def _write_common(self, at: int, size: int, value: int) -> None:
        if at == DEVICE_STATUS.offset and size == 1:
            self._write_status(value)
        elif self._resetting:
            return
        elif (at, size) == (0, 4):
            self.device_feature_select = value
        elif (at, size) == (8, 4):
            self.driver_feature_select = value
        elif (at, size) == (12, 4):
            self._write_features(value)
        elif (at, size) == (16, 2):
            self.config_msix_vector = self._vector(value)
        elif (at, size) == (22, 2):
            self.queue_select = value
        elif (selected := self._selected()) is not None:
            self._write_queue(selected, self.queues[self.queue_select], at, size, value)

    def _vector(self, value: int) -> int:
        """4.1.5.1.2: a vector that is not there reads back as NO_VECTOR."""
        return value if value < self.interrupts.vectors else NO_VECTOR

    def _write_features(self, value: int) -> None:
        if self.driver_feature_select < 2 and not self.device_status & DEVICE_STATUS.FEATURES_OK:
            shift = 32 * self.driver_feature_select
            self._driver_features = self._driver_features & ~(0xFFFF_FFFF << shift) | value << shift

    def _write_queue(
        self, registers: QueueRegisters, queue: VirtQueue, at: int, size: int, value: int
    ) -> None:
        if (at, size) == (_QUEUE_VECTOR, 2):
            registers.vector = self._vector(value)
            queue.set_vector(registers.vector)
        elif registers.enabled:
            return  # 4.1.4.3.2: not to be changed any more
        elif (at, size) == (_QUEUE_SIZE, 2):
            if value and not value & (value - 1) and value <= registers.largest:
                registers.size = value
        elif (at, size) == (_QUEUE_ENABLE, 2):
            if value == 1:
                self._enable(registers, queue)
        elif _QUEUE_DESCRIPTORS <= at < _QUEUE_DEVICE + 8 and size in (4, 8) and at % size == 0:
            part = ("descriptors", "driver", "device")[(at - _QUEUE_DESCRIPTORS) // 8]
            shift, mask = 8 * (at % 8), (1 << 8 * size) - 1
            setattr(registers, part, getattr(registers, part) & ~(mask << shift) | value << shift)

    def _enable(self, registers: QueueRegisters, queue: VirtQueue) -> None:
        if not registers.aligned:
            self._fail("a queue that is not aligned")
            return
        registers.enabled = True
        if self.device_status & DEVICE_STATUS.DRIVER_OK:
            self._start_queue(registers, queue)

    def _start_queue(self, registers: QueueRegisters, queue: VirtQueue) -> None:
        queue.set_vector(registers.vector)
        queue.start(
            registers.size,
            registers.descriptors,
            registers.driver,
            registers.device,
            bool(self._driver_features & EVENT_IDX),
            bool(self._driver_features & INDIRECT_DESC),
            registers.position,
        )

    # --- device status -----------------------------------------------------------------------------------

    def _read_status(self) -> int:
        """A driver that has written 0 reads it back when the device touches its memory no more (2.4.2)."""
        if self._resetting:
            self._finish_reset()
        return self.device_status

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._resetting = True
            for queue in self.queues:
                queue.stop()
            self._finish_reset()
            return
        if self._resetting:
            return
        before = self.device_status
        status = value & ~DEVICE_STATUS.NEEDS_RESET | before & DEVICE_STATUS.NEEDS_RESET
        if status & DEVICE_STATUS.FEATURES_OK and not before & DEVICE_STATUS.FEATURES_OK:
            acceptable = not self._driver_features & ~self.model.features
            if not acceptable or not self._driver_features & VERSION_1:
                status &= ~DEVICE_STATUS.FEATURES_OK
        if status & DEVICE_STATUS.DRIVER_OK and not status & DEVICE_STATUS.FEATURES_OK:
            status &= ~DEVICE_STATUS.DRIVER_OK
        self.device_status = status
        if status & DEVICE_STATUS.DRIVER_OK and not before & DEVICE_STATUS.DRIVER_OK:
            self._activate()

    def _activate(self) -> None:
        self.model.activate(self._driver_features)
        for registers, queue in zip(self._queue_registers, self.queues, strict=True):
            if registers.enabled and not queue.enabled:
                self._start_queue(registers, queue)

    def _finish_reset(self) -> None:
        if not all(queue.idle for queue in self.queues):
            return
        self._resetting = False
        super().reset()
        self._driver_features = 0
        for registers, queue in zip(self._queue_registers, self.queues, strict=True):
            registers.reset()
            queue.reset()
        self.interrupts.take_isr()
        self.model.deactivate()

    def _fail(self, why: str) -> None:
        if not self.device_status & DEVICE_STATUS.NEEDS_RESET:
            self.resets_needed += 1
            logger.debug("%s needs a reset: %s", self.name, why)
        self.device_status |= DEVICE_STATUS.NEEDS_RESET
        for queue in self.queues:
            queue.stop()
        if self.device_status & DEVICE_STATUS.DRIVER_OK:
            self.interrupts.configuration(self.config_msix_vector)

    # --- the model: a worker's thread --------------------------------------------------------------------

    def needs_reset(self, why: str) -> None:
        """See :class:`~coremesh.hw.virtio.model.Port`."""
        with self.lock:
            # What a worker found may be of an earlier driver: the device was reset since, and is sound.
            if any(queue.broken for queue in self.queues) and not self._resetting:
                self._fail(why)

    def configuration_changed(self) -> None:
        """See :class:`~coremesh.hw.virtio.model.Port`."""
        with self.lock:
            self.config_generation = (self.config_generation + 1) & 0xFF
            if self.device_status & DEVICE_STATUS.DRIVER_OK:
                self.interrupts.configuration(self.config_msix_vector)

    # --- the board ---------------------------------------------------------------------------------------

    def moved(self, mappings: Sequence[At]) -> None:
        """The guest has moved the base addresses: the doorbells go along."""
        if self._window is not None:
            base = next((at.base for at in mappings if at.offset == 0), None)
            self._window.move(0 if base is None else base + NOTIFY)

    def reset(self) -> None:
        """RST#. Waits for the requests that are under way: the vCPUs are parked."""
        for queue in self.queues:
            queue.stop()
        self._await_idle()
        self._finish_reset()
        self.interrupts.reset()

    def _await_idle(self) -> None:
        deadline = time.monotonic() + _LONGEST_RESET
        while not all(queue.idle for queue in self.queues) and time.monotonic() < deadline:
            time.sleep(0.0005)

    def use_bus(self, allowed: bool) -> None:
        """The command register lets the function use the bus, or not. Without the lock.

        When it is not allowed any more, this returns when nothing is under way: what a guest then finds in
        its memory stays as it is.
        """
        self.interrupts.allow_messages(allowed)
        for queue in self.queues:
            queue.hold(not allowed)
        if not allowed:
            self._await_idle()

    def start(self) -> None:
        """Let the workers run."""
        self.model.start()

    def stop(self) -> None:
        """Returns when no worker runs any more."""
        self.model.stop()

    def save(self) -> State:
        """See :class:`~coremesh.hw.device.Device`; the node has been stopped."""
        for registers, queue in zip(self._queue_registers, self.queues, strict=True):
            if registers.enabled:
                registers.position = queue.position()
        self._config[:] = self.model.config
        self._interrupts_state = self.interrupts.save()
        return super().save()

    def resume(self) -> None:
        """Loaded: the queues go on where they were."""
        if not self.interrupts.load(self._interrupts_state):
            raise StateError(f"the saved state of {self.name} is of another device; attach the same one")
        self.model.config[:] = self._config
        if (
            self.device_status & DEVICE_STATUS.DRIVER_OK
            and not self.device_status & DEVICE_STATUS.NEEDS_RESET
        ):
            self._activate()

    def counts(self) -> dict[str, int]:
        """Beside those of every device: interrupts, and what the model counts."""
        return {
            **super().counts(),
            **self.model.counts(),
            **self.interrupts.counters(),
            "resets_needed": self.resets_needed,
        }
