# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests of several hosts in one process: how many, how memory moves, who executes atomics."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from coremesh.core.engine import Host
from coremesh.core.memory_layout import MemoryLayout, Region
from coremesh.core.mesh import Mesh


@pytest.fixture(params=[(1, 1), (2, 2), (1, 1, 1, 1)], ids=["2-hosts", "2-hosts-of-2", "4-hosts"])
def shares(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """The vCPUs of each host."""
    return tuple(request.param)


@pytest.fixture(params=["never", "always", "adaptive"])
def policy(request: pytest.FixtureRequest) -> str:
    """When a locked operation goes to the page instead of the page to the operation."""
    return str(request.param)


@pytest.fixture(params=["userfaultfd", "userfaultfd-copy", "mprotect"])
def backend(request: pytest.FixtureRequest) -> str:
    """How pages are taken away and given back; skipped where the host refuses one."""
    way = str(request.param)
    mesh = Mesh(host=0, hosts=2, homes=[(0, 512, 0)], vcpu_hosts={0: 0}, machine_id=1)
    try:
        host = Host(
            memory=MemoryLayout.of([Region(0, 2 << 20)]),
            apic_ids=[0],
            total_vcpus=1,
            protection=way,
            mesh=mesh,
        )
    except OSError as error:
        pytest.skip(f"this host has no {way}: {error}")
    assert host.protection == way
    return way
