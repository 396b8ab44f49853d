# SPDX-License-Identifier: GPL-2.0-or-later
"""AML encoding against the examples and limits of the ACPI specification, chapter 20."""

import pytest
from coremesh.hw.firmware import aml
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (5, "0a05"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0xFEC0_0000, "0c0000c0fe"),
        (1 << 32, "0e0000000001000000"),
    ],
)
def test_an_integer_takes_its_shortest_form(value: int, encoded: str) -> None:
    assert aml.integer(value) == bytes.fromhex(encoded)


def test_an_integer_of_more_than_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(1 << 64)


def test_the_pci_root_bridge_id_is_the_well_known_dword() -> None:
    assert aml.eisa_id("PNP0A03") == bytes.fromhex("0c41d00a03")


def test_names_are_padded_and_joined() -> None:
    assert aml.name_string("\\_S5") == b"\\_S5_"
    assert aml.name_string("_SB.PCI0") == b"\x2e_SB_PCI0"
    for wrong in ("TOOLONG", "A.B.C"):
        with pytest.raises(ValueError, match="no name"):
            aml.name_string(wrong)


def decode_length(data: bytes) -> tuple[int, int]:
    """(length, bytes it took), by 20.2.4: the first byte's top bits count the bytes that follow."""
    following = data[0] >> 6
    if following == 0:
        return data[0] & 0x3F, 1
    return data[0] & 0xF | int.from_bytes(data[1 : 1 + following], "little") << 4, 1 + following


@given(st.integers(0, 100) | st.integers(4000, 4200) | st.integers(0, (1 << 28) - 5))
def test_a_package_length_counts_itself_and_its_body(body: int) -> None:
    encoded = aml.package_length(body)
    length, size = decode_length(encoded)
    assert size == len(encoded) and length == body + size


def test_a_body_too_long_for_a_package_length_is_refused() -> None:
    with pytest.raises(ValueError, match="package length"):
        aml.package_length(1 << 28)


def test_a_package_announces_its_elements() -> None:
    assert aml.package(aml.integer(5), aml.integer(0)) == bytes.fromhex("1205020a0500")


def test_a_buffer_announces_its_bytes() -> None:
    assert aml.buffer(b"\x79\x00") == bytes.fromhex("11050a027900")
