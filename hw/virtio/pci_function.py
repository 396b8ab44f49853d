# SPDX-License-Identifier: GPL-2.0-or-later
"""The PCI function of a virtio device: its identity, its base addresses, the capabilities that lead to them.

Source: VIRTIO 1.2, section 4.1. MSI-X has base address 1; base address 0 has::

    0000  common configuration      4.1.4.3
    1000  ISR status                4.1.4.5
    2000  device configuration      4.1.4.6
    3000  notifications             4.1.4.4: four bytes a queue
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

from coremesh.core._native import Interrupts
from coremesh.hw.decode import MMIO, At
from coremesh.hw.device import Device
from coremesh.hw.pci.config_space import COMMAND
from coremesh.hw.pci.function import INTA, Bar, PciFunction
from coremesh.hw.registers import Bit, Bits, Register
from coremesh.hw.virtio.model import VirtioModel

VENDOR: Final = 0x1AF4
FIRST_DEVICE: Final = 0x1040

COMMON, ISR, CONFIG, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
MSIX: Final = 0x4000
"""Where base address 1 begins among the offsets: the vector table, and behind it the pending bits."""
REGION: Final = 0x1000
NOTIFY_STRIDE: Final = 4
COMMON_BYTES: Final = 60

_VENDOR_SPECIFIC, _MSIX_CAPABILITY = 0x09, 0x11
_COMMON_CFG, _NOTIFY_CFG, _ISR_CFG, _DEVICE_CFG, _PCI_CFG = 1, 2, 3, 4, 5


class MSIX_CONTROL(Register):
    """Message control of the MSI-X capability."""

    TABLE_SIZE = Bits(10, 0)  # less one
    FUNCTION_MASK = Bit(14)
    ENABLE = Bit(15)


class Transport(Device):
    """What answers in the base addresses: the registers of :mod:`~coremesh.hw.virtio.pci`."""

    interrupts: Interrupts

    @abstractmethod
    def moved(self, mappings: Sequence[At]) -> None:
        """The guest has moved the base addresses; they are at ``mappings`` now."""

    @abstractmethod
    def use_bus(self, allowed: bool) -> None:
        """The command register lets the function use the bus, or not; then nothing is under way any more."""


class VirtioFunction(PciFunction):
    """The PCI function of a virtio device: identity, base addresses, capabilities."""

    def __init__(self, transport: Transport, model: VirtioModel) -> None:
        vectors = len(model.queue_sizes) + 1
        super().__init__(
            model.name,
            vendor=VENDOR,
            device=FIRST_DEVICE + model.DEVICE_ID,
            class_code=model.PCI_CLASS,
            revision=1,
            subsystem=(VENDOR, 0x1100),
            pin=INTA,
            bars=(
                Bar(0, MMIO, MSIX, transport),
                Bar(1, MMIO, REGION, transport, offset=MSIX, widths=(4, 8)),
            ),
        )
        self._transport = transport
        table_in_bar_1 = 1
        self._msix = self.config.add_capability(
            _MSIX_CAPABILITY,
            (vectors - 1).to_bytes(2, "little")
            + table_in_bar_1.to_bytes(4, "little")
            + (0x800 | table_in_bar_1).to_bytes(4, "little"),
            (MSIX_CONTROL.ENABLE | MSIX_CONTROL.FUNCTION_MASK).to_bytes(2, "little"),
        )
        writable = b"\0\0\xff\0\0\0" + b"\xff" * 12
        self._window = self._add_structure(_PCI_CFG, 0, 0, bytes(4), writable)
        config_bytes = max(4, len(model.config))
        self._add_structure(_DEVICE_CFG, CONFIG, config_bytes)
        self._add_structure(_ISR_CFG, ISR, 4)
        notify_bytes = NOTIFY_STRIDE * len(model.queue_sizes)
        self._add_structure(_NOTIFY_CFG, NOTIFY, notify_bytes, NOTIFY_STRIDE.to_bytes(4, "little"))
        self._add_structure(_COMMON_CFG, COMMON, COMMON_BYTES)

    def _add_structure(
        self, kind: int, offset: int, length: int, more: bytes = b"", writable: bytes = b""
    ) -> int:
        """4.1.4: struct virtio_pci_cap, in base address 0."""
        size = 16 + len(more)
        body = bytes((size, kind, 0, 0, 0, 0)) + offset.to_bytes(4, "little") + length.to_bytes(4, "little")
        return self.config.add_capability(_VENDOR_SPECIFIC, body + more, writable)

    def read(self, at: int, size: int) -> int:
        """Configuration space; through the PCI_CFG window also the registers (4.1.4.9)."""
        target = self._through_window(at, size)
        if target is None:
            return super().read(at, size)
        with self._transport.lock:
            return self._transport.read(target, size)

    def write(self, at: int, size: int, value: int) -> None:
        """The same, writing."""
        target = self._through_window(at, size)
        super().write(at, size, value)
        if target is not None:
            with self._transport.lock:
                self._transport.write(target, size, value)

    def _through_window(self, at: int, size: int) -> int | None:
        if at != self._window + 16:
            return None
        bar, offset = self.config.read(self._window + 4, 1), self.config.read(self._window + 8, 4)
        length = self.config.read(self._window + 12, 4)
        if bar > 1 or length != size or offset % size or offset + size > self.bars[bar].length:
            return None
        return self.bars[bar].offset + offset

    def written(self, at: int, size: int) -> None:
        """The function may use the bus or not; MSI-X was enabled, disabled, masked or unmasked as a whole."""
        if at <= COMMAND.offset < at + size:
            self._transport.use_bus(self.bus_master)
        if at < self._msix + 4 and at + size > self._msix + 2:
            self._apply_msix()

    def reset(self) -> None:
        """RST#: see :class:`PciFunction`."""
        super().reset()
        self._transport.use_bus(False)

    def resume(self) -> None:
        """See :class:`PciFunction`."""
        super().resume()
        self._transport.use_bus(self.bus_master)

    def _apply_msix(self) -> None:
        control = self.config.read(self._msix + 2, 2)
        self._transport.interrupts.control(
            bool(control & MSIX_CONTROL.ENABLE), bool(control & MSIX_CONTROL.FUNCTION_MASK)
        )

    def moved(self, device: Device, mappings: Sequence[At]) -> None:
        """The doorbells are where the base address is."""
        self._transport.moved(mappings)
