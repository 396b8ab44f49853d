# SPDX-License-Identifier: GPL-2.0-or-later
"""A row of the tables of instructions: one form of an instruction.

A row is ``name  [prefix:]opcode[/digit]  operands  attributes``. Operands are written as in the opcode maps
of the SDM, vol. 2D, appendix A.2:

    E G    general register or memory, and register, of ModRM; R: a register only; M: memory only
    Z      register in the opcode's low three bits;  S segment register;  O address in the instruction
    P Q N  MMX register, register or memory, register only;  V W U  the same of XMM
    I J    immediate, relative jump;  names and numbers stand for themselves
    b w d q x t   1, 2, 4, 8, 16, 10 bytes;  v: 2, 4 or 8 by prefix;  z: 2 or 4;  y: 4 or 8;  s: an immediate
                  byte that is extended;  a number: that many bytes
    ss sd ps pd   4 or 8 bytes, or 16, that hold floating point

The prefix is the mandatory one: 66, f2 or f3; ``np`` that there must be none of these. Attributes:

    lock     LOCK is allowed when the destination is in memory
    rep      REP and REPNE mean something
    d64      64 bits by default: push, pop, near jumps
    flow     leaves the sequence; the generator gives it somewhere to go
    only64, only32   exists in that mode alone
    gp       faults in user code: #GP(0), or what comes before it
"""

from dataclasses import dataclass

from flag_effects import EFFECTS, NO_EFFECT, Effect


@dataclass(frozen=True)
class Row:
    """One form of an instruction; see the text above."""

    name: str
    group: str
    prefix: str
    opcode: bytes
    digit: int | None
    operands: tuple[str, ...]
    attributes: frozenset[str]

    @property
    def has_modrm(self) -> bool:
        """Whether a ModRM byte follows the opcode."""
        return self.digit is not None or any(operand[0] in "EGRMSPQNVWU" for operand in self.operands)

    @property
    def effect(self) -> Effect:
        """On the flags, but for shifts and rotates."""
        return EFFECTS.get(self.name, NO_EFFECT)


def rows(group: str, text: str) -> list[Row]:
    """The rows of a table, of `group`."""
    found = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        name, code, *rest = words
        operands = () if not rest or rest[0] == "-" else tuple(rest[0].split(","))
        prefix, colon, code = code.rpartition(":")
        code, slash, digit = code.partition("/")
        found.append(
            Row(
                name,
                group,
                prefix if colon else "",
                bytes.fromhex(code),
                int(digit) if slash else None,
                operands,
                frozenset(rest[1:]),
            )
        )
    return found
