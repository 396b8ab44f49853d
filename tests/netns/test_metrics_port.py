# SPDX-License-Identifier: GPL-2.0-or-later
"""What Prometheus gets from a cluster's nodes while machines run there, and what the dashboard asks it."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")
pytest.importorskip("prometheus_client", reason="metrics need the extra 'cluster'")

from driver import Driver
from ray_nodes import METRICS_PORT, RayNodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.linux,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("debian"),
]

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "coremesh.json"
SERIES = re.compile(r"^(ray_coremesh_\w+)\{([^}]*)\} (\S+)", re.M)

Series = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture
def person(cluster: RayNodes) -> Iterator[Driver]:
    """A process on the head's host whose environment asks for metrics."""
    with Driver(cluster.network, 0, {**cluster.environment, "COREMESH_METRICS": "1"}) as driver:
        yield driver


def start(address: str) -> str:
    """Boot a machine over both nodes and keep it at work, with a disk and a network card."""
    import tempfile

    from coremesh.cluster.launch.machine import Machine

    import __main__

    disk = tempfile.NamedTemporaryFile(suffix=".img")  # noqa: SIM115
    disk.truncate(8 << 20)
    machine = Machine(
        4, "512M", hosts=2, address=address, append="quiet", disks=[f"{disk.name},if=virtio"], net="user"
    )
    machine.run("dd if=/dev/vda of=/dev/null bs=1M; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done", 400)
    __main__.kept.update(machine=machine, disk=disk)
    return machine._description.name


def end() -> None:
    import __main__

    __main__.kept.pop("machine").stop()


def sweep(address: str) -> list[str]:
    """Three trials of one host each, with metrics; their errors."""
    from coremesh.cluster.experiments.sweep import sweep

    result = sweep(
        "sleep 6; echo done=1", {"number": [1, 2]}, memory="256M", append="quiet", address=address,
        progress=False, timeout=400,
    )  # fmt: skip
    return [str(error) for error in result.table["error"] if error]


def scraped(cluster: RayNodes) -> Series:
    """What both nodes export at this moment under names of ours."""
    found: Series = {}
    for host in range(2):
        with cluster.network.entered(host):
            url = f"http://{cluster.network.address(host)}:{METRICS_PORT}/metrics"
            with urllib.request.urlopen(url, timeout=30) as page:
                text = page.read().decode()
        for name, labels, value in SERIES.findall(text):
            tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            found.setdefault(name, []).append((tags, float(value)))
    return found


def asked_by_the_dashboard() -> set[str]:
    """The names in the queries of all panels and variables."""
    dashboard: Any = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"]
    names = [re.findall(r"\bray_\w+", query) for query in queries]
    assert all(names), "a query without a name of ours"
    return {name for found in names for name in found}


def test_given_a_machine_over_two_nodes_when_they_are_scraped_then_each_query_of_the_dashboard_has_series(
    cluster: RayNodes, person: Driver
) -> None:
    wanted = asked_by_the_dashboard()
    assert len(wanted) > 12
    assert not scraped(cluster), "nothing runs that exports"
    machine = person.run(600, start, cluster.address)
    deadline = time.monotonic() + 90
    seen: Series = {}
    while time.monotonic() < deadline and not wanted <= set(seen):
        time.sleep(1)
        seen = scraped(cluster)
    assert wanted <= set(seen), f"never exported: {wanted - set(seen)}"
    for name, series in seen.items():
        assert {tags["machine"] for tags, _ in series} == {machine}, name
        assert {tags["host"] for tags, _ in series} <= {"0", "1"}, name
    run = seen["ray_coremesh_vcpu_run_seconds_total"]
    assert sorted((tags["host"], tags["vcpu"]) for tags, _ in run) == [
        ("0", "0"), ("0", "1"), ("1", "2"), ("1", "3"),
    ]  # fmt: skip
    read = [value for tags, value in seen["ray_coremesh_device_bytes_total"] if tags["kind"] == "read"]
    assert sum(read) >= 8 << 20
    before = {str(tags): value for tags, value in seen["ray_coremesh_process_cpu_seconds_total"]}
    time.sleep(3)
    after = {str(tags): value for tags, value in scraped(cluster)["ray_coremesh_process_cpu_seconds_total"]}
    assert all(after[key] > value for key, value in before.items()), "a number stands still"
    person.run(60, end)


def test_given_trials_of_a_sweep_when_the_nodes_are_scraped_then_their_machines_are_there(
    cluster: RayNodes, person: Driver
) -> None:
    result = person.begin(sweep, cluster.address)
    machines: set[str] = set()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not machines:
        time.sleep(1)
        series = scraped(cluster).get("ray_coremesh_vcpu_run_seconds_total", [])
        machines |= {tags["machine"] for tags, value in series if value > 0}
    assert machines
    assert result(400) == []
