# SPDX-License-Identifier: GPL-2.0-or-later
"""A PCI function in a slot: base addresses that are sized and move, the command register, interrupt pins."""

import json
from typing import Any

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.hw.board.pc import PC
from coremesh.hw.decode import MMIO, PORT, At
from coremesh.hw.device import Device
from coremesh.hw.pci.config_space import COMMAND, STATUS
from coremesh.hw.pci.function import INTA, Bar, PciFunction, pirq_of

ADDRESS, DATA = 0xCF8, 0xCFC
SLOT = 3


class Echo(Device):
    """Answers each read with its offset, and keeps the last write."""

    widths = (1, 2, 4)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.kept = (0, 0)

    def read(self, offset: int, size: int) -> int:
        return offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.kept = (offset, value)


class Card(PciFunction):
    """A function with an I/O and two memory base addresses, a fixed range and a pin."""

    def __init__(self, name: str = "card") -> None:
        self.chip = Echo(f"{name}-chip")
        self.legacy = Echo(f"{name}-legacy")
        super().__init__(
            name,
            vendor=0x1234,
            device=0x5678,
            class_code=0xFF0000,
            pin=INTA,
            bars=(
                Bar(0, PORT, 16, self.chip),
                Bar(1, MMIO, 0x1000, self.chip, offset=0x1000),
                Bar(4, MMIO, 0x4000, self.chip, offset=0x8000, wide=True, prefetchable=True),
            ),
            fixed=(At(PORT, 0x1F0, 8, self.legacy),),
        )


class Config:
    """A guest that reads and writes configuration space."""

    def __init__(self, pc: Any, slot: int = SLOT, function: int = 0) -> None:
        self.pc, self.base = pc, 1 << 31 | slot << 11 | function << 8

    def read(self, at: int, size: int = 4) -> int:
        self.pc.outl(ADDRESS, self.base | at & 0xFC)
        return int(self.pc.node.access(PORT, DATA + at % 4, size, False, 0))

    def write(self, at: int, value: int, size: int = 4) -> None:
        self.pc.outl(ADDRESS, self.base | at & 0xFC)
        self.pc.node.access(PORT, DATA + at % 4, size, True, value)


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture
def pc(make_pc: Any, card: Card) -> Any:
    return make_pc(functions=[card])


@pytest.fixture
def config(pc: Any) -> Config:
    return Config(pc)


def test_firmware_gives_addresses_and_an_interrupt(pc: Any, config: Config, card: Card) -> None:
    """Given a machine just built, then the function answers at addresses of the right size, without DMA."""
    port, low, wide = config.read(0x10), config.read(0x14), config.read(0x20)
    assert port & 0xF == 1 and low & 0xFFF == 0 and wide & 0x3FFF == 0xC and config.read(0x24) == 0
    assert pc.inb(port - 1 + 3) == 3
    assert pc.mmio_read(low + 8) == 0x1008 and pc.mmio_read((wide & ~0xF) + 4) == 0x8004
    assert config.read(0x3D, 1) == INTA
    assert config.read(0x3C, 1) == PC.pirq_irqs[pirq_of(SLOT, INTA)]
    assert not card.bus_master


@pytest.mark.parametrize(("at", "size"), [(0x10, 16), (0x14, 0x1000), (0x20, 0x4000)])
def test_a_base_address_is_sized_by_writing_ones(config: Config, at: int, size: int) -> None:
    """When a guest writes ones, then it reads back a mask of the size and the kind, and puts it back."""
    before = config.read(at)
    config.write(at, 0xFFFF_FFFF)
    mask = config.read(at)
    assert (mask & ~(0x3 if at == 0x10 else 0xF)) == -size & 0xFFFF_FFFF
    config.write(at, before)
    assert config.read(at) == before


def test_an_absent_base_address_reads_zero(config: Config) -> None:
    """When ones are written where no base address is, then it stays zero, but not the upper half of one."""
    config.write(0x18, 0xFFFF_FFFF)
    assert config.read(0x18) == 0
    config.write(0x24, 0xFFFF_FFFF)
    assert config.read(0x24) == 0xFFFF_FFFF


def test_a_base_address_moves_its_device(pc: Any, config: Config) -> None:
    """When a guest writes another address, then the device answers there and no more at the old one."""
    old = config.read(0x14)
    config.write(0x14, 0xE000_0000)
    assert pc.mmio_read(0xE000_0010) == 0x1010
    assert pc.mmio_read(old + 0x10) == 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("bit", "port", "memory"), [(COMMAND.IO, True, False), (COMMAND.MEMORY, False, True)]
)
def test_the_command_register_gates_each_space(
    pc: Any, config: Config, bit: int, port: bool, memory: bool
) -> None:
    """Given one of the two enable bits, then only ranges of that space answer, fixed ones too."""
    config.write(COMMAND.offset, bit, 2)
    assert (pc.inb((config.read(0x10) & ~3) + 5) == 5) is port
    assert (pc.inb(0x1F3) == 3) is port
    assert (pc.mmio_read(config.read(0x14) + 4) == 0x1004) is memory


def test_of_two_devices_at_one_address_the_later_answers_nowhere(pc: Any, config: Config) -> None:
    """When a base address is laid over the serial port, then that goes on; moved away, the device answers."""
    config.write(0x10, 0x3F8 & ~0xF | 1)
    assert pc.inb(0x3FD) == 0x60
    config.write(0x10, 0xC201)
    assert pc.inb(0xC203) == 3


def test_capabilities_are_a_list(make_pc: Any) -> None:
    """Given two capabilities, then the status says so, and each points to the one that was there before."""
    card = Card()
    first = card.config.add_capability(0x09, b"\x05abc")
    second = card.config.add_capability(0x11, bytes(10), b"\x00\xc0")
    config = Config(make_pc(functions=[card]))
    assert config.read(STATUS.offset, 2) & STATUS.CAPABILITIES
    assert config.read(0x34, 1) == second
    assert (config.read(second, 1), config.read(second + 1, 1)) == (0x11, first)
    assert (config.read(first, 1), config.read(first + 1, 1)) == (0x09, 0)
    config.write(second, 0xFFFF_FFFF)
    assert config.read(second) == 0xC000_0000 | first << 8 | 0x11


def test_error_bits_are_cleared_by_ones(config: Config, card: Card) -> None:
    """Given a received master abort, when its bit is written as one, then it alone is cleared."""
    card.signal_error(1 << 13 | 1 << 12)
    config.write(STATUS.offset, 1 << 13, 2)
    assert config.read(STATUS.offset, 2) & STATUS.ERRORS.mask == 1 << 12


# --- interrupts --------------------------------------------------------------------------------------------

LEVEL_LOW = 1 << 15 | 1 << 13


def test_two_functions_share_a_line_and_both_are_heard(make_pc: Any) -> None:
    """Given two functions on one line, when one lets go, then the interrupt comes again for the other."""
    cards = [Card("one"), Card("two"), Card("three"), Card("four"), Card("five")]
    pc = make_pc(functions=[PciFunction(c.name, vendor=1, device=1, class_code=0, pin=INTA) for c in cards])
    functions = [pc.node.devices["pci"].functions[slot, 0] for slot in (3, 7)]
    pin = PC.pirq_pins[pirq_of(3, INTA)]
    assert pin == PC.pirq_pins[pirq_of(7, INTA)]
    pc.route(pin, 0x51, LEVEL_LOW)
    functions[0].set_interrupt(True)
    functions[1].set_interrupt(True)
    assert len(pc.fabric.messages) == 1
    functions[0].set_interrupt(False)
    pc.node.eoi(0x51)
    assert len(pc.fabric.messages) == 2
    functions[1].set_interrupt(False)
    pc.node.eoi(0x51)
    assert len(pc.fabric.messages) == 2


def test_interrupt_disable_holds_the_pin_but_not_the_status(pc: Any, config: Config, card: Card) -> None:
    """Given INTX_DISABLE, when the function interrupts, then only the status says so, until it is enabled."""
    pc.route(PC.pirq_pins[pirq_of(SLOT, INTA)], 0x51, LEVEL_LOW)
    config.write(COMMAND.offset, COMMAND.INTX_DISABLE, 2)
    card.set_interrupt(True)
    assert pc.fabric.messages == [] and config.read(STATUS.offset, 2) & STATUS.INTERRUPT
    config.write(COMMAND.offset, 0, 2)
    assert len(pc.fabric.messages) == 1
    card.set_interrupt(False)
    assert not config.read(STATUS.offset, 2) & STATUS.INTERRUPT


def test_a_line_is_steered_to_the_8259_pair(pc: Any, card: Card) -> None:
    """Given PIRQRC, when a function interrupts, then the chosen input of the pair is high, and no other."""
    bridge = Config(pc, 1)
    pic = pc.node.devices["pic"]
    number = pirq_of(SLOT, INTA)
    assert bridge.read(0x60 + number, 1) == PC.pirq_irqs[number], "as firmware left it"
    card.set_interrupt(True)
    assert pic.slave.lines == 1 << PC.pirq_irqs[number] - 8
    bridge.write(0x60 + number, 5, 1)
    assert pic.slave.lines == 0 and pic.master.lines & 1 << 5
    bridge.write(0x60 + number, 0x80, 1)
    assert not pic.master.lines & 1 << 5


def test_the_board_has_room_for_so_many_functions(make_pc: Any) -> None:
    """When more functions are attached than the bus has slots, then that is a typed error."""
    with pytest.raises(ConfigurationError, match="no room"):
        make_pc(functions=[PciFunction(f"f{n}", vendor=1, device=1, class_code=0) for n in range(30)])


# --- reset, save, load -------------------------------------------------------------------------------------


def test_after_a_reset_the_function_answers_nowhere(pc: Any, config: Config, card: Card) -> None:
    """Given a function at work, when the board is reset, then its addresses, command and pin are cleared."""
    low = config.read(0x14)
    card.set_interrupt(True)
    pc.node.reset()
    assert pc.mmio_read(low) == 0xFFFF_FFFF
    assert config.read(0x14) == 0 and config.read(COMMAND.offset) & 0xFFFF == 0
    assert pc.node.devices["ioapic"].levels[PC.pirq_pins[pirq_of(SLOT, INTA)]] is True


def test_a_loaded_machine_has_its_functions_where_they_were(make_pc: Any) -> None:
    """Given a moved function that interrupts, when its state is loaded elsewhere, then it is all the same."""
    first, second = Card(), Card()
    pc, other = make_pc(functions=[first]), make_pc(functions=[second])
    Config(pc).write(0x14, 0xE000_0000)
    first.set_interrupt(True)
    other.node.load(json.loads(json.dumps(pc.node.save())))
    assert other.mmio_read(0xE000_0010) == 0x1010
    pin = PC.pirq_pins[pirq_of(SLOT, INTA)]
    other.route(pin, 0x51, LEVEL_LOW)
    assert len(other.fabric.messages) == 1
    second.set_interrupt(False)
    assert other.node.devices["ioapic"].levels[pin] is True
