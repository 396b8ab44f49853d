# SPDX-License-Identifier: GPL-2.0-or-later
"""Random blocks of a few instructions, from the table, with the state that they start from.

What an instruction needs is arranged before the block runs: a base register gets the value that leads to the
chosen operand. Registers that are free at the end get special values. Only flags that have a defined value
are read; those that have none at an instruction's address are noted with it.
"""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import special_values
from block_layout import (
    CODE32,
    CODE64,
    CODE_BASE,
    CODE_GAP,
    CODE_PAGES,
    DATA_BASE,
    DATA_PAGES,
    PAGE,
    WRITABLE,
    Block,
    Instruction,
)
from instruction_table import ALL, CF, GROUPS, NO_EFFECT, NOT_ANNOUNCED, Effect, Row, shift_effect

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
WORD: Final = (1 << 64) - 1
TF, DF, AC, FIXED, IF = 0x100, 0x400, 0x4_0000, 2, 0x200
SHIFTS: Final = ("rol", "ror", "rcl", "rcr", "shl", "shr", "sar", "shld", "shrd")
SIZES: Final = {
    "b": 1,
    "w": 2,
    "d": 4,
    "q": 8,
    "x": 16,
    "t": 10,
    "ss": 4,
    "sd": 8,
    "ps": 16,
    "pd": 16,
    "ps8": 8,
}
SELECTORS: Final = (0, 1, 3, 0x23, 0x2B, 0x33, 0x10, 0x13, 0x18, 0x30, 0x38, 0x60, 0x0F, 0x80, 0xFFFF)
MOST_BYTES: Final = 15
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
WEIGHTS: Final = {"integer": 10, "mmx": 3, "sse": 7, "sse4": 4, "x87": 6}


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
    unannounced: float = 0.02
    misplaced: float = 0.008
    page_ends: float = 0.08
    wild: float = 0.006
    longest: int = 4


@dataclass
class _Draft:
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


class Generator:
    """Makes blocks that lie in the code pages of one batch, and the image of its data."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        self.r = random.Random(seed)
        self.options = options or Options()
        r = self.r
        self.image = b"".join(special_values.slot(r, number % 8) for number in range(DATA_PAGES * PAGE // 16))
        self._next = CODE_BASE
        self._rows = {
            group: [row for row in GROUPS[group] if self._wanted(row)] for group in self.options.groups
        }
        self._groups = [group for group in self.options.groups if self._rows[group]]
        self._weights = [WEIGHTS[group] for group in self._groups]
        self.code = bytearray(CODE_PAGES * PAGE)

    def _wanted(self, row: Row) -> bool:
        names = self.options.names
        return (not names or row.name in names) and row.name not in self.options.without

    # --- where

    def _place(self) -> int | None:
        """An address for the next block, or None when the code pages are full."""
        page = (self._next - CODE_BASE) // PAGE
        room = PAGE - self._next % PAGE
        gap_next = page % CODE_GAP == CODE_GAP - 2
        if room < 160 and gap_next:  # the last block before a missing page ends in it, or just before
            at = self._next + self.r.randrange(room) if room > 24 and self.options.page_ends else self._next
            self._next = CODE_BASE + (page + 2) * PAGE
            return at if at + 160 < CODE_BASE + CODE_PAGES * PAGE else None
        if page >= CODE_PAGES - CODE_GAP:
            return None
        return self._next

    def blocks(self, count: int) -> list[Block]:
        """Up to ``count`` blocks: fewer when the code pages are full."""
        made: list[Block] = []
        while len(made) < count:
            address = self._place()
            if address is None:
                break
            block = self.block(address)
            code = block.code
            at = address - CODE_BASE
            page_end = (at // PAGE + 1) * PAGE
            if at // PAGE % CODE_GAP == CODE_GAP - 2:
                code = code[: page_end - at]
            self.code[at : at + len(code)] = code
            if self._next <= address:
                self._next = address + len(code) + self.r.choice((0, 0, 1, 7))
                if self.r.random() < self.options.page_ends:
                    self._next = max(self._next, CODE_BASE + page_end - self.r.randrange(1, 40))
            made.append(block)
        return made

    # --- a block

    def block(self, address: int) -> Block:
        """A block at ``address``."""
        r, options = self.r, self.options
        if r.random() < options.unannounced:
            return self._unannounced(address)
        bits = 32 if r.random() < options.compatibility else 64
        draft = _Draft(r, address, bits, options)
        if bits == 64:
            draft.fs_base = DATA_BASE + r.choice((0x1000, 0x1800, 0x2040))
            draft.gs_base = DATA_BASE + r.choice((0x1000, 0x1234, 0x4010))
        draft.gpr[RSP] = self._stack(bits)
        wanted = r.randrange(1, options.longest + 1)
        tries = 0
        while len(draft.instructions) < wanted and tries < 40:
            tries += 1
            row = r.choice(self._rows[r.choices(self._groups, self._weights)[0]])
            before = (
                list(draft.gpr),
                set(draft.written),
                list(draft.instructions),
                draft.length,
                draft.undefined,
            )
            try:
                self._write(draft, row)
                if row.name == "lar":
                    break  # undefined bits of its result would be stored, or lead to an address
            except NotHere:
                draft.gpr, draft.written, draft.instructions, draft.length, draft.undefined = before
        return self._finished(draft)

    def _finished(self, draft: _Draft) -> Block:
        r = self.r
        mask = WORD if draft.bits == 64 else 0xFFFF_FFFF
        gpr = [(special_values.word(r) if value is None else value) & mask for value in draft.gpr]
        if draft.bits == 32:
            gpr[8:] = [0] * 8
        rflags = FIXED | IF | r.getrandbits(12) & (ALL | (DF if r.random() < 0.3 else 0))
        if r.random() < self.options.trap:
            rflags |= TF
        if any(i.name in ("fnstenv", "fnsave") for i in draft.instructions):
            rflags &= ~TF  # between steps AMD's processors drop the pointers that these store
        if r.random() < self.options.alignment_check:
            rflags |= AC
        return Block(
            draft.address,
            draft.instructions,
            gpr,
            rflags,
            self.float_state(),
            CODE64 if draft.bits == 64 else CODE32,
            draft.fs_base,
            draft.gs_base,
            draft.undefined,
        )

    def _unannounced(self, address: int) -> Block:
        r = self.r
        draft = _Draft(r, address, 64, self.options)
        names = [name for name, code in NOT_ANNOUNCED.items() if not code.endswith("/nop")]
        name = r.choice(names)
        draft.gpr[RAX] = DATA_BASE + 0x1000
        draft.gpr[RSP] = self._stack(64)
        draft.add(bytes.fromhex(NOT_ANNOUNCED[name]), name)
        block = self._finished(draft)
        block.native = False
        block.rflags &= ~TF
        return block

    def _stack(self, bits: int) -> int:
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
        if kind < 0.97 or not self.options.wild or bits == 32:
            return DATA_BASE + 6 * PAGE + r.randrange(PAGE)
        return r.choice((0x7FFF_FFFF_FFFF, 0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFC, 1 << 63, 0))

    def float_state(self) -> bytes:
        """An image of FXSAVE64 that can be loaded."""
        r = self.r
        control = 0x037F
        if r.random() < 0.5:
            control = 0x0040 | r.getrandbits(2) << 10 | r.choice((0, 2, 3)) << 8
            control |= 0x3F if r.random() < 0.75 else r.getrandbits(6)
        # An exception that is flagged and not masked would be pending; let that be rare, and then said so.
        raised = r.getrandbits(6) if r.random() < 0.3 else 0
        top = r.randrange(8) if r.random() < 0.6 else 0
        status = top << 11 | (r.getrandbits(16) & 0x4700)
        pending = raised & ~control & 0x3F
        if pending and r.random() < 0.8:
            raised &= control
            pending = 0
        status |= raised | (0x40 if r.random() < 0.03 and raised & 1 else 0) | (0x8080 if pending else 0)
        kind = r.random()
        tags = 0xFF if kind < 0.5 else 0 if kind < 0.6 else r.getrandbits(8)
        mxcsr = 0x1F80
        if r.random() < 0.5:
            mxcsr = r.getrandbits(2) << 13 | (0x1F80 if r.random() < 0.8 else r.getrandbits(6) << 7)
            mxcsr |= r.choice((0, 0, 0x8000, 0x40, 0x8040)) | (r.getrandbits(6) if r.random() < 0.4 else 0)
        pointers = (r.getrandbits(11), CODE_BASE + 0x10, DATA_BASE + 0x1000) if pending else (0, 0, 0)
        head = struct.pack("<HHBxHQQII", control, status, tags, *pointers, mxcsr, 0xFFFF)
        stack = b"".join(special_values.extended(r) + bytes(6) for _ in range(8))
        vectors = b"".join(special_values.slot(r, r.randrange(8)) for _ in range(16))
        return head + stack + vectors

    # --- an instruction

    def _write(self, draft: _Draft, row: Row) -> None:
        r = self.r
        if ("only64" in row.attributes and draft.bits != 64) or (
            "only32" in row.attributes and draft.bits != 32
        ):
            raise NotHere
        effect = row.effect
        if effect.read & draft.undefined:
            raise NotHere
        # What these store of the last instruction is AMD's own affair without a pending exception.
        if row.name in ("fnstenv", "fnsave") and any(i.name[0] == "f" for i in draft.instructions):
            raise NotHere
        # POPF may set TF, and Linux's sigreturn does not bring back ID and NT behind a step.
        if row.name == "pushf" and any(i.name == "popf" for i in draft.instructions):
            raise NotHere
        if "flow" in row.attributes:
            self._flow(draft, row)
            return
        code = _Encoder(self, draft, row).encode()
        if row.name in SHIFTS:
            effect = self._shift_effect(draft, row, code)
        draft.add(code.bytes, row.name, effect)
        draft.written |= code.writes
        if len(code.bytes) > MOST_BYTES and r.random() < 0.9:
            raise NotHere

    def _shift_effect(self, draft: _Draft, row: Row, code: "_Encoded") -> Effect:
        last = row.operands[-1]
        count: int | None = 1 if last == "1" else code.immediate
        if last == "CL":
            if RCX in draft.written:
                count = None
            else:
                if draft.gpr[RCX] is None:
                    draft.gpr[RCX] = self.r.choice(
                        (0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, self.r.getrandbits(8))
                    )
                count = (draft.gpr[RCX] or 0) & 0xFF
        # With REX.W a shift of a byte still masks its count to five bits, and may be none then.
        effect = shift_effect(row.name, 8 if row.operands[0] == "Eb" else code.operand_bits, count)
        if row.name in ("shld", "shrd") and code.operand_bits == 16 and (count is None or count & 31 > 16):
            raise NotHere  # the result is undefined too
        return effect

    def _flow(self, draft: _Draft, row: Row) -> None:
        """A jump over one instruction, or onto it."""
        r = self.r
        name = row.name
        filler = r.choice((b"\x90", b"\x48\xff\xc0" if draft.bits == 64 else b"\x40", b"\xb0\x55", b""))
        prefixes = b"\x3e" if r.random() < 0.05 and name.startswith("j") else b""
        before = draft.undefined
        if name == "ret":
            if row.operands:
                raise NotHere
            target = draft.here + 6 + len(filler)
            draft.add(b"\x68" + struct.pack("<I", target), "push")
            draft.add(row.opcode, name)
        elif row.operands == ("Ev",):
            register = draft.free_register()
            rex = b"\x41" if register >= 8 else b""
            code = prefixes + rex + row.opcode + bytes((0xC0 | (row.digit or 0) << 3 | register & 7,))
            target = draft.here + len(code) + len(filler)
            if r.random() < 10 * self.options.wild:
                target = r.choice((0x8000_0000_0000, 1 << 63, DATA_BASE + PAGE, 0x1234_5678_0000))
            draft.gpr[register] = target
            draft.add(code, name)
        else:
            if name in ("jrcxz", "loop", "loope") and draft.gpr[RCX] is None:
                draft.gpr[RCX] = r.choice((0, 1, 2, 1 << 32, (1 << 32) + 1, 1 << 63))
            if name in ("jrcxz", "loop", "loope") and r.random() < 0.2:
                prefixes += b"\x67"
            size = 1 if row.operands[0] == "Jb" else 4
            draft.add(prefixes + row.opcode + len(filler).to_bytes(size, "little"), name)
        if filler:
            draft.add(filler, "filler", Effect(ALL & ~CF, 0, "") if filler[0] in (0x48, 0x40) else NO_EFFECT)
            # The branch may go past what the filler defines.
            last = draft.instructions[-1]
            draft.instructions[-1] = replace(last, defines=0)
            draft.undefined |= before


def _is_canonical(address: int) -> bool:
    return address < 1 << 47 or address >= WORD + 1 - (1 << 47)


@dataclass
class _Encoded:
    bytes: bytes
    operand_bits: int
    immediate: int | None
    writes: set[int]


class _Encoder:
    """Writes one instruction of a row with random prefixes, registers, addresses and immediates."""

    def __init__(self, generator: Generator, draft: _Draft, row: Row) -> None:
        self.g, self.draft, self.row, self.r = generator, draft, row, generator.r
        r = self.r
        self.long = draft.bits == 64
        simd = row.prefix != "" or row.group == "x87"
        self.legacy: list[int] = []
        self.rex_w = self.long and r.random() < (0.4 if not simd else 0.25)
        self.size_prefix = row.prefix == "" and row.group != "x87" and r.random() < 0.25
        if row.prefix == "" and row.group == "x87" and r.random() < 0.05:
            self.size_prefix = True
        if row.prefix in ("f2", "f3") and row.group == "integer":  # crc32, popcnt: 66 still gives the size
            self.size_prefix = r.random() < 0.25
        self.operand_bits = 64 if self.rex_w else 16 if self.size_prefix else 32
        if "d64" in row.attributes and self.long:
            self.operand_bits = 16 if self.size_prefix and not self.rex_w else 64
        self.rex = 0
        self.force_rex = self.long and r.random() < 0.1
        self.modrm: bytes = b""
        self.immediate: int | None = None
        self.tail = b""
        self.writes: set[int] = set()
        self.address_prefix = self.long and r.random() < 0.05
        self.segment = 0
        self.relative: int | None = None
        self.is_memory = False
        self.opcode_register = 0
        self.memory_target = 0

    def encode(self) -> _Encoded:
        row, r = self.row, self.r
        self._arrange()
        if row.has_modrm:
            self._modrm()
        for operand in row.operands:
            if operand[0] == "Z":
                self.opcode_register = self._register()
                self.writes.add(self.opcode_register)
            elif operand[0] == "I":
                self._immediate(operand[1:])
            elif operand[0] == "O":
                self._offset(operand[1:])
        prefixes = list(self.legacy)
        if self.size_prefix:
            prefixes.append(0x66)
        if self.address_prefix and (self.is_memory or "string" in row.attributes or r.random() < 0.1):
            prefixes.append(0x67)
        if self.segment:
            prefixes.append(self.segment)
        locked = "lock" in row.attributes and self.is_memory and r.random() < 0.3
        # AMD's processors take LOCK VERW for VERW, and LOCK MOV CR0 for MOV CR8.
        other = row.name == "verw" or row.opcode[:2] in (b"\x0f\x20", b"\x0f\x22")
        misplaced = row.prefix == "" and not other and r.random() < self.draft.options.misplaced
        if locked or misplaced:
            prefixes.append(0xF0)
        if ("rep" in row.attributes and r.random() < 0.6) or (
            row.prefix == ""
            and row.group == "integer"
            and row.name not in ("xchg", "nop")
            and r.random() < 0.01
        ):
            prefixes.append(r.choice((0xF2, 0xF3)))
        r.shuffle(prefixes)
        if row.prefix and row.prefix != "np":
            prefixes.append(int(row.prefix, 16))
        rex = self.rex | (8 if self.rex_w else 0)
        opcode = bytearray(row.opcode)
        if any(operand[0] == "Z" for operand in row.operands):
            opcode[-1] += self.opcode_register & 7
            rex |= self.opcode_register >> 3
        needs = rex or self.force_rex
        head = bytes(prefixes) + (bytes((0x40 | rex,)) if needs and self.long else b"") + bytes(opcode)
        body = self.modrm
        if self.relative is not None:
            end = self.draft.here + len(head) + len(body) + 4 + len(self.tail)
            distance = self.relative - end
            body += struct.pack("<i", distance)
        return _Encoded(head + body + self.tail, self.operand_bits, self.immediate, self.writes)

    # --- operands

    def _register(self) -> int:
        return self.r.randrange(16 if self.long else 8)

    def _size(self, operand: str) -> int:
        kind = operand[1:]
        if kind == "v":
            return self.operand_bits // 8
        if kind in ("y", "q2"):
            return 8 if self.rex_w else 4
        if kind == "z":
            return min(self.operand_bits, 32) // 8
        if kind in SIZES:
            return SIZES[kind]
        return int(kind) if kind.isdigit() else 8

    def _immediate(self, kind: str) -> None:
        r = self.r
        size = {"b": 1, "s": 1, "w": 2, "cmp": 1}.get(kind, 0)
        if kind == "z":
            size = min(self.operand_bits, 32) // 8
        elif kind == "v":
            size = self.operand_bits // 8
        value = special_values.word(r) if r.random() < 0.7 else r.getrandbits(8)
        if self.row.name == "enter" and not self.tail:
            value = r.choice((0, 8, 16, 0x20, 0x1000))
        elif self.row.name == "enter":
            value = r.choice((0, 0, 1, 2, 3, 31, 32))
        elif self.row.name == "int":
            value = r.choice((0, 1, 3, 4, 5, 6, 8, 13, 14, 32, 0x81, 0xFF))
        elif kind == "cmp":
            value = r.randrange(8)
        value &= (1 << 8 * size) - 1
        self.immediate = value
        self.tail += value.to_bytes(size, "little")

    def _offset(self, kind: str) -> None:
        size = 1 if kind == "b" else self.operand_bits // 8
        target = self._target(size, kind)
        self.is_memory = True
        width = 8 if self.long and not self.address_prefix else 4
        self.tail = (target & (1 << 8 * width) - 1).to_bytes(width, "little")

    def _modrm(self) -> None:
        row, r = self.row, self.r
        rm_operand = next((o for o in row.operands if o[0] in "EMRQNWU"), None)
        reg_operand = next((o for o in row.operands if o[0] in "GPVS"), None)
        if rm_operand is None:
            rm_operand = "Rv"
        reg = row.digit if row.digit is not None else self._register()
        if reg_operand and reg_operand[0] == "P" and r.random() < 0.95:
            reg &= 7
        if reg_operand and reg_operand[0] == "S":
            reg = r.choice((0, 2, 3, 4, 5, 0, 3, 4, 5, 1, 6, 7))
        if row.digit is None:
            self.rex |= (reg >> 3) << 2
        memory = rm_operand[0] == "M" or (rm_operand[0] in "EQW" and r.random() < 0.55)
        if reg_operand and reg_operand[0] == "G" and reg_operand is row.operands[0]:
            self.writes.add(reg)
        if reg_operand and reg_operand[0] == "G":
            self.writes.add(reg & 3)  # AH to DH, and XADD or XCHG write it too
            self.writes.add(reg)
        if memory:
            self._memory(reg, self._size(rm_operand), rm_operand[1:])
            return
        rm = self._register()
        if r.random() < 0.15:
            rm = reg  # the register with itself
        if row.digit is not None and rm_operand[0] in "NQ":
            rm &= 7
        if rm_operand[0] in "ER":
            self.writes |= {rm, rm & 3}
            if "selector" in row.attributes or (rm_operand == "Ew" and row.name == "mov"):
                self._fix(rm, r.choice(SELECTORS))
        self.rex |= rm >> 3
        self.modrm = bytes((0xC0 | (reg & 7) << 3 | rm & 7,))

    def _fix(self, register: int, value: int) -> bool:
        """Let a register have a value, when nothing else was decided about it; whether it has."""
        draft = self.draft
        if register in draft.written:
            return False
        if draft.gpr[register] is None:
            draft.gpr[register] = value & WORD
        return draft.gpr[register] == value & WORD

    def _target(self, size: int, kind: str) -> int:
        """The address of an operand of ``size`` bytes."""
        r = self.r
        if self.row.name == "lea" and r.random() < 0.5:
            return r.getrandbits(48)
        if self.long and not self.address_prefix and r.random() < self.draft.options.wild:
            return r.choice((1 << 47, (1 << 47) - 1, 1 << 63, 0xFFFF_7FFF_FFFF_FFF8)) + r.choice((0, 0, 64))
        if r.random() < self.draft.options.protected:
            way = r.random()
            if way < 0.7 and size > 1:  # across the end of a page, whatever follows
                return DATA_BASE + r.choice((1, 2, 2, 3, 3, 4, 5, 5, 6, 7)) * PAGE - r.randrange(1, size)
            if way < 0.9:
                return DATA_BASE + r.choice((0, 3, 3, 5, 7)) * PAGE + r.randrange(PAGE // 16) * 16
            return DATA_BASE + r.choice(WRITABLE) * PAGE + PAGE - size
        slot = r.randrange(PAGE // 128) * 8 + special_values.SLOT_OF.get(kind, r.randrange(8))
        within = r.randrange(0, 16 - size + 1, size) if size <= 8 else 0
        if kind == "t":
            within = 0
        if "strings" in self.row.attributes:
            slot = slot & ~7 | 7
        if self.row.name.startswith("fb"):
            slot, within = slot & ~7 | 6, 0
        if r.random() < 0.05:
            within += r.randrange(1, 16)
        page = r.choice(WRITABLE) * PAGE
        return DATA_BASE + min(page + slot * 16 + within, page + PAGE - size)

    def _memory(self, reg: int, size: int, kind: str) -> None:
        r = self.r
        self.is_memory = True
        target = self._target(size, kind)
        self.memory_target = target
        self._arrange_memory(target, size, reg)
        if r.random() < 0.08:
            self.segment = r.choice((0x64, 0x65, 0x26, 0x2E, 0x36, 0x3E))
        effective = target
        if self.long and self.segment == 0x64:
            effective = target - self.draft.fs_base
        elif self.long and self.segment == 0x65:
            effective = target - self.draft.gs_base
        if self.segment in (0x64, 0x65) and _is_canonical(target) and not _is_canonical(effective & WORD):
            raise NotHere  # SDM vol. 1, 3.3.7.1 looks at the sum alone; some processors look at both
        elif self.segment in (0x64, 0x65):
            self.segment = 0x3E
        if self.draft.bits == 32 and self.segment == 0x2E and "r" not in kind:
            self.segment = 0x26
        effective &= WORD
        if "bitstring" in self.row.attributes:
            effective = self._bitstring(effective, reg)
        reg3 = (reg & 7) << 3
        form = r.random()
        near = effective < 1 << 31
        if form < 0.12 and near and self.long and not self.address_prefix:
            self.modrm = bytes((reg3 | 5,))
            self.relative = effective
        elif form < 0.2 and near:
            self.modrm = bytes((reg3 | 4, 0x25)) + struct.pack("<I", effective)
        elif form < 0.6:
            self._based(effective, reg3)
        else:
            self._indexed(effective, reg3)

    def _displacement(self, effective: int, register: int) -> tuple[int, bytes]:
        """Mod and bytes that lead from a base register to the address; it is given a value if need be."""
        r, draft = self.r, self.draft
        value = draft.gpr[register]
        mask = WORD if self.long and not self.address_prefix else 0xFFFF_FFFF
        if value is None:
            away = r.choice((0, 0, r.randrange(-128, 128), r.randrange(-(1 << 31), 1 << 31)))
            value = (effective - away) & mask
            if self.long and self.address_prefix:
                value |= r.getrandbits(32) << 32
            draft.gpr[register] = value
        away = (effective - value) & mask
        limit = mask + 1
        signed = away - limit if away >= limit >> 1 else away
        if not -(1 << 31) <= signed < 1 << 31:
            raise NotHere
        if signed == 0 and register & 7 != 5 and r.random() < 0.8:
            return 0, b""
        if -128 <= signed < 128 and r.random() < 0.9:
            return 0x40, struct.pack("<b", signed)
        return 0x80, struct.pack("<i", signed)

    def _base(self) -> int:
        for _ in range(6):
            register = self._register()
            if register not in self.draft.written:
                return register
        raise NotHere

    def _based(self, effective: int, reg3: int) -> None:
        register = self._base()
        mod, displacement = self._displacement(effective, register)
        self.rex |= register >> 3
        if register & 7 == 4:
            self.modrm = bytes((mod | reg3 | 4, 0x24)) + displacement
        else:
            self.modrm = bytes((mod | reg3 | register & 7,)) + displacement

    def _indexed(self, effective: int, reg3: int) -> None:
        r, draft = self.r, self.draft
        index = self._base()
        if index == RSP:
            raise NotHere
        if draft.gpr[index] is None:
            draft.gpr[index] = r.choice((0, 1, 2, 8, 0xFF, WORD, WORD - 7, r.getrandbits(12)))
        scale = r.randrange(4)
        offset = (draft.gpr[index] or 0) << scale
        mask = WORD if self.long and not self.address_prefix else 0xFFFF_FFFF
        rest = (effective - offset) & mask
        self.rex |= (index >> 3) << 1
        sib = scale << 6 | (index & 7) << 3
        base = self._base()
        if base == index:
            raise NotHere
        mod, displacement = self._displacement(rest, base)
        self.rex |= base >> 3
        self.modrm = bytes((mod | reg3 | 4, sib | base & 7)) + displacement

    def _bitstring(self, effective: int, reg: int) -> int:
        """The bit offset in a register reaches beyond the operand: the base is that much away."""
        offset = self.r.choice((0, 1, 63, 64, -1, -64, self.r.randrange(-4096, 4096)))
        mask = (1 << self.operand_bits) - 1
        if not self._fix(reg, offset & mask | (self.r.getrandbits(64) & ~mask)):
            if reg in self.draft.written:
                raise NotHere
            offset = (self.draft.gpr[reg] or 0) & mask
            if offset > mask >> 1:
                offset -= mask + 1
        size = self.operand_bits // 8
        return (effective - (offset >> (3 + size.bit_length() - 1)) * size) & WORD

    # --- what an instruction finds in registers that it does not name

    def _arrange(self) -> None:
        row, r = self.row, self.r
        attributes = row.attributes
        if "string" in attributes:
            self._fix(RCX, r.choice((0, 1, 2, 3, 5, 17, 64)))
            self._fix(RSI, self._target(8, "q"))
            self._fix(RDI, self._target(8, "q"))
        elif "xlat" in attributes:
            self._fix(RBX, self._target(1, "b") - ((self.draft.gpr[RAX] or 0) & 0xFF))
        elif "mask" in attributes:
            self._fix(RDI, self._target(16, "x"))
        elif "divide" in attributes and r.random() < 0.7:
            self._fix(RDX, r.choice((0, 0, 1, WORD)))
        elif row.name == "leave":
            self._fix(RBP, self.g._stack(self.draft.bits))
        elif "strings" in attributes:
            self._fix(RAX, r.choice((0, 1, 3, 8, 16, 17, WORD, 0x8000_0000, 1 << 63, 0xFFFF_FFF0)))
            self._fix(RDX, r.choice((0, 1, 4, 8, 16, 17, WORD, 0x8000_0000, 1 << 63, 0xFFFF_FFF8)))

    def _arrange_memory(self, target: int, size: int, reg: int) -> None:
        """Let a comparison with memory hold half of the time."""
        r = self.r
        at = target - DATA_BASE
        if not 0 <= at <= len(self.g.image) - 16:
            return
        if "pair" in self.row.attributes:
            half = 8 if self.rex_w else 4
            if r.random() < 0.6:
                low, high = (
                    int.from_bytes(self.g.image[at + n * half : at + (n + 1) * half], "little")
                    for n in (0, 1)
                )
                self._fix(RAX, low)
                self._fix(RDX, high)
        elif self.row.name == "cmpxchg" and r.random() < 0.5:
            self._fix(RAX, int.from_bytes(self.g.image[at : at + size], "little"))
