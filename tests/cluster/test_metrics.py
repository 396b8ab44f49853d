# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics made of a real machine's counters; tests/netns sees them exported by a node of Ray's."""

from collections.abc import Callable

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch import metrics
from coremesh.cluster.launch.machine import Machine

BY_NAME = {metric.name: metric for metric in metrics.METRICS}
SPIN = b"\xe6\x80\xeb\xfc"  # out 0x80, al; jmp to the start


def test_given_a_running_machine_when_its_counters_are_read_then_each_is_a_metric_with_its_tags(
    tiny_guest: Callable[[bytes], bytes],
) -> None:
    with Machine(kernel=tiny_guest(SPIN), memory="16M", vcpus=3) as machine:
        before = list(metrics.readings(machine._hosts.call("sample"), 0))
        machine.wait(0.3)
        after = list(metrics.readings(machine._hosts.call("sample"), 4))
    for reading in after:
        assert {"machine", "host", *dict(reading.tags)} == set(BY_NAME[reading.name].tags), reading
    keys = [reading[:2] for reading in after]
    assert len(set(keys)) == len(keys), "no series is set twice"
    vcpus = {dict(reading.tags).get("vcpu") for reading in after} - {None}
    assert vcpus == {"4", "5", "6"}, "numbers of the machine, not of the host"
    then = {reading.name: reading.value for reading in before}
    now = {reading.name: reading.value for reading in after}
    assert now["coremesh_process_cpu_seconds_total"] > then["coremesh_process_cpu_seconds_total"]
    assert now["coremesh_process_resident_bytes"] > now["coremesh_guest_touched_bytes"] > 0
    assert now["coremesh_translations_total"] > 0
    accesses = {dict(reading.tags).get("device"): reading.value for reading in after}
    assert accesses["post"] > 0


def test_given_several_hosts_counters_when_they_are_read_then_every_metric_has_a_value() -> None:
    rows = [dict.fromkeys(("run_ns", "halted_ns", "interrupts", "translations", "code_bytes"), 1)]
    rows[0] |= {f"exits_{kind}": 1 for kind in ("io", "mmio", "halt", "kick", "exception")}
    rows[0] |= {f"atomics_{size}": 1 for size in (1, 2, 4, 8, 16)} | {"ipis_sent": 1}
    links = [{"peer": 1, "sent_bytes": 3, "received_bytes": 4, "sent_frames": 1, "received_frames": 2}]
    columns = {column for *_, column, _ in metrics._MESH if not column.startswith("links_")}
    mesh = dict.fromkeys({*columns, "atomics_remote"}, 5)
    process = {"cpu_seconds": 1.0, "resident_bytes": 2.0, "shared_bytes": 1.0}
    devices = {"disk0": {"accesses": 3, "bytes_read": 512}}
    sample = {"stats": rows, "mesh": {**mesh, "links": links}, "devices": devices, "process": process}
    found = {reading[:2]: reading.value for reading in metrics.readings(sample, 0)}
    assert {name for name, _ in found} == set(BY_NAME)
    assert found["coremesh_link_bytes_total", (("direction", "received"),)] == 4
    assert found["coremesh_device_bytes_total", (("device", "disk0"), ("kind", "read"))] == 512
    assert found["coremesh_page_wait_seconds_total", ()] == 5e-9


def test_given_nothing_asks_for_metrics_when_a_machine_runs_then_no_thread_reads_it(
    tiny_guest: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(metrics.VARIABLE, raising=False)
    import threading

    with Machine(kernel=tiny_guest(SPIN), memory="16M"):
        names = {thread.name for thread in threading.enumerate()}
    assert not names & {"metrics", "host events"}
