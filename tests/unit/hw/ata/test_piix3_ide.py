# SPDX-License-Identifier: GPL-2.0-or-later
"""The IDE function in a whole PC: where it answers, its interrupts, and its state."""

import json
import random
from typing import Any

import pytest
from ata_commands import Command
from coremesh.core._native import PythonBusMaster
from coremesh.hw.ata.cdrom import Cdrom
from coremesh.hw.ata.disk import Disk
from coremesh.hw.ata.registers import STATUS
from coremesh.hw.board.pc import build_pc
from coremesh.hw.decode import PORT

READY = STATUS.DRDY | STATUS.DSC
FUNCTION = 0x8000_0000 | 1 << 11 | 1 << 8
BUS_MASTER = 0xC000


@pytest.fixture
def make_ide_pc(make_pc: Any, make_medium: Any, make_ram: Any) -> Any:
    """A PC with a disk as device 0 of the first channel and a CD-ROM drive as device 0 of the second."""

    def make() -> Any:
        pc = make_pc()
        pc.ram = make_ram()
        drives = [Disk(make_medium().fill()), None, Cdrom(make_medium(read_only=True).fill()), None]
        pc.node = build_pc(
            pc.fabric,
            console=pc.console,
            on_power=pc.power.append,
            ram_bytes=1 << 30,
            vcpus=4,
            clock=pc.clock,
            drives=drives,
            bus=PythonBusMaster(pc.ram, pc.fabric),
        )
        config_write(pc, 0x20, BUS_MASTER)
        config_write(pc, 0x04, 5)
        return pc

    return make


def config_read(pc: Any, at: int) -> int:
    pc.outl(0xCF8, FUNCTION | at & 0xFC)
    return int(pc.inl(0xCFC))


def config_write(pc: Any, at: int, value: int) -> None:
    pc.outl(0xCF8, FUNCTION | at)
    pc.outl(0xCFC, value)


def work(pc: Any) -> None:
    """Do all that the channels' workers could."""
    for name in ("ide0", "ide1"):
        pc.node.devices[name].native.serve()


def read_sector(pc: Any, number: int) -> bytes:
    for port, value in ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, number), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0x20)):
        pc.outb(port, value)
    work(pc)
    return b"".join(pc.inw(0x1F0).to_bytes(2, "little") for _ in range(256))


def test_given_the_function_then_it_is_a_piix3_where_drivers_look(make_ide_pc: Any) -> None:
    pc = make_ide_pc()
    assert config_read(pc, 0) == 0x7010_8086
    assert config_read(pc, 8) >> 8 == 0x010180
    config_write(pc, 0x20, 0xFFFF_FFFF)
    assert config_read(pc, 0x20) & 0xFFFF == 0xFFF1, "16 ports"
    assert config_read(pc, 0x40) & 0x8000_8000 == 0x8000_8000, "both channels are decoded"


def test_given_a_pc_without_drives_then_there_is_no_controller(pc: Any) -> None:
    assert config_read(pc, 0) == 0xFFFF_FFFF
    assert pc.inb(0x1F7) == 0xFF


def test_given_a_channel_when_it_is_switched_off_then_its_old_ports_are_free(make_ide_pc: Any) -> None:
    pc = make_ide_pc()
    assert read_sector(pc, 7) == (7).to_bytes(4, "little") * 128
    pc.inb(0x1F7)
    config_write(pc, 0x40, 0x8000_0000)
    assert pc.inb(0x1F7) == 0xFF
    assert pc.inb(0x177) == 0, "a packet device's status after the reset"
    assert pc.inb(BUS_MASTER + 2) == 4, "the bus master still answers"
    config_write(pc, 0x40, 0x8000_8000)
    assert pc.inb(0x1F7) == READY
    config_write(pc, 0x04, 0)
    assert (pc.inb(0x1F7), pc.inb(0x177), pc.inb(BUS_MASTER + 2)) == (0xFF, 0xFF, 0xFF)


def test_given_the_bus_master_when_it_moves_then_both_halves_move(make_ide_pc: Any) -> None:
    pc = make_ide_pc()
    config_write(pc, 0x20, 0xD000)
    pc.outl(0xD004, 0x1234_5678)
    pc.outl(0xD00C, 0x9ABC_DEF0)
    assert (pc.inl(0xD004), pc.inl(0xD00C)) == (0x1234_5678, 0x9ABC_DEF0)
    assert pc.inl(0xC004) == 0xFFFF_FFFF


def test_given_dma_without_the_permission_when_it_is_given_then_the_transfer_begins(make_ide_pc: Any) -> None:
    pc = make_ide_pc()
    config_write(pc, 0x04, 1)
    pc.ram.data[0x8000:0x8008] = (0x1000).to_bytes(4, "little") + (0x8000_0200).to_bytes(4, "little")
    pc.outl(BUS_MASTER + 4, 0x8000)
    pc.outb(BUS_MASTER, 9)
    for port, value in ((0x1F6, 0xE0), (0x1F2, 1), (0x1F3, 5), (0x1F4, 0), (0x1F5, 0), (0x1F7, 0xC8)):
        pc.outb(port, value)
    work(pc)
    assert pc.inb(BUS_MASTER + 2) == 1
    config_write(pc, 0x04, 5)
    work(pc)
    assert pc.inb(BUS_MASTER + 2) == 4
    assert pc.ram.data[0x1000:0x1200] == (5).to_bytes(4, "little") * 128
    pc.outl(BUS_MASTER + 4, 0x8000_0000)  # no RAM
    pc.outb(BUS_MASTER, 0)
    pc.outb(BUS_MASTER, 9)
    pc.outb(0x1F7, 0xC8)
    work(pc)
    assert config_read(pc, 4) >> 16 & 0x2000, "received master abort"


def test_given_each_channel_when_a_command_ends_then_its_own_interrupt_comes(make_ide_pc: Any) -> None:
    pc = make_ide_pc()
    pc.route(14, 0x4E)
    pc.route(15, 0x4F)
    pc.outb(0x1F6, 0xA0)
    pc.outb(0x1F7, Command.IDENTIFY_DEVICE)
    work(pc)
    assert pc.fabric.vectors == [0x4E]
    pc.outb(0x176, 0xA0)
    pc.outb(0x177, Command.IDENTIFY_PACKET_DEVICE)
    work(pc)
    assert pc.fabric.vectors == [0x4E, 0x4F]


def test_given_a_request_at_the_slave_8259a_when_the_drive_takes_it_back_then_inta_finds_nothing(
    make_ide_pc: Any,
) -> None:
    """Given IRQ 14 on its way, when the status is read before INTA, then the vector is the spurious one.

    Nothing is in service then, and the next interrupt comes as ever.
    """
    pc = make_ide_pc()
    for port, base in ((0x20, 0x08), (0xA0, 0x70)):
        for offset, value in ((0, 0x11), (1, base), (1, 4 if port == 0x20 else 2), (1, 1), (1, 0)):
            pc.outb(port + offset, value)

    def in_service(port: int) -> int:
        pc.outb(port, 0x0B)
        return int(pc.inb(port))

    pc.outb(0x1F6, 0xA0)
    for _ in range(2):
        pc.outb(0x1F7, Command.CHECK_POWER_MODE)
        assert pc.fabric.extints[-1] is True
        pc.inb(0x1F7)
        assert pc.fabric.extints[-1] is False
        assert pc.node.acknowledge() == 0x0F
        assert (in_service(0x20), in_service(0xA0)) == (0, 0)
    pc.outb(0x1F7, Command.CHECK_POWER_MODE)
    assert pc.node.acknowledge() == 0x76


@pytest.mark.parametrize("seed", range(8))
def test_given_random_use_when_a_pc_is_saved_and_loaded_then_nothing_is_forgotten(
    make_ide_pc: Any, seed: int
) -> None:
    first, second = make_ide_pc(), make_ide_pc()
    r = random.Random(seed)
    ports = [*range(0x1F0, 0x1F8), 0x3F6, *range(0x170, 0x178), 0x376, *range(BUS_MASTER, BUS_MASTER + 16)]
    for _ in range(300):
        port = r.choice(ports)
        if r.random() < 0.3:
            first.node.access(PORT, port, r.choice([1, 1, 2, 4]), False, 0)
        else:
            value = r.choice([*(int(code) for code in Command), r.getrandbits(8)])
            if port in (0x3F6, 0x376):
                value &= 0x82
            first.node.access(PORT, port, 1, True, value)
        if r.random() < 0.5:
            work(first)
    second.clock.time, second.clock.base = first.clock.time, first.clock.base
    second.node.load(json.loads(json.dumps(first.node.save())))
    for name in ("ide0", "ide1"):
        assert first.node.devices[name].save() == second.node.devices[name].save()
        assert first.node.devices[name].show() == second.node.devices[name].show()
    for port in ports:
        assert first.node.access(PORT, port, 1, False, 0) == second.node.access(PORT, port, 1, False, 0), port
