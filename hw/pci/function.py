# SPDX-License-Identifier: GPL-2.0-or-later
"""A PCI function: its configuration space, the devices that answer in its base addresses, its interrupt pin.

The devices behind it are ordinary devices with locks of their own. The function says where they answer: when
the guest moves a base address or changes the command register, it asks the device node to map them anew.

Locks, in this order: the host bridge's (every access to configuration space), a device's, the function's (its
interrupt pin), the shared line's, the interrupt controllers'.

Source: PCI Local Bus Specification 2.1, chapter 6.
"""

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from coremesh.core.errors import ConfigurationError
from coremesh.hw.decode import MMIO, PORT, At
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.pci.config_space import (
    BAR,
    CLASS,
    COMMAND,
    HEADER_TYPE,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    STATUS,
    SUBSYSTEM,
    ConfigSpace,
)
from coremesh.hw.state import Stateful

logger = logging.getLogger(__name__)

INTA, INTB, INTC, INTD = 1, 2, 3, 4
_LEAST = {PORT: 4, MMIO: 16}


class Mapper(Protocol):
    """What maps devices: the device node."""

    def move(self, device: Device, mappings: Iterable[At]) -> None:
        """Let ``device`` answer at ``mappings`` only. Raises ConfigurationError where another one answers."""


@dataclass(frozen=True)
class Bar:
    """Base address register ``index``: ``length`` bytes (a power of two) of PORT or MMIO space.

    They reach ``device`` from its ``offset`` on. ``wide``: 64 bits, which takes the next register too.
    ``widths`` narrows the access sizes, by default those of the device.
    """

    index: int
    space: int
    length: int
    device: Device
    offset: int = 0
    wide: bool = False
    prefetchable: bool = False
    widths: tuple[int, ...] = ()

    @property
    def at(self) -> int:
        """The register's offset in configuration space."""
        return BAR.offset + 4 * self.index

    @property
    def bits(self) -> int:
        """How wide an address the register holds."""
        return 64 if self.wide else 32

    def flags(self) -> int:
        """The read-only low bits."""
        if self.space == PORT:
            return BAR.IO
        return (BAR.WIDE if self.wide else 0) | (BAR.PREFETCHABLE if self.prefetchable else 0)


class PciFunction(Stateful):
    """One function. Put it into a slot with :meth:`PciHost.attach`, before the machine runs.

    ``fixed`` are mappings at addresses that no base address register gives (an IDE channel's, for example);
    they answer while the command register allows accesses to their space, as the base addresses do.
    ``pin`` is INTA to INTD, or 0 for a function without interrupt.

    A subclass or an owner adds registers with ``config.declare`` and ``config.add_capability``, and sees
    every write of the guest in :meth:`written`.
    """

    STATE: ClassVar[tuple[str, ...]] = ("config", "_asserted")

    def __init__(
        self,
        name: str,
        *,
        vendor: int,
        device: int,
        class_code: int,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        pin: int = 0,
        multifunction: bool = False,
        bars: Sequence[Bar] = (),
        fixed: Sequence[At] = (),
        command: int = int(COMMAND.IO | COMMAND.MEMORY | COMMAND.BUS_MASTER | COMMAND.INTX_DISABLE),
    ) -> None:
        """``command`` are the writable bits of the command register."""
        self.name = name
        self.pin = pin
        self.bars = tuple(bars)
        self.fixed = tuple(fixed)
        self.config = ConfigSpace(
            {
                0x00: vendor.to_bytes(2, "little") + device.to_bytes(2, "little"),
                CLASS.offset: bytes((revision,)) + class_code.to_bytes(3, "little"),
                HEADER_TYPE.offset: bytes((HEADER_TYPE.MULTIFUNCTION if multifunction else 0,)),
                SUBSYSTEM: subsystem[0].to_bytes(2, "little") + subsystem[1].to_bytes(2, "little"),
                INTERRUPT_PIN: bytes((pin,)),
            },
            {
                COMMAND.offset: command.to_bytes(2, "little"),
                0x0C: b"\xff\xff",  # cache line size and latency timer: kept, without meaning here
                INTERRUPT_LINE: b"\xff" if pin else b"\0",
            },
            {STATUS.offset: STATUS.ERRORS.mask.to_bytes(2, "little")},
        )
        for bar in self.bars:
            if bar.length < _LEAST[bar.space] or bar.length & (bar.length - 1):
                raise ValueError(f"{name}: a base address of {bar.length} bytes is no power of two from 4 on")
            size = bar.bits // 8
            mask = (1 << bar.bits) - bar.length
            self.config.declare(bar.at, bar.flags().to_bytes(size, "little"), mask.to_bytes(size, "little"))
        self._mapper: Mapper | None = None
        self._mapped: dict[Device, tuple[At, ...]] = dict.fromkeys(self.devices, ())
        self._pin_lock = threading.Lock()  # guards what follows
        self._line: IrqLine | None = None
        self._asserted = False

    @property
    def devices(self) -> list[Device]:
        """The devices that answer in the function's address ranges, each once."""
        owners = [*(bar.device for bar in self.bars), *(at.device for at in self.fixed)]
        return list(dict.fromkeys(owners))

    # --- what the function may do ------------------------------------------------------------------------

    @property
    def command(self) -> int:
        """The command register. Any thread."""
        return self.config.data[COMMAND.offset] | self.config.data[COMMAND.offset + 1] << 8

    @property
    def bus_master(self) -> bool:
        """Whether the guest lets the function do DMA. Any thread; look before each transfer."""
        return bool(self.config.data[COMMAND.offset] & COMMAND.BUS_MASTER)

    def signal_error(self, status: int) -> None:
        """Set error bits of the status register, such as a received master abort. Any thread."""
        at = STATUS.offset
        self.config.put(at, 2, self.config.read(at, 2) | status & STATUS.ERRORS.mask)

    def set_interrupt(self, asserted: bool) -> None:
        """Assert the interrupt pin, or no more. Any thread, also with the device's lock held.

        Every register that the guest may read holds its final value before.
        """
        with self._pin_lock:
            self._asserted = asserted
            self._drive()

    def _drive(self) -> None:
        if self._line is not None:
            self._line.set(self._asserted and not self.command & COMMAND.INTX_DISABLE)

    # --- wiring, and the host bridge: with its lock held -------------------------------------------------

    def wire(self, line: IrqLine) -> None:
        """Connect the interrupt pin; the host bridge does, when the function is put into its slot."""
        self._line = line

    def connect(self, mapper: Mapper) -> None:
        """From now on the registers decide where the devices answer."""
        self._mapper = mapper
        self.remap()

    def reset(self) -> None:
        """RST#: no address, no command, no interrupt."""
        self.config.reset()
        self.set_interrupt(False)
        self.remap()

    def read(self, at: int, size: int) -> int:
        """The guest reads configuration space; aligned, ``at + size <= 256``."""
        value = self.config.read(at, size)
        if at <= STATUS.offset < at + size and self._asserted:
            value |= STATUS.INTERRUPT << 8 * (STATUS.offset - at)
        return value

    def write(self, at: int, size: int, value: int) -> None:
        """The guest writes configuration space."""
        self.config.write(at, size, value)
        if at < COMMAND.offset + 2 and at + size > COMMAND.offset:
            with self._pin_lock:
                self._drive()
            self.remap()
        elif BAR.offset <= at < BAR.offset + 4 * BAR.COUNT:
            self.remap()
        self.written(at, size)

    def written(self, at: int, size: int) -> None:
        """The guest has written ``size`` bytes at ``at``: what else follows from it."""

    def resume(self) -> None:
        """Loaded from a saved state: take the places that the registers give, and the pin's level."""
        if self._line is not None:
            self._line.restore(self._asserted and not self.command & COMMAND.INTX_DISABLE)
        self.remap()

    def base(self, bar: Bar) -> int:
        """The address in a base address register."""
        return self.config.read(bar.at, bar.bits // 8) & ((1 << bar.bits) - bar.length)

    def mappings(self) -> list[At]:
        """Where the devices answer by what the registers say now."""
        command = self.command
        allowed = {PORT: command & COMMAND.IO, MMIO: command & COMMAND.MEMORY}
        found = [at for at in self.fixed if allowed[at.space]]
        for bar in self.bars:
            base = self.base(bar)
            # An address of zero is one that software has not yet given.
            if allowed[bar.space] and base and (bar.space == MMIO or base + bar.length <= 0x1_0000):
                found.append(At(bar.space, base, bar.length, bar.device, bar.offset, bar.widths))
        return found

    def remap(self) -> None:
        """Tell the device node where the devices answer, if that has changed.

        Two devices at one address fight on a real bus. Here the one that came later answers nowhere.
        """
        if self._mapper is None:
            return
        found = self.mappings()
        for device in self._mapped:
            wanted = tuple(at for at in found if at.device is device)
            if wanted == self._mapped[device]:
                continue
            try:
                self._mapper.move(device, wanted)
            except ConfigurationError as error:
                logger.debug("%s: %s", self.name, error)
                wanted = ()
                self._mapper.move(device, wanted)
            self._mapped[device] = wanted
            self.moved(device, wanted)

    def moved(self, device: Device, mappings: Sequence[At]) -> None:
        """``device`` now answers at ``mappings``."""


def pirq_of(slot: int, pin: int) -> int:
    """Which of PIRQA to PIRQD (0 to 3) pin INTA to INTD (1 to 4) of the device in ``slot`` is wired to.

    Boards turn the four lines by one from slot to slot, so that not all INTA pins share one.
    """
    return (slot + pin - 2) % 4
