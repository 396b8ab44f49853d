# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares what two processors left, shrinks a block that differs, and prints it."""

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from block_layout import (
    ALIAS,
    CODE32,
    CODE_BASE,
    CODE_PAGES,
    DATA_BASE,
    PAGE,
    REGISTERS,
    Block,
    Outcome,
    code_is_mapped,
)
from block_runners import DidNotEnd, Runner

VECTOR_UD, VECTOR_SS, VECTOR_GP, VECTOR_PF = 6, 12, 13, 14
P = 1
FLAGS: Final = {
    0: "CF",
    2: "PF",
    4: "AF",
    6: "ZF",
    7: "SF",
    8: "TF",
    9: "IF",
    10: "DF",
    11: "OF",
    14: "NT",
    16: "RF",
    18: "AC",
}
FSW_ES: Final = 0x80
LINUX_CPU_NODE: Final = 15 << 3
CPU_NODE_RIGHTS: Final = 0xF500  # what LAR gives of it: read-only, accessed, DPL 3
MOST_PROCESSORS: Final = 1 << 12
KEPT_BY_SIGRETURN: Final = 0x20_4000
KERNEL_RAM: Final = 0x800_0000
LAST_PAGE: Final = (1 << 47) - 4096  # Linux counts it to its own half
DEVICES: Final = 0xC000_0000
"""The guest's kernel has mappings of its own below the first and above the second, Linux has none there."""


@dataclass(frozen=True)
class Mask:
    """What is not compared, and why."""

    field: str
    why: str


MASKED: Final = (
    Mask("flags that the instruction table calls undefined", "cited there, instruction by instruction"),
    Mask(
        "P of the error code for addresses of the kernel",
        "SDM vol. 3A 4.7: whether the kernel has a mapping there is its own affair",
    ),
    Mask("blocks that set bit 17 of MXCSR", "AMD64 APM vol. 1, 4.2.2: it is theirs alone, #GP(0) elsewhere"),
    Mask(
        "FOP, FIP and FDP without a pending x87 exception, or where the processor has none",
        "AMD64 APM vol. 5, FXSAVE: its processors save them only with one; those of Intel always do",
    ),
    Mask("RPL of a null selector", "SDM vol. 2A, IRET: the way to a signal's handler clears such selectors"),
    Mask("blocks that load selector 78h", "Linux's GDT has GDT_ENTRY_CPUNODE there, the guest's ends before"),
    Mask(
        "which operand of CMPS faults when both do",
        "SDM vol. 2A, CMPS tells no order: models differ, one of them between REP CMPSB and the rest",
    ),
    Mask("NT and ID behind a step", "Linux's sigreturn does not bring them back; the next step ran without"),
    Mask("bits 19 to 16 of all registers in a block with LAR", "SDM vol. 2A, LAR: undefined in its result"),
)


PREFIXES = frozenset({0x66, 0x67, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, *range(0x40, 0x50)})


def fields(block: Block, outcome: Outcome) -> dict[str, object]:
    """What is compared, by name."""
    found: dict[str, object] = {}
    error = outcome.error
    if outcome.vector == VECTOR_PF:
        found["cr2"] = outcome.cr2
        if outcome.cr2 < KERNEL_RAM or DEVICES <= outcome.cr2 < 1 << 32 or outcome.cr2 >= LAST_PAGE:
            error &= ~P
    found["vector"] = outcome.vector
    found["error"] = error
    found["rip"] = outcome.rip
    found["flags"] = outcome.rflags & ~block.undefined_at(outcome.rip)
    unseen = 0xF_0000 if any(instruction.name == "lar" for instruction in block.instructions) else 0
    for name, value in zip(REGISTERS, outcome.gpr, strict=True):
        found[name] = value & ~unseen
    found["cs, ss"] = (outcome.cs, outcome.ss)
    found["ds, es, fs, gs"] = tuple(0 if selector < 4 else selector for selector in outcome.selectors)
    found["fs base, gs base"] = (outcome.fs_base, outcome.gs_base)
    image = outcome.fxsave
    head = struct.unpack_from("<HHBxHQQI", image)
    for name, value in zip(("fcw", "fsw", "ftw", "fop", "fip", "fdp", "mxcsr"), head, strict=True):
        found[name] = value
    for number in range(8):
        found[f"st{number}"] = image[32 + 16 * number : 42 + 16 * number]
    for number in range(16):
        found[f"xmm{number}"] = image[160 + 16 * number : 176 + 16 * number]
    found["steps"] = tuple(
        (rip, flags & ~block.undefined_at(rip) & ~KEPT_BY_SIGRETURN, 0 if unseen else registers)
        for rip, flags, registers in outcome.steps
    )
    if outcome.steps:
        found["flags"] = outcome.rflags & ~block.undefined_at(outcome.rip) & ~KEPT_BY_SIGRETURN
    found["memory"] = outcome.change
    found["memory, all"] = (outcome.changes, outcome.changes_hash)
    return found


def compare(block: Block, native: Outcome, guest: Outcome) -> dict[str, tuple[object, object]]:
    """What differs, by name: the bare processor's and the guest's."""
    if not block.native:
        expected: dict[str, tuple[object, object]] = {}
        is_cut = guest.vector == VECTOR_PF and not code_is_mapped(guest.cr2)  # it runs into a missing page
        if guest.rip != block.address or (guest.vector != VECTOR_UD and not is_cut):
            expected["vector, rip"] = ((VECTOR_UD, block.address), (guest.vector, guest.rip))
        return expected
    if _misaligned_mask(native) or _has_cpu_node(native) or _saw_cpu_node(block, native, guest):
        return {}
    if native == guest:
        return {}
    ours, theirs = fields(block, native), fields(block, guest)
    for name in ("fop", "fip", "fdp"):
        if not native.status & FSW_ES or not ours[name]:
            del ours[name], theirs[name]
    if _both_operands_fault(block, native, guest):
        for name in ("vector", "error", "cr2"):
            ours.pop(name, None), theirs.pop(name, None)
    return {
        name: (ours[name], theirs[name]) for name in ours if name in theirs and ours[name] != theirs[name]
    } | {name: (ours.get(name), theirs.get(name)) for name in ours.keys() ^ theirs.keys()}


def _misaligned_mask(native: Outcome) -> bool:
    """Whether MXCSR.MM is set, which AMD's processors alone have."""
    return bool(struct.unpack_from("<I", native.fxsave, 24)[0] >> 17 & 1)


def _has_cpu_node(native: Outcome) -> bool:
    """Whether a segment register has the descriptor in which Linux keeps the processor's number."""
    return any(selector & ~3 == LINUX_CPU_NODE for selector in native.selectors)


def _saw_cpu_node(block: Block, native: Outcome, guest: Outcome) -> bool:
    """Whether LAR told its access rights, or LSL its limit, which is a processor's number."""
    names = {instruction.name for instruction in block.instructions}
    for ours, theirs in zip(native.gpr, guest.gpr, strict=True):
        if ours == theirs:
            continue
        if ("lar" in names and ours & 0xFFFF == CPU_NODE_RIGHTS) or (
            "lsl" in names and ours < MOST_PROCESSORS
        ):
            return True
    return False


def _both_operands_fault(block: Block, native: Outcome, guest: Outcome) -> bool:
    """Whether both stopped at the same CMPS, each at another of its operands."""
    faults = (VECTOR_SS, VECTOR_GP, VECTOR_PF)
    if native.rip != guest.rip or native.vector not in faults or guest.vector not in faults:
        return False
    at = block.address
    for instruction in block.instructions:
        if at == native.rip:
            *prefixes, opcode = instruction.code
            return opcode in (0xA6, 0xA7) and PREFIXES.issuperset(prefixes)
        at += len(instruction.code)
    return False


@dataclass(frozen=True)
class Difference:
    """A block that differs."""

    block: Block
    what: dict[str, tuple[object, object]]
    native: Outcome | None
    guest: Outcome | None

    def signature(self) -> str:
        """What two differences share that have the same cause, as far as one can tell."""
        name = self.block.instructions[-1].name if self.block.instructions else "?"
        if self.guest and len(self.block.instructions) > 1:
            name = "+".join(sorted({instruction.name for instruction in self.block.instructions}))
        if "vector" in self.what:
            return "{}: vector {} -> {}".format(name, *self.what["vector"])
        fields_ = sorted({"st" if key.startswith("st") and key[2:].isdigit() else key for key in self.what})
        return f"{name}: {', '.join(fields_)[:80]}"


class Differ:
    """Runs blocks on two processors and tells where they differ."""

    def __init__(self, native: Runner, guest: Runner, ignored: frozenset[str] = frozenset()) -> None:
        self.native, self.guest, self.ignored = native, guest, ignored
        self.runs = 0

    def differences(self, blocks: Sequence[Block], code: bytes, image: bytes) -> list[Difference]:
        """Those of a batch. A block that does not end, or ends the machine, is one."""
        found: list[Difference] = []
        natives = self._run(self.native, [b for b in blocks if b.native], code, image, found)
        guests = self._run(self.guest, blocks, code, image, found)
        for block in blocks:
            theirs, ours = guests.get(id(block)), natives.get(id(block))
            if theirs is None or (block.native and ours is None):
                continue
            what = compare(block, ours or theirs, theirs)
            what = {name: pair for name, pair in what.items() if name not in self.ignored}
            if what:
                found.append(Difference(block, what, ours, theirs))
        return found

    def _run(
        self, runner: Runner, blocks: Sequence[Block], code: bytes, image: bytes, found: list[Difference]
    ) -> dict[int, Outcome]:
        left, outcomes = list(blocks), {}
        while left:
            self.runs += 1
            try:
                done = runner.run(left, code, image)
            except DidNotEnd as trouble:
                bad = left.pop(min(trouble.index, len(left) - 1))
                who = "processor" if runner is self.native else "guest"
                found.append(Difference(bad, {f"{who} does not end": (trouble.how, "")}, None, None))
                continue
            outcomes.update({id(block): outcome for block, outcome in zip(left, done, strict=True)})
            break
        return outcomes

    def one(self, block: Block, image: bytes) -> Difference | None:
        """The difference of one block, or None."""
        found = self.differences([block], place(block), image)
        return found[0] if found else None

    def shrink(self, difference: Difference, image: bytes) -> Difference:
        """The same with the fewest instructions and the plainest state that still differ in some field."""
        best = difference
        fields_, vectors = set(difference.what), difference.what.get("vector")
        going = True
        while going:
            going = False
            candidates = list(_smaller(best.block))
            for candidate in candidates:
                found = self.one(candidate, image)
                if found and fields_ & set(found.what) and found.what.get("vector") == vectors:
                    best, going = found, True
                    break
        return best


def place(block: Block) -> bytes:
    """Code pages with this block alone."""
    pages = bytearray(CODE_PAGES * PAGE)
    code, at = block.code, block.address % ALIAS - CODE_BASE
    while code and not code_is_mapped(CODE_BASE + at + len(code) - 1):
        code = code[:-1]
    pages[at : at + len(code)] = code
    return bytes(pages)


def _smaller(block: Block) -> Iterator[Block]:
    """Blocks a little plainer than this one."""
    for number in range(len(block.instructions)):
        if len(block.instructions) > 1:
            yield block.without(number)
    # A zero head of the image: FCW 037FH, everything masked, nothing raised, the stack empty.
    plain = struct.pack("<HHBxHQQII", 0x037F, 0, 0, 0, 0, 0, 0x1F80, 0xFFFF)
    if block.fxsave != plain + bytes(384):
        yield replace(block, fxsave=plain + bytes(384))
    for start, end in ((0, 32), (32, 160), (160, 416)):
        part = plain if start == 0 else bytes(end - start)
        if block.fxsave[start:end] != part:
            yield replace(block, fxsave=block.fxsave[:start] + part + block.fxsave[end:])
    for number in range(24):
        start, end = 32 + 16 * number, 48 + 16 * number
        if any(block.fxsave[start:end]):
            yield replace(block, fxsave=block.fxsave[:start] + bytes(16) + block.fxsave[end:])
    if block.rflags != 0x202:
        yield replace(block, rflags=0x202)
    for bit in FLAGS:
        if block.rflags & 1 << bit and bit != 9:
            yield replace(block, rflags=block.rflags & ~(1 << bit))
    for number in range(16):
        if block.gpr[number]:
            yield replace(block, gpr=[0 if at == number else value for at, value in enumerate(block.gpr)])


def _shown(name: str, value: object) -> str:
    if isinstance(value, bytes):
        return value[::-1].hex()
    if isinstance(value, int):
        if name == "flags":
            return f"{value:#x} [{' '.join(text for bit, text in FLAGS.items() if value >> bit & 1)}]"
        return f"{value:#x}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_shown("", item) for item in value) + ")"
    return str(value)


def disassembly(block: Block) -> str:
    """By objdump when it is there; else the bytes."""
    lines = [f"  {instruction.code.hex(' ')}   ({instruction.name})" for instruction in block.instructions]
    objdump = shutil.which("objdump")
    if objdump is None:
        return "\n".join(lines)
    machine = "i386" if block.cs == CODE32 else "i386:x86-64"
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        Path(file.name).write_bytes(block.code[: -len(block.ends)] if block.ends else block.code)
        command = [
            objdump,
            "-D",
            "-b",
            "binary",
            f"-m{machine}",
            "-Mintel",
            f"--adjust-vma={block.address:#x}",
            file.name,
        ]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    listed = [line for line in text.splitlines() if line.startswith(" ") and ":\t" in line]
    return "\n".join(f"  {line.strip()}" for line in listed) or "\n".join(lines)


def story(difference: Difference, image: bytes) -> str:
    """What to print."""
    block = difference.block
    lines = [f"{difference.signature()}", disassembly(block)]
    registers = [f"{name}={value:x}" for name, value in zip(REGISTERS, block.gpr, strict=True) if value]
    lines.append(f"  cs={block.cs:x} flags={_shown('flags', block.rflags)} {' '.join(registers)}")
    lines.append(f"  fs base={block.fs_base:x} gs base={block.gs_base:x}")
    head = struct.unpack_from("<HHBxHQQI", block.fxsave)
    lines.append("  fcw={:x} fsw={:x} ftw={:x} fop={:x} fip={:x} fdp={:x} mxcsr={:x}".format(*head))
    for number in range(24):
        value = block.fxsave[32 + 16 * number : 48 + 16 * number]
        if any(value):
            name = f"st{number}" if number < 8 else f"xmm{number - 8}"
            lines.append(f"  {name}={value[: 10 if number < 8 else 16][::-1].hex()}")
    for number, register in enumerate(block.gpr):
        at = register - DATA_BASE
        if 0 <= at < len(image) - 16:
            lines.append(f"  [{REGISTERS[number]}] = {image[at : at + 16].hex(' ')}")
    for name, (ours, theirs) in difference.what.items():
        lines.append(f"  {name}: processor {_shown(name, ours)}, guest {_shown(name, theirs)}")
    return "\n".join(lines)
