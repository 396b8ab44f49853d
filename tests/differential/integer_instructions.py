# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of the integer instructions (instruction_row.py)."""

from typing import Final


def regular() -> str:
    """Those whose opcodes follow a rule: arithmetic, shifts, conditions, bit tests."""
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
