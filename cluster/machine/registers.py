# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU's registers as text for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_CONTROL = ("rip", "rflags", "cr0", "cr2", "cr3", "cr4", "efer")
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr")
_TABLES = ("gdtr", "idtr")


def format_registers(vcpu: int, registers: Mapping[str, Any]) -> str:
    """Return the registers of `vcpu`, given as the engine's dictionary, as lines of text."""
    lines = [f"vCPU {vcpu}:"]
    words = [f"{name:>6}={registers[name]:016x}" for name in (*_CONTROL, *_GENERAL) if name in registers]
    lines += ["  " + " ".join(words[i : i + 4]) for i in range(0, len(words), 4)]
    for name in _SEGMENTS:
        if name in registers:
            selector, base, limit, access = registers[name]
            lines.append(f"  {name:>6}={selector:04x} base={base:016x} limit={limit:08x} access={access:03x}")
    for name in _TABLES:
        if name in registers:
            base, limit = registers[name]
            lines.append(f"  {name:>6}      base={base:016x} limit={limit:08x}")
    return "\n".join(lines)
