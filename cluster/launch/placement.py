# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the hosts of a machine run: each on a node of its own, or a word that there are too few."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from coremesh.core.errors import PlatformError

# A share of a CPU that says "on a node that is to run work" and takes nothing from it: vCPUs may outnumber
# the cores, so that a whole CPU for each would refuse machines that run well.
_BUNDLE = {"CPU": 0.001}
_LOOPBACK = "127.0.0.1"
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Placement:
    """A placement group and what it came to: `nodes` are the addresses of each host's node.

    `warning` is for a person: empty if every host has a node of its own.
    """

    strategy: str
    nodes: tuple[str, ...]
    group: Any
    warning: str = ""

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The address each host's links are bound to: its node's, or loopback when all share a node."""
        if len(set(self.nodes)) == 1:
            return (_LOOPBACK,) * len(self.nodes)
        return self.nodes

    def options(self, host: int) -> dict[str, Any]:
        """The options with which the actor of `host` is made."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.group, placement_group_bundle_index=host
            )
        }

    def release(self) -> None:
        """Give the places back. Harmless when the cluster has gone or it was done before."""
        from ray.util.placement_group import remove_placement_group

        with contextlib.suppress(Exception):
            remove_placement_group(self.group)


def place(hosts: int) -> Placement:
    """Find places for `hosts` hosts in the Ray cluster that this process uses.

    Raises :class:`PlatformError` if there are none after half a minute.
    """
    from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

    nodes = working_nodes(_nodes())
    strategy, warning = choose(hosts, len(nodes))
    group = placement_group([_BUNDLE] * hosts, strategy=strategy)
    try:
        if not group.wait(_PATIENCE_SECONDS):
            raise PlatformError(
                f"the Ray cluster has had no room for {hosts} hosts in {_PATIENCE_SECONDS:.0f} s. "
                "'ray status' says what holds its CPUs; end that, add nodes, or ask for fewer hosts."
            )
        bundles = placement_group_table(group)["bundles_to_node_id"]
        # A node may have joined in between: look it up among those of now.
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in _nodes()}
        places = tuple(str(addresses[bundles[host]]) for host in range(hosts))
    except BaseException:
        with contextlib.suppress(Exception):
            remove_placement_group(group)
        raise
    return Placement(strategy, places, group, warning)


def choose(hosts: int, nodes: int) -> tuple[str, str]:
    """Return (Ray's strategy, a word for the person) for `hosts` hosts on `nodes` nodes."""
    if nodes >= hosts:
        return "STRICT_SPREAD", ""
    have = "1 node that runs work" if nodes == 1 else f"{nodes} nodes that run work"
    return "PACK", (
        f"the Ray cluster has {have}, fewer than the {hosts} hosts asked for: hosts share a node, its cores "
        "and its fate. 'ray start --address=...' on more machines gives each its own."
    )


def _nodes() -> list[dict[str, Any]]:
    import ray

    nodes: Any = ray.nodes  # without annotations of its own
    return list(nodes())


def working_nodes(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of Ray's nodes, those that are alive and offer CPUs (a head node often offers none)."""
    return [node for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
