# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of the x87 instructions (instruction_row.py)."""


def regular() -> str:
    """All of them: their opcodes follow a rule."""
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
