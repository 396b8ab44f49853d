# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory with the firmware's tables in it, as a guest scans it."""

from collections.abc import Callable, Sequence

import pytest
from coremesh.core.memory_layout import MIB
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.hw.firmware.acpi import build_firmware

Install = Callable[[Sequence[int]], tuple[bytes, int]]


@pytest.fixture
def install() -> Install:
    def lay_out(apic_ids: Sequence[int]) -> tuple[bytes, int]:
        memory = MemoryMap(2 * MIB)
        tables, rsdp = build_firmware(apic_ids, memory)
        ram = bytearray(memory.ram_bytes)
        for gpa, data in tables:
            assert not any(ram[gpa : gpa + len(data)]), "two tables overlap"
            ram[gpa : gpa + len(data)] = data
        return bytes(ram), rsdp

    return lay_out
