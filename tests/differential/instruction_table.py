# SPDX-License-Identifier: GPL-2.0-or-later
"""The instructions that random blocks are made of: all that CPUID announces and user code may execute."""

from typing import Final

import integer_instructions as integer
import vector_instructions as vector
import x87_instructions as x87
from instruction_row import rows

GROUPS: Final = {
    "integer": rows("integer", integer.regular() + integer.INTEGER + integer.ONLY_32),
    "mmx": [
        row
        for row in rows("mmx", vector.both(vector.PACKED_INTEGER) + "\n" + vector.MMX)
        if row.prefix != "66" or "pi" in row.name
    ],
    "sse": [
        *[row for row in rows("sse", vector.both(vector.PACKED_INTEGER)) if row.prefix == "66"],
        *rows("sse", vector.SSE),
        *rows(
            "sse",
            "\n".join(
                (
                    vector.floating("sqrt:51 add:58 mul:59 sub:5c min:5d div:5e max:5f"),
                    vector.floating("rsqrt:52 rcp:53", "ps ss"),
                    "haddpd 66:0f7c Vpd,Wpd\nhaddps f2:0f7c Vps,Wps\nhsubpd 66:0f7d Vpd,Wpd",
                    "hsubps f2:0f7d Vps,Wps\naddsubpd 66:0fd0 Vpd,Wpd\naddsubps f2:0fd0 Vps,Wps",
                )
            ),
        ),
    ],
    "sse4": rows("sse4", vector.SSE4),
    "x87": rows("x87", x87.regular()),
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
