# SPDX-License-Identifier: GPL-2.0-or-later
"""Generated code does what the processor does: random programs run on both, and every register is compared.

The same bytes run in a guest in 64-bit mode and, called as a function, on the host. What the manual leaves
undefined of the flags (SDM vol. 2) is neither read by a program nor compared.
"""

import ctypes
import mmap
import platform
import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from coremesh.core.engine import Host
from coremesh.core.memory_layout import MemoryLayout, Region
from raw_host import SPIN, raw_host, until, until_halted

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host is another")

PROGRAMS, INSTRUCTIONS = 60, 120
PAGE_END = 0x700  # in the data
# A page ends within the saved registers on the stack too.
CODE, DATA, TABLES, STACK = 0x10_0000, 0x18_1000 - PAGE_END, 0x1000, 0x8028
DATA_BYTES, RESULTS = 4096 + 512, 4096  # operands; then the registers and flags at the end
CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
ALL = CF | PF | AF | ZF | SF | OF
CONDITIONS = {"c": CF, "z": ZF, "s": SF, "o": OF, "p": PF, "be": CF | ZF, "l": SF | OF, "le": SF | OF | ZF}

NUMBERED = range(8, 15)  # R15 holds the address of the data
NAMES = {
    64: ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in NUMBERED)],
    32: ["eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", *(f"r{n}d" for n in NUMBERED)],
    16: ["ax", "bx", "cx", "dx", "si", "di", "bp", *(f"r{n}w" for n in NUMBERED)],
    8: ["al", "bl", "cl", "dl", "sil", "dil", "bpl", *(f"r{n}b" for n in NUMBERED)],
}
WORDS = {8: "byte", 16: "word", 32: "dword", 64: "qword"}


@dataclass
class Program:
    """Writes one program; ``defined`` are the flags that have a defined value where it stands."""

    random: random.Random
    lines: list[str] = field(default_factory=list)
    defined: int = 0
    labels: int = 0

    def memory(self, bits: int) -> str:
        """Half of them are near each other or another page, where one look-up serves several."""
        r = self.random
        near = r.choice([PAGE_END, 0x200, 0x203, 0x900]) + r.randrange(-24, 24)
        return f"{WORDS[bits]} ptr [r15+{near if r.random() < 0.5 else r.randrange(0, 4080)}]"

    def indexed(self) -> None:
        """A load and a store of an address, or of neighbours, that is computed anew for each; no flags."""
        r = self.random
        scale, offset = r.choice([1, 2, 4, 8]), r.choice([PAGE_END - 1024, r.randrange(0, 2000)])
        other = r.choice([offset, offset, offset + r.randrange(-8, 8) if offset > 8 else offset + 4])
        bits, second = r.choice([8, 16, 32, 64]), r.choice([8, 16, 32, 64])
        name = r.randrange(7)
        self.lines.append("movzx r14d, r14b")
        self.lines.append(f"mov {NAMES[bits][name]}, [r15+r14*{scale}+{offset}]")
        if r.random() < 0.3:
            self.lines.append(f"mov {self.memory(64)}, {self.register(64)}")
        self.lines.append(f"not {NAMES[64][name]}")
        if r.random() < 0.3:
            self.lines.append(f"lea r14, [r14+{r.randrange(4)}]")
        self.lines.append(f"mov [r15+r14*{scale}+{other}], {NAMES[second][name]}")

    def on_stack(self) -> None:
        """Pushes, words of them by their place, pops."""
        r = self.random
        count = r.randrange(2, 6)
        self.lines += [f"push {self.register(64)}" for _ in range(count)]
        for _ in range(r.randrange(3)):
            bits, place = r.choice([8, 16, 32, 64]), r.randrange(8 * count - 7)
            self.lines.append(
                r.choice(
                    [
                        f"mov {self.register(bits)}, [rsp+{place}]",
                        f"mov [rsp+{place}], {self.register(bits)}",
                        f"not {WORDS[bits]} ptr [rsp+{place}]",
                    ]
                )
            )
        self.lines += [f"pop {self.register(64)}" for _ in range(count)]

    def pair(self, bits: int) -> tuple[str, str]:
        """A destination and a source, of which one at most is in memory."""
        names = NAMES[bits]
        high = bits == 8 and self.random.random() < 0.3
        # AH to DH cannot stand beside a register that needs a REX prefix.
        pool = ["al", "bl", "cl", "dl", "ah", "bh", "ch", "dh"] if high else names[:14]
        first, second = self.random.choice(pool), self.random.choice(pool)
        kind = self.random.random()
        if high:
            return first, second if kind < 0.6 else str(self.random.randrange(-128, 128))
        if kind < 0.35:
            return first, second
        if kind < 0.55:
            return first, self.memory(bits)
        if kind < 0.7:
            return self.memory(bits), second
        limit = 1 << (min(bits, 32) - 1)
        number = str(self.random.choice([0, 1, -1, self.random.randrange(-limit, limit)]))
        return (first if kind < 0.85 else self.memory(bits)), number

    def register(self, bits: int) -> str:
        return self.random.choice(NAMES[bits][:14])

    def set_flags(self, defined: int, undefined: int = 0) -> None:
        self.defined = (self.defined | defined) & ~undefined

    def condition(self) -> str | None:
        able = [name for name, flags in CONDITIONS.items() if flags & ~self.defined == 0]
        return self.random.choice(["", "n"]) + self.random.choice(able) if able else None

    def instruction(self) -> None:
        r = self.random
        bits = r.choice([8, 16, 32, 32, 64, 64])
        wide = r.choice([32, 64])
        kind = r.randrange(22)
        line = self.lines.append
        if kind < 5:
            name = r.choice(["add", "sub", "cmp", "and", "or", "xor", "test", "adc", "sbb"])
            if name in ("adc", "sbb") and not self.defined & CF:
                name = "add"
            destination, source = self.pair(bits)
            if name == "test" and "ptr" in source:
                destination, source = source, destination
            line(f"{name} {destination}, {source}")
            self.set_flags(ALL, AF if name in ("and", "or", "xor", "test") else 0)
        elif kind < 7:
            destination, source = self.pair(bits)
            line(f"mov {destination}, {source}")
        elif kind == 7:
            small = r.choice([8, 16])
            name = r.choice(["movzx", "movsx"])
            line(f"{name} {self.register(wide)}, {r.choice([self.register(small), self.memory(small)])}")
            line(f"movsxd {self.register(64)}, {r.choice([self.register(32), self.memory(32)])}")
        elif kind == 8:
            base = self.register(64)
            if r.random() < 0.4:  # known when code is generated, with or without a place in an immediate
                known = r.choice([r.getrandbits(32), r.randrange(-1000, 1000), r.getrandbits(64)])
                line(f"mov {base}, {known}")
            line(
                f"lea {self.register(wide)}, [{base}+{self.register(64)}*"
                f"{r.choice([1, 2, 4, 8])}+{r.randrange(-1000, 1000)}]"
            )
        elif kind == 9:
            name = r.choice(["inc", "dec", "neg", "not"])
            line(f"{name} {r.choice([self.register(bits), self.memory(bits)])}")
            if name == "neg":
                self.set_flags(ALL)
            elif name != "not":
                self.set_flags(ALL & ~CF)
        elif kind < 12:
            name = r.choice(["shl", "shr", "sar", "rol", "ror"])
            target = r.choice([self.register(bits), self.memory(bits)])
            if r.random() < 0.3:
                line(f"{name} {target}, cl")
                self.defined = 0
                return
            count = r.choice([1, r.randrange(1, bits)])
            line(f"{name} {target}, {count}")
            if name in ("rol", "ror"):
                self.set_flags(CF | (OF if count == 1 else 0), 0 if count == 1 else OF)
            else:
                self.set_flags(ALL & ~AF, AF | (0 if count == 1 else OF))
        elif kind == 12:
            line(
                f"{r.choice(['shld', 'shrd'])} {self.register(wide)}, {self.register(wide)}, "
                f"{r.randrange(1, wide)}"
            )
            self.set_flags(CF | SF | ZF | PF, OF | AF)
        elif kind == 13:
            line(
                r.choice(
                    [
                        f"imul {self.register(wide)}, {r.choice([self.register(wide), self.memory(wide)])}",
                        f"imul {self.register(wide)}, {self.register(wide)}, {r.randrange(-100000, 100000)}",
                        f"{r.choice(['mul', 'imul'])} {r.choice([self.register(bits), self.memory(bits)])}",
                    ]
                )
            )
            self.set_flags(CF | OF, SF | ZF | AF | PF)
        elif kind == 14:
            line(
                r.choice(
                    [
                        f"bswap {self.register(wide)}",
                        "cdq",
                        "cqo",
                        "cwde",
                        "cdqe",
                        f"xchg {self.register(bits)}, {r.choice([self.register(bits), self.memory(bits)])}",
                    ]
                )
            )
        elif kind == 15:
            condition = self.condition()
            if condition:
                line(f"set{condition} {self.register(8)}")
                chosen = r.choice([self.register(wide), self.memory(wide)])
                line(f"cmov{condition} {self.register(wide)}, {chosen}")
        elif kind == 16:
            line(f"{r.choice(['bt', 'bts', 'btr', 'btc'])} {self.register(wide)}, {r.randrange(wide)}")
            self.set_flags(CF, OF | SF | AF | PF)
        elif kind == 17:
            line(f"push {self.register(64)}")
            line(f"pop {r.choice([self.register(64), self.memory(64)])}")
        elif kind == 18:
            name = r.choice(["xadd", "lock xadd", "cmpxchg", "lock cmpxchg"])
            line(f"{name} {self.memory(wide)}, {self.register(wide)}")
            self.set_flags(ALL)
        elif kind == 19:
            self.indexed()
        elif kind == 20:
            self.on_stack()
        else:
            condition = self.condition()
            if condition:
                self.labels += 1
                label, before = f"skip_{self.labels}_%d", self.defined
                line(f"j{condition} {label}")
                for _ in range(r.randrange(1, 4)):
                    self.instruction()
                line(f"{label}:")
                self.defined &= before


def source(number: int) -> str:
    """A function (System V ABI) that takes the address of its data: operands, then where results go."""
    program = Program(random.Random(number))
    while len(program.lines) < INSTRUCTIONS:
        program.instruction()
    order = NAMES[64]
    saved = ("rbx", "rbp", "r12", "r13", "r14", "r15")
    head = [f"push {name}" for name in saved] + ["mov r15, rdi"]
    head += [f"mov {name}, [r15+{RESULTS + 8 * i}]" for i, name in enumerate(order)]
    body = [line.replace("%d", str(number)) for line in program.lines]
    tail = [
        "pushfq",
        f"pop [r15+{RESULTS + 8 * 14}]",
        f"and qword ptr [r15+{RESULTS + 8 * 14}], {program.defined}",
    ]
    tail += [f"mov [r15+{RESULTS + 8 * i}], {name}" for i, name in enumerate(order)]
    tail += [f"pop {name}" for name in reversed(saved)] + ["ret"]
    return f".org {number * 4096}\n" + "\n".join(head + body + tail) + "\n"


def assemble(folder: Path) -> bytes:
    """All programs, one in each page, and behind them one that calls one for the guest."""
    text = ".intel_syntax noprefix\n.text\n" + "".join(source(number) for number in range(PROGRAMS))
    text += f".org {PROGRAMS * 4096}\ncall rbx\nhlt\n"
    (folder / "programs.s").write_text(text)
    subprocess.run(["as", "-o", folder / "programs.o", folder / "programs.s"], check=True)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", folder / "programs.o", folder / "programs"], check=True
    )
    return (folder / "programs").read_bytes()


def operands(number: int) -> bytes:
    """Random data with many extreme values, then the registers' first values."""
    r = random.Random(-1 - number)
    extreme = [0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 63, (1 << 64) - 1]
    words = [r.choice(extreme) if r.random() < 0.3 else r.getrandbits(64) for _ in range(DATA_BYTES // 8)]
    return b"".join(word.to_bytes(8, "little") for word in words)


def run_on_host(code: bytes, number: int) -> bytes:
    """What the processor leaves in the data."""
    with mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as pages:
        pages.write(code)
        view = ctypes.c_char.from_buffer(pages)
        data = ctypes.create_string_buffer(operands(number), DATA_BYTES)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.addressof(view) + number * 4096)(
            ctypes.addressof(data)
        )
        del view
    return data.raw


def run_in_guest(code: bytes, number: int) -> bytes:
    """What the guest leaves in the data: 64-bit mode, one page of 2 MiB."""
    ram = 0x20_0000
    host = Host(memory=MemoryLayout.of([Region(0, ram)]), apic_ids=[0], total_vcpus=1)
    for level, entry in enumerate((TABLES + 0x1003, TABLES + 0x2003, 0x83)):
        host.ram_write(TABLES + 0x1000 * level, entry.to_bytes(8, "little"))
    host.ram_write(CODE, code)
    host.ram_write(DATA, operands(number))
    flat = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), (16, 0, 4294967295, 3219))
    system = {"cr3": TABLES, "cr4": 0x20, "efer": 0x500, "cr0": 0x8001_0011}
    start = {"rip": CODE + PROGRAMS * 4096, "rbx": CODE + number * 4096, "rdi": DATA, "rsp": STACK}
    host.set_registers(0, {**system, "cs": (8, 0, 0xFFFF_FFFF, 0xA9B), **flat, **start})
    host.start()
    until_halted(host)
    host.pause()
    result = bytes(host.ram_read(DATA, DATA_BYTES))
    host.stop()
    return result


def test_given_random_programs_when_run_in_a_guest_and_on_the_host_then_all_results_are_equal(
    tmp_path: Path,
) -> None:
    """Registers, defined flags and all of memory."""
    code = assemble(tmp_path)
    for number in range(PROGRAMS):
        guest, native = run_in_guest(code, number), run_on_host(code, number)
        differing = [at for at in range(0, DATA_BYTES, 8) if guest[at : at + 8] != native[at : at + 8]]
        where = [
            NAMES[64][(at - RESULTS) // 8] if RESULTS <= at < RESULTS + 112 else hex(at) for at in differing
        ]
        assert not differing, f"program {number}: {where}\n{source(number)}"


def test_given_too_many_accesses_for_a_block_when_alignment_is_not_checked_then_all_are_made() -> None:
    """RFLAGS.AC alone asks for no check (SDM vol. 3A 6.15, interrupt 17): CR0.AM is clear."""
    loads = 500  # of one block: only a branch ends it
    load = b"\xa1\x01\x50\x00\x00"  # mov eax, [5001h]
    note = b"\xc6\x05\x00\x60\x00\x00\x01"  # mov byte [6000h], 1
    host = raw_host(load * loads + note + SPIN)
    user = {"cs": (0x1B, 0, 0xFFFF_FFFF, 0xCFB), "ss": (0x23, 0, 0xFFFF_FFFF, 0xCF3)}
    host.set_registers(0, host.registers(0) | user | {"rflags": 1 << 18 | 2})
    host.start()
    until(lambda: host.ram_read(0x6000, 1) == b"\1", "a load faulted")
    host.stop()
