# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of the MMX, SSE and AES instructions (instruction_row.py)."""

from typing import Final


def both(table: str) -> str:
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


def floating(names: str, kinds: str = "ps pd ss sd") -> str:
    """Forms of ``name:opcode`` on packed and scalar singles and doubles."""
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
