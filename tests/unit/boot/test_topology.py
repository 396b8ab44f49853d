# SPDX-License-Identifier: GPL-2.0-or-later
"""How a machine divides into hosts: every core and every page has one, and big pages keep theirs."""

import random
from collections.abc import Sequence

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_layout import GIB, MIB, PAGE_BYTES
from coremesh.core.topology import LARGEST_COMMON_APIC_ID, MAX_HOSTS, Topology
from coremesh.core.x86.memory_map import HIGH_RAM_BASE, LOW_RAM_LIMIT, MemoryMap

HUGE = 2 * MIB // PAGE_BYTES


def topology(ram_bytes: int, hosts: Sequence[int], weights: Sequence[float] | None = None) -> Topology:
    return Topology(MemoryMap(ram_bytes).layout, hosts, weights)


def shares(made: Topology) -> list[int]:
    return [(end - first) * PAGE_BYTES for first, end, _ in made.homes]


def check(made: Topology, memory: MemoryMap) -> None:
    """What holds for every machine."""
    page = 0
    for index, (first, end, host) in enumerate(made.homes):
        assert (first, host) == (page, index) and end > first
        page = end
    assert page * PAGE_BYTES == memory.ram_bytes
    ids = made.all_apic_ids
    assert ids[0] == 0 and len(set(ids)) == len(ids) == made.total_vcpus and ids == sorted(ids)
    assert made.vcpu_hosts == {id_: node.host for node in made.nodes for id_ in node.apic_ids}
    for node in made.nodes:
        # The regions are the node's pages, in order, and nothing else.
        offset = node.first_page * PAGE_BYTES
        for region in node.regions:
            low = memory.low_ram_bytes
            assert region.start == (offset if offset < low else HIGH_RAM_BASE + offset - low)
            assert region.size > 0 and memory.is_ram(region.start, region.size)
            offset += region.size
        assert offset == node.end_page * PAGE_BYTES


def test_one_host_has_everything() -> None:
    made = topology(512 * MIB, [8])
    assert made.homes == [(0, 512 * MIB // PAGE_BYTES, 0)]
    assert made.apic_ids(0) == tuple(range(8)) and made.package_cores == 8


def test_a_host_of_the_devices_alone_is_no_node_and_no_memory_is_at_home_there() -> None:
    """Given a first host without vCPUs, then the bootstrap processor, with id 0, is on the second."""
    made = topology(512 * MIB, [0, 4, 4])
    assert [made.apic_ids(host) for host in range(3)] == [(), (0, 1, 2, 3), (4, 5, 6, 7)]
    assert made.package_cores == 4
    half = 256 * MIB // PAGE_BYTES
    assert made.homes == [(0, half, 1), (half, 2 * half, 2)]
    assert made.nodes[0].regions == ()
    assert topology(512 * MIB, [0, 3]).homes == [(0, 2 * half, 1)]
    between = Topology(MemoryMap(512 * MIB).layout, [4, 0, 4], device_host=1)
    assert [between.apic_ids(host) for host in range(3)] == [(0, 1, 2, 3), (), (4, 5, 6, 7)]
    assert between.homes == [(0, half, 0), (half, 2 * half, 2)] and between.nodes[1].regions == ()
    last = Topology(MemoryMap(512 * MIB).layout, [3, 0], device_host=1)
    assert last.homes == [(0, 2 * half, 0)] and last.apic_ids(0) == (0, 1, 2)
    with pytest.raises(ConfigurationError, match="nothing to do"):
        topology(512 * MIB, [4, 0])


def test_equal_hosts_have_equal_shares_of_cores_and_memory() -> None:
    made = topology(GIB, [4, 4])
    assert shares(made) == [512 * MIB, 512 * MIB]
    assert made.apic_ids(1) == (4, 5, 6, 7) and made.package_cores == 4
    assert made.home_of(0) == 0 and made.home_of(512 * MIB // PAGE_BYTES) == 1
    with pytest.raises(IndexError):
        made.home_of(GIB // PAGE_BYTES)


def test_memory_follows_the_cores_unless_weights_say_otherwise() -> None:
    assert shares(topology(GIB, [6, 2])) == [768 * MIB, 256 * MIB]
    assert shares(topology(GIB, [6, 2], [1, 1])) == [512 * MIB, 512 * MIB]
    assert shares(topology(GIB, [1, 1], [0.75, 0.25])) == [768 * MIB, 256 * MIB]


def test_each_host_is_a_package_of_its_own_while_there_are_ids() -> None:
    uneven = topology(GIB, [6, 2])
    assert uneven.all_apic_ids == [0, 1, 2, 3, 4, 5, 8, 9] and uneven.package_cores == 6
    many = topology(GIB, [100, 100, 55])
    assert many.all_apic_ids == list(range(255)) and many.package_cores == 255
    assert max(topology(GIB, [64, 64, 64, 63]).all_apic_ids) == LARGEST_COMMON_APIC_ID


def test_the_hole_below_4_gib_divides_a_node_and_not_a_share() -> None:
    memory = MemoryMap(4 * GIB)
    made = Topology(memory.layout, [1, 1])
    check(made, memory)
    first, second = made.nodes
    assert [(r.start, r.size) for r in first.regions] == [(0, 2 * GIB)]
    assert [(r.start, r.size) for r in second.regions] == [(2 * GIB, GIB), (4 * GIB, GIB)]
    high = Topology(MemoryMap(8 * GIB).layout, [1, 1])
    assert [(r.start, r.size) for r in high.nodes[0].regions] == [(0, LOW_RAM_LIMIT), (4 * GIB, GIB)]
    assert [(r.start, r.size) for r in high.nodes[1].regions] == [(5 * GIB, 4 * GIB)]


def test_a_tiny_memory_still_gives_everybody_a_home() -> None:
    for hosts in (2, 3, 7, MAX_HOSTS):
        memory = MemoryMap(2 * MIB)
        check(Topology(memory.layout, [1] * hosts), memory)
    lopsided = topology(2 * MIB, [1, 1, 1], [1e9, 1e-9, 1e-9])
    assert [end - first for first, end, _ in lopsided.homes] == [510, 1, 1]


def test_whatever_the_machine_every_page_has_one_home_and_borders_are_those_of_huge_pages() -> None:
    chance = random.Random(5)
    for _ in range(300):
        memory = MemoryMap(chance.randrange(512, 1 << chance.randrange(10, 22)) * PAGE_BYTES)
        hosts = [chance.randrange(1, 8) for _ in range(chance.randrange(1, 9))]
        made = Topology(memory.layout, hosts)
        check(made, memory)
        smallest = memory.ram_bytes / PAGE_BYTES * min(hosts) / sum(hosts)
        if smallest >= 4 * HUGE:
            assert all(first % HUGE == 0 for first, _, _ in made.homes)
            for node, count in zip(made.nodes, hosts, strict=True):
                fair = memory.ram_bytes / PAGE_BYTES * count / sum(hosts)
                assert abs(node.end_page - node.first_page - fair) <= HUGE


@pytest.mark.parametrize(
    ("hosts", "weights", "complaint"),
    [
        ([], None, "0 hosts"),
        ([1] * 65, None, "65 hosts"),
        ([1, 0], None, "host 1"),
        ([1, True], None, "host 1"),
        ([1, 1], [1], "1 weights"),
        ([1, 1], [1, 0], "host 1"),
        ([1, 1], [1, float("inf")], "host 1"),
        ([1, 1], [1, float("nan")], "host 1"),
    ],
)
def test_what_is_no_machine_is_refused(hosts: list[int], weights: list[float] | None, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        topology(GIB, hosts, weights)
