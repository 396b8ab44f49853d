# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the guest tests: the machines to run guests on."""

import pytest
from coremesh.core._native import doctor


@pytest.fixture(params=[1, 2, 4], ids=["1-vcpu", "2-vcpus", "4-vcpus"])
def vcpus(request: pytest.FixtureRequest) -> int:
    """Machines of one, two and four vCPUs."""
    return int(request.param)


@pytest.fixture(params=["userfaultfd", "mprotect"])
def protection(request: pytest.FixtureRequest) -> str:
    """Both ways of guarding translated code; skipped where the host refuses one."""
    way = str(request.param)
    if not doctor()[way]:
        pytest.skip(f"this host has no {way}")
    return way
