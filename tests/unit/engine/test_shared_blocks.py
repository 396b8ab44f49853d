# SPDX-License-Identifier: GPL-2.0-or-later
"""User code is translated once for all the addresses that its page is mapped at, and no guest can tell."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from coremesh.core.engine import Host
from raw_host import BASE, NULL_SEGMENT, TABLES, fault, long_mode_host, physical, until, until_halted

# Where the page of the functions is mapped, and that of the program that calls them; their places in RAM.
HERE, THERE, PROGRAM = 0x7F00_1234_5000, 0x5600_0ABC_D000, 0x6000_0000_0000
FUNCTIONS_AT, PROGRAM_AT, USER_TABLES, TSS = 0x40_0000, 0x40_1000, 0x41_0000, 0xB000
RESULTS = 0x800  # in the program's page
TOP_OF_STACK = PROGRAM + 0x1000
GUARD = 0x1111_2222_3333_4444

FUNCTIONS = f"""
    .org 0x100
    lea rax, [rip + datum]
    call next
next: pop rbx
    mov rcx, [rip + datum]
    movabs rdx, {HERE + 0x180}
    mov esi, 3
again: dec esi
    jnz again
    lea edi, [eip + datum]
    ret
    .org 0x200
    nop
    mov rax, [r13]
    ret
    .org 0x240
    xor edx, edx
    div r13d
    ret
    .org 0x280
    nop
    push r13
    ret
    .org 0x2a0
    ret
    .org 0x2c0
    nop
spin: jmp spin
    .org 0x300
    mov eax, 1
    mov ebx, eax
    ret
    .org 0x700
datum: .quad {GUARD}
    .org 0xff6
    mov eax, 7
    .byte 0xe9
    .long 0x100 - 0x1000
"""


@dataclass(frozen=True)
class Offsets:
    """Of the functions in their page."""

    addresses: int = 0x100
    page_fault: int = 0x200
    division: int = 0x240
    jump: int = 0x280
    back: int = 0x2A0
    spin: int = 0x2C0
    constant: int = 0x300
    page_end: int = 0xFF6


AT = Offsets()


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Assembles a text."""
    folder: Path = tmp_path_factory.mktemp("assembled")

    def assemble(text: str) -> bytes:
        (folder / "text.s").write_text(".intel_syntax noprefix\n.text\n" + text + "\n")
        subprocess.run(["as", "-o", folder / "text.o", folder / "text.s"], check=True)
        subprocess.run(
            ["objcopy", "-O", "binary", "-j", ".text", folder / "text.o", folder / "text"], check=True
        )
        return (folder / "text").read_bytes()

    return assemble


def calls(*targets: int) -> str:
    """Call each, and keep RAX, RBX, RCX, RDX, RDI behind it in the results."""
    lines = []
    for number, target in enumerate(targets):
        lines += [f"movabs r15, {target}", "call r15"]
        for place, register in enumerate(("rax", "rbx", "rcx", "rdx", "rdi")):
            lines.append(f"mov [rip + results + {40 * number + 8 * place}], {register}")
    return "\n".join([*lines, f"end: jmp end\n.org {RESULTS}\nresults: .quad 0"])


def user_mode() -> dict[str, object]:
    """Registers of 64-bit code at privilege level 3, its stack empty."""
    code, stack = (0x33, 0, 0xFFFF_FFFF, 0xAFB), (0x2B, 0, 0xFFFF_FFFF, 0xCF3)
    return {"cs": code, "ss": stack, "rsp": TOP_OF_STACK}


def map_user_page(host: Host, linear: int, page: int, number: int) -> None:
    """Map a page of RAM for user code, through tables of its own but for the topmost."""
    user = 7
    table = USER_TABLES + 0x3000 * number
    host.ram_write(TABLES + 8 * (linear >> 39), (table | user).to_bytes(8, "little"))
    for level, shift in enumerate((30, 21, 12)):
        below = page if shift == 12 else table + 0x1000 * (level + 1)
        index = linear >> shift & 0x1FF
        host.ram_write(table + 0x1000 * level + 8 * index, (below | user).to_bytes(8, "little"))


def user_host(functions: bytes, program: bytes) -> Host:
    """A host that was not started, at the beginning of the program in user mode."""
    host = long_mode_host(b"\xf4")
    host.ram_write(FUNCTIONS_AT, functions)
    host.ram_write(PROGRAM_AT, program)
    low = BASE - physical(BASE)
    host.ram_write(TSS + 4, (low + 0xF000).to_bytes(8, "little"))
    map_user_page(host, HERE, FUNCTIONS_AT, 0)
    map_user_page(host, PROGRAM, PROGRAM_AT, 1)
    map_user_page(host, THERE, FUNCTIONS_AT, 2)
    host.set_registers(
        0,
        {
            **user_mode(),
            "tr": (0x18, low + TSS, 0x67, 0x8B),
            "rip": PROGRAM,
            "rflags": 2,
            **dict.fromkeys(("ds", "es", "fs", "gs"), NULL_SEGMENT),
        },
    )
    return host


def run(host: Host, count: int) -> list[dict[str, int]]:
    """Until the program's end; the results of its calls."""
    host.start()
    last = PROGRAM_AT + RESULTS + 40 * (count - 1) + 32
    until(lambda: host.ram_read(last, 8) != bytes(8), f"the program does not end: {host.stats()}")
    host.pause()
    raw = host.ram_read(PROGRAM_AT + RESULTS, 40 * count)
    words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    names = ("rax", "rbx", "rcx", "rdx", "rdi")
    return [dict(zip(names, words[5 * number :], strict=False)) for number in range(count)]


def translations(host: Host) -> int:
    return int(host.stats()[0]["translations"])


def test_given_a_page_at_two_addresses_when_both_are_called_then_each_sees_its_own_and_the_code_is_one(
    assembled: Callable[[str], bytes],
) -> None:
    functions = assembled(FUNCTIONS)
    counts = []
    for second in (HERE, THERE):
        host = user_host(functions, assembled(calls(*(at + AT.addresses for at in (HERE, second, HERE)))))
        results = run(host, 3)
        for page, registers in zip((HERE, second, HERE), results, strict=True):
            assert registers["rax"] == page + 0x700, "the address of an operand"
            assert registers["rbx"] == page + 0x100 + 12, "the return address of a call"
            assert registers["rcx"] == GUARD
            assert registers["rdx"] == HERE + 0x180, "a number of the program's, near the code as it is"
            assert registers["rdi"] == page + 0x700 & 0xFFFF_FFFF, "an address of 32 bits"
        counts.append(translations(host))
        host.stop()
    assert counts[0] == counts[1], "the second address had translations of its own"


def test_given_a_block_that_ends_with_its_page_when_it_is_left_then_what_follows_is_that_of_its_address(
    assembled: Callable[[str], bytes],
) -> None:
    """Its branch stands behind an instruction that ends right before the page's end."""
    host = user_host(assembled(FUNCTIONS), assembled(calls(HERE + AT.page_end, THERE + AT.page_end)))
    assert [each["rax"] for each in run(host, 2)] == [HERE + 0x700, THERE + 0x700]
    host.stop()


@pytest.mark.parametrize(
    ("offset", "good", "bad", "vector", "behind"),
    [
        (AT.page_fault, PROGRAM, 0, 14, 1),
        (AT.division, 1, 0, 0, 2),
        (AT.jump, HERE + AT.back, 1 << 63, 13, 3),
    ],
)
def test_given_a_block_translated_at_another_address_when_it_faults_then_the_fault_is_where_it_runs(
    assembled: Callable[[str], bytes], offset: int, good: int, bad: int, vector: int, behind: int
) -> None:
    """A page fault, a division by zero, and a return to an address that is none, which is undone."""
    text = f"""
        movabs r13, {good}
        movabs r15, {HERE + offset}
        call r15
        movabs r13, {bad}
        movabs r15, {THERE + offset}
        call r15
    """
    host = user_host(assembled(FUNCTIONS), assembled(text))
    host.start()
    until_halted(host)
    host.pause()
    assert fault(host) == (vector, THERE + offset + behind - BASE)
    host.stop()


def test_given_a_loop_at_another_address_than_it_was_translated_for_when_it_is_paused_then_rip_is_its_own(
    assembled: Callable[[str], bytes],
) -> None:
    host = user_host(assembled(FUNCTIONS), assembled(calls(HERE + AT.addresses)))
    run(host, 1)
    for page in (HERE, THERE, HERE, THERE):
        host.set_registers(0, {"rip": page + AT.spin})
        host.resume()
        for _ in range(20):
            host.pause()
            assert host.registers(0)["rip"] - page in (AT.spin, AT.spin + 1)
            host.resume()
        host.pause()
    host.stop()


def test_given_code_run_at_two_addresses_when_it_is_changed_then_neither_runs_what_it_was(
    assembled: Callable[[str], bytes],
) -> None:
    """The program itself changes the number of `mov eax, 1`, through the one address and the other."""
    targets: list[tuple[int | None, int]] = []
    for written, called in ((HERE, THERE), (THERE, HERE), (HERE, HERE), (THERE, THERE)):
        targets += [(None, HERE), (None, THERE), (written, called)]
    lines, expected, value = [], [], 1
    for number, (changed, called) in enumerate(targets):
        if changed is not None:
            value = number + 1
            lines += [f"movabs r14, {changed + AT.constant + 1}", f"mov byte ptr [r14], {value}"]
        lines += [f"movabs r15, {called + AT.constant}", "call r15"]
        lines += [f"mov [rip + results + {4 * number}], ebx"]
        expected.append(value)
    text = "\n".join([*lines, f"end: jmp end\n.org {RESULTS}\nresults: .quad 0"])
    host = user_host(assembled(FUNCTIONS), assembled(text))
    host.start()
    last = PROGRAM_AT + RESULTS + 4 * (len(targets) - 1)
    until(lambda: host.ram_read(last, 4) != bytes(4), "the program does not end")
    host.pause()
    raw = host.ram_read(PROGRAM_AT + RESULTS, 4 * len(targets))
    assert [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)] == expected
    host.stop()
