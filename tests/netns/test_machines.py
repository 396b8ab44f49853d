# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines over hosts with addresses of their own: Linux on eight vCPUs, and guests that check the memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from driver import Driver
from ray_nodes import RayNodes

pytestmark = pytest.mark.timeout(600)

PASSED = 16  # what a guest writes to debug-exit when all its checks held

# A load for each core, bound to it, that gives a sum to compare.
ONE_SUM = "seq 5000 | sha256sum"
ALL_SUMS = f"""
for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu sh -c '{ONE_SUM}' >/tmp/sum.$cpu & done
wait
cat /tmp/sum.*
"""


def boot_linux(address: str, hosts: int, vcpus: int) -> dict[str, Any]:
    """Boot Debian on the cluster, let every vCPU work, switch off; what was seen."""
    from coremesh.cluster.launch.machine import Machine

    with Machine(vcpus, "1G", hosts=hosts, address=address, append="quiet") as machine:
        seen: dict[str, Any] = {"boot": machine.wait_shell(400), "facts": machine.facts}
        before = machine.stats()["run_ns"]
        seen["nproc"] = machine.run("nproc", 120).output
        seen["nodes"] = machine.run("cat /sys/devices/system/node/online", 120).output
        seen["wanted"] = machine.run(ONE_SUM, 120).output
        seen["sums"] = machine.run(ALL_SUMS, 300).output
        stats = machine.stats()
        seen["worked"] = [int(after - then) for after, then in zip(stats["run_ns"], before, strict=True)]
        seen["complaints"] = machine.run(
            "dmesg | grep -E 'BUG|Oops|WARNING:|unstable|lockup|stall'", 120
        ).output
        seen["mesh"] = machine.mesh_stats().to_dict("list")
        machine.console.write("poweroff -f\n")
        end = machine.wait(120)
        seen["end"] = None if end is None else end.kind
    return seen


LAYOUTS = [pytest.param([2, 2], id="2-hosts"), pytest.param([1, 1, 1, 1], id="4-hosts")]


@pytest.mark.linux
@pytest.mark.usefixtures("debian")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("hosts", [2, 4])
def test_given_a_cluster_when_debian_boots_on_eight_vcpus_over_it_then_all_work_and_agree(
    driver: Driver, ray_nodes: RayNodes, hosts: int
) -> None:
    seen = driver.run(850, boot_linux, ray_nodes.address, hosts, 8)
    nodes = {row["node"] for row in seen["facts"]["hosts"]}
    assert nodes <= {ray_nodes.network.address(host) for host in range(4)}
    assert len(nodes) == hosts, "each host has a node of its own"
    assert seen["facts"]["warning"] == ""
    assert seen["nproc"] == "8\n"
    assert seen["nodes"] == f"0-{hosts - 1}\n"
    assert re.fullmatch(r"[0-9a-f]{64}  -\n", seen["wanted"])
    assert seen["sums"] == seen["wanted"] * 8, "a vCPU got another sum"
    assert all(nanoseconds > 0 for nanoseconds in seen["worked"]), seen["worked"]
    assert seen["complaints"] == ""
    assert seen["end"] == "power-off"
    assert all(count > 0 for count in seen["mesh"]["pages_sent"]), seen["mesh"]


def run_guest(
    address: str, kernel: bytes, shares: list[int], cmdline: str, policy: str, curve: bool = True
) -> tuple[str, int | None, str, dict[str, Any]]:
    """Run a bare-metal guest to its end: (how it ended, value, output, counters between the hosts)."""
    from coremesh.cluster.launch.machine import Machine

    with Machine(
        memory="128M",
        kernel=kernel,
        hosts=shares,
        cmdline=cmdline,
        address=address,
        policy=policy,
        curve=curve,
    ) as machine:
        end = machine.wait(120)
        output = b"".join(machine.console.follow()) if end is not None else b""
        mesh = {str(name): list(column) for name, column in machine.mesh_stats().items()}
        return (end.kind if end else "timeout", end.value if end else None, output.decode(), mesh)


@pytest.mark.parametrize("policy", ["never", "always", "adaptive"])
@pytest.mark.parametrize("shares", LAYOUTS)
def test_given_hosts_that_hammer_the_same_operands_when_they_are_done_then_no_locked_update_is_lost(
    driver: Driver, ray_nodes: RayNodes, guest: Callable[[str], bytes], shares: list[int], policy: str
) -> None:
    """Plain increments beside them are lost, so that the others could have been."""
    kind, value, output, mesh = driver.run(
        200, run_guest, ray_nodes.address, guest("mesh_atomics"), shares, "", policy
    )
    assert (kind, value) == ("debug-exit", PASSED), output
    lost = re.search(r"control lost=(\d+)", output)
    assert lost is not None and int(lost[1]) > 0, output
    assert (sum(mesh["atomics_remote"]) > 0) == (policy != "never"), mesh


@pytest.mark.parametrize("shares", LAYOUTS)
@pytest.mark.parametrize(
    ("theme", "cmdline"),
    [
        ("mesh_smc", "strict generations=30"),
        ("mesh_ipi", ""),
        ("mesh_time", ""),
        ("mesh_order", "batches=4 period=400"),
        ("mesh_work", ""),
    ],
    ids=["code", "interrupts", "clock", "order", "data"],
)
def test_given_a_guest_that_checks_itself_when_it_runs_over_the_network_then_all_its_checks_hold(
    driver: Driver,
    ray_nodes: RayNodes,
    guest: Callable[[str], bytes],
    theme: str,
    cmdline: str,
    shares: list[int],
) -> None:
    """Code changed across hosts, INIT and SIPI and every IPI, one clock, x86's memory order, checksums."""
    kind, value, output, _ = driver.run(
        200, run_guest, ray_nodes.address, guest(theme), shares, cmdline, "adaptive"
    )
    assert (kind, value) == ("debug-exit", PASSED), output
    if theme == "mesh_ipi":
        assert "started=4" in output
    if theme == "mesh_order":
        assert "control_seen=0" not in output, output


def test_given_uneven_hosts_when_a_guest_runs_on_them_then_each_has_the_vcpus_it_was_given(
    driver: Driver, ray_nodes: RayNodes, guest: Callable[[str], bytes]
) -> None:
    kind, value, output, _ = driver.run(
        200, run_guest, ray_nodes.address, guest("mesh_work"), [3, 1], "", "adaptive"
    )
    assert (kind, value) == ("debug-exit", PASSED), output
    assert "mesh hosts=2 cores=4 srat=1" in output
