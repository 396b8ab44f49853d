# SPDX-License-Identifier: GPL-2.0-or-later
"""The smallest machine: an engine, a megabyte or two, and a few bytes of code. No board, no firmware."""

import time
from collections.abc import Callable

from coremesh.core.engine import Host
from coremesh.core.memory_layout import MemoryLayout, Region

CODE = 0x1000
RAM = 0x20_0000
FLAT_CODE = (0x08, 0, 0xFFFF_FFFF, 0xC9B)  # selector, base, limit, access: 32-bit, granular
FLAT_DATA = (0x10, 0, 0xFFFF_FFFF, 0xC93)
HLT = b"\xf4"
CLI_HLT = b"\xfa\xf4"
SPIN = b"\xeb\xfe"  # jmp to itself
LAPIC = 0xFEE0_0000


def raw_host(
    code: bytes = SPIN,
    *,
    vcpus: int = 1,
    ram_bytes: int = RAM,
    code_buffer_bytes: int = 0,
    neighbours: int = 0,
) -> Host:
    """A host that was not started, its first vCPU in flat 32-bit protected mode at ``code``."""
    host = Host(
        memory=MemoryLayout.of([Region(0, ram_bytes)]),
        apic_ids=list(range(vcpus)),
        total_vcpus=vcpus,
        code_buffer_bytes=code_buffer_bytes,
        neighbours=neighbours,
    )
    host.ram_write(CODE, code)
    data = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), FLAT_DATA)
    host.set_registers(0, {"cs": FLAT_CODE, "cr0": 0x11, "rip": CODE, "rsp": 0x8000, **data})
    return host


# --- 64-bit code ---

BASE = 0x2000_0000
"""Linear address of 64-bit code: mapped, by 2 MiB pages, to all RAM but the first 2 MiB."""
TABLES, GDT, IDT, STUBS, STACK = 0x1000, 0x5000, 0x6000, 0x8000, 0xF000
STATE_AFTER_FAULT = 0xA000
"""Where a fault's handler leaves an FSAVE image, in physical memory."""
_LOW = BASE - 0x20_0000  # the first 2 MiB: tables and stubs
CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_NE, CR0_WP, CR0_PG = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 16, 1 << 31
CR4_PAE, CR4_OSFXSR, CR4_OSXMMEXCPT = 1 << 5, 1 << 9, 1 << 10
CODE64 = (0x30, 0, 0xFFFF_FFFF, 0xA9B)
NULL_SEGMENT = (0, 0, 0xFFFF_FFFF, 0xCF3)


def _stub(vector: int, saves_x87: bool) -> bytes:
    """push vector; fnsave [STATE_AFTER_FAULT]; hlt."""
    save = b"\xdd\x34\x25" + (_LOW + STATE_AFTER_FAULT).to_bytes(4, "little") if saves_x87 else b""
    return (b"\x6a" + bytes((vector,)) + save + b"\xf4").ljust(16, b"\x90")


def long_mode_host(
    code: bytes, *, ram_bytes: int = 64 << 20, cr0: int = CR0_NE, saves_x87: bool = True
) -> Host:
    """A host that was not started, its one vCPU in 64-bit code at privilege level 0, at BASE.

    What lies behind BASE + ``ram_bytes`` - 2 MiB is not present. A fault pushes its vector and halts
    (:func:`fault`), after FNSAVE if ``saves_x87``.
    """
    host = Host(memory=MemoryLayout.of([Region(0, ram_bytes)]), apic_ids=[0], total_vcpus=1)
    present, large = 3, 0x83
    pdpt, directory = TABLES + 0x1000, TABLES + 0x2000
    host.ram_write(TABLES, (pdpt | present).to_bytes(8, "little"))
    host.ram_write(pdpt, (directory | present).to_bytes(8, "little"))
    entries = b"".join((page << 21 | large).to_bytes(8, "little") for page in range(ram_bytes >> 21))
    host.ram_write(directory + 8 * (_LOW >> 21), entries)
    host.ram_write(
        GDT + 0x28, bytes.fromhex("ffff00000093cf00 ffff0000009baf00")
    )  # 28h: data, 30h: 64-bit code
    for vector in range(32):
        host.ram_write(STUBS + 16 * vector, _stub(vector, saves_x87))
        at = _LOW + STUBS + 16 * vector
        gate = at & 0xFFFF | 0x30 << 16 | 0x8E00 << 32 | at >> 16 << 48
        host.ram_write(IDT + 16 * vector, (gate & (1 << 64) - 1).to_bytes(8, "little") + bytes(8))
    host.ram_write(BASE - _LOW, code)
    host.set_registers(
        0,
        {
            "cs": CODE64,
            "ss": (0x28, 0, 0xFFFF_FFFF, 0xC93),
            "gdtr": (_LOW + GDT, 0x37),
            "idtr": (_LOW + IDT, 0x1FF),
            "cr3": TABLES,
            "cr4": CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT,
            "efer": 0x500,  # LME, LMA
            "cr0": CR0_PG | CR0_WP | CR0_PE | cr0,
            "rip": BASE,
            "rsp": _LOW + STACK,
            **dict.fromkeys(("ds", "es", "fs", "gs"), NULL_SEGMENT),
        },
    )
    return host


def physical(linear: int) -> int:
    """Where an address of long_mode_host's is in RAM."""
    return linear - _LOW


def fault(host: Host) -> tuple[int, int] | None:
    """The vector and the RIP, relative to BASE, of the fault that halted the vCPU; None when none did."""
    registers = host.registers(0)
    if registers["rip"] >= BASE:
        return None
    stack = host.ram_read(physical(registers["rsp"]), 24)
    vector, *pushed = (int.from_bytes(stack[at : at + 8], "little") for at in (0, 8, 16))
    has_error_code = vector in (8, 10, 11, 12, 13, 14, 17)
    return vector, pushed[has_error_code] - BASE


def until(holds: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    """Wait until ``holds()``. Raises AssertionError with ``what`` at the timeout."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def until_halted(host: Host, vcpu: int = 0) -> None:
    """Wait until a vCPU sleeps in HLT."""
    until(lambda: host.stats()[vcpu]["state"] == "halted", f"vCPU {vcpu} does not halt: {host.stats()}")
