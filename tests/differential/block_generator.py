# SPDX-License-Identifier: GPL-2.0-or-later
"""Random blocks of a few instructions, from the table, with the state that they start from.

What an instruction needs is arranged before the block runs: a base register gets the value that leads to the
chosen operand. Registers that are free at the end get special values. Only flags that have a defined value
are read; those that have none at an instruction's address are noted with it.
"""

import random
import struct
from dataclasses import replace
from typing import Final

import special_values
from block_draft import RAX, RCX, RSP, Draft, NotHere, Options
from block_layout import (
    ALIAS,
    CODE32,
    CODE64,
    CODE_BASE,
    CODE_GAP,
    CODE_PAGES,
    DATA_BASE,
    DATA_PAGES,
    PAGE,
    Block,
)
from flag_effects import ALL, CF, NO_EFFECT, Effect, shift_effect
from instruction_encoder import WORD, Encoded, Encoder
from instruction_row import Row
from instruction_table import GROUPS, NOT_ANNOUNCED

TF, DF, AC, FIXED, IF = 0x100, 0x400, 0x4_0000, 2, 0x200
SHIFTS: Final = ("rol", "ror", "rcl", "rcr", "shl", "shr", "sar", "shld", "shrd")
MOST_BYTES: Final = 15
WEIGHTS: Final = {"integer": 10, "mmx": 3, "sse": 7, "sse4": 4, "x87": 6}


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
        draft = Draft(r, address, bits, options)
        if bits == 64:
            draft.fs_base = DATA_BASE + r.choice((0x1000, 0x1800, 0x2040))
            draft.gs_base = DATA_BASE + r.choice((0x1000, 0x1234, 0x4010))
        draft.gpr[RSP] = draft.stack_pointer()
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

    def _finished(self, draft: Draft) -> Block:
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
        high = draft.bits == 64 and r.random() < self.options.aliased
        return Block(
            draft.address + ALIAS * high,
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
        draft = Draft(r, address, 64, self.options)
        names = [name for name, code in NOT_ANNOUNCED.items() if not code.endswith("/nop")]
        name = r.choice(names)
        draft.gpr[RAX] = DATA_BASE + 0x1000
        draft.gpr[RSP] = draft.stack_pointer()
        draft.add(bytes.fromhex(NOT_ANNOUNCED[name]), name)
        block = self._finished(draft)
        block.native = False
        block.rflags &= ~TF
        return block

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

    def _write(self, draft: Draft, row: Row) -> None:
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
        code = Encoder(self.image, draft, row).encode()
        if row.name in SHIFTS:
            effect = self._shift_effect(draft, row, code)
        draft.add(code.bytes, row.name, effect)
        draft.written |= code.writes
        if len(code.bytes) > MOST_BYTES and r.random() < 0.9:
            raise NotHere

    def _shift_effect(self, draft: Draft, row: Row, code: "Encoded") -> Effect:
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

    def _flow(self, draft: Draft, row: Row) -> None:
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
