# SPDX-License-Identifier: GPL-2.0-or-later
"""x87 and MMX exceptions of a guest: which, where, and what has not happened when they come.

Stories of a few instructions in 64-bit code (SDM vol. 1, chapter 8; vol. 3A, 6.15, #MF).
"""

import platform
import struct
from dataclasses import dataclass

import pytest
from raw_host import (
    BASE,
    CODE,
    CR0_EM,
    CR0_MP,
    CR0_NE,
    CR0_TS,
    HLT,
    STATE_AFTER_FAULT,
    fault,
    long_mode_host,
    physical,
    raw_host,
    until_halted,
)

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="on other hosts the engine's own x87 is kept, which has no exceptions",
)

MF, NM, PF, GP, UD = 16, 7, 14, 13, 6
IE, DE, ZE, OE, UE, PE, SF, ES, B = 1, 2, 4, 8, 16, 32, 64, 128, 1 << 15

DATA = BASE + 0x1000
NOWHERE = BASE + (62 << 20)  # the first byte that is not mapped
UNTOUCHED = b"\x5a" * 512
FNINIT, FLD1, FLDZ, FLDPI, FCHS, FNOP, FWAIT = (
    bytes.fromhex(text) for text in ("dbe3", "d9e8", "d9ee", "d9eb", "d9e0", "d9d0", "9b")
)
FDIVP, FADDP, FYL2X, FPATAN, FNCLEX, EMMS = (
    bytes.fromhex(text) for text in ("def9", "dec1", "d9f1", "d9f3", "dbe2", "0f77")
)


def at(opcode: str, address: int) -> bytes:
    """An instruction with an absolute operand: its opcode and the group of its ModRM, as in ``dd/3``."""
    head, _, group = opcode.partition("/")
    return bytes.fromhex(head) + bytes((int(group) << 3 | 4, 0x25)) + address.to_bytes(4, "little")


def fldcw(control: int) -> bytes:
    """push control; fldcw [rsp]; pop rax."""
    return b"\x68" + control.to_bytes(4, "little") + b"\xd9\x2c\x24\x58"


@dataclass(frozen=True)
class Outcome:
    """How a story ended, and the x87 state there."""

    fault: tuple[int, int] | None
    image: bytes
    memory: bytes  # at DATA
    last: bytes  # the last 512 bytes before NOWHERE

    @property
    def status(self) -> int:
        return int.from_bytes(self.image[4:6], "little")

    @property
    def top(self) -> int:
        return self.status >> 11 & 7

    @property
    def tags(self) -> int:
        return int.from_bytes(self.image[8:10], "little")

    @property
    def fip(self) -> int:
        return int.from_bytes(self.image[12:16], "little") - BASE

    def st(self, number: int) -> str:
        """ST(number) as sign and exponent, significand."""
        value = self.image[28 + 10 * number :][:10]
        return f"{int.from_bytes(value[8:], 'little'):04x}.{int.from_bytes(value[:8], 'little'):016x}"


def outcome(code: bytes, *, data: bytes = b"", cr0: int = CR0_NE, saves_x87: bool = True) -> Outcome:
    """Run code in a guest until it ends or faults."""
    save = at("dd/6", BASE - 0x20_0000 + STATE_AFTER_FAULT) if saves_x87 else b""
    host = long_mode_host(code + save + HLT, cr0=cr0, saves_x87=saves_x87)
    host.ram_write(physical(DATA), data)
    host.ram_write(physical(NOWHERE - 512), UNTOUCHED)
    host.start()
    until_halted(host)
    host.stop()
    return Outcome(
        fault(host),
        bytes(host.ram_read(STATE_AFTER_FAULT, 108)),
        bytes(host.ram_read(physical(DATA), 4096)),
        bytes(host.ram_read(physical(NOWHERE - 512), 512)),
    )


INFINITY, INDEFINITE, QUARTER_PI = "ffff.8000000000000000", "ffff.c000000000000000", "3ffe.c90fdaa22168c235"


@pytest.mark.parametrize(
    ("code", "value", "flags"),
    [
        (FLD1 + FLDZ + FYL2X, INFINITY, ZE),
        (FLD1 + FLD1 + FCHS + FYL2X, INDEFINITE, IE),
        (FLD1 + FLD1 + FPATAN, QUARTER_PI, PE),
    ],
    ids=["log2(0)", "log2(-1)", "atan2(1, 1)"],
)
def test_given_the_logarithm_of_zero_when_it_is_computed_then_it_is_minus_infinity_and_one_value_is_popped(
    code: bytes, value: str, flags: int
) -> None:
    """What logl and atan2l are made of: the value to 64 bits, its exception's flag, and one register left."""
    end = outcome(FNINIT + code)
    assert end.fault is None
    assert end.st(0) == value
    assert end.status & 0x7F & ~PE == flags & ~PE
    assert end.status & flags
    assert end.tags == 0x3FFF | (0 if value == QUARTER_PI else 0x8000)


DIVISION = FNINIT + fldcw(0x37F & ~ZE) + FLD1 + FLDZ + FDIVP


@pytest.mark.parametrize(
    "waits",
    [FLD1, FWAIT, FNOP, fldcw(0x37F)[5:8], bytes.fromhex("0ffcc1"), EMMS, bytes.fromhex("f30fd6c1"),
     at("dd/0", NOWHERE), at("0f6f/0", NOWHERE), at("dd/4", NOWHERE)],
    ids=["fld1", "fwait", "fnop", "fldcw", "paddb", "emms", "movq2dq", "fld-from-nowhere",
         "movq-from-nowhere", "frstor-from-nowhere"],
)  # fmt: skip
def test_given_an_unmasked_exception_when_the_next_instruction_waits_then_it_is_mf_there(
    waits: bytes,
) -> None:
    """The division itself goes by, with its operands as they were; a page fault would come later."""
    end = outcome(DIVISION + waits)
    assert end.fault == (MF, len(DIVISION))
    assert (end.st(0), end.st(1)) == ("0000.0000000000000000", "3fff.8000000000000000")
    assert end.status & (ZE | ES | B) == ZE | ES | B
    assert end.fip == len(DIVISION) - len(FDIVP)


@pytest.mark.parametrize(
    "code",
    [at("dd/7", DATA), bytes.fromhex("dfe0"), at("d9/7", DATA), at("d9/6", DATA), FNCLEX + FLD1,
     FNINIT + FLD1, at("0f2a/0", DATA), at("660f2a/0", DATA), at("0fae/0", DATA)],
    ids=["fnstsw", "fnstsw-ax", "fnstcw", "fnstenv", "fnclex", "fninit", "cvtpi2ps", "cvtpi2pd", "fxsave"],
)  # fmt: skip
def test_given_an_unmasked_exception_when_the_next_instruction_does_not_wait_then_nothing_is_raised(
    code: bytes,
) -> None:
    """Control instructions whose names begin with FN, and conversions of integers from memory."""
    assert outcome(DIVISION + code).fault is None


def test_given_a_pending_exception_when_fnstenv_has_masked_it_then_it_is_pending_no_more() -> None:
    """FNSTENV masks all exceptions; ES follows the masks, and the flag stays."""
    end = outcome(DIVISION + at("d9/6", DATA) + FLD1)
    assert end.fault is None
    assert end.status & (ZE | ES | B) == ZE
    assert int.from_bytes(end.memory[4:6], "little") & (ZE | ES | B) == ZE | ES | B


def test_given_a_flag_that_is_set_when_its_exception_is_unmasked_then_it_is_pending() -> None:
    """FLDCW; and the next one that waits raises it."""
    masked = FNINIT + FLD1 + FLDZ + FDIVP
    end = outcome(masked + fldcw(0x37F & ~ZE) + FLD1)
    assert end.fault == (MF, len(masked) + len(fldcw(0)))


def test_given_cr0_ne_is_clear_when_an_exception_is_pending_then_no_mf_is_raised() -> None:
    """The processor would ask for an interrupt with FERR#, a wire that this board does not have."""
    end = outcome(DIVISION + FLD1, cr0=0)
    assert end.fault is None
    assert end.status & ES
    assert end.st(0) == "3fff.8000000000000000"


@pytest.mark.parametrize(
    ("cr0", "code", "raised"),
    [
        (CR0_TS, FLD1, True),
        (CR0_EM, FLD1, True),
        (CR0_TS | CR0_MP, FWAIT, True),
        (CR0_TS, FWAIT, False),
        (CR0_MP, FLD1 + FWAIT, False),
        (CR0_TS, at("0fae/0", DATA), True),
        (CR0_TS, bytes.fromhex("0ffcc1"), True),
    ],
)
def test_given_cr0_says_that_x87_is_not_there_when_it_is_used_then_nm_is_raised(
    cr0: int, code: bytes, raised: bool
) -> None:
    """Table 2-2 of SDM vol. 3A, 2.5."""
    end = outcome(code, cr0=CR0_NE | cr0, saves_x87=False)
    assert end.fault == ((NM, 0) if raised else None)


def test_given_mmx_and_cr0_em_when_it_is_used_then_it_is_undefined() -> None:
    """SDM vol. 3A, table 13-1."""
    assert outcome(bytes.fromhex("0ffcc1"), cr0=CR0_NE | CR0_EM, saves_x87=False).fault == (UD, 0)


@pytest.mark.parametrize(
    "code", ["d9d1", "d9e2", "d9ef", "dae8", "dbe5", "dbf8", "ddf0", "ded8", "dfe1", "dff8"]
)
def test_given_an_encoding_that_is_no_instruction_when_it_is_executed_then_it_is_undefined(code: str) -> None:
    """The holes in SDM vol. 2D, tables A-7 to A-22, whatever is pending."""
    assert outcome(DIVISION + bytes.fromhex(code)).fault == (UD, len(DIVISION))


def test_given_a_full_stack_when_a_value_is_pushed_then_overflow_is_told_and_the_indefinite_is_on_top() -> (
    None
):
    """IE, SF and C1; and an empty one gives C1 = 0."""
    c1 = 1 << 9
    end = outcome(FNINIT + FLD1 * 9)
    assert end.st(0) == INDEFINITE
    assert end.status & (IE | SF | c1) == IE | SF | c1
    end = outcome(FNINIT + FADDP)
    assert end.status & (IE | SF | c1) == IE | SF
    assert end.top == 1


def test_given_unmasked_invalid_when_the_stack_overflows_then_the_stack_is_as_it_was() -> None:
    """And the instruction behind it raises #MF."""
    before = FNINIT + fldcw(0x37F & ~IE) + FLD1 * 8 + FLDPI
    end = outcome(before + FNOP)
    assert end.fault == (MF, len(before))
    assert end.top == 0
    assert end.st(0) == "3fff.8000000000000000"


@pytest.mark.parametrize("code", ["dd/3", "d9/3", "db/7", "df/7", "dd/6", "d9/6"])
def test_given_a_store_to_a_page_that_is_missing_when_it_faults_then_the_x87_state_is_as_it_was(
    code: str,
) -> None:
    """Also when the operand begins on a page that is there: nothing of it is written."""
    before = FNINIT + FLDPI + FLD1
    for address in (NOWHERE, NOWHERE - 1):
        end = outcome(before + at(code, address))
        assert end.fault == (PF, len(before))
        assert (end.top, end.st(0)) == (6, "3fff.8000000000000000")
        assert end.fip == len(before) - len(FLD1)
        assert end.last == UNTOUCHED


def test_given_mmx_with_an_operand_on_a_missing_page_when_it_faults_then_the_x87_state_is_as_it_was() -> None:
    """TOP and tags change when the instruction has its operand."""
    before = FNINIT + FLDPI + FLD1
    end = outcome(before + at("0ffc/0", NOWHERE))
    assert end.fault == (PF, len(before))
    assert (end.top, end.tags) == (6, 0x0FFF)


@pytest.mark.parametrize("opcode", ["0f60", "0f61", "0f62"])
def test_given_half_an_operand_at_the_end_of_memory_when_it_is_unpacked_then_no_more_is_read(
    opcode: str,
) -> None:
    """PUNPCKL has four bytes of memory as its source."""
    assert outcome(at(f"{opcode}/1", NOWHERE - 4)).fault is None


@pytest.mark.parametrize("code", ["440f3801f9", "450f381ce9", "4d0f3800c9", "440f3a0fe108", "450ffcf9"])
def test_given_rex_that_extends_a_register_when_it_is_mmx_then_it_has_no_effect(code: str) -> None:
    """There are eight of them: the ninth would lie in what the emulator keeps behind them."""
    plain = bytes((0x40,)) + bytes.fromhex(code)[1:]
    fill = b"".join(at(f"0f6f/{number}", DATA + 8 * number) for number in range(8))
    data = bytes(range(1, 65))
    extended, expected = (outcome(fill + form, data=data) for form in (bytes.fromhex(code), plain))
    assert extended.fault is None
    assert extended.image == expected.image


@pytest.mark.parametrize(
    ("code", "size"),
    [("dd/6", 108), ("dd/4", 108), ("d9/6", 28), ("d9/4", 28)],
    ids=["fnsave", "frstor", "fnstenv", "fldenv"],
)
def test_given_an_image_that_ends_on_a_missing_page_when_it_is_used_then_its_last_byte_is_told(
    code: str, size: int
) -> None:
    """The bare processor asks for the first word, then for the last byte, before it moves any."""
    for back, faulting in ((8, size - 1), (2, 2)):
        host = long_mode_host(at(code, NOWHERE - back) + HLT)
        host.start()
        until_halted(host)
        host.stop()
        assert fault(host) == (PF, 0)
        assert host.registers(0)["cr2"] == NOWHERE - back + faulting


def test_given_real_mode_when_the_environment_is_stored_then_it_has_linear_addresses_and_the_opcode() -> None:
    """Figures 8-10 and 8-12 of SDM vol. 1: 20 bits of the linear address in the form of 16 bits."""
    fld_at_1234 = b"\xd9\x06\x34\x12"  # fld dword [1234]
    host = raw_host(b"\xdb\xe3" + fld_at_1234 + b"\xd9\x36\x00\x50" + b"\x66\xd9\x36\x40\x50" + HLT)
    real = (0x4000, 0x4_0000, 0xFFFF, 0x93)
    host.ram_write(0x4_0000, bytes(host.ram_read(CODE, 0x40)))
    host.set_registers(0, {"cr0": 0x30, "rip": 0, "cs": (*real[:3], 0x9B), "ds": real, "ss": real})
    host.start()
    until_halted(host)
    host.stop()
    short = struct.unpack("<7H", host.ram_read(0x4_5000, 14))
    assert short == (0x37F, 7 << 11, 0x7FFF, 0x0002, 0x4 << 12 | 0x106, 0x1234, 0x4 << 12)
    wide = struct.unpack("<7I", host.ram_read(0x4_5040, 28))
    assert [word & 0xFFFF for word in wide[:4]] == [0x37F, 7 << 11, 0x7FFF, 0x0002]
    assert wide[4:] == (0x4 << 12 | 0x106, 0xFFFF_1234, 0x4 << 12)


# --- FXSAVE and FXRSTOR ---

DIVIDE_1_BY_3 = bytes.fromhex("f20f100425") + (DATA + 0x800).to_bytes(4, "little")  # movsd xmm0, [1.0]
DIVIDE_1_BY_3 += bytes.fromhex("f20f5e0425") + (DATA + 0x808).to_bytes(4, "little")  # divsd xmm0, [3.0]
NUMBERS = bytes.fromhex("000000000000f03f0000000000000840")
LDMXCSR_CLEAN = at("0fae/2", DATA + 0x810)
FXSAVE, FXRSTOR = at("0fae/0", DATA), at("0fae/1", DATA)


def with_numbers(image: bytes = b"") -> bytes:
    return image.ljust(0x800, b"\0") + NUMBERS + (0x1F80).to_bytes(4, "little")


def test_given_an_inexact_division_when_fxsave_follows_then_its_flag_is_in_the_image() -> None:
    """Sticky flags that live in the host's MXCSR are merged; FXRSTOR of a clean image drops them."""
    end = outcome(LDMXCSR_CLEAN + DIVIDE_1_BY_3 + FXSAVE, data=with_numbers())
    assert int.from_bytes(end.memory[24:28], "little") == 0x1FA0
    again = at("0fae/3", DATA + 0x820)  # stmxcsr
    end = outcome(LDMXCSR_CLEAN + FXSAVE + DIVIDE_1_BY_3 + FXRSTOR + again, data=with_numbers())
    assert int.from_bytes(end.memory[0x820:0x824], "little") == 0x1F80


def test_given_an_image_that_rounds_up_when_fxrstor_has_loaded_it_then_divisions_round_up() -> None:
    """The controls come with the value."""
    image = bytearray(512)
    image[24:28] = (0x5F80).to_bytes(4, "little")
    store = bytes.fromhex("f20f110425") + (DATA + 0x820).to_bytes(4, "little")
    end = outcome(FXRSTOR + DIVIDE_1_BY_3 + store, data=with_numbers(bytes(image)))
    assert end.memory[0x820:0x828] == bytes.fromhex("565555555555d53f")


def test_given_a_reserved_bit_of_mxcsr_when_fxrstor_meets_it_then_nothing_is_loaded() -> None:
    """#GP(0), with the x87 state as it was."""
    image = bytearray(512)
    image[26] = 1
    end = outcome(FNINIT + FLDPI + FXRSTOR, data=bytes(image))
    assert end.fault == (GP, len(FNINIT + FLDPI))
    assert end.st(0) == "4000.c90fdaa22168c235"


@pytest.mark.parametrize("group", [0, 1], ids=["fxsave", "fxrstor"])
def test_given_a_misaligned_image_when_it_is_stored_or_loaded_then_it_is_gp(group: int) -> None:
    """At the instruction."""
    end = outcome(FLD1 + at(f"0fae/{group}", DATA + 8))
    assert end.fault == (GP, len(FLD1))


def test_given_an_image_over_the_end_of_memory_when_it_is_stored_then_no_byte_of_it_is() -> None:
    """The page fault comes first."""
    end = outcome(FLD1 + at("0fae/0", NOWHERE - 496))  # the last 16 bytes, which are the program's, too
    assert end.fault == (PF, len(FLD1))
    end = outcome(FLD1 + at("0fae/0", NOWHERE - 256))
    assert end.fault == (PF, len(FLD1))
    assert end.last == UNTOUCHED
