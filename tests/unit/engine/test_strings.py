# SPDX-License-Identifier: GPL-2.0-or-later
"""SSE4.2 compares strings by lengths that no string has: the answer is right, the process stays alive."""

import pytest
from raw_host import HLT, raw_host, until_halted

OSFXSR = 0x200
SMALLEST = 0x8000_0000
PCMPESTRI, PCMPESTRM = 0x61, 0x60


def compare(opcode: int, immediate: int, eax: int, edx: int) -> tuple[int, int]:
    """ECX and XMM0's low word after the instruction on XMM1 and XMM2, all of them zero."""
    program = bytes((0x66, 0x0F, 0x3A, opcode, 0xCA, immediate, 0x0F, 0x29, 0x05, 0, 0x60, 0, 0)) + HLT
    host = raw_host(program)  # then movaps [6000h], xmm0
    host.set_registers(0, {"cr4": OSFXSR, "rax": eax, "rdx": edx})
    host.start()
    until_halted(host)
    host.pause()
    result = host.registers(0)["rcx"], int.from_bytes(host.ram_read(0x6000, 4), "little")
    host.stop()
    return result


@pytest.mark.parametrize("immediate", [0x00, 0x01, 0x05, 0x09, 0x0C, 0x0D, 0x4D])
@pytest.mark.parametrize(("eax", "edx"), [(3, SMALLEST), (SMALLEST, 3), (SMALLEST, SMALLEST)])
def test_given_a_length_without_an_absolute_value_when_strings_are_compared_then_it_is_the_longest(
    immediate: int, eax: int, edx: int
) -> None:
    """Lengths saturate at 8 words or 16 bytes, so the smallest number is as good as any large one."""
    saturated = (eax if eax != SMALLEST else 16, edx if edx != SMALLEST else 16)
    for opcode in (PCMPESTRI, PCMPESTRM):
        assert compare(opcode, immediate, eax, edx) == compare(opcode, immediate, *saturated)


def test_given_three_words_when_they_are_searched_for_in_fewer_then_they_are_not_found() -> None:
    """An index of 8 says so; in eight words they are found at once (SDM vol. 2B 4.1)."""
    assert compare(PCMPESTRI, 0x0D, 3, SMALLEST)[0] == 0
    assert compare(PCMPESTRI, 0x0D, 3, 2)[0] == 8
