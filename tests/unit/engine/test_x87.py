# SPDX-License-Identifier: GPL-2.0-or-later
"""x87 and MMX of a guest, bit by bit against the processor that runs the tests.

One program of machine code is laid at the same linear address in this process and in a guest: it loads an x87
state, executes one instruction, and saves the state, once for each row and instruction. Operands, states and
control words are random out of special values; then the two results are compared, to the last bit.
"""

import ctypes
import mmap
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from raw_host import BASE, HLT, fault, long_mode_host, physical, until_halted
from x87_rows import CS_AT, FLAGS_AT, OPERAND, OPERAND_BYTES, ROW, describe, random_rows

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="the host must have the instructions to compare with",
)

CODE_BYTES = 0x10_0000

STATE_GROUPS = frozenset((0x0C, 0x0D, 0x0E, 0x0F, 0x2C, 0x2E, 0x2F))
NO_MEMORY_GROUPS = frozenset((0x09, 0x1C, 0x1E, 0x2D))


def is_instruction(opcode: int, modrm: int) -> bool:
    """Whether a register form is one (SDM vol. 2D, tables A-7 to A-22, and the aliases that have no name)."""
    group = modrm >> 3 & 7
    match opcode:
        case 0xD9:
            absent = (*range(0xD1, 0xD8), 0xE2, 0xE3, 0xE6, 0xE7, 0xEF)
            return modrm not in absent
        case 0xDA:
            return group < 4 or modrm == 0xE9
        case 0xDB:
            return modrm not in (0xE5, 0xE6, 0xE7) and modrm < 0xF8
        case 0xDD:
            return group < 6
        case 0xDE:
            return group != 3 or modrm == 0xD9
        case 0xDF:
            return group < 4 or modrm == 0xE0 or group in (5, 6)
    return True


def register_forms() -> list[bytes]:
    """All of D8-DF with ModRM C0-FF that are instructions."""
    return [
        bytes((opcode, modrm))
        for opcode in range(0xD8, 0xE0)
        for modrm in range(0xC0, 0x100)
        if is_instruction(opcode, modrm)
    ]


def memory_forms() -> list[bytes]:
    """All with a memory operand at RBX; those that save and load state also in their 16-bit form."""
    forms = []
    for group in range(64):
        if group in NO_MEMORY_GROUPS:
            continue
        form = bytes((0xD8 + (group >> 3), (group & 7) << 3 | 3))
        forms.append(form)
        if group in STATE_GROUPS:
            forms.append(b"\x66" + form)
    return forms


def mmx_forms() -> list[bytes]:
    """Every MMX instruction up to SSSE3: MM5 and MM1 and, where it can be, a memory operand at RBX."""
    two_operands = (
        *range(0x60, 0x6C), *range(0x74, 0x77), *range(0xD1, 0xD6), *range(0xD8, 0xE0), *range(0xE0, 0xE6),
        *range(0xE8, 0xF0), *range(0xF1, 0xF7), *range(0xF8, 0xFF),
    )  # fmt: skip
    register, memory = b"\xe9", b"\x2b"  # ModRM: MM5 with MM1, with [RBX]
    forms = [b"\x0f" + bytes((opcode,)) + modrm for opcode in two_operands for modrm in (register, memory)]
    forms += [
        b"\x0f\x38" + bytes((opcode,)) + modrm
        for opcode in (*range(0x0C), 0x1C, 0x1D, 0x1E)
        for modrm in (register, memory)
    ]
    shifts = ((0x71, (2, 4, 6)), (0x72, (2, 4, 6)), (0x73, (2, 6)))
    forms += [
        bytes((0x0F, opcode, 0xC5 | group << 3, count))
        for opcode, groups in shifts
        for group in groups
        for count in (0, 3, 70)
    ]
    forms += [
        bytes.fromhex(text)
        for text in (
            "0f6ee8", "0f6e2b", "480f6ee8", "0f7ee8", "0f7e2b", "480f7ee8",  # movd and movq, EAX or [RBX]
            "0f6fe9", "0f6f2b", "0f7fe9", "0f7f2b", "0fe72b",  # movq, movntq
            "0f70e91b", "0f702b4e", "0fc4e803", "0fc42b01", "0fc5c502", "0fd7c5",  # pshufw ... pmovmskb
            "f20fd6e8", "f30fd6c5", "0f77",  # movdq2q, movq2dq, emms
            "0f2ac5", "0f2a03", "660f2ac5", "660f2a03",  # cvtpi2ps, cvtpi2pd
            "0f2de8", "0f2d2b", "660f2de8", "0f2ce8", "0f2c2b", "660f2ce8",  # cvtps2pi, cvtpd2pi, cvtt...
            "0f3a0fe903", "0f3a0f2b09",  # palignr
        )
    ]  # fmt: skip
    return forms


def program(instructions: list[bytes], rows: int) -> bytes:
    """Each instruction once for each of its ``rows`` rows: RSI points to the first of all, RDI to results."""
    code = bytearray()
    for instruction in instructions:
        code += b"\xb9" + rows.to_bytes(4, "little")  # mov ecx, rows
        top = len(code)
        code += b"\xdd\x26"  # frstor [rsi]
        for at in range(OPERAND, OPERAND + OPERAND_BYTES, 8):
            code += b"\x48\x8b\x86" + at.to_bytes(4, "little")  # mov rax, [rsi + at]
            code += b"\x48\x89\x87" + at.to_bytes(4, "little")  # mov [rdi + at], rax
        code += b"\x48\x8d\x9f" + OPERAND.to_bytes(4, "little")  # lea rbx, [rdi + OPERAND]
        code += b"\x8b\x46" + bytes((FLAGS_AT,))  # mov eax, [rsi + FLAGS_AT]
        code += b"\x50\x9d"  # push rax; popfq
        code += instruction
        code += b"\x9c\x41\x58"  # pushfq; pop r8
        code += b"\xdd\x37"  # fnsave [rdi]
        code += b"\x45\x0f\xb7\xc0\xc1\xe0\x10\x41\x09\xc0"  # movzx r8d, r8w; shl eax, 16; or r8d, eax
        code += b"\x44\x89\x47" + bytes((FLAGS_AT,))  # mov [rdi + FLAGS_AT], r8d
        code += b"\x48\x81\xc6" + ROW.to_bytes(4, "little")  # add rsi, ROW
        code += b"\x48\x81\xc7" + ROW.to_bytes(4, "little")  # add rdi, ROW
        code += b"\xff\xc9"  # dec ecx
        code += b"\x0f\x85" + (top - len(code) - 6).to_bytes(4, "little", signed=True)  # jnz top
    return bytes(code)


# --- Here ---


@dataclass
class Native:
    """Memory of this process at BASE, with the right to execute."""

    address: int
    size: int

    def write(self, at: int, data: bytes) -> None:
        ctypes.memmove(self.address + at, data, len(data))

    def read(self, at: int, size: int) -> bytes:
        return ctypes.string_at(self.address + at, size)

    def call(self, *arguments: int) -> None:
        ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * len(arguments))(self.address)(*arguments)


@pytest.fixture
def native() -> Iterator[Native]:
    """32 MiB at BASE."""
    fixed_noreplace = 0x10_0000
    size = 32 << 20
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed_noreplace
    address = libc.mmap(BASE, size, protection, flags, -1, 0)
    if address != BASE:
        pytest.skip(f"no executable memory at {BASE:#x} here: {os.strerror(ctypes.get_errno())}")
    yield Native(address, size)
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.munmap(address, size)


def run_here(native: Native, code: bytes, rows: bytes) -> bytes:
    """Results of the program on this processor. ``rbx`` is the caller's."""
    inputs = CODE_BYTES
    results = inputs + len(rows)
    enter = b"\x53\x48\x89\xf8\x48\x89\xf7\x48\x89\xc6"  # push rbx; rsi and rdi are the other way round
    native.write(0, enter + code + b"\x5b\xc3")  # pop rbx; ret
    native.write(inputs, rows)
    native.call(BASE + inputs, BASE + results)
    return native.read(results, len(rows))


# --- In a guest ---


def run_in_guest(code: bytes, rows: bytes) -> bytes:
    """Results of the program on a vCPU."""
    inputs = CODE_BYTES
    results = inputs + len(rows)
    # As long as what run_here enters with: code lies at the same addresses.
    load = b"\x48\xbe" + (BASE + inputs).to_bytes(8, "little")
    host = long_mode_host(load + code + HLT)
    host.ram_write(physical(BASE + inputs), rows)
    host.set_registers(0, {"rdi": BASE + results})
    host.start()
    until_halted(host)
    host.stop()
    assert fault(host) is None
    return bytes(host.ram_read(physical(BASE + results), len(rows)))


def host_keeps_pointers() -> bool:
    """Whether FIP, FDP, FCS, FDS and FOP are what the guest has: newer Intel cores deprecate them."""
    return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


def comparable(results: bytes) -> np.ndarray:
    """Results without what differs between a process and a guest."""
    table = np.frombuffer(results, np.uint8).reshape(-1, ROW).copy()
    table[:, CS_AT] &= 0xFC  # RPL: this process is at privilege level 3
    table[:, FLAGS_AT + 1] &= 0xFD  # IF
    if not host_keeps_pointers():
        table[:, 12:28] = 0
    return table


def differences(
    native: Native, instructions: list[bytes], rows: np.ndarray, rows_each: int
) -> list[tuple[bytes, str]]:
    """Instructions whose results differ, with a description of the first row of each."""
    code = program(instructions, rows_each)
    there = comparable(run_in_guest(code, rows.tobytes()))
    # A context switch of the system under this process may lose the pointers: AMD's FXSAVE keeps them only
    # while an exception is pending. It does not hit the same row again and again.
    wrong = np.ones(len(there), dtype=bool)
    for _ in range(5):
        here = comparable(run_here(native, code, rows.tobytes()))
        wrong &= (here != there).any(axis=1)
        if not wrong.any():
            break
    found: dict[bytes, str] = {}
    counts: dict[bytes, int] = {}
    for at in np.flatnonzero(wrong):
        instruction = instructions[at // rows_each]
        counts[instruction] = counts.get(instruction, 0) + 1
        found.setdefault(
            instruction,
            f"\n  given {describe(rows[at])}\n  here  {describe(here[at])}\n  guest {describe(there[at])}",
        )
    return [(key, f"{key.hex(' ')}: {counts[key]} of {rows_each} rows{text}") for key, text in found.items()]


def compare(native: Native, instructions: list[bytes], rows_each: int, seed: int) -> None:
    """Fail with the rows that differ."""
    rng = np.random.default_rng(seed)
    count = len(instructions) * rows_each
    found = differences(native, instructions, random_rows(rng, count), rows_each)
    assert not found, f"seed {seed}: {len(found)} instructions\n" + "\n".join(text for _, text in found[:8])


@pytest.mark.parametrize("seed", range(2))
def test_given_random_states_when_registers_are_operands_then_the_guest_computes_as_the_processor_does(
    native: Native, seed: int
) -> None:
    """Values, status word, condition codes, tags, TOP, RFLAGS, and the last instruction's pointers."""
    compare(native, register_forms(), 96, seed)


@pytest.mark.parametrize("seed", range(2))
def test_given_random_states_when_memory_is_an_operand_then_the_guest_computes_as_the_processor_does(
    native: Native, seed: int
) -> None:
    """The same, and the bytes that a store leaves, or does not touch when an exception is not masked."""
    compare(native, memory_forms(), 512, 1000 + seed)


@pytest.mark.parametrize("seed", range(2))
def test_given_random_states_when_mmx_instructions_follow_then_the_guest_leaves_what_the_processor_does(
    native: Native, seed: int
) -> None:
    """TOP = 0, all registers full, exponents of ones where a register was written, and its value."""
    compare(native, mmx_forms(), 64, 2000 + seed)


FXSAVE_ROW = 1024  # an image to load, and the one that is stored


def fxsave_program(rows: int, wide: bytes) -> bytes:
    """FXRSTOR and FXSAVE of each row, with or without REX.W; both images and, behind them, nothing."""
    code = bytearray(b"\xb9" + rows.to_bytes(4, "little"))  # mov ecx, rows
    top = len(code)
    code += wide + b"\x0f\xae\x0e"  # fxrstor [rsi]
    code += wide + b"\x0f\xae\x07"  # fxsave [rdi]
    code += b"\x48\x81\xc6" + FXSAVE_ROW.to_bytes(4, "little")  # add rsi, FXSAVE_ROW
    code += b"\x48\x81\xc7" + FXSAVE_ROW.to_bytes(4, "little")  # add rdi, FXSAVE_ROW
    code += b"\xff\xc9"  # dec ecx
    code += b"\x0f\x85" + (top - len(code) - 6).to_bytes(4, "little", signed=True)  # jnz top
    # Leave no exception pending, and the MXCSR of always.
    return bytes(
        code + b"\xdb\xe3\x68\x80\x1f\x00\x00\x0f\xae\x14\x24\x58"
    )  # fninit; push; ldmxcsr [rsp]; pop


@pytest.mark.parametrize("wide", [b"", b"\x48"], ids=["fxsave", "fxsave64"])
def test_given_images_of_any_bytes_when_they_are_loaded_then_the_guest_keeps_what_the_processor_keeps(
    native: Native, wide: bytes
) -> None:
    """All 80 bits of each register, reserved bits that read as zero, and ES from flags and masks."""
    rng = np.random.default_rng(7)
    count = 500
    rows = rng.integers(0, 256, size=(count, FXSAVE_ROW), dtype=np.uint8)
    rows[:, 25] &= 0xFF
    rows[:, 26:28] = 0  # MXCSR: a reserved bit is #GP
    code = fxsave_program(count, wide)
    here, there = (
        np.frombuffer(results, np.uint8).reshape(-1, FXSAVE_ROW).copy()
        for results in (run_here(native, code, rows.tobytes()), run_in_guest(code, rows.tobytes()))
    )
    pointers, mxcsr_mask = slice(6, 24), slice(28, 32)
    assert (there[:, 8:14] == rows[:, 8:14]).all(), "FIP"
    assert (there[:, 16:22] == rows[:, 16:22]).all(), "FDP"
    assert (there[:, mxcsr_mask] == (0xFF, 0xFF, 0, 0)).all()
    for results in (here, there):
        results[:, pointers] = 0  # AMD keeps them only while an exception is pending
        results[:, mxcsr_mask] = 0  # misaligned SSE, which is not announced
    wrong = np.flatnonzero((here != there).any(axis=1))
    assert not len(wrong), [
        (int(at), [int(byte) for byte in np.flatnonzero(here[at] != there[at])]) for at in wrong[:5]
    ]


@pytest.mark.slow
def test_given_a_million_states_when_all_instructions_compute_then_the_guest_does_as_the_processor_does(
    native: Native,
) -> None:
    """As above, for longer, from a seed of the day."""
    seed = int.from_bytes(os.urandom(4), "little")
    for number in range(20):
        compare(native, register_forms(), 96, seed + number)
        compare(native, memory_forms(), 512, seed + 1000 + number)
        compare(native, mmx_forms(), 128, seed + 2000 + number)
