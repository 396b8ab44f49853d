# SPDX-License-Identifier: GPL-2.0-or-later
"""One instruction of a row, with random prefixes, registers, addresses and immediates."""

import struct
from dataclasses import dataclass
from typing import Final

import special_values
from block_draft import RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP, Draft, NotHere
from block_layout import DATA_BASE, PAGE, WRITABLE
from instruction_row import Row

WORD: Final = (1 << 64) - 1
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


def is_canonical(address: int) -> bool:
    return address < 1 << 47 or address >= WORD + 1 - (1 << 47)


@dataclass
class Encoded:
    bytes: bytes
    operand_bits: int
    immediate: int | None
    writes: set[int]


class Encoder:
    """Writes one instruction of a row with random prefixes, registers, addresses and immediates."""

    def __init__(self, image: bytes, draft: Draft, row: Row) -> None:
        self.image, self.draft, self.row, self.r = image, draft, row, draft.r
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

    def encode(self) -> Encoded:
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
        return Encoded(head + body + self.tail, self.operand_bits, self.immediate, self.writes)

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
        if self.segment in (0x64, 0x65) and is_canonical(target) and not is_canonical(effective & WORD):
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
            self._fix(RBP, self.draft.stack_pointer())
        elif "strings" in attributes:
            self._fix(RAX, r.choice((0, 1, 3, 8, 16, 17, WORD, 0x8000_0000, 1 << 63, 0xFFFF_FFF0)))
            self._fix(RDX, r.choice((0, 1, 4, 8, 16, 17, WORD, 0x8000_0000, 1 << 63, 0xFFFF_FFF8)))

    def _arrange_memory(self, target: int, size: int, reg: int) -> None:
        """Let a comparison with memory hold half of the time."""
        r = self.r
        at = target - DATA_BASE
        if not 0 <= at <= len(self.image) - 16:
            return
        if "pair" in self.row.attributes:
            half = 8 if self.rex_w else 4
            if r.random() < 0.6:
                low, high = (
                    int.from_bytes(self.image[at + n * half : at + (n + 1) * half], "little") for n in (0, 1)
                )
                self._fix(RAX, low)
                self._fix(RDX, high)
        elif self.row.name == "cmpxchg" and r.random() < 0.5:
            self._fix(RAX, int.from_bytes(self.image[at : at + size], "little"))
