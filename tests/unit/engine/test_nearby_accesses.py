# SPDX-License-Identifier: GPL-2.0-or-later
"""One look-up of a page serves several accesses of a block; what the guest sees of its pages stays exact.

The guest runs in 64-bit mode with pages of 4 KiB. Its page-fault handler notes what it was told, makes the
page present and writable, and goes back.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from coremesh.core.engine import Host
from coremesh.core.memory_layout import MemoryLayout, Region
from raw_host import until_halted

RAM = 0x20_0000
TABLES, PAGE_TABLE, IDT, GDT, STACK, CODE = 0x1000, 0x4000, 0x6000, 0x7000, 0x9000, 0x1_0000
PROGRAM = CODE + 0x1000  # a page begins here
NOTES = 0xA000  # how many faults there were; then four words for each
OPEN, READ_ONLY, OPEN_TOO, ABSENT = 0x2_0000, 0x2_1000, 0x2_2000, 0x2_3000  # beside each other
SECOND_OPEN = 0x3_0000  # the same memory as OPEN
NOTHING = 0x3_1000  # no memory behind it
SAME_PLACE = OPEN + (64 << 12)  # of the same place in a software TLB of 64 entries
PRESENT, WRITABLE, ACCESSED, DIRTY = 1, 2, 0x20, 0x40
PF_PRESENT, PF_WRITE = 1, 2

HANDLER = f"""
page_fault:
    push rax
    push rbx
    mov rbx, [{NOTES:#x}]
    inc qword ptr [{NOTES:#x}]
    shl rbx, 5
    mov [rbx+{NOTES + 16:#x}], rax
    mov rax, cr2
    mov [rbx+{NOTES + 24:#x}], rax
    mov rax, [rsp+16]
    mov [rbx+{NOTES + 32:#x}], rax
    mov rax, [rsp+24]
    mov [rbx+{NOTES + 40:#x}], rax
    mov rax, cr2
    mov rbx, cr2
    shr rbx, 12
    or qword ptr [rbx*8+{PAGE_TABLE:#x}], {PRESENT | WRITABLE}
    invlpg [rax]
    pop rbx
    pop rax
    add rsp, 8
    iretq
"""


@dataclass
class Fault:
    """What the handler saw."""

    rax: int
    cr2: int
    error: int
    rip: int


class Guest:
    """A guest that runs some lines of assembly, from PROGRAM, to HLT."""

    def __init__(self, folder: Path, lines: str, registers: dict[str, int]) -> None:
        text = f".intel_syntax noprefix\n.text\n{HANDLER}\n.org {PROGRAM - CODE}\n{lines}\nhlt\n"
        (folder / "guest.s").write_text(text)
        subprocess.run(["as", "-o", "guest.o", "guest.s"], cwd=folder, check=True)
        copy = ["objcopy", "-O", "binary", "-j", ".text", "guest.o", "guest"]
        subprocess.run(copy, cwd=folder, check=True)
        symbols = subprocess.run(["nm", "guest.o"], cwd=folder, check=True, capture_output=True, text=True)
        self.labels = {
            name: CODE + int(at, 16) for at, _, name in map(str.split, symbols.stdout.splitlines())
        }
        self.host = Host(memory=MemoryLayout.of([Region(0, RAM)]), apic_ids=[0], total_vcpus=1)
        self._write_tables()
        self.host.ram_write(CODE, (folder / "guest").read_bytes())
        for page in (OPEN, READ_ONLY, OPEN_TOO, ABSENT, SAME_PLACE):
            self.write(page, [page + 8 * n for n in range(512)])
        flat = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), (0x10, 0, 0xFFFF_FFFF, 0xC93))
        system = {"cr3": TABLES, "cr4": 0x20, "efer": 0x500, "cr0": 0x8001_0011}
        segments = {"cs": (8, 0, 0xFFFF_FFFF, 0xA9B), **flat, "gdtr": (GDT, 23), "idtr": (IDT, 16 * 32 - 1)}
        self.host.set_registers(0, {**system, **segments, "rip": PROGRAM, "rsp": STACK, **registers})
        self.host.start()
        until_halted(self.host)
        self.host.pause()

    def _write_tables(self) -> None:
        for level in range(3):
            self.write(TABLES + 0x1000 * level, [TABLES + 0x1000 * (level + 1) + 0x23])
        pages = {page: page | PRESENT | WRITABLE for page in range(0, RAM, 0x1000)}
        pages[READ_ONLY] &= ~WRITABLE
        pages[ABSENT] = ABSENT
        pages[SECOND_OPEN] = OPEN | PRESENT | WRITABLE
        pages[NOTHING] = 0xD000_0000 | PRESENT | WRITABLE
        self.write(PAGE_TABLE, [pages[page] for page in sorted(pages)])
        self.write(GDT, [0, 0xAF_9B00_0000_FFFF, 0xCF_9300_0000_FFFF])
        gate = [(CODE & 0xFFFF) | 8 << 16 | 0x8E00 << 32 | (CODE >> 16) << 48, 0]
        self.write(IDT + 14 * 16, gate)

    def write(self, gpa: int, words: Sequence[int]) -> None:
        self.host.ram_write(gpa, b"".join(word.to_bytes(8, "little") for word in words))

    def words(self, gpa: int, count: int = 1) -> list[int]:
        raw = bytes(self.host.ram_read(gpa, 8 * count))
        return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]

    def register(self, name: str) -> int:
        return int(self.host.registers(0)[name])

    def faults(self) -> list[Fault]:
        count = self.words(NOTES)[0]
        return [Fault(*self.words(NOTES + 16 + 32 * n, 4)) for n in range(count)]

    def bits(self, page: int) -> int:
        """Accessed and dirty, of the page's table entry."""
        return self.words(PAGE_TABLE + 8 * (page >> 12))[0] & (ACCESSED | DIRTY)


# Lines, where `fault` is; R8; RAX at the fault, CR2 and error code.
FAULTS = {
    "a store behind a load": (
        "mov rax, [r8]\nadd rax, 5\nfault: mov [r8+8], rax",
        READ_ONLY, READ_ONLY + 5, 8, 3,
    ),
    "an operand": ("fault: add [r8], rax", READ_ONLY, 7, 0, 3),
    "the same address, computed again": (
        "mov rcx, [r8+rbx*8+16]\nlea rax, [rcx+2]\nfault: mov [r8+rbx*8+16], rax",
        READ_ONLY, READ_ONLY + 16 + 2, 16, 3,
    ),
    "a load of the next page": ("mov [r8], rax\nfault: mov rcx, [r8+8]", ABSENT - 8, 7, 8, 0),
    "a store to the next page": (
        "mov rcx, [r8]\nmov [r8-8], rcx\nfault: mov [r8+8], rax",
        ABSENT - 8, 7, 8, 2,
    ),
    "a store over the page's end": ("mov rcx, [r8]\nfault: mov [r8+4], rax", ABSENT - 8, 7, 8, 2),
    "a read-only page below": ("mov [r8], rax\nfault: mov [r8-8], rax", OPEN_TOO, 7, -8, 3),
    "the first access": ("fault: mov rcx, [r8]\nmov [r8+8], rax\nmov rdx, [r8+8]", ABSENT, 7, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_given_accesses_that_share_a_look_up_when_one_may_not_be_then_it_alone_faults(
    name: str, tmp_path: Path
) -> None:
    """Once, at its own instruction, with the state before that; after it the loop runs through."""
    lines, r8, rax, cr2, error = FAULTS[name]
    page = r8 & ~0xFFF
    # The page of the first access is in the software TLB beforehand, for what it allows.
    known = {READ_ONLY: "mov rcx, [r8]", ABSENT: ""}.get(page, "mov rcx, [r8]\nmov [r8], rcx")
    loop = f"{known}\njmp again\nagain: mov eax, 7\n{lines}\ndec edi\njnz again"
    guest = Guest(tmp_path, loop, {"r8": r8, "rdi": 3})
    assert guest.faults() == [Fault(rax, r8 + cr2, error, guest.labels["fault"])]
    guest.host.stop()


def test_given_an_operand_on_a_read_only_page_when_it_is_added_to_then_each_time_counts_once(
    tmp_path: Path,
) -> None:
    guest = Guest(tmp_path, "again: add [r8], rdi\ndec edi\njnz again", {"r8": READ_ONLY, "rdi": 4})
    assert guest.words(READ_ONLY) == [READ_ONLY + 4 + 3 + 2 + 1]
    guest.host.stop()


def test_given_a_page_that_is_only_read_when_it_shares_look_ups_then_it_is_not_dirty(tmp_path: Path) -> None:
    guest = Guest(tmp_path, "mov rax, [r8]\nmov rcx, [r8+8]\nadd rcx, [r8+16]", {"r8": OPEN})
    assert guest.bits(OPEN) == ACCESSED
    guest.host.stop()


def test_given_a_dirty_bit_that_is_taken_away_when_an_operand_is_written_then_it_is_set_again(
    tmp_path: Path,
) -> None:
    entry = PAGE_TABLE + 8 * (OPEN >> 12)
    guest = Guest(
        tmp_path,
        f"""again:
        mov rax, [r8]
        mov [r8+8], rax
        mov rbx, [{entry:#x}]
        mov [rdi*8+{NOTES + 8:#x}], rbx
        and dword ptr [{entry:#x}], {~DIRTY & 0xFFFF_FFFF:#x}
        invlpg [r8]
        dec edi
        jnz again""",
        {"r8": OPEN, "rdi": 3},
    )
    assert [word & DIRTY for word in guest.words(NOTES + 16, 3)] == [DIRTY] * 3
    assert guest.bits(OPEN) & DIRTY == 0
    guest.host.stop()


@pytest.mark.parametrize(
    "between", [f"mov rcx, [{NOTHING:#x}]", f"mov rcx, [{SAME_PLACE:#x}]", f"mov [{SECOND_OPEN:#x}], rdi"]
)
def test_given_another_access_between_two_of_a_page_when_it_takes_the_slow_path_then_both_are_right(
    between: str, tmp_path: Path
) -> None:
    """No memory there; the place of the page's TLB entry is taken; another address of the same word."""
    loop = f"again: mov rax, [r8]\n{between}\nadd [r8], rdi\nadd rsi, [r8+8]\ndec edi\njnz again"
    guest = Guest(tmp_path, loop, {"r8": OPEN, "rdi": 3, "rsi": 0})
    alias = f"{SECOND_OPEN:#x}" in between
    assert guest.words(OPEN) == [2 if alias else OPEN + 6]
    assert guest.register("rsi") == 3 * (OPEN + 8)
    guest.host.stop()


@pytest.mark.parametrize("known", [True, False], ids=["known-page", "new-page"])
@pytest.mark.parametrize(
    "first", ["mov rax, [r8-8]", "mov [r8+1], ecx", "mov rax, [r8-128]", "mov [r8-96], eax"]
)
def test_given_a_store_that_shares_a_look_up_when_it_changes_its_own_block_then_the_new_code_runs(
    first: str, known: bool, tmp_path: Path
) -> None:
    """Also where the page's end is between the two, so that each looks up for itself.

    On a new page, one that is not in the software TLB for writing yet, a helper stores.
    """
    guest = Guest(
        tmp_path,
        f"""mov edi, 5
        xor edx, edx
        lea r8, [rip+changed]
        {"mov [r8-256], edx; mov [r8+256], edx" if known else "nop"}
        jmp again
    again:
        lea ecx, [rdi*8]
        {first}
        mov [r8+1], ecx
        .balign 16
    changed:
        mov eax, 1
        add edx, eax
        dec edi
        jnz again""",
        {},
    )
    assert guest.register("rdx") == 8 * (5 + 4 + 3 + 2 + 1)
    guest.host.stop()
