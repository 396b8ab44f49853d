# SPDX-License-Identifier: GPL-2.0-or-later
"""block.h in Python: where a block's world lies, what a block is, and what it leaves."""

import struct
from dataclasses import dataclass, field, replace
from typing import Final

PAGE: Final = 4096
CODE_BASE: Final = 0x4000_0000
CODE_PAGES: Final = 256
CODE_GAP: Final = 8
DATA_BASE: Final = 0x5000_0000
DATA_PAGES: Final = 8
ALIAS: Final = 0x1234_0000_0000
"""Code and data lie this much higher once more."""
READABLE: Final = (1, 2, 3, 4, 6)
WRITABLE: Final = (1, 2, 4, 6)
MAX_BLOCKS: Final = 4096
MAX_STEPS: Final = 4
MAX_CHANGES: Final = 12
CODE32: Final = 0x23
CODE64: Final = 0x33
FXSAVE_BYTES: Final = 416
VECTOR_SYSCALL: Final = 0x100

BLOCK: Final = struct.Struct(f"<16Q 4Q 2Q {FXSAVE_BYTES}s")
OUTCOME: Final = struct.Struct(f"<16Q 4Q 3Q 2Q 4H {FXSAVE_BYTES}s 2I Q {3 * MAX_STEPS}Q {2 * MAX_CHANGES}Q")
HEADER: Final = struct.Struct("<4I 4080x")
IMAGE_OFFSET: Final = HEADER.size
CODE_OFFSET: Final = IMAGE_OFFSET + DATA_PAGES * PAGE
BLOCKS_OFFSET: Final = CODE_OFFSET + CODE_PAGES * PAGE
OUTCOMES_OFFSET: Final = BLOCKS_OFFSET + MAX_BLOCKS * BLOCK.size
BATCH_BYTES: Final = OUTCOMES_OFFSET + MAX_BLOCKS * OUTCOME.size

REGISTERS: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)),
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One instruction of a block: bytes, mnemonic, the flags that may have any value before it, and those
    that it then defines and leaves undefined."""

    code: bytes
    name: str
    undefined: int = 0
    defines: int = 0
    leaves: int = 0


@dataclass
class Block:
    """Instructions, where they lie, and the whole state that they start from.

    ``undefined`` are the flags that may have any value at the end. ``native`` is false for what the bare
    processor may know and the guest must not: the guest's answer is then compared with #UD.
    """

    address: int
    instructions: list[Instruction]
    gpr: list[int]
    rflags: int
    fxsave: bytes
    cs: int = CODE64
    fs_base: int = 0
    gs_base: int = 0
    undefined: int = 0
    native: bool = True
    ends: bytes = b"\xcc"
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def code(self) -> bytes:
        """All bytes, with the breakpoint that ends it."""
        return b"".join(instruction.code for instruction in self.instructions) + self.ends

    def pack(self) -> bytes:
        """As ``struct block``."""
        return BLOCK.pack(
            *self.gpr, self.address, self.rflags, self.cs, 0, self.fs_base, self.gs_base, self.fxsave
        )

    def without(self, number: int) -> "Block":
        """The same without one of its instructions."""
        kept, undefined = [], 0
        for instruction in self.instructions[:number] + self.instructions[number + 1 :]:
            kept.append(replace(instruction, undefined=undefined))
            undefined = (undefined & ~instruction.defines) | instruction.leaves
        return replace(self, instructions=kept, undefined=undefined)

    def undefined_at(self, rip: int) -> int:
        """The flags that may have any value when the next instruction is at ``rip``."""
        at, rip = self.address % ALIAS, rip % ALIAS
        for instruction in self.instructions:
            if rip == at:
                return instruction.undefined
            at += len(instruction.code)
        if at <= rip <= at + len(self.ends):
            return self.undefined
        # Jumped out of it, from anywhere.
        every = self.undefined
        for instruction in self.instructions:
            every |= instruction.undefined
        return every


@dataclass(frozen=True)
class Outcome:
    """What a block leaves; the fields of ``struct outcome``."""

    gpr: tuple[int, ...]
    rip: int
    rflags: int
    cs: int
    ss: int
    vector: int
    error: int
    cr2: int
    fs_base: int
    gs_base: int
    selectors: tuple[int, ...]
    fxsave: bytes
    steps: tuple[tuple[int, int, int], ...]
    changes: int
    changes_hash: int
    change: tuple[tuple[int, int], ...]

    @property
    def status(self) -> int:
        """The x87 status word."""
        return int.from_bytes(self.fxsave[2:4], "little")

    @classmethod
    def unpack(cls, data: bytes) -> "Outcome":
        """From the bytes of ``struct outcome``."""
        words = OUTCOME.unpack(data)
        steps, changes, changes_hash = words[30:33]
        step = tuple(words[33 + 3 * n : 36 + 3 * n] for n in range(min(steps, MAX_STEPS)))
        base = 33 + 3 * MAX_STEPS
        change = tuple(words[base + 2 * n : base + 2 * n + 2] for n in range(min(changes, MAX_CHANGES)))
        rip, rflags, cs, ss, vector, error, cr2, fs_base, gs_base = words[16:25]
        return cls(
            gpr=words[:16],
            rip=rip,
            rflags=rflags,
            cs=cs,
            ss=ss,
            vector=vector,
            error=error,
            cr2=cr2,
            fs_base=fs_base,
            gs_base=gs_base,
            selectors=words[25:29],
            fxsave=words[29],
            steps=step,
            changes=changes,
            changes_hash=changes_hash,
            change=change,
        )


def code_is_mapped(address: int) -> bool:
    """Whether a byte of code can be there."""
    page = (address % ALIAS - CODE_BASE) // PAGE
    return 0 <= page < CODE_PAGES and page % CODE_GAP != CODE_GAP - 1
