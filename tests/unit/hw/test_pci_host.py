# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI configuration mechanism #1, and the two bridges of the PC."""

from typing import Any

import pytest

ADDRESS, DATA = 0xCF8, 0xCFC


def config_address(bus: int, device: int, function: int, register: int) -> int:
    return 1 << 31 | bus << 16 | device << 11 | function << 8 | register & 0xFC


def test_linux_recognises_mechanism_1(pc: Any) -> None:
    """When Linux writes 0x80000000 to the address register as a double word, then it reads it back."""
    pc.outb(0xCFB, 0x01)
    saved = pc.inl(ADDRESS)
    pc.outl(ADDRESS, 0x8000_0000)
    assert pc.inl(ADDRESS) == 0x8000_0000
    pc.outl(ADDRESS, saved)


def test_the_host_bridge_is_an_i440fx(pc: Any) -> None:
    """When function 00:00.0 is read, then it is 8086:1237, a host bridge with one function."""
    pc.outl(ADDRESS, config_address(0, 0, 0, 0))
    assert pc.inl(DATA) == 0x1237_8086
    assert (pc.inw(DATA), pc.inw(DATA + 2)) == (0x8086, 0x1237)
    pc.outl(ADDRESS, config_address(0, 0, 0, 8))
    assert pc.inl(DATA) >> 8 == 0x060000
    pc.outl(ADDRESS, config_address(0, 0, 0, 0xC))
    assert pc.inb(DATA + 2) == 0


def test_the_rest_of_the_bus_is_empty(pc: Any) -> None:
    """When a guest scans every device of bus 0 and another bus, then only the two bridges answer."""
    found = []
    for bus in (0, 1):
        for device in range(32):
            pc.outl(ADDRESS, config_address(bus, device, 0, 0))
            if pc.inl(DATA) != 0xFFFF_FFFF:
                found.append((bus, device))
    assert found == [(0, 0), (0, 1)]


def test_without_the_enable_bit_there_is_no_configuration_space(pc: Any) -> None:
    """Given CONE clear, then the data port reads as ones and swallows writes."""
    pc.outl(ADDRESS, 0)
    assert pc.inl(DATA) == 0xFFFF_FFFF
    pc.outl(DATA, 0)


def test_identity_is_read_only_and_pam_is_not(pc: Any) -> None:
    """When a guest writes ids, command and the memory attributes, then only writable bits change."""
    pc.outl(ADDRESS, config_address(0, 0, 0, 0))
    pc.outl(DATA, 0)
    assert pc.inl(DATA) == 0x1237_8086
    pc.outl(ADDRESS, config_address(0, 0, 0, 4))
    pc.outw(DATA, 0xFFFF)
    assert pc.inw(DATA) == 0x0146
    pc.outl(ADDRESS, config_address(0, 0, 0, 0x58))
    pc.outb(DATA + 1, 0x30)
    assert pc.inb(DATA + 1) == 0x30


def test_byte_access_to_the_address_register_is_none(pc: Any) -> None:
    """When a byte of the address register is written, then the register does not change."""
    pc.outl(ADDRESS, 0x8000_0000)
    pc.outb(ADDRESS, 0x55)
    pc.outw(ADDRESS + 2, 0x5555)
    assert pc.inw(ADDRESS + 2) == 0xFFFF
    assert pc.inl(ADDRESS) == 0x8000_0000
    assert pc.inb(ADDRESS) == 0xFF


@pytest.mark.parametrize("value", [0xFFFF_FFFF, 0x7F00_0003])
def test_reserved_address_bits_are_zero(pc: Any, value: int) -> None:
    """When all bits are written, then the reserved ones read as zero."""
    pc.outl(ADDRESS, value)
    assert pc.inl(ADDRESS) == value & 0x80FF_FFFC


def test_reset_restores_the_configuration(pc: Any) -> None:
    """Given a changed register, when the board is reset, then it holds its default again."""
    pc.outl(ADDRESS, config_address(0, 0, 0, 0x58))
    pc.outb(DATA + 1, 0x30)
    pc.node.reset()
    pc.outl(ADDRESS, config_address(0, 0, 0, 0x58))
    assert pc.inb(DATA + 1) == 0
