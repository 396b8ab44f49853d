# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine of several hosts counts, by the names that were declared."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
