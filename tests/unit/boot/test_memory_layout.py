# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory as a list of regions: what is refused, and where each byte is."""

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_layout import (
    GIB,
    KIB,
    MAXIMUM_REGIONS,
    MIB,
    PAGE_BYTES,
    MemoryKind,
    MemoryLayout,
    MemoryRegion,
    Region,
)
from coremesh.core.topology import Topology
from coremesh.core.x86.memory_map import MemoryMap

TOP = 4 * GIB - 256 * KIB
ROM = Region(TOP, 256 * KIB)


def test_offsets_follow_the_order_of_the_ranges_and_rom_lies_behind_ram() -> None:
    layout = MemoryLayout.of([Region(0, 3 * GIB), Region(4 * GIB, GIB)], [ROM])
    assert [region.gpa for region in layout.regions] == [0, TOP, 4 * GIB]
    assert [region.offset for region in layout.regions] == [0, 4 * GIB, 3 * GIB]
    assert layout.ram_bytes == 4 * GIB and layout.total_bytes == 4 * GIB + ROM.size
    assert layout.region_at(TOP).kind is MemoryKind.ROM
    assert layout.offset_of(4 * GIB + 5) == 3 * GIB + 5 and layout.offset_of(TOP) == 4 * GIB
    for nothing in (3 * GIB, TOP - 1, 5 * GIB, 1 << 63):
        with pytest.raises(IndexError):
            layout.offset_of(nothing)


def test_addresses_of_offsets_are_cut_where_regions_end() -> None:
    layout = MemoryLayout.of([Region(0, 3 * GIB), Region(4 * GIB, GIB)], [ROM])
    assert layout.addresses(3 * GIB - 8, 3 * GIB + 8) == (Region(3 * GIB - 8, 8), Region(4 * GIB, 8))
    assert layout.addresses(0, 0) == ()


@pytest.mark.parametrize(
    ("regions", "why"),
    [
        ([], "give 1 to"),
        ([MemoryRegion(page * PAGE_BYTES, PAGE_BYTES, page * PAGE_BYTES) for page in range(65)], "give 1 to"),
        ([MemoryRegion(0, 0, 0)], "multiples of 4096"),
        ([MemoryRegion(0, -PAGE_BYTES, 0)], "multiples of 4096"),
        ([MemoryRegion(0, PAGE_BYTES + 1, 0)], "multiples of 4096"),
        ([MemoryRegion(0x800, PAGE_BYTES, 0)], "multiples of 4096"),
        ([MemoryRegion(0, PAGE_BYTES, 0x10)], "multiples of 4096"),
        ([MemoryRegion(0, PAGE_BYTES, PAGE_BYTES)], "no gap"),
        ([MemoryRegion(0, MIB, 0), MemoryRegion(MIB, MIB, 0)], "no gap"),
        ([MemoryRegion(0, MIB, 0), MemoryRegion(MIB // 2, MIB, MIB)], "addresses in common"),
        ([MemoryRegion(0, MIB, 0, MemoryKind.ROM), MemoryRegion(MIB, MIB, MIB)], "put RAM first"),
    ],
)
def test_a_list_that_no_machine_can_have_is_refused_with_the_way_out(
    regions: list[MemoryRegion], why: str
) -> None:
    assert MAXIMUM_REGIONS == 64
    with pytest.raises(ConfigurationError, match=why):
        MemoryLayout(tuple(regions))


def test_rom_over_a_machines_ram_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="addresses in common"):
        MemoryMap(GIB, [Region(0xE_0000, 128 * KIB)])


def test_rom_is_at_home_on_host_0_and_in_no_node() -> None:
    memory = MemoryMap(GIB, [ROM])
    topology = Topology(memory.layout, [2, 2])
    assert topology.homes[-1] == (GIB // PAGE_BYTES, (GIB + ROM.size) // PAGE_BYTES, 0)
    assert topology.home_of(GIB // PAGE_BYTES) == 0
    assert sum(region.size for node in topology.nodes for region in node.regions) == GIB
    assert [node.regions for node in topology.nodes] == [
        node.regions for node in Topology(MemoryMap(GIB).layout, [2, 2]).nodes
    ]
