# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of running machines for Prometheus, by ray.util.metrics: read once a second, only when asked for.

Asked for by COREMESH_METRICS=1 in the environment of the driver. Each host of a machine on Ray then reads its
own counters, never on a guest's path, and Ray's node exports them, with ``ray_`` before the names of METRICS.
A machine of one host in a Ray task, as a trial of a sweep, is read by the task's process. A Ray of our own
exports nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from coremesh.cluster.launch.tables import mesh_rows
from coremesh.cluster.machine import log
from coremesh.cluster.machine.device_host import DeviceHost
from coremesh.cluster.machine.host import HostProcess

VARIABLE: Final = "COREMESH_METRICS"
INTERVAL_SECONDS: Final = 1.0

_HOST = ("machine", "host")
_VCPU = ("machine", "host", "vcpu")  # at most 255 series a machine
_NS = 1e-9


@dataclass(frozen=True)
class Metric:
    """A name that Prometheus sees, behind ``ray_``; one that ends in _total only grows."""

    name: str
    text: str
    tags: tuple[str, ...] = _HOST

    @property
    def grows(self) -> bool:
        """Whether it is a counter, not a gauge."""
        return self.name.endswith("_total")


class Reading(NamedTuple):
    """A value of a metric with the values of its tags, 'machine' and 'host' left out."""

    name: str
    tags: tuple[tuple[str, str], ...]
    value: float


METRICS: Final = (
    Metric(
        "coremesh_vcpu_run_seconds_total", "inside guest code, waits for pages and devices included", _VCPU
    ),
    Metric("coremesh_vcpu_halted_seconds_total", "asleep, or waiting to fall asleep", _VCPU),
    Metric("coremesh_vcpu_interrupts_total", "interrupts delivered to the guest", _VCPU),
    Metric("coremesh_translations_total", "blocks of guest code translated"),
    Metric("coremesh_translated_bytes", "translated code in the buffers now"),
    Metric("coremesh_exits_total", "times guest code was left, by kind", (*_HOST, "kind")),
    Metric("coremesh_ipis_total", "interrupt messages sent by local APICs"),
    Metric("coremesh_atomics_total", "locked operations, by where they were executed", (*_HOST, "where")),
    Metric("coremesh_pages_fetched_total", "pages from other hosts, by kind", (*_HOST, "kind")),
    Metric("coremesh_pages_sent_total", "pages given to other hosts"),
    Metric("coremesh_page_sent_bytes_total", "bytes of pages given to other hosts"),
    Metric("coremesh_pages_lost_total", "pages invalidated or downgraded for another host", (*_HOST, "kind")),
    Metric("coremesh_page_wait_seconds_total", "that threads waited for pages, together"),
    Metric("coremesh_protocol_violations_total", "messages dropped that no correct host sends"),
    Metric("coremesh_host_interrupts_total", "interrupts from and to other hosts", (*_HOST, "direction")),
    Metric("coremesh_link_bytes_total", "bytes on the links to other hosts", (*_HOST, "direction")),
    Metric("coremesh_link_frames_total", "frames on the links to other hosts", (*_HOST, "direction")),
    Metric("coremesh_clock_error_seconds", "how far the guest's clock was from host 0's"),
    Metric("coremesh_device_accesses_total", "accesses of a device's registers", (*_HOST, "device")),
    Metric("coremesh_device_bytes_total", "moved by a disk or network card", (*_HOST, "device", "kind")),
    Metric("coremesh_process_cpu_seconds_total", "processor time of the host's process"),
    Metric("coremesh_process_resident_bytes", "memory of the host's process, touched guest RAM included"),
    Metric("coremesh_guest_touched_bytes", "guest RAM that was touched, with other shared memory"),
)

_EXITS = ("io", "mmio", "halt", "kick", "exception")
# (metric, its tag, the tag's value, column of mesh_stats, what one of the column is in the metric's unit)
_MESH: Final = (
    *(
        ("coremesh_pages_fetched_total", "kind", kind, column, 1.0)
        for kind, column in {
            "read": "read_fetches", "write": "write_fetches", "upgrade": "upgrades", "prefetch": "prefetches",
            "first_touch": "first_touches",
        }.items()
    ),
    ("coremesh_pages_sent_total", "", "", "pages_sent", 1.0),
    ("coremesh_page_sent_bytes_total", "", "", "page_bytes", 1.0),
    ("coremesh_pages_lost_total", "kind", "invalidated", "invalidations", 1.0),
    ("coremesh_pages_lost_total", "kind", "downgraded", "downgrades", 1.0),
    ("coremesh_page_wait_seconds_total", "", "", "wait_ns", _NS),
    ("coremesh_protocol_violations_total", "", "", "violations", 1.0),
    ("coremesh_host_interrupts_total", "direction", "sent", "interrupts_sent", 1.0),
    ("coremesh_host_interrupts_total", "direction", "received", "interrupts_received", 1.0),
    ("coremesh_link_bytes_total", "direction", "sent", "links_sent_bytes", 1.0),
    ("coremesh_link_bytes_total", "direction", "received", "links_received_bytes", 1.0),
    ("coremesh_link_frames_total", "direction", "sent", "links_sent_frames", 1.0),
    ("coremesh_link_frames_total", "direction", "received", "links_received_frames", 1.0),
    ("coremesh_clock_error_seconds", "", "", "clock_error_ns", _NS),
)  # fmt: skip


def wanted() -> bool:
    """Whether the environment asks for metrics."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def readings(sample: Mapping[str, Any], first_vcpu: int) -> Iterator[Reading]:
    """Yield the values of all metrics in a host's :meth:`HostProcess.sample`. Pure."""
    rows = sample["stats"]
    for number, row in enumerate(rows, first_vcpu):
        tags: tuple[tuple[str, str], ...] = (("vcpu", str(number)),)
        yield Reading("coremesh_vcpu_run_seconds_total", tags, row["run_ns"] * _NS)
        yield Reading("coremesh_vcpu_halted_seconds_total", tags, row["halted_ns"] * _NS)
        yield Reading("coremesh_vcpu_interrupts_total", tags, row["interrupts"])
    yield Reading("coremesh_translations_total", (), _sum(rows, "translations"))
    yield Reading("coremesh_translated_bytes", (), _sum(rows, "code_bytes"))
    yield Reading("coremesh_ipis_total", (), _sum(rows, "ipis_sent"))
    for kind in _EXITS:
        yield Reading("coremesh_exits_total", (("kind", kind),), _sum(rows, f"exits_{kind}"))
    here = sum(_sum(rows, f"atomics_{size}") for size in (1, 2, 4, 8, 16))
    yield Reading("coremesh_atomics_total", (("where", "local"),), here)
    if sample["mesh"]:
        mesh = mesh_rows([sample["mesh"]])[0]
        yield Reading("coremesh_atomics_total", (("where", "remote"),), mesh["atomics_remote"])
        for name, tag, value, column, unit in _MESH:
            yield Reading(name, ((tag, value),) if tag else (), abs(mesh[column]) * unit)
    for device, counts in sample["devices"].items():
        yield Reading("coremesh_device_accesses_total", (("device", device),), counts["accesses"])
        for column, value in counts.items():
            if column.startswith("bytes_"):
                tags = (("device", device), ("kind", column.removeprefix("bytes_")))
                yield Reading("coremesh_device_bytes_total", tags, value)
    process = sample["process"]
    yield Reading("coremesh_process_cpu_seconds_total", (), process["cpu_seconds"])
    yield Reading("coremesh_process_resident_bytes", (), process["resident_bytes"])
    yield Reading("coremesh_guest_touched_bytes", (), process["shared_bytes"])


def _sum(rows: list[dict[str, Any]], column: str) -> float:
    return float(sum(row[column] for row in rows))


class Exporter:
    """The metrics of one host, in this process of Ray's. For one thread."""

    def __init__(self, machine: str, host: int, first_vcpu: int) -> None:
        from ray.util import metrics

        self._first_vcpu = first_vcpu
        self._tags = {"machine": machine, "host": str(host)}
        self._metrics: dict[str, Any] = {
            metric.name: (metrics.Counter if metric.grows else metrics.Gauge)(
                metric.name, metric.text, tag_keys=metric.tags
            )
            for metric in METRICS
        }
        self._last: dict[Reading, float] = {}  # by the reading without its value

    def export(self, sample: Mapping[str, Any]) -> None:
        """Give Ray a sample's values."""
        for reading in readings(sample, self._first_vcpu):
            metric, tags = self._metrics[reading.name], {**self._tags, **dict(reading.tags)}
            if not hasattr(metric, "inc"):
                metric.set(reading.value, tags)
                continue
            key = reading._replace(value=0.0)
            grown = reading.value - self._last.get(key, 0.0)
            if grown > 0:
                metric.inc(grown, tags)  # Ray takes no 0
                self._last[key] = reading.value

    def end(self) -> None:
        """The machine has ended: what it had, it has no more."""
        for reading in ("coremesh_process_resident_bytes", "coremesh_guest_touched_bytes"):
            self._metrics[reading].set(0.0, self._tags)


def follow(read: Callable[[], Mapping[str, Any]], machine: str) -> None:
    """Export what `read` gives of a machine's only host, until it raises, if this is a process of Ray's."""
    ray = sys.modules.get("ray")
    if not wanted() or ray is None or not ray.is_initialized():
        return

    def run() -> None:
        exporter = Exporter(machine, 0, 0)
        pause = threading.Event()
        try:
            while True:
                exporter.export(read())
                pause.wait(INTERVAL_SECONDS)
        except Exception as error:  # it has ended
            log.event("debug", "metrics-ended", machine=machine, reason=str(error))
            exporter.end()

    threading.Thread(target=run, name="metrics", daemon=True).start()


class _Metered(HostProcess):
    """A host that exports its own metrics."""

    def _watches(self) -> dict[str, Callable[[], None]]:
        return {**super()._watches(), "metrics": self._export}

    def _export(self) -> None:
        host = 0 if self._membership is None else self._membership.host
        exporter = Exporter(self._description.name, host, self._first_vcpu())
        while not self._ended.wait(INTERVAL_SECONDS):
            exporter.export(self.sample())
        exporter.end()


class MeteredHost(_Metered, HostProcess):
    """A host without the devices."""


class MeteredDeviceHost(_Metered, DeviceHost):
    """The host with the devices."""
