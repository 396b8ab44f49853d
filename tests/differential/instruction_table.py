# SPDX-License-Identifier: GPL-2.0-or-later
"""The instructions that random blocks are made of: every one that CPUID announces and user code may execute.

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


def _rows(group: str, text: str) -> list[Row]:
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


def _integer() -> str:
    lines = []
    for number, name in enumerate(("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp")):
        base, lock = number * 8, "" if name == "cmp" else "lock"
        lines += [f"{name} {base:02x} Eb,Gb {lock}", f"{name} {base + 1:02x} Ev,Gv {lock}"]
        lines += [f"{name} {base + 2:02x} Gb,Eb", f"{name} {base + 3:02x} Gv,Ev"]
        lines += [f"{name} {base + 4:02x} AL,Ib", f"{name} {base + 5:02x} rAX,Iz"]
        lines += [f"{name} 80/{number} Eb,Ib {lock}", f"{name} 81/{number} Ev,Iz {lock}"]
        lines += [f"{name} 83/{number} Ev,Is {lock}", f"{name} 82/{number} Eb,Ib {lock} only32"]
    for number, name in enumerate(("rol", "ror", "rcl", "rcr", "shl", "shr", "shl", "sar")):
        lines += [f"{name} c0/{number} Eb,Ib", f"{name} c1/{number} Ev,Ib"]
        lines += [f"{name} d0/{number} Eb,1", f"{name} d1/{number} Ev,1"]
        lines += [f"{name} d2/{number} Eb,CL", f"{name} d3/{number} Ev,CL"]
    for code in range(16):
        lines += [f"j{code:x} {0x70 + code:02x} Jb flow", f"j{code:x} 0f{0x80 + code:02x} Jz flow"]
        lines += [f"set{code:x} 0f{0x90 + code:02x} Eb", f"cmov{code:x} 0f{0x40 + code:02x} Gv,Ev"]
    for number, name in enumerate(("bt", "bts", "btr", "btc")):
        lock = "" if name == "bt" else "lock"
        lines += [f"{name} 0f{0xA3 + 8 * number:02x} Ev,Gv bitstring {lock}"]
        lines += [f"{name} 0fba/{number + 4} Ev,Ib {lock}"]
    return "\n".join(lines)


INTEGER: Final = """
mov 88 Eb,Gb
mov 89 Ev,Gv
mov 8a Gb,Eb
mov 8b Gv,Ev
mov 8c Ev,Sw
mov 8e Sw,Ew
mov a0 AL,Ob
mov a1 rAX,Ov
mov a2 Ob,AL
mov a3 Ov,rAX
mov b0 Zb,Ib
mov b8 Zv,Iv
mov c6/0 Eb,Ib
mov c7/0 Ev,Iz
lea 8d Gv,M
push 50 Zv d64
pop 58 Zv d64
push 68 Iz d64
push 6a Is d64
push ff/6 Ev d64
pop 8f/0 Ev d64
push 0fa0 - d64
push 0fa8 - d64
pop 0fa1 - d64
pop 0fa9 - d64
pushf 9c - d64
popf 9d - d64
enter c8 Iw,Ib d64 enter
leave c9 - d64
xchg 86 Eb,Gb lock
xchg 87 Ev,Gv lock
xchg 90 Zv nop
nop 0f1f/0 Ev
nop 0f0d/1 Mb
nop 0f18/0 Mb
nop 0f18/1 Mb
nop 0f1f/5 Ev
nop f3:0f1efa -
pause f3:90 -
movsx 0fbe Gv,Eb
movsx 0fbf Gv,Ew
movzx 0fb6 Gv,Eb
movzx 0fb7 Gv,Ew
movsxd 63 Gv,Ed only64
cbw 98 -
cwd 99 -
inc fe/0 Eb lock
inc ff/0 Ev lock
dec fe/1 Eb lock
dec ff/1 Ev lock
not f6/2 Eb lock
not f7/2 Ev lock
neg f6/3 Eb lock
neg f7/3 Ev lock
mul f6/4 Eb
mul f7/4 Ev
imul f6/5 Eb
imul f7/5 Ev
imul 0faf Gv,Ev
imul 69 Gv,Ev,Iz
imul 6b Gv,Ev,Is
div f6/6 Eb divide
div f7/6 Ev divide
idiv f6/7 Eb divide
idiv f7/7 Ev divide
test 84 Eb,Gb
test 85 Ev,Gv
test a8 AL,Ib
test a9 rAX,Iz
test f6/0 Eb,Ib
test f7/0 Ev,Iz
test f6/1 Eb,Ib
test f7/1 Ev,Iz
shld 0fa4 Ev,Gv,Ib
shld 0fa5 Ev,Gv,CL
shrd 0fac Ev,Gv,Ib
shrd 0fad Ev,Gv,CL
bsf np:0fbc Gv,Ev zero
bsr np:0fbd Gv,Ev zero
popcnt f3:0fb8 Gv,Ev
bswap 0fc8 Zy
movbe 0f38f0 Gv,Mv
movbe 0f38f1 Mv,Gv
crc32 f2:0f38f0 Gy,Eb
crc32 f2:0f38f1 Gy,Ev
xadd 0fc0 Eb,Gb lock
xadd 0fc1 Ev,Gv lock
cmpxchg 0fb0 Eb,Gb lock
cmpxchg 0fb1 Ev,Gv lock
cmpxchg8b 0fc7/1 My lock pair
movnti np:0fc3 My,Gy
xlat d7 - xlat
cmc f5 -
clc f8 -
stc f9 -
cld fc -
std fd -
lahf 9f -
sahf 9e -
movs a4 - rep string
movs a5 - rep string
cmps a6 - rep string
cmps a7 - rep string
stos aa - rep string
stos ab - rep string
lods ac - rep string
lods ad - rep string
scas ae - rep string
scas af - rep string
jmp eb Jb flow
jmp e9 Jz flow
jmp ff/4 Ev flow d64
call e8 Jz flow d64
call ff/2 Ev flow d64
ret c3 - flow d64
ret c2 Iw flow d64
loop e2 Jb flow
loope e1 Jb flow
loope e0 Jb flow
jrcxz e3 Jb flow
int cc -
int cd Ib int
ud2 0f0b -
wait 9b -
lfence np:0faee8 -
mfence np:0faef0 -
sfence np:0faef8 -
clflush np:0fae/7 Mb
rdfsbase f3:0fae/0 Ry only64
rdgsbase f3:0fae/1 Ry only64
wrfsbase f3:0fae/2 Ry only64
wrgsbase f3:0fae/3 Ry only64
lar 0f02 Gv,Ew selector
lsl 0f03 Gv,Ew selector
verr 0f00/4 Ew selector
verw 0f00/5 Ew selector
hlt f4 - gp
cli fa - gp
sti fb - gp
in e4 AL,Ib gp
in ec AL,DX gp
out ee DX,AL gp
ins 6c - rep gp
outs 6e - rep gp
clts 0f06 - gp
invd 0f08 - gp
wbinvd 0f09 - gp
wrmsr 0f30 - gp
rdmsr 0f32 - gp
lldt 0f00/2 Ew gp
ltr 0f00/3 Ew gp
lgdt 0f01/2 M10 gp
lidt 0f01/3 M10 gp
lmsw 0f01/6 Ew gp
invlpg 0f01/7 Mb gp
mov 0f20c0 - gp
mov 0f22d8 - gp
mov 0f21c0 - gp
mov 0f23f8 - gp
sysret 0f07 - gp only64
swapgs 0f01f8 - gp
"""

ONLY_32: Final = """
daa 27 - only32
das 2f - only32
aaa 37 - only32
aas 3f - only32
aam d4 Ib only32
aad d5 Ib only32
pusha 60 - only32
popa 61 - only32
bound 62 Gv,M8 only32
arpl 63 Ew,Gw only32
inc 40 Zv only32
dec 48 Zv only32
push 06 - only32
push 0e - only32
push 16 - only32
push 1e - only32
pop 07 - only32
pop 17 - only32
pop 1f - only32
into ce - only32
salc d6 - only32
"""


def _both(table: str) -> str:
    """MMX and SSE2 forms of ``name opcode``: the same byte without and with 66."""
    lines = []
    for line in table.split():
        name, code = line.split(":")
        lines += [f"{name} np:0f{code} Pq,Qq", f"{name} 66:0f{code} Vx,Wx"]
    return "\n".join(lines)


PACKED_INTEGER: Final = (
    "punpcklbw:60 punpcklwd:61 punpckldq:62 packsswb:63 pcmpgtb:64 pcmpgtw:65 pcmpgtd:66 packuswb:67 "
    "punpckhbw:68 punpckhwd:69 punpckhdq:6a packssdw:6b pcmpeqb:74 pcmpeqw:75 pcmpeqd:76 psrlw:d1 psrld:d2 "
    "psrlq:d3 paddq:d4 pmullw:d5 psubusb:d8 psubusw:d9 pminub:da pand:db paddusb:dc paddusw:dd pmaxub:de "
    "pandn:df pavgb:e0 psraw:e1 psrad:e2 pavgw:e3 pmulhuw:e4 pmulhw:e5 psubsb:e8 psubsw:e9 pminsw:ea por:eb "
    "paddsb:ec paddsw:ed pmaxsw:ee pxor:ef psllw:f1 pslld:f2 psllq:f3 pmuludq:f4 pmaddwd:f5 psadbw:f6 "
    "psubb:f8 psubw:f9 psubd:fa psubq:fb paddb:fc paddw:fd paddd:fe pshufb:3800 phaddw:3801 phaddd:3802 "
    "phaddsw:3803 pmaddubsw:3804 phsubw:3805 phsubd:3806 phsubsw:3807 psignb:3808 psignw:3809 psignd:380a "
    "pmulhrsw:380b pabsb:381c pabsw:381d pabsd:381e"
)

MMX: Final = """
movd np:0f6e Pq,Ey
movd np:0f7e Ey,Pq
movq np:0f6f Pq,Qq
movq np:0f7f Qq,Pq
pshufw np:0f70 Pq,Qq,Ib
psrlw np:0f71/2 Nq,Ib
psraw np:0f71/4 Nq,Ib
psllw np:0f71/6 Nq,Ib
psrld np:0f72/2 Nq,Ib
psrad np:0f72/4 Nq,Ib
pslld np:0f72/6 Nq,Ib
psrlq np:0f73/2 Nq,Ib
psllq np:0f73/6 Nq,Ib
pinsrw np:0fc4 Pq,Rd,Ib
pinsrw np:0fc4 Pq,Mw,Ib
pextrw np:0fc5 Gd,Nq,Ib
pmovmskb np:0fd7 Gd,Nq
movntq np:0fe7 Mq,Pq
maskmovq np:0ff7 Pq,Nq mask
palignr np:0f3a0f Pq,Qq,Ib
emms np:0f77 -
cvtpi2ps np:0f2a Vps,Qq
cvttps2pi np:0f2c Pq,Wps8
cvtps2pi np:0f2d Pq,Wps8
cvtpi2pd 66:0f2a Vpd,Qq
cvttpd2pi 66:0f2c Pq,Wpd
cvtpd2pi 66:0f2d Pq,Wpd
movdq2q f2:0fd6 Pq,Ux
movq2dq f3:0fd6 Vx,Nq
"""


def _float(names: str, kinds: str = "ps pd ss sd") -> str:
    prefixes = {"ps": "np", "pd": "66", "ss": "f3", "sd": "f2"}
    lines = []
    for word in names.split():
        name, code = word.split(":")
        lines += [f"{name}{kind} {prefixes[kind]}:0f{code} V{kind},W{kind}" for kind in kinds.split()]
    return "\n".join(lines)


SSE: Final = """
movups np:0f10 Vps,Wps
movups np:0f11 Wps,Vps
movupd 66:0f10 Vpd,Wpd
movupd 66:0f11 Wpd,Vpd
movss f3:0f10 Vss,Wss
movss f3:0f11 Wss,Vss
movsd f2:0f10 Vsd,Wsd
movsd f2:0f11 Wsd,Vsd
movhlps np:0f12 Vps,Ups
movlps np:0f12 Vps,Mq
movlps np:0f13 Mq,Vps
movlpd 66:0f12 Vpd,Mq
movlpd 66:0f13 Mq,Vpd
movsldup f3:0f12 Vps,Wps
movddup f2:0f12 Vpd,Wsd
unpcklps np:0f14 Vps,Wps
unpcklpd 66:0f14 Vpd,Wpd
unpckhps np:0f15 Vps,Wps
unpckhpd 66:0f15 Vpd,Wpd
movlhps np:0f16 Vps,Ups
movhps np:0f16 Vps,Mq
movhps np:0f17 Mq,Vps
movhpd 66:0f16 Vpd,Mq
movhpd 66:0f17 Mq,Vpd
movshdup f3:0f16 Vps,Wps
movaps np:0f28 Vps,Wps
movaps np:0f29 Wps,Vps
movapd 66:0f28 Vpd,Wpd
movapd 66:0f29 Wpd,Vpd
movntps np:0f2b Mps,Vps
movntpd 66:0f2b Mpd,Vpd
cvtsi2ss f3:0f2a Vss,Ey
cvtsi2sd f2:0f2a Vsd,Ey
cvttss2si f3:0f2c Gy,Wss
cvttsd2si f2:0f2c Gy,Wsd
cvtss2si f3:0f2d Gy,Wss
cvtsd2si f2:0f2d Gy,Wsd
ucomiss np:0f2e Vss,Wss
ucomisd 66:0f2e Vsd,Wsd
comiss np:0f2f Vss,Wss
comisd 66:0f2f Vsd,Wsd
movmskps np:0f50 Gd,Ups
movmskpd 66:0f50 Gd,Upd
andps np:0f54 Vps,Wps
andpd 66:0f54 Vpd,Wpd
andnps np:0f55 Vps,Wps
andnpd 66:0f55 Vpd,Wpd
orps np:0f56 Vps,Wps
orpd 66:0f56 Vpd,Wpd
xorps np:0f57 Vps,Wps
xorpd 66:0f57 Vpd,Wpd
cvtps2pd np:0f5a Vpd,Wps8
cvtpd2ps 66:0f5a Vps,Wpd
cvtss2sd f3:0f5a Vsd,Wss
cvtsd2ss f2:0f5a Vss,Wsd
cvtdq2ps np:0f5b Vps,Wx
cvtps2dq 66:0f5b Vx,Wps
cvttps2dq f3:0f5b Vx,Wps
cvttpd2dq 66:0fe6 Vx,Wpd
cvtdq2pd f3:0fe6 Vpd,Wq
cvtpd2dq f2:0fe6 Vx,Wpd
punpcklqdq 66:0f6c Vx,Wx
punpckhqdq 66:0f6d Vx,Wx
movd 66:0f6e Vx,Ey
movd 66:0f7e Ey,Vx
movdqa 66:0f6f Vx,Wx
movdqa 66:0f7f Wx,Vx
movdqu f3:0f6f Vx,Wx
movdqu f3:0f7f Wx,Vx
movq f3:0f7e Vx,Wq
movq 66:0fd6 Wq,Vx
pshufd 66:0f70 Vx,Wx,Ib
pshufhw f3:0f70 Vx,Wx,Ib
pshuflw f2:0f70 Vx,Wx,Ib
psrlw 66:0f71/2 Ux,Ib
psraw 66:0f71/4 Ux,Ib
psllw 66:0f71/6 Ux,Ib
psrld 66:0f72/2 Ux,Ib
psrad 66:0f72/4 Ux,Ib
pslld 66:0f72/6 Ux,Ib
psrlq 66:0f73/2 Ux,Ib
psrldq 66:0f73/3 Ux,Ib
psllq 66:0f73/6 Ux,Ib
pslldq 66:0f73/7 Ux,Ib
cmpps np:0fc2 Vps,Wps,Icmp
cmppd 66:0fc2 Vpd,Wpd,Icmp
cmpss f3:0fc2 Vss,Wss,Icmp
cmpsd f2:0fc2 Vsd,Wsd,Icmp
pinsrw 66:0fc4 Vx,Rd,Ib
pinsrw 66:0fc4 Vx,Mw,Ib
pextrw 66:0fc5 Gd,Ux,Ib
shufps np:0fc6 Vps,Wps,Ib
shufpd 66:0fc6 Vpd,Wpd,Ib
pmovmskb 66:0fd7 Gd,Ux
movntdq 66:0fe7 Mx,Vx
lddqu f2:0ff0 Vx,Mx
maskmovdqu 66:0ff7 Vx,Ux mask
palignr 66:0f3a0f Vx,Wx,Ib
ldmxcsr np:0fae/2 Md mxcsr
stmxcsr np:0fae/3 Md
"""

SSE4: Final = """
pblendvb 66:0f3810 Vx,Wx
blendvps 66:0f3814 Vps,Wps
blendvpd 66:0f3815 Vpd,Wpd
ptest 66:0f3817 Vx,Wx
pmovsxbw 66:0f3820 Vx,Wq
pmovsxbd 66:0f3821 Vx,Wd
pmovsxbq 66:0f3822 Vx,Ww
pmovsxwd 66:0f3823 Vx,Wq
pmovsxwq 66:0f3824 Vx,Wd
pmovsxdq 66:0f3825 Vx,Wq
pmuldq 66:0f3828 Vx,Wx
pcmpeqq 66:0f3829 Vx,Wx
movntdqa 66:0f382a Vx,Mx
packusdw 66:0f382b Vx,Wx
pmovzxbw 66:0f3830 Vx,Wq
pmovzxbd 66:0f3831 Vx,Wd
pmovzxbq 66:0f3832 Vx,Ww
pmovzxwd 66:0f3833 Vx,Wq
pmovzxwq 66:0f3834 Vx,Wd
pmovzxdq 66:0f3835 Vx,Wq
pcmpgtq 66:0f3837 Vx,Wx
pminsb 66:0f3838 Vx,Wx
pminsd 66:0f3839 Vx,Wx
pminuw 66:0f383a Vx,Wx
pminud 66:0f383b Vx,Wx
pmaxsb 66:0f383c Vx,Wx
pmaxsd 66:0f383d Vx,Wx
pmaxuw 66:0f383e Vx,Wx
pmaxud 66:0f383f Vx,Wx
pmulld 66:0f3840 Vx,Wx
phminposuw 66:0f3841 Vx,Wx
roundps 66:0f3a08 Vps,Wps,Ib
roundpd 66:0f3a09 Vpd,Wpd,Ib
roundss 66:0f3a0a Vss,Wss,Ib
roundsd 66:0f3a0b Vsd,Wsd,Ib
blendps 66:0f3a0c Vps,Wps,Ib
blendpd 66:0f3a0d Vpd,Wpd,Ib
pblendw 66:0f3a0e Vx,Wx,Ib
pextrb 66:0f3a14 Rd,Vx,Ib
pextrb 66:0f3a14 Mb,Vx,Ib
pextrw 66:0f3a15 Rd,Vx,Ib
pextrw 66:0f3a15 Mw,Vx,Ib
pextrd 66:0f3a16 Ey,Vx,Ib
extractps 66:0f3a17 Ed,Vps,Ib
pinsrb 66:0f3a20 Vx,Rd,Ib
pinsrb 66:0f3a20 Vx,Mb,Ib
insertps 66:0f3a21 Vps,Wss,Ib
pinsrd 66:0f3a22 Vx,Ey,Ib
dpps 66:0f3a40 Vps,Wps,Ib
dppd 66:0f3a41 Vpd,Wpd,Ib
mpsadbw 66:0f3a42 Vx,Wx,Ib
pclmulqdq 66:0f3a44 Vx,Wx,Ib
pcmpestrm 66:0f3a60 Vx,Wx,Ib strings
pcmpestri 66:0f3a61 Vx,Wx,Ib strings
pcmpistrm 66:0f3a62 Vx,Wx,Ib strings
pcmpistri 66:0f3a63 Vx,Wx,Ib strings
aesimc 66:0f38db Vx,Wx
aesenc 66:0f38dc Vx,Wx
aesenclast 66:0f38dd Vx,Wx
aesdec 66:0f38de Vx,Wx
aesdeclast 66:0f38df Vx,Wx
aeskeygenassist 66:0f3adf Vx,Wx,Ib
"""


def _x87() -> str:
    lines = []
    arithmetic = ("fadd", "fmul", "fcom", "fcomp", "fsub", "fsubr", "fdiv", "fdivr")
    reverse = ("fadd", "fmul", "fcom", "fcomp", "fsubr", "fsub", "fdivr", "fdiv")
    for digit, name in enumerate(arithmetic):
        lines += [f"{name} d8/{digit} Mss", f"{name} dc/{digit} Msd"]
        lines += [f"fi{name[1:]} da/{digit} Md", f"fi{name[1:]} de/{digit} Mw"]
        for stack in range(8):
            lines.append(f"{name} d8{0xC0 + 8 * digit + stack:02x} -")
            lines.append(f"{reverse[digit]} dc{0xC0 + 8 * digit + stack:02x} -")
            if digit != 3 or stack == 1:
                lines.append(f"{reverse[digit]}p de{0xC0 + 8 * digit + stack:02x} -")
    for code, names in (
        ("d9", "fld:0:Mss fst:2:Mss fstp:3:Mss fldenv:4:M28 fldcw:5:Mw fnstenv:6:M28 fnstcw:7:Mw"),
        ("db", "fild:0:Md fisttp:1:Md fist:2:Md fistp:3:Md fld:5:Mt fstp:7:Mt"),
        ("dd", "fld:0:Msd fisttp:1:Mq fst:2:Msd fstp:3:Msd frstor:4:M108 fnsave:6:M108 fnstsw:7:Mw"),
        ("df", "fild:0:Mw fisttp:1:Mw fist:2:Mw fistp:3:Mw fbld:4:Mt fild:5:Mq fbstp:6:Mt fistp:7:Mq"),
    ):
        for word in names.split():
            name, slot, operand = word.split(":")
            lines.append(f"{name} {code}/{slot} {operand}")
    for stack in range(8):
        for name, value in (
            ("fld", 0xD9C0),
            ("fxch", 0xD9C8),
            ("fcmovb", 0xDAC0),
            ("fcmove", 0xDAC8),
            ("fcmovbe", 0xDAD0),
            ("fcmovu", 0xDAD8),
            ("fcmovb", 0xDBC0),
            ("fcmove", 0xDBC8),
            ("fcmovbe", 0xDBD0),
            ("fcmovu", 0xDBD8),
            ("fucomi", 0xDBE8),
            ("fcomi", 0xDBF0),
            ("ffree", 0xDDC0),
            ("fst", 0xDDD0),
            ("fstp", 0xDDD8),
            ("fucom", 0xDDE0),
            ("fucomp", 0xDDE8),
            ("fucomip", 0xDFE8),
            ("fcomip", 0xDFF0),
        ):
            lines.append(f"{name} {value + stack:04x} -")
    for name, value in (
        ("fnop", 0xD9D0),
        ("fchs", 0xD9E0),
        ("fabs", 0xD9E1),
        ("ftst", 0xD9E4),
        ("fxam", 0xD9E5),
        *((f"fldc{constant}", 0xD9E8 + constant) for constant in range(7)),
        ("f2xm1", 0xD9F0),
        ("fyl2x", 0xD9F1),
        ("fptan", 0xD9F2),
        ("fpatan", 0xD9F3),
        ("fxtract", 0xD9F4),
        ("fprem1", 0xD9F5),
        ("fdecstp", 0xD9F6),
        ("fincstp", 0xD9F7),
        ("fprem", 0xD9F8),
        ("fyl2xp1", 0xD9F9),
        ("fsqrt", 0xD9FA),
        ("fsincos", 0xD9FB),
        ("frndint", 0xD9FC),
        ("fscale", 0xD9FD),
        ("fsin", 0xD9FE),
        ("fcos", 0xD9FF),
        ("fucompp", 0xDAE9),
        ("fnclex", 0xDBE2),
        ("fninit", 0xDBE3),
        ("fnstsw", 0xDFE0),
    ):
        lines.append(f"{name} {value:04x} -")
    return "\n".join(lines)


GROUPS: Final = {
    "integer": _rows("integer", _integer() + INTEGER + ONLY_32),
    "mmx": [
        row
        for row in _rows("mmx", _both(PACKED_INTEGER) + "\n" + MMX)
        if row.prefix != "66" or "pi" in row.name
    ],
    "sse": [
        *[row for row in _rows("sse", _both(PACKED_INTEGER)) if row.prefix == "66"],
        *_rows("sse", SSE),
        *_rows(
            "sse",
            "\n".join(
                (
                    _float("sqrt:51 add:58 mul:59 sub:5c min:5d div:5e max:5f"),
                    _float("rsqrt:52 rcp:53", "ps ss"),
                    "haddpd 66:0f7c Vpd,Wpd\nhaddps f2:0f7c Vps,Wps\nhsubpd 66:0f7d Vpd,Wpd",
                    "hsubps f2:0f7d Vps,Wps\naddsubpd 66:0fd0 Vpd,Wpd\naddsubps f2:0fd0 Vps,Wps",
                )
            ),
        ),
    ],
    "sse4": _rows("sse4", SSE4),
    "x87": _rows("x87", _x87()),
}
"""All rows by group."""

NOT_ANNOUNCED: Final = {
    # What CPUID does not announce is undefined: #UD, whatever the host has (SDM vol. 2A 3.1.1.10).
    "adcx": "660f38f6c1",
    "adox": "f30f38f6c1",
    "aesenc128kl": "f30f38dc00",
    "andn": "c4e278f2c1",
    "bndmov": "660f1ac1/nop",
    "clac": "0f01ca",
    "cldemote": "0f1c00/nop",
    "clflushopt": "660fae38",
    "clui": "f30f01ee",
    "clwb": "660fae30",
    "clzero": "0f01fc",
    "encls": "0f01cf",
    "enclu": "0f01d7",
    "extrq": "660f79c1",
    "extrq immediate": "660f78c00102",
    "femms": "0f0e",
    "fma4": "c4e3f969c0c0",
    "gf2p8mulb": "660f38cfc1",
    "insertq": "f20f79c1",
    "insertq immediate": "f20f78c10102",
    "invept": "660f388000",
    "invpcid": "660f388200",
    "invvpid": "660f388100",
    "monitor": "0f01c8",
    "monitorx": "0f01fa",
    "movdir64b": "660f38f800",
    "movdiri": "0f38f900",
    "movntsd": "f20f2b00",
    "movntss": "f30f2b00",
    "mulx": "c4e2f3f6c1",
    "mwait": "0f01c9",
    "pconfig": "0f01c5",
    "pfadd": "0f0fc19e",
    "ptwrite": "f30faee0",
    "rdpid": "f30fc7f8",
    "rdpkru": "0f01ee",
    "rdpru": "0f01fd",
    "rdseed": "0fc7f8",
    "serialize": "0f01e8",
    "sha1rnds4": "0f3accc101",
    "sha256rnds2": "0f38cbc1",
    "skinit": "0f01de",
    "stac": "0f01cb",
    "tpause": "660faef0",
    "umonitor": "f30faef0",
    "umwait": "f20faef0",
    "vaddps": "c5f058c1",
    "vaddps evex": "62f17c4858c1",
    "vmcall": "0f01c1",
    "vmfunc": "0f01d4",
    "vmlaunch": "0f01c2",
    "vmload": "0f01da",
    "vmmcall": "0f01d9",
    "vmptrld": "0fc730",
    "vmread": "0f78c1",
    "vmrun": "0f01d8",
    "vmwrite": "0f79c1",
    "vmxon": "f30fc730",
    "vzeroupper": "c5f877",
    "wrpkru": "0f01ef",
    "xabort": "c6f800",
    "xbegin": "c7f800000000",
    "xend": "0f01d5",
    "xgetbv": "0f01d0",
    "xop": "8fe87801c1",
    "xrstor": "0fae28",
    "xrstors": "0fc718",
    "xsave": "0fae20",
    "xsavec": "0fc720",
    "xsaveopt": "0fae30",
    "xsaves": "0fc728",
    "xsetbv": "0f01d1",
    "xtest": "0f01d6",
}
"""Encodings that must be #UD in a guest. Those that end in /nop are hints: they do nothing where unknown."""
