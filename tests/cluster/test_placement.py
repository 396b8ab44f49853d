# SPDX-License-Identifier: GPL-2.0-or-later
"""Where hosts go and what each is given: shares of vCPUs, nodes, and the images' bytes. Pure."""

import itertools
from typing import Any

import pytest
from coremesh.cluster.launch.placement import Placement, choose, working_nodes
from coremesh.cluster.machine.build import Build
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.homes import divide
from coremesh.cluster.machine.options import parse_hosts, share_vcpus
from coremesh.core.errors import ConfigurationError, PlatformError
from coremesh.core.memory_layout import GIB, MIB, PAGE_BYTES
from coremesh.core.x86.memory_map import HIGH_RAM_BASE, MemoryMap
from hypothesis import given
from hypothesis import strategies as st

# --- vCPUs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "vcpus", "shares"),
    [
        (1, None, (1,)),
        (1, 8, (8,)),
        (2, None, (1, 1)),
        (2, 8, (4, 4)),
        (3, 8, (3, 3, 2)),
        ([6, 2], None, (6, 2)),
        ([{"vcpus": 6}, {"vcpus": 2}], 8, (6, 2)),
        ([4], None, (4,)),
    ],
)
def test_hosts_share_the_vcpus(hosts: Any, vcpus: int | None, shares: tuple[int, ...]) -> None:
    assert share_vcpus(hosts, vcpus) == shares


@pytest.mark.parametrize(
    ("hosts", "vcpus", "word"),
    [
        (0, None, "1 to 64"),
        (65, None, "1 to 64"),
        ([], None, "1 to 64"),
        (4, 3, "at least one"),
        ([6, 2], 9, "8 vCPUs in all"),
        ([6, 0], None, "--device-host 1"),
        ([0, 0], None, "no host has a vCPU"),
        ([200, 100], None, "1 to 255"),
        ([{"cpus": 6}], None, "vcpus"),
        ([{"vcpus": 6, "memory": 1}], None, "describes no host"),
        (True, None, "no number of hosts"),
        ("2", None, "no number of hosts"),
    ],
)
def test_hosts_that_cannot_be_are_refused_with_a_reason(hosts: Any, vcpus: int | None, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        share_vcpus(hosts, vcpus)


def test_the_host_with_the_devices_is_one_of_them_and_may_have_no_vcpu() -> None:
    assert share_vcpus([4, 0, 4], None, 1) == (4, 0, 4)
    assert share_vcpus([0, 4], None) == share_vcpus([0, 4], 4, 0) == (0, 4)
    assert share_vcpus(2, 4, 1) == (2, 2)
    with pytest.raises(ConfigurationError, match="host 2 cannot have the devices: the machine has 2"):
        share_vcpus(2, 4, 2)
    with pytest.raises(ConfigurationError, match="--device-host 0"):
        share_vcpus([0, 4], None, 1)
    with pytest.raises(ConfigurationError, match="0 to 63"):
        share_vcpus(2, None, -1)


def test_a_command_line_names_a_number_of_hosts_or_the_cores_of_each() -> None:
    assert parse_hosts("2") == 2
    assert parse_hosts("6,2") == [6, 2]
    for text in ("", "two", "6;2", "6,"):
        with pytest.raises(ConfigurationError):
            parse_hosts(text)


def test_vcpus_are_numbered_through_the_hosts() -> None:
    description = MachineDescription(vcpus=8, ram_bytes=MIB, kernel=b"", shares=(3, 3, 2))
    assert [description.first_vcpu(host) for host in range(3)] == [0, 3, 6]
    assert [description.host_of(vcpu) for vcpu in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]


# --- nodes -----------------------------------------------------------------------------------------------


def test_every_host_gets_a_node_of_its_own_where_there_are_enough() -> None:
    assert choose(2, 2) == ("STRICT_SPREAD", "")
    assert choose(2, 5) == ("STRICT_SPREAD", "")


@pytest.mark.parametrize(("nodes", "words"), [(1, "1 node that runs"), (2, "2 nodes that run")])
def test_too_few_nodes_are_shared_and_said_so(nodes: int, words: str) -> None:
    strategy, warning = choose(3, nodes)
    assert strategy == "PACK"
    assert words in warning
    assert "ray start" in warning


def test_dead_nodes_and_nodes_without_cpus_are_no_place_for_a_host() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {}},
    ]
    assert working_nodes(nodes) == nodes[:1]


def test_links_are_bound_to_the_nodes_addresses_and_on_one_node_to_nobody_elses() -> None:
    assert Placement("STRICT_SPREAD", ("10.0.0.1", "10.0.0.2"), None).interfaces == ("10.0.0.1", "10.0.0.2")
    assert Placement("PACK", ("10.0.0.1", "10.0.0.1"), None).interfaces == ("127.0.0.1", "127.0.0.1")


def test_another_build_on_a_node_is_refused_by_name() -> None:
    own = Build("1.0", "a" * 64)
    own.require(Build("1.0", "a" * 64), "n1")
    for other in (Build("1.1", "a" * 64), Build("1.0", "b" * 64)):
        with pytest.raises(PlatformError, match=r"node n2 .*same wheel"):
            own.require(other, "n2")


# --- images ----------------------------------------------------------------------------------------------


def test_bytes_across_a_border_are_cut_there() -> None:
    memory = MemoryMap(4 * MIB)
    pages = 2 * MIB // PAGE_BYTES
    shares = divide([(2 * MIB - 3, b"abcdef")], memory.layout, [(0, pages, 0), (pages, 2 * pages, 1)])
    assert shares == {0: [(2 * MIB - 3, b"abc")], 1: [(2 * MIB, b"def")]}


def test_memory_behind_the_devices_hole_is_counted_from_its_end() -> None:
    memory = MemoryMap(4 * GIB)
    border = 3 * GIB // PAGE_BYTES
    homes = [(0, border, 0), (border, 4 * GIB // PAGE_BYTES, 1)]
    assert divide([(HIGH_RAM_BASE, b"high")], memory.layout, homes) == {1: [(HIGH_RAM_BASE, b"high")]}


@given(
    st.lists(st.tuples(st.integers(0, 40 * PAGE_BYTES), st.binary(max_size=3 * PAGE_BYTES)), max_size=6),
    st.sets(st.integers(1, 43), min_size=1, max_size=3),
)
def test_however_it_is_cut_every_byte_lands_once_and_at_its_home(
    writes: list[tuple[int, bytes]], cuts: set[int]
) -> None:
    memory = MemoryMap(512 * PAGE_BYTES)
    borders = [0, *sorted(cuts), 512]
    homes = [(a, b, host) for host, (a, b) in enumerate(itertools.pairwise(borders))]
    wanted, got = bytearray(2 * MIB), bytearray(2 * MIB)
    for gpa, data in writes:
        wanted[gpa : gpa + len(data)] = data
    shares = divide(writes, memory.layout, homes)
    for host, own in shares.items():
        for gpa, data in own:
            assert data
            got[gpa : gpa + len(data)] = data
            for page in {gpa // PAGE_BYTES, (gpa + len(data) - 1) // PAGE_BYTES}:
                assert homes[host][0] <= page < homes[host][1]
    assert got == wanted
    assert sum(len(data) for own in shares.values() for _, data in own) == sum(len(d) for _, d in writes)
