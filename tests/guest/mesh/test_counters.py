# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine of several hosts counts, by the names that were declared."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from baremetal_machine import PASSED
from coremesh.core import counters
from mesh_machine import run_on_mesh

#: Grow whenever two hosts hammer the same operands and the policy is to operate where the page is.
GROW = {
    "read_fetches", "write_fetches", "pages_sent", "invalidations", "atomics_local", "atomics_remote",
    "atomics_executed", "atomics_forwarded", "home_requests", "owner_moves", "waits", "wait_ns", "page_bytes",
    "interrupts_sent", "interrupts_received",
}  # fmt: skip


def declared(place: str) -> set[str]:
    """The names that were declared for this place."""
    return {counter.name for counter in counters.counters() if counter.place == place}


def total(hosts: list[Mapping[str, Any]], name: str) -> int:
    """The sum over the hosts that count it: those of devices are of one end or of the other."""
    return sum(host.get(name, 0) for host in hosts)


def test_given_two_hosts_that_share_words_when_they_are_asked_then_each_declared_counter_is_there_and_grows(
    guest: Callable[[str], Path],
) -> None:
    result = run_on_mesh(guest("mesh_atomics"), shares=(1, 1), policy="always", cmdline="ms=4")
    assert result.status == PASSED, result.story()
    assert set().union(*result.mesh) == declared("mesh_stats") | {"links"}
    for host in result.mesh:
        links: Any = host["links"]
        assert set(links[0]) == declared("links")
        assert links[0]["sent_frames"] > 0
    assert {name for name in GROW if total(list(result.mesh), name) == 0} == set(), result.story()
    assert total(list(result.mesh), "violations") == 0


@pytest.mark.parametrize("home", [0, 1], ids=["that-came", "of-its-own"])
@pytest.mark.parametrize("policy", ["never", "adaptive"])
def test_given_a_page_that_a_host_may_write_when_locked_instructions_change_it_then_they_are_done_at_once(
    guest: Callable[[str], Path], policy: Any, home: int
) -> None:
    """Eleven kinds, by the second host, while the first sleeps: only the first instruction may take longer.

    The long way costs up to four times as much, and no result of the guest tells that it was taken.
    """
    words = f"locked times=4000 home={home}"
    result = run_on_mesh(guest("mesh_load"), shares=(1, 1), policy=policy, cmdline=words)
    assert result.status == PASSED, result.story()
    assert result.values()["locked"] == 44_000
    assert 0 < result.total("atomics_long_way") < 100, result.story()


def test_given_a_page_that_stays_with_another_host_when_locked_instructions_change_it_then_none_is_at_once(
    guest: Callable[[str], Path],
) -> None:
    """What the counter of the long way shows where there is reason to take it."""
    words = "locked times=20 home=0"
    result = run_on_mesh(guest("mesh_load"), shares=(1, 1), policy="always", cmdline=words)
    assert result.status == PASSED, result.story()
    assert result.values()["locked"] == 220
    assert result.total("atomics_long_way") >= result.between("atomics_remote") >= 220, result.story()
