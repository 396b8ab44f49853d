# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI configuration mechanism #1, bus 0 behind it, and the host bridge of the 82441FX (i440FX PMC).

Reference: PCI Local Bus Specification 2.1, section 3.7.4.1; Intel 82441FX datasheet, section 3.
Offsets: 0 CONFADD (0xCF8), 4 CONFDATA (0xCFC).
"""

from collections.abc import Callable, Sequence

from coremesh.core.errors import ConfigurationError
from coremesh.hw.decode import At
from coremesh.hw.device import Device
from coremesh.hw.irq import SharedLine
from coremesh.hw.pci.function import Mapper, PciFunction, pirq_of
from coremesh.hw.registers import Bit, Bits, Register

SLOTS = 32
FUNCTIONS = 8


class CONFADD(Register):
    """Configuration address. Only a 32-bit access reaches it."""

    writable = 0x80FF_FFFC
    REGISTER = Bits(7, 2)
    FUNCTION = Bits(10, 8)
    DEVICE = Bits(15, 11)
    BUS = Bits(23, 16)
    CONE = Bit(31)  # CONFDATA reaches configuration space


class PAM(Register):
    """Programmable attribute map: PAM0 to PAM6 (82441FX datasheet, section 3.2.17), two segments a register.

    PAM0 has none in its low half. The next have C0000 and C4000 and so on, 16 KiB each, up to EC000.
    """

    offset = 0x59
    writable = 0x33
    READ_LOW = Bit(0)  # reads go to RAM, else to the bus: to ROM, or to nothing
    WRITE_LOW = Bit(1)
    READ_HIGH = Bit(4)  # of PAM0: F0000 to FFFFF
    WRITE_HIGH = Bit(5)


PAM_REGISTERS = 7
#: Called with two bits a segment, by rising address from C0000 on: bit 0 reads go to RAM, bit 1 writes do. On
#: return every vCPU goes by it.
Steer = Callable[[int], None]


class HostBridge440Fx(PciFunction):
    """Device 0 of bus 0: the PCI and memory controller.

    ``steer``, where there is ROM behind the segments, makes the attributes true. ``virtual`` shows the
    subsystem ids by which firmware knows that it finds a fw_cfg device.
    """

    def __init__(self, steer: Steer | None = None, virtual: bool = False) -> None:
        super().__init__(
            "i440fx",
            vendor=0x8086,
            device=0x1237,
            class_code=0x060000,  # bridge, host
            revision=0x02,
            subsystem=(0x1AF4, 0x1100) if virtual else (0, 0),
            command=0x0142,  # PCICMD: MAE is fixed at one, SERRE and PERRE can be set
        )
        self._steer = steer
        self._steered = 0
        self.config.declare(0x04, bytes.fromhex("0600 8002"))  # PCICMD, PCISTS
        self.config.declare(0x0C, b"", bytes.fromhex("00 f8"))  # MLT
        self.config.declare(0x50, b"", bytes.fromhex("ffff"))  # PMCCFG
        self.config.declare(PAM.offset, b"", bytes([PAM.writable] * PAM_REGISTERS))
        self.config.declare(0x60, b"", b"\xff" * 8)  # DRB0-7
        self.config.declare(0x72, b"", b"\x7f")  # SMRAM: kept, there is no system management mode

    def written(self, at: int, size: int) -> None:
        """Attributes take effect before the write returns."""
        if at < PAM.offset + PAM_REGISTERS and at + size > PAM.offset:
            self._follow()

    def reset(self) -> None:
        """Every segment is the bus's."""
        super().reset()
        self._follow()

    def resume(self) -> None:
        """Loaded: memory is steered as it was."""
        super().resume()
        self._follow()

    def _follow(self) -> None:
        wanted = steering(self.config.data[PAM.offset : PAM.offset + PAM_REGISTERS])
        if self._steer is not None and wanted != self._steered:
            self._steered = wanted
            self._steer(wanted)


def steering(pam: Sequence[int]) -> int:
    """What PAM0 to PAM6 say, two bits a segment by rising address: RE, WE."""
    segments = [half for register in pam[1:] for half in (register & 3, register >> 4 & 3)]
    segments.append(pam[0] >> 4 & 3)
    return sum(bits << 2 * number for number, bits in enumerate(segments))


class PciHost(Device):
    """Bus 0 with the functions that were attached; everything else reads as all ones.

    ``pirqs`` are the lines PIRQA# to PIRQD#, to which interrupt pins are wired slot by slot.
    """

    REGISTERS = (CONFADD,)
    STATE = ("_spaces",)
    widths = (1, 2, 4)
    confadd: int

    def __init__(self, pirqs: Sequence[SharedLine] = (), name: str = "pci") -> None:
        super().__init__(name)
        self._pirqs = tuple(pirqs)
        self._functions: dict[tuple[int, int], PciFunction] = {}
        self._spaces: list[PciFunction] = []
        self.reset()

    # --- putting the machine together --------------------------------------------------------------------

    def attach(self, function: PciFunction, slot: int | None = None, number: int = 0) -> int:
        """Put ``function`` into ``slot`` (by default the first free one) as function ``number``.

        Returns the slot. Before :meth:`connect`. Raises :class:`ConfigurationError` where there is no room.
        """
        used = {taken for taken, _ in self._functions}
        if slot is None:
            slot = next((free for free in range(FIRST_FREE_SLOT, SLOTS) if free not in used), SLOTS)
        if not 0 <= slot < SLOTS or (slot, number) in self._functions:
            raise ConfigurationError(f"the PCI bus has no room for {function.name}; attach fewer devices")
        self._functions[slot, number] = function
        self._spaces = [self._functions[place] for place in sorted(self._functions)]
        if function.pin and self._pirqs:
            function.wire(self._pirqs[pirq_of(slot, function.pin)].branch())
        return slot

    def connect(self, mapper: Mapper) -> None:
        """The bus is complete; from now on ``mapper`` maps what the guest's base addresses say."""
        with self.lock:
            for function in self._spaces:
                function.connect(mapper)

    @property
    def functions(self) -> dict[tuple[int, int], PciFunction]:
        """By (slot, function number)."""
        return dict(self._functions)

    def devices(self) -> list[Device]:
        """The devices behind all functions, each once."""
        return list(dict.fromkeys(device for function in self._spaces for device in function.devices))

    def fixed(self) -> list[At]:
        """Where functions answer beside their base addresses, once they are enabled."""
        return [at for function in self._spaces for at in function.fixed]

    # --- the guest ---------------------------------------------------------------------------------------

    def reset(self) -> None:
        """RST# to all functions."""
        super().reset()
        for function in self._spaces:
            function.reset()

    def resume(self) -> None:
        """Every device answers where the loaded registers say; shared lines know which devices pull them."""
        for function in self._spaces:
            function.resume()
        for line in self._pirqs:
            line.recount()

    def _target(self, offset: int) -> tuple[PciFunction | None, int]:
        address = self.confadd
        if not address & CONFADD.CONE or CONFADD.BUS.of(address):
            return None, 0
        place = CONFADD.DEVICE.of(address), CONFADD.FUNCTION.of(address)
        return self._functions.get(place), (address & 0xFC) + offset - 4

    def read(self, offset: int, size: int) -> int:
        """CONFADD as a whole, or configuration space; a narrow access does not reach CONFADD."""
        if offset < 4:
            return self.confadd if size == 4 else (1 << 8 * size) - 1
        function, at = self._target(offset)
        return function.read(at, size) if function else (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The same, writing."""
        if offset < 4:
            if size == 4:
                self.confadd = value & CONFADD.writable
            return
        function, at = self._target(offset)
        if function:
            function.write(at, size, value)


FIRST_FREE_SLOT = 3
"""Slots 0 to 2 are those of the host bridge, the south bridge, and a graphics adapter where there is one."""
