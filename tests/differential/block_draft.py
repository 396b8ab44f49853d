# SPDX-License-Identifier: GPL-2.0-or-later
"""A block of instructions that is being written."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from block_layout import DATA_BASE, PAGE, Instruction
from flag_effects import NO_EFFECT, Effect
from instruction_table import GROUPS

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
IMPLICIT: Final = {
    **dict.fromkeys(("pcmpestri", "pcmpistri", "loop", "loope"), frozenset((RCX,))),
    **dict.fromkeys(("movs", "cmps", "stos", "scas", "lods", "ins", "outs"), frozenset((RAX, RCX, RSI, RDI))),
    **dict.fromkeys(("mul", "imul", "div", "idiv", "cwd", "cmpxchg8b"), frozenset((RAX, RDX))),
    **dict.fromkeys(
        ("cmpxchg", "xlat", "cbw", "lahf", "aam", "aad", "daa", "das", "salc"), frozenset((RAX,))
    ),
    **dict.fromkeys(("aaa", "aas", "fnstsw"), frozenset((RAX,))),
    "popa": frozenset(range(8)),
    "enter": frozenset((RBP,)),
    "leave": frozenset((RBP,)),
}
"""Registers that an instruction writes without naming them."""


class NotHere(Exception):
    """The row cannot stand at this place; another is tried."""


@dataclass
class Options:
    """What blocks are made of. ``groups`` of the table; the rest are shares of one."""

    groups: Sequence[str] = tuple(GROUPS)
    names: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    trap: float = 0.06
    alignment_check: float = 0.03
    protected: float = 0.12
    compatibility: float = 0.1
    aliased: float = 0.5
    unannounced: float = 0.02
    misplaced: float = 0.008
    page_ends: float = 0.08
    wild: float = 0.006
    longest: int = 4


@dataclass
class Draft:
    """A block that is being written."""

    r: random.Random
    address: int
    bits: int
    options: Options
    gpr: list[int | None] = field(default_factory=lambda: [None] * 16)
    written: set[int] = field(default_factory=set)
    instructions: list[Instruction] = field(default_factory=list)
    length: int = 0
    undefined: int = 0
    fs_base: int = 0
    gs_base: int = 0

    @property
    def here(self) -> int:
        return self.address + self.length

    def add(self, code: bytes, name: str, effect: Effect = NO_EFFECT) -> None:
        instruction = Instruction(code, name, self.undefined, effect.defined, effect.undefined)
        self.instructions.append(instruction)
        self.written |= IMPLICIT.get(name, frozenset())
        self.length += len(code)
        self.undefined = (self.undefined & ~effect.defined) | effect.undefined

    def free_register(self) -> int:
        for _ in range(8):
            number = self.r.randrange(16 if self.bits == 64 else 8)
            if self.gpr[number] is None and number not in self.written and number != RSP:
                return number
        raise NotHere

    def stack_pointer(self) -> int:
        """Where RSP points: mostly into the middle of a page, else near an end of one, or nowhere."""
        r, kind = self.r, self.r.random()
        if kind < 0.75:
            return DATA_BASE + 6 * PAGE + r.randrange(0x200, 0xE00, 8)
        if kind < 0.93:
            return (
                DATA_BASE
                + r.choice((1, 2, 3, 4, 5, 6, 7)) * PAGE
                + r.choice((0, 8, 4, 2, 1, -1, -2, -4, -8, 16))
            )
        if kind < 0.97 or not self.options.wild or self.bits == 32:
            return DATA_BASE + 6 * PAGE + r.randrange(PAGE)
        return r.choice((0x7FFF_FFFF_FFFF, 0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFC, 1 << 63, 0))
