# SPDX-License-Identifier: GPL-2.0-or-later
"""What each instruction does to the six arithmetic flags, with the manual's entry."""

from dataclasses import dataclass
from typing import Final

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
ALL: Final = CF | PF | AF | ZF | SF | OF


@dataclass(frozen=True)
class Effect:
    """What becomes of the six arithmetic flags: ``defined`` get a value, ``undefined`` any (``where``).

    ``read`` are those that the result depends on.
    """

    defined: int
    undefined: int
    where: str
    read: int = 0


NO_EFFECT: Final = Effect(0, 0, "")
CONDITIONS: Final = (OF, CF, ZF, CF | ZF, SF, PF, SF | OF, SF | OF | ZF)
"""What the conditions of Jcc, SETcc and CMOVcc read, by the opcode's bits 1 to 3."""

EFFECTS: Final = {
    **{name: Effect(ALL, 0, f"SDM vol. 2A, {name.upper()}") for name in ("add", "cmp", "cmpxchg")},
    **{name: Effect(ALL, 0, f"SDM vol. 2B, {name.upper()}") for name in ("neg", "sub", "popcnt", "ptest")},
    "xadd": Effect(ALL, 0, "SDM vol. 2D, XADD"),
    "adc": Effect(ALL, 0, "SDM vol. 2A, ADC", CF),
    "sbb": Effect(ALL, 0, "SDM vol. 2B, SBB", CF),
    "inc": Effect(ALL & ~CF, 0, "SDM vol. 2A, INC"),
    "dec": Effect(ALL & ~CF, 0, "SDM vol. 2A, DEC"),
    "and": Effect(ALL & ~AF, AF, "SDM vol. 2A, AND: AF is undefined"),
    "or": Effect(ALL & ~AF, AF, "SDM vol. 2B, OR: AF is undefined"),
    "xor": Effect(ALL & ~AF, AF, "SDM vol. 2D, XOR: AF is undefined"),
    "test": Effect(ALL & ~AF, AF, "SDM vol. 2B, TEST: AF is undefined"),
    "mul": Effect(CF | OF, SF | ZF | AF | PF, "SDM vol. 2B, MUL: SF, ZF, AF and PF are undefined"),
    "imul": Effect(CF | OF, SF | ZF | AF | PF, "SDM vol. 2A, IMUL: SF, ZF, AF and PF are undefined"),
    "div": Effect(0, ALL, "SDM vol. 2A, DIV: all are undefined"),
    "idiv": Effect(0, ALL, "SDM vol. 2A, IDIV: all are undefined"),
    "bsf": Effect(ZF, ALL & ~ZF, "SDM vol. 2A, BSF: CF, OF, SF, AF and PF are undefined"),
    "bsr": Effect(ZF, ALL & ~ZF, "SDM vol. 2A, BSR: CF, OF, SF, AF and PF are undefined"),
    **{
        name: Effect(CF, OF | SF | AF | PF, f"SDM vol. 2A, {name.upper()}: OF, SF, AF and PF are undefined")
        for name in ("bt", "bts", "btr", "btc")
    },
    # The shifts and rotates depend on the count: shift_effect().
    **dict.fromkeys(("rol", "ror", "shl", "shr", "sal", "sar", "shld", "shrd"), NO_EFFECT),
    "rcl": Effect(0, 0, "", CF),
    "rcr": Effect(0, 0, "", CF),
    "stc": Effect(CF, 0, "SDM vol. 2B, STC"),
    "clc": Effect(CF, 0, "SDM vol. 2A, CLC"),
    "cmc": Effect(CF, 0, "SDM vol. 2A, CMC", CF),
    "sahf": Effect(ALL & ~OF, 0, "SDM vol. 2B, SAHF"),
    "lahf": Effect(0, 0, "SDM vol. 2A, LAHF", ALL & ~OF),
    "pushf": Effect(0, 0, "SDM vol. 2B, PUSHF", ALL),
    "popf": Effect(ALL, 0, "SDM vol. 2B, POPF"),
    # Repeated no times they leave the flags alone: nothing is counted as newly defined.
    "cmps": Effect(0, 0, "SDM vol. 2A, CMPS"),
    "scas": Effect(0, 0, "SDM vol. 2B, SCAS"),
    "loope": Effect(0, 0, "SDM vol. 2A, LOOP", ZF),
    "cmpxchg8b": Effect(ZF, 0, "SDM vol. 2A, CMPXCHG8B"),
    "cmpxchg16b": Effect(ZF, 0, "SDM vol. 2A, CMPXCHG8B"),
    **{name: Effect(ZF, 0, f"SDM vol. 2, {name.upper()}") for name in ("lar", "lsl", "verr", "verw", "arpl")},
    **{
        name: Effect(ALL, 0, f"SDM vol. 2, {name.upper()}")
        for name in ("comiss", "comisd", "ucomiss", "ucomisd", "fcomi", "fcomip", "fucomi", "fucomip")
    },
    **{
        name: Effect(ALL, 0, f"SDM vol. 2B, {name.upper()}")
        for name in ("pcmpestri", "pcmpestrm", "pcmpistri", "pcmpistrm")
    },
    "daa": Effect(ALL & ~OF, OF, "SDM vol. 2A, DAA: OF is undefined", CF | AF),
    "das": Effect(ALL & ~OF, OF, "SDM vol. 2A, DAS: OF is undefined", CF | AF),
    "aaa": Effect(CF | AF, OF | SF | ZF | PF, "SDM vol. 2A, AAA: OF, SF, ZF and PF are undefined", AF),
    "aas": Effect(CF | AF, OF | SF | ZF | PF, "SDM vol. 2A, AAS: OF, SF, ZF and PF are undefined", AF),
    "aam": Effect(SF | ZF | PF, OF | AF | CF, "SDM vol. 2A, AAM: OF, AF and CF are undefined"),
    "aad": Effect(SF | ZF | PF, OF | AF | CF, "SDM vol. 2A, AAD: OF, AF and CF are undefined"),
    **{f"j{code:x}": Effect(0, 0, "SDM vol. 2A, Jcc", CONDITIONS[code >> 1]) for code in range(16)},
    **{f"set{code:x}": Effect(0, 0, "SDM vol. 2B, SETcc", CONDITIONS[code >> 1]) for code in range(16)},
    **{f"cmov{code:x}": Effect(0, 0, "SDM vol. 2A, CMOVcc", CONDITIONS[code >> 1]) for code in range(16)},
    **{
        f"fcmov{name}": Effect(0, 0, "SDM vol. 2A, FCMOVcc", flags)
        for name, flags in (("b", CF), ("e", ZF), ("be", CF | ZF), ("u", PF))
    },
}
"""By mnemonic. What is not here neither writes nor reads a flag."""


def shift_effect(name: str, bits: int, count: int | None) -> Effect:
    """Of a shift or rotate by ``count``, before it is masked; None when the count is not known."""
    rotate = name in ("rol", "ror", "rcl", "rcr")
    read = CF if name in ("rcl", "rcr") else 0
    where = f"SDM vol. 2B, {'RCL/RCR/ROL/ROR' if rotate else name.upper()}: "
    if count is None:
        undefined = OF if rotate else OF | AF | CF if name not in ("shld", "shrd") else ALL
        return Effect(0, undefined, where + "the count is not known", read)
    masked = count & (63 if bits == 64 else 31)
    if masked == 0:
        return Effect(0, 0, where + "a count of 0 leaves all flags", read)
    overflow = 0 if masked == 1 else OF
    if rotate:
        return Effect(CF | (OF & ~overflow), overflow, where + "OF is defined for 1-bit rotates", read)
    carry = 0
    if name in ("shl", "shr") and masked >= bits:
        carry = CF
    if name in ("shld", "shrd") and masked > bits:
        return Effect(0, ALL, where + "a count greater than the size leaves all undefined", read)
    undefined = AF | overflow | carry
    return Effect(
        ALL & ~undefined, undefined, where + "AF; OF but for 1; CF for SHL, SHR by the size or more"
    )
