# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host is told of the others: refused where no machine can be like that."""

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.core.mesh import Mesh
from coremesh.core.topology import Topology
from coremesh.core.x86.memory_map import MemoryMap


def place(shares: list[int], **changes: object) -> Mesh:
    topology = Topology(MemoryMap(64 << 20).layout, shares)
    facts: dict[str, object] = {
        "host": 0,
        "hosts": len(shares),
        "homes": topology.homes,
        "vcpu_hosts": topology.vcpu_hosts,
        "machine_id": 1,
    }
    return Mesh(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"host": 2}, "count from 0"),
        ({"hosts": 1}, "1 to 64"),
        ({"hosts": 65}, "1 to 64"),
        ({"policy": "sometimes"}, "never, always, adaptive"),
        ({"homes": [(1, 16384, 0)]}, "cover"),
        ({"homes": [(0, 10, 0), (9, 16384, 1)]}, "cover"),
        ({"homes": [(0, 10, 0), (10, 16384, 7)]}, "cover"),
        ({"vcpu_hosts": {0: 0, 1: 2}}, "does not exist"),
    ],
)
def test_given_a_place_in_no_machine_when_it_is_described_then_the_error_says_what_is_wrong(
    changes: dict[str, object], word: str
) -> None:
    with pytest.raises(ConfigurationError, match=word):
        place([1, 1], **changes)


@pytest.mark.parametrize(
    ("shares", "cores"), [([1, 1], 1), ([4, 4], 4), ([6, 2], 6), ([3, 3, 3], 3), ([200, 55], 255)]
)
def test_given_hosts_when_their_apic_ids_allow_it_then_each_is_a_package(
    shares: list[int], cores: int
) -> None:
    assert place(shares).package_cores == cores
