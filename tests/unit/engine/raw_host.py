# SPDX-License-Identifier: GPL-2.0-or-later
"""The smallest machine: an engine, a megabyte or two, and a few bytes of code. No board, no firmware."""

import time
from collections.abc import Callable

from coremesh.core.engine import Host

CODE = 0x1000
RAM = 0x20_0000
FLAT_CODE = (0x08, 0, 0xFFFF_FFFF, 0xC9B)  # selector, base, limit, access: 32-bit, granular
FLAT_DATA = (0x10, 0, 0xFFFF_FFFF, 0xC93)
HLT = b"\xf4"
CLI_HLT = b"\xfa\xf4"
SPIN = b"\xeb\xfe"  # jmp to itself
LAPIC = 0xFEE0_0000


def raw_host(code: bytes = SPIN, *, vcpus: int = 1, ram_bytes: int = RAM) -> Host:
    """A host that was not started, its first vCPU in flat 32-bit protected mode at ``code``."""
    host = Host(ram_bytes=ram_bytes, low_ram_bytes=ram_bytes, apic_ids=list(range(vcpus)), total_vcpus=vcpus)
    host.ram_write(CODE, code)
    data = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), FLAT_DATA)
    host.set_registers(0, {"cs": FLAT_CODE, "cr0": 0x11, "rip": CODE, "rsp": 0x8000, **data})
    return host


def until(holds: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    """Wait until ``holds()``. Raises AssertionError with ``what`` at the timeout."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def until_halted(host: Host, vcpu: int = 0) -> None:
    """Wait until a vCPU sleeps in HLT."""
    until(lambda: host.stats()[vcpu]["state"] == "halted", f"vCPU {vcpu} does not halt: {host.stats()}")
