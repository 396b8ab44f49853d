# SPDX-License-Identifier: GPL-2.0-or-later
"""Blocks that once differed, each the smallest that showed its kind."""

import struct
from dataclasses import dataclass, field
from typing import Final

from block_layout import CODE32, CODE64, CODE_BASE, DATA_BASE, REGISTERS, Block, Instruction

DATA: Final = DATA_BASE + 0x1000
STACK: Final = DATA_BASE + 0x6800
MISSING: Final = DATA_BASE + 0x5000
READ_ONLY: Final = DATA_BASE + 0x3000
END: Final = 1 << 32
NAN: Final = 0x7FC1_2345_7FC0_0000_FFA0_0001_7F80_0001
ONE_TO_FOUR: Final = 0x4_0000_0003_0000_0002_0000_0001
TF: Final = 0x100
AC: Final = 0x4_0000


@dataclass(frozen=True)
class Found:
    """Code, what is not zero of the registers (``xmm3`` and ``mxcsr`` too), flags besides IF."""

    what: str
    code: str
    state: dict[str, int] = field(default_factory=dict)
    flags: int = 0
    cs: int = CODE64
    undefined: int = 0

    def block(self) -> Block:
        """To be run alone, at the first address of the code."""
        return self.block_at(CODE_BASE)

    def block_at(self, address: int) -> Block:
        """At any address."""
        state = {"rsp": STACK, **self.state}
        head = struct.pack(
            "<HHBxHQQII",
            state.get("fcw", 0x37F),
            state.get("fsw", 0),
            state.get("ftw", 0),
            0,
            0,
            0,
            state.get("mxcsr", 0x1F80),
            0xFFFF,
        )
        stack = b"".join(state.get(f"st{number}", 0).to_bytes(16, "little") for number in range(8))
        vectors = b"".join(state.get(f"xmm{number}", 0).to_bytes(16, "little") for number in range(16))
        return Block(
            address,
            [Instruction(bytes.fromhex(self.code), self.what)],
            [state.get(name, 0) for name in REGISTERS],
            0x202 | self.flags,
            head + stack + vectors,
            self.cs,
            undefined=self.undefined,
        )


PAIRWISE: Final = (
    (1, "phaddw"),
    (2, "phaddd"),
    (3, "phaddsw"),
    (5, "phsubw"),
    (6, "phsubd"),
    (7, "phsubsw"),
)

FOUND: Final = (
    # Lengths of strings without an absolute value; the emulator's process died.
    Found("pcmpestri by INT_MIN", "66 0f 3a 61 ca 0d", {"rax": 3, "rdx": 0x8000_0000, "xmm1": NAN}),
    Found("pcmpestrm by INT_MIN", "66 0f 3a 60 ca 4d", {"rax": 0x8000_0000, "rdx": 9, "xmm1": NAN}),
    Found("pcmpestri by INT64_MIN", "66 48 0f 3a 61 ca 0c", {"rax": 1 << 63, "rdx": 1 << 63}),
    # The destination is the source as well.
    *(
        Found(
            f"{name} {registers}", f"{prefix}0f 38 0{opcode} c0", {"xmm0": 0x4_0000_0003_0000_0002_0000_0001}
        )
        for registers, prefix in (("mm0, mm0", ""), ("xmm0, xmm0", "66 "))
        for opcode, name in PAIRWISE
    ),
    # REX turned AH into SPL.
    Found("lahf with REX", "48 9f"),
    Found("sahf with REX", "66 48 9e", {"rax": 0xD500}),
    # 66 beside REX.W.
    Found("popcnt with 66 and REX.W", "66 f3 4d 0f b8 d3", {"r11": (1 << 64) - 1}),
    Found("wrgsbase with 66", "66 f3 41 0f ae dc", {"r12": 0x9787_EF01_9AFE_5ABD}),
    # A source of zero leaves all 64 bits of the destination.
    Found("bsf of zero", "0f bc c1", {"rax": 1 << 63}, undefined=0x895),
    Found("bsr of zero", "44 0f bd e1", {"r12": 1 << 40 | 5}, undefined=0x895),
    # Undocumented by Intel and executed by it.
    Found("test f7 /1", "49 f7 cf 01 80 00 00", {"r15": 0x8001}, undefined=0x10),
    Found("test f6 /1 with a RIP-relative operand", "f6 0d f9 0f 00 10 07", undefined=0x10),
    # An immediate behind a RIP-relative operand.
    Found("shld with a RIP-relative operand", "4c 0f a4 05 f8 0f 00 10 09", {"r8": 0xAA}, undefined=0x810),
    Found("shrd with a RIP-relative operand", "4c 0f ac 05 f8 0f 00 10 09", {"r8": 0xAA}, undefined=0x810),
    # ENTER: a new top of the stack that cannot be written; 16 bits of RBP; levels over a page's start.
    Found("enter onto a missing page", "c8 00 10 02", {"rbp": STACK + 64}),
    Found("enter with 66", "66 c8 08 00 00", {"rbp": 0x1234_5678_9ABC_DEF0}),
    Found("enter from a missing page", "c8 08 00 03", {"rbp": MISSING + 0x20}),
    # The lowest address was stored to first.
    Found("pusha onto a missing page", "60", {"rsp": MISSING + 0x1010, "rax": 1, "rcx": 2}, cs=CODE32),
    # A fault that was not raised, and faults in the wrong order.
    Found("clflush of a missing page", "0f ae 38", {"rax": MISSING}),
    Found("outs from a missing page", "6e", {"rsi": MISSING}),
    Found("ins no times", "f3 6c", {"rdi": DATA}),
    # Stored byte by byte, so that a part was stored before the fault; and bytes that are not stored do fault.
    Found("maskmovdqu into a missing page", "66 0f f7 c1", {"rdi": MISSING - 8, "xmm1": (1 << 128) - 1}),
    Found("maskmovdqu of nothing", "66 0f f7 c1", {"rdi": MISSING}),
    # Both EAX and the destination were written, one of them with what it had and an upper half of zeros.
    Found(
        "cmpxchg of equal registers", "0f b1 cb", {"rax": 5 << 32 | 3, "rbx": 7 << 32 | 3, "rcx": 9 << 32 | 4}
    ),
    Found(
        "cmpxchg of other registers", "0f b1 cb", {"rax": 5 << 32 | 2, "rbx": 7 << 32 | 3, "rcx": 9 << 32 | 4}
    ),
    Found("cmpxchg with EAX", "0f b1 c8", {"rax": 5 << 32 | 2, "rcx": 9 << 32 | 4}),
    Found(
        "cmpxchg of equal memory", "0f b1 0f", {"rdi": MISSING - 0x1008, "rax": 1 << 63 | 0, "rcx": 5 << 33}
    ),
    Found("lock cmpxchg", "89 07 f0 0f b1 0f", {"rdi": DATA, "rax": 1 << 63 | 9, "rcx": 5 << 33}),
    # Flags were changed, or their form was, before a store that faults.
    Found("rcl of a read-only word", "f9 66 d1 17", {"rdi": READ_ONLY}),
    Found("rcr of a missing byte", "f9 d0 1f", {"rdi": MISSING}),
    Found(
        "rcl of memory", "f9 d1 17 48 d3 17 c0 1f 0b 66 c1 17 11", {"rdi": DATA, "rcx": 35}, undefined=0x800
    ),
    Found("setg onto a missing page", "01 c8 0f 9f 07", {"rdi": MISSING, "rax": 1 << 31, "rcx": 1 << 31}),
    Found("seto onto a read-only page", "19 c8 0f 90 07", {"rdi": READ_ONLY, "rax": 1 << 31, "rcx": 1}),
    Found("lock neg of a missing byte", "f0 f6 1f", {"rdi": MISSING}),
    Found("movups into a missing page", "0f 11 07", {"rdi": MISSING - 8, "xmm0": ONE_TO_FOUR}),
    Found("movups from a missing page", "0f 10 07", {"rdi": MISSING - 8, "xmm0": ONE_TO_FOUR}),
    Found("pusha onto a missing page", "60", {"rsp": STACK - 0x7F0}, cs=CODE32),
    Found("popa from a missing page", "61", {"rsp": STACK + 0x7F0, "rdi": 7}, cs=CODE32),
    # Near branches to what is not canonical: nothing of them is done.
    Found("call of a wrong address", "ff d0", {"rax": 1 << 47}),
    Found("call through a wrong address", "48 89 07 ff 17", {"rdi": DATA, "rax": 1 << 63}),
    Found("jmp to a wrong address", "ff e0", {"rax": 1 << 47}),
    Found("ret to a wrong address", "50 c3", {"rax": 1 << 62}),
    Found("ret with a number to a wrong address", "50 c2 10 00", {"rax": 0xFFFF << 47}),
    Found("ret to a wrong address in steps", "50 c3", {"rax": 1 << 62}, TF),
    # An operand over the end of the canonical addresses; a base that is not.
    Found("load over the end", "48 8b 00", {"rax": (1 << 47) - 1}),
    Found("pop over the end", "58", {"rsp": (1 << 47) - 1}),
    Found("wrfsbase of a wrong address", "f3 48 0f ae d0", {"rax": 1 << 47}),
    # Alignment was not checked.
    Found("misaligned load under AC", "8b 07", {"rdi": DATA + 2}, AC),
    Found("misaligned store of a missing page under AC", "66 89 07", {"rdi": MISSING + 1}, AC),
    Found("misaligned address that is not canonical under AC", "8b 00", {"rax": 1 << 47 | 1}, AC),
    Found("misaligned push under AC", "50", {"rsp": STACK + 4}, AC),
    Found("misaligned lock add under AC", "f0 01 07", {"rdi": DATA + 2}, AC),
    Found("misaligned xchg under AC", "48 87 07", {"rdi": DATA + 4}, AC),
    Found("misaligned cmpxchg8b under AC", "0f c7 0f", {"rdi": DATA + 4}, AC),
    Found("misaligned movups under AC", "0f 10 07", {"rdi": DATA + 4}, AC),
    Found("movups of half an alignment under AC", "0f 10 07", {"rdi": DATA + 8}, AC),
    Found("movdqu to half an alignment under AC", "f3 0f 7f 07", {"rdi": DATA + 8}, AC),
    Found("misaligned lddqu under AC", "f2 0f f0 07", {"rdi": DATA + 4}, AC),
    Found("misaligned pcmpistri under AC", "66 0f 3a 63 07 00", {"rdi": DATA + 4}, AC),
    Found("misaligned movaps under AC", "0f 28 07", {"rdi": DATA + 4}, AC),
    Found("misaligned movsd under AC", "f2 0f 10 07", {"rdi": DATA + 4}, AC),
    Found("aligned words under AC", "8b 47 04 66 8b 47 02 8a 47 01", {"rdi": DATA}, AC),
    Found("misaligned rcl under AC", "d1 17", {"rdi": DATA + 2}, AC),
    # Faults that come before #AC or after it, and checks of functions that access memory by themselves.
    Found("misaligned enter under AC", "48 c8 00 10 02", {"rsp": 0x5000_6F4F}, AC),
    Found("misaligned maskmovdqu under AC", "66 41 0f f7 f5", {"rdi": DATA_BASE + 0x2FF7}, AC),
    Found("misaligned maskmovq under AC", "0f f7 c1", {"rdi": READ_ONLY + 1}, AC),
    Found("misaligned roundss under AC", "66 0f 3a 0a 07 ff", {"rdi": DATA + 2}, AC),
    Found("misaligned bsf under AC", "0f bc 07", {"rdi": DATA + 2}, AC, undefined=0x895),
    Found("misaligned and over the end under AC", "4d 21 06", {"r14": (1 << 47) - 1}, AC),
    Found("movhps over the end under AC", "0f 16 07", {"rdi": (1 << 47) - 1}, AC),
    Found("enter from a wrong address under AC", "c8 20 00 02", {"rbp": 0xC18F_CE93_54E4_15BB}, AC),
    Found("misaligned rcl of a wrong address under AC", "d1 12", {"rdx": 0x8000_0000_003F}, AC),
    Found("maskmovdqu to half an alignment under AC", "66 0f f7 da", {"rdi": 8}, AC),
    Found("maskmovdqu to a quarter of it under AC", "66 0f f7 da", {"rdi": MISSING + 4}, AC),
    Found("misaligned bound under AC", "66 62 07", {"rdi": DATA + 1}, AC, CODE32),
    Found("misaligned fist of a read-only page under AC", "db 17", {"rdi": READ_ONLY + 1, "fcw": 0x37E}, AC),
    # Of two operands that both fault, either may be read first: by the model of the processor.
    Found("cmps of missing pages", "a6", {"rsi": MISSING, "rdi": MISSING + 8}),
    Found("repe cmps of missing pages", "f3 48 a7", {"rsi": MISSING, "rdi": MISSING + 8, "rcx": 3}),
    Found("repne cmps of missing pages", "f2 a7", {"rsi": MISSING, "rdi": MISSING + 8, "rcx": 3}, cs=CODE32),
    # Written without a change.
    Found("arpl of a read-only page", "63 07", {"rdi": READ_ONLY}, cs=CODE32),
    Found("arpl that changes", "66 c7 07 00 00 63 07", {"rdi": DATA, "rax": 3}, cs=CODE32),
    Found("arpl of a missing page", "63 07", {"rdi": MISSING, "rax": 3}, cs=CODE32),
    # The block's other accesses were not looked at, since one swaps its bytes.
    Found("misaligned aesdec beside movbe under AC", "66 0f 38 de 07 0f 38 f0 07", {"rdi": DATA + 3}, AC),
    Found(
        "add of a read-only page beside movbe", "0f 38 f1 03 81 07 01 00 00 00", {"rbx": DATA, "rdi": MISSING}
    ),
    Found("movbe of 16 bits", "66 0f 38 f0 07 66 0f 38 f1 47 08", {"rdi": DATA, "rax": (1 << 64) - 1}),
    Found("movbe of 32 bits", "0f 38 f0 07 0f 38 f1 47 08", {"rdi": DATA, "rax": (1 << 64) - 1}),
    Found("movbe of 64 bits", "48 0f 38 f0 07 48 0f 38 f1 47 08", {"rdi": DATA, "rax": (1 << 64) - 1}),
    # Alignment of a vector comes before the stack's canonical addresses; the other page before a missing one.
    Found("misaligned paddb of the stack's wrong address", "66 0f fc 45 00", {"rbp": 0xFFFF_7FFF_FFFF_FFF8}),
    Found("lock sbb over the end", "f0 41 81 1f c4 00 00 00", {"r15": (1 << 47) - 1}),
    Found("call of a wrong address onto a missing page", "ff d0", {"rax": 1 << 63, "rsp": MISSING + 8}),
    # The other unit's flags.
    Found(
        "fcomi behind dppd with exceptions unmasked",
        "66 0f 3a 41 d8 ff db f7",
        {"ftw": 0xFF, "mxcsr": 0xB080, "xmm3": 0x7FF8_0000_0000_0000_C3E0_0000_0000_0000},
    ),
    # The flags were lost where the count runs out.
    Found("loope at its end", "00 c8 e1 00", {"rcx": 1}),
    Found("loope at its end behind sub", "2c 18 e1 00", {"rcx": 1}),
    # The trap flag behind an instruction that ended the block.
    Found("pause in steps", "66 f3 90", flags=TF),
    # Offsets end at 4 GiB, which goes before alignment; null and read-only segments.
    Found("lods over the end of 4 GiB under AC", "ad", {"rsi": 0xFFFF_FFFF}, AC, CODE32),
    Found("leave over the end of 4 GiB under AC", "66 c9", {"rbp": 0xFFFF_FFFE}, AC, CODE32),
    Found("enter with a frame over the end of 4 GiB under AC", "c8 10 00 1f", {"rbp": 2}, AC, CODE32),
    Found("store by a null DS", "31 c0 8e d8 89 07", {"rdi": DATA}, cs=CODE32),
    Found("load by a DS of code", "b8 23 00 00 00 8e d8 8b 07", {"rdi": DATA}, cs=CODE32),
    Found("store by CS", "2e 89 07", {"rdi": DATA}, cs=CODE32),
    Found("fild by a null ES", "31 c0 8e c0 26 df 07", {"rdi": DATA}, cs=CODE32),
    Found("lock inc by CS", "f0 2e ff 07", {"rdi": DATA}, cs=CODE32),
    Found("maskmovdqu by a null DS", "31 c0 8e d8 66 0f f7 c1", {"rdi": DATA, "xmm1": NAN}, cs=CODE32),
    Found("maskmovdqu by CS", "2e 66 0f f7 c1", {"rdi": DATA, "xmm1": NAN}, cs=CODE32),
    Found("maskmovq by a null DS", "31 c0 8e d8 0f f7 c1", {"rdi": DATA, "st1": NAN}, cs=CODE32),
    Found("maskmovq by CS of nothing", "2e 0f f7 c1", {"rdi": DATA}, cs=CODE32),
    Found("maskmovdqu over the end of 4 GiB", "66 0f f7 c1", {"rdi": END - 8, "xmm1": NAN}, cs=CODE32),
    Found("maskmovq over the end of 4 GiB", "0f f7 c1", {"rdi": END - 4, "st1": NAN}, cs=CODE32),
    Found("maskmovq over the end of 4 GiB under AC", "0f f7 c1", {"rdi": END - 3}, AC, CODE32),
    *(
        Found(f"{name} over the end of 4 GiB{under}", code, {"rax": END - 1, "rbp": END - 1}, flags, CODE32)
        for under, flags in (("", 0), (" under AC", AC))
        for name, code in (
            ("fld m32", "d9 00"),
            ("fld m64", "dd 00"),
            ("fld m80", "db 28"),
            ("fld m32 of the stack", "d9 45 00"),
            ("fild m16", "df 00"),
            ("fbld", "df 20"),
            ("fst m64", "dd 10"),
            ("fstp m80", "db 38"),
            ("fist m16", "df 10"),
            ("fldcw", "d9 28"),
            ("fnstcw", "d9 38"),
            ("fnstsw", "dd 38"),
            ("fldenv", "d9 20"),
            ("fnstenv", "d9 30"),
            ("fnsave", "dd 30"),
            ("frstor of the stack", "dd 65 00"),
            ("fadd m32", "d8 00"),
            ("movq mm0, m64", "0f 6f 00"),
            ("movq m64, mm0", "0f 7f 00"),
            ("ldmxcsr", "0f ae 10"),
            ("stmxcsr of the stack", "0f ae 5d 00"),
            ("lock add", "f0 01 00"),
            ("lock not of the stack", "f0 f7 55 00"),
            ("lock cmpxchg", "f0 0f b1 08"),
            ("lock cmpxchg8b", "f0 0f c7 08"),
            ("xchg", "87 08"),
            ("lock xadd of the stack", "66 f0 0f c1 4d 00"),
            ("lock btc", "f0 0f ba 38 05"),
            ("movbe", "0f 38 f0 00"),
            ("movbe to memory", "0f 38 f1 00"),
            ("bound", "62 00"),
            ("cmpxchg8b", "0f c7 08"),
            ("rcl", "d1 10"),
            ("movups", "0f 10 00"),
            ("movups to memory", "0f 11 00"),
            ("lddqu of the stack", "f2 0f f0 45 00"),
        )
    ),
    Found("fxsave over the end of 4 GiB", "0f ae 00", {"rax": END - 0x100}, cs=CODE32),
    Found("fxsave of the stack over the end of 4 GiB", "0f ae 45 00", {"rbp": END - 16}, cs=CODE32),
    Found("fxrstor over the end of 4 GiB", "0f ae 08", {"rax": END - 0x100}, cs=CODE32),
    Found("fnsave over the end of 4 GiB", "dd 30", {"rax": END - 64}, cs=CODE32),
    Found("frstor over the end of 4 GiB", "dd 20", {"rax": END - 64}, cs=CODE32),
)
"""By kind; a comment says what was wrong."""
