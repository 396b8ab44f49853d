# SPDX-License-Identifier: GPL-2.0-or-later
"""The PC's memory map: where RAM lies and what firmware tells of it."""

from itertools import pairwise

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_layout import GIB, MIB, Region
from coremesh.core.x86.memory_map import (
    ACPI_TABLES_BASE,
    HIGH_RAM_BASE,
    LOW_RAM_LIMIT,
    MAXIMUM_RAM,
    MP_TABLE_END,
    E820Type,
    MemoryMap,
)

SIZES = [
    2 * MIB,
    64 * MIB,
    GIB,
    LOW_RAM_LIMIT - 4096,
    LOW_RAM_LIMIT,
    LOW_RAM_LIMIT + 4096,
    64 * GIB,
    MAXIMUM_RAM,
]


@pytest.mark.parametrize("size", SIZES)
def test_all_of_the_memory_lies_outside_the_devices_hole(size: int) -> None:
    memory = MemoryMap(size)
    assert sum(region.size for region in memory.regions) == size
    assert memory.low_ram_bytes + memory.high_ram_bytes == size
    hole = Region(LOW_RAM_LIMIT, HIGH_RAM_BASE - LOW_RAM_LIMIT)
    assert not any(region.overlaps(hole) for region in memory.regions)
    assert all(region.end <= 1 << 40 for region in memory.regions)


@pytest.mark.parametrize("size", SIZES)
def test_the_e820_map_is_ordered_without_overlap_and_only_calls_ram_what_is_ram(size: int) -> None:
    memory = MemoryMap(size)
    entries = memory.e820()
    assert all(entry.size > 0 for entry in entries)
    assert all(below.start + below.size <= above.start for below, above in pairwise(entries))
    usable = [entry for entry in entries if entry.kind == E820Type.RAM]
    assert all(memory.is_ram(entry.start, entry.size) for entry in usable)
    firmware = Region(ACPI_TABLES_BASE, MP_TABLE_END - ACPI_TABLES_BASE)
    assert not any(Region(entry.start, entry.size).overlaps(firmware) for entry in usable)
    lost = size - sum(entry.size for entry in usable)
    assert lost == 0x10_0000 - 0x9_FC00


@pytest.mark.parametrize(
    ("size", "way_out"),
    [
        (0, "at least 2 MiB"),
        (-4096, "at least 2 MiB"),
        (2 * MIB - 4096, "at least 2 MiB"),
        (GIB + 1, f"give {GIB} or {GIB + 4096}"),
        (MAXIMUM_RAM + 4096, "at most 1023 GiB"),
        (1 << 80, "at most 1023 GiB"),
        (True, "whole number"),
        (1.5e9, "whole number"),
        ("1G", "whole number"),
    ],
)
def test_an_absurd_size_is_refused_with_the_way_out(size: int, way_out: str) -> None:
    with pytest.raises(ConfigurationError, match=way_out):
        MemoryMap(size)


def test_placing_finds_the_highest_gap_below_the_limit() -> None:
    memory = MemoryMap(64 * MIB)
    kernel = Region(16 * MIB, 40 * MIB)
    assert memory.place_below(4 * MIB, GIB, [kernel]) == 60 * MIB
    assert memory.place_below(9 * MIB, GIB, [kernel]) == 7 * MIB
    assert memory.place_below(4 * MIB, 32 * MIB, [kernel]) == 12 * MIB
    assert memory.place_below(15 * MIB, GIB, [kernel]) == MIB
    assert memory.place_below(15 * MIB + 1, GIB, [kernel]) is None


def test_placing_keeps_clear_of_everything_taken() -> None:
    memory = MemoryMap(64 * MIB)
    taken = [Region(50 * MIB, 8 * MIB), Region(20 * MIB, 10 * MIB), Region(62 * MIB, 2 * MIB)]
    start = memory.place_below(5 * MIB, GIB, taken)
    assert start == 45 * MIB
    assert not any(Region(start, 5 * MIB).overlaps(other) for other in taken)
