# SPDX-License-Identifier: GPL-2.0-or-later
"""``coremesh top``: what running machines do, as it changes: vCPUs, page traffic, contended pages, links.

Machines tell of themselves on Unix sockets (telemetry.py). Two looks at their counters give rates; in a
terminal the view is drawn anew every second, without one it is printed once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coremesh.cluster.cli.process import printable, say
from coremesh.cluster.launch import telemetry
from coremesh.core.errors import MachineStateError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

Row = Mapping[str, Any]
Snapshot = Mapping[str, Any]
Key = tuple[int, int]  # process, and which of its machines

_PAUSE_SECONDS = 1.0
_PLAIN_WIDTH = 140
_MOST_DEVICES = 16
#: What devices call the requests that they serve and the bytes that those move.
_REQUESTS = ("reads", "writes", "flushes", "discards", "commands", "frames_sent", "frames_received")
_MOVED = ("bytes_read", "bytes_written", "bytes_moved", "bytes_sent", "bytes_received")
_MOST_VCPUS = 24  # rows; of more, the busiest are shown


def show(pid: int | None = None, *, once: bool = False) -> int:
    """Show the machines of process `pid`, or of all this user's processes; return the exit status.

    Returns 1 when there are none. In a terminal it goes on until Ctrl-C or until the last machine has gone.
    """
    from rich.console import Console

    live = sys.stdout.isatty() and not once
    console = Console() if live else Console(width=_PLAIN_WIDTH, highlight=False)
    before = look(pid)
    if not before:
        say("no machine of yours runs here; 'coremesh boot' starts one.")
        return 1
    if not live:
        time.sleep(_PAUSE_SECONDS)
        console.print(view(before, look(pid) or before))
        return 0
    return _follow(pid, console, before)


def look(pid: int | None) -> dict[Key, Snapshot]:
    """Return a snapshot of each machine. Raises MachineStateError if `pid` is given and has none."""
    found: dict[Key, Snapshot] = {}
    for process in [pid] if pid is not None else telemetry.processes():
        try:
            report = telemetry.ask(process)
        except MachineStateError:
            if pid is not None:
                raise
            continue
        found |= {(process, number): _plain(machine) for number, machine in enumerate(report["machines"])}
    return found


def _plain(told: Any) -> Any:
    """What a process told, without what would steer a terminal or be taken for rich's markup."""
    from rich.markup import escape

    if isinstance(told, str):
        return escape(printable(told))
    if isinstance(told, Mapping):
        return {_plain(name): _plain(value) for name, value in told.items()}
    return [_plain(value) for value in told] if isinstance(told, list) else told


def view(before: Mapping[Key, Snapshot], now: Mapping[Key, Snapshot]) -> RenderableType:
    """Draw all machines; rates are those between the two looks."""
    from rich.console import Group

    parts: list[RenderableType] = []
    for key, machine in now.items():
        parts += _machine(key, before.get(key, machine), machine)
    return Group(*parts)


def rates(before: Row, now: Row, seconds: float) -> dict[str, float]:
    """By how much each number of a row grows in a second; 0 for one that was reset or is new."""
    return {
        name: max(0.0, (value - before[name]) / seconds) if seconds > 0 else 0.0
        for name, value in now.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and isinstance(before.get(name), int | float)
    }


def busy(row: Row, rate: Mapping[str, float]) -> float:
    """Which part of the time a vCPU ran, 0..1.

    The engine counts a stretch of either kind when it ends: of one that runs and runs only its rests tell.
    """
    ran = rate.get("run_ns", 0.0) / 1e9
    if row.get("state") == "running":
        ran = max(ran, 1 - rate.get("halted_ns", 0.0) / 1e9)
    return min(1.0, max(0.0, ran))


def short(number: float) -> str:
    """Write a number in at most five characters: 950, 1.2k, 34k, 5.6M."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            break
        number /= 1000
    if not unit:
        return f"{number:.0f}"
    return f"{number:.1f}{unit}" if number < 9.95 else f"{number:.0f}{unit}"


def _follow(pid: int | None, console: Console, before: dict[Key, Snapshot]) -> int:
    from rich.live import Live

    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(_PAUSE_SECONDS)
                now = look(None) if pid is None else look(pid)
                if not now:
                    break
                live.update(view(before, now), refresh=True)
                before = now
    except KeyboardInterrupt:
        return 0
    except MachineStateError:
        pass  # the process has ended
    say("no machine runs any more")
    return 0


def _machine(key: Key, before: Snapshot, now: Snapshot) -> list[RenderableType]:
    seconds = now["seconds"] - before["seconds"]
    hosts = now["hosts"]
    on = f" on {len(hosts)} hosts" if len(hosts) > 1 else ""
    parts: list[RenderableType] = [
        f"[bold]process {key[0]}[/bold]  {now['vcpus']} vCPUs{on}, {now['memory'] >> 20} MiB, {now['state']}"
    ]
    if "mesh" in now:
        if now.get("wire"):
            parts.append(f"wire {now['wire']}")
        parts.append(_hosts(hosts, before.get("mesh", []), now["mesh"], seconds))
    if "stats" in now:
        parts.append(_vcpus(before.get("stats", []), now["stats"], seconds, several=len(hosts) > 1))
    if now.get("devices"):
        parts.append(_devices(before.get("devices", {}), now["devices"], seconds))
    if now.get("contended"):
        parts.append(_contended(now["contended"]))
    return parts


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _pairs(before: Sequence[Row], now: Sequence[Row], seconds: float) -> list[tuple[Row, dict[str, float]]]:
    old = list(before) if len(before) == len(now) else list(now)
    return [(row, rates(was, row, seconds)) for was, row in zip(old, now, strict=True)]


def _hosts(hosts: Sequence[Row], before: Sequence[Row], now: Sequence[Row], seconds: float) -> Table:
    table = _table(
        "hosts, per second",
        "host", "node", "vCPUs", "pages read", "written", "bytes", "taken", "atomics", "remote", "again",
        "IPIs", "link frames", "bytes", "refused", "clock µs",
    )  # fmt: skip
    for facts, (row, rate) in zip(hosts, _pairs(before, now, seconds), strict=True):
        table.add_row(
            str(facts["host"]),
            str(facts.get("node", "")),
            str(facts["vcpus"]),
            *(
                short(rate.get(name, 0.0))
                for name in (
                    "read_fetches", "write_fetches", "page_bytes", "invalidations", "atomics_local",
                    "atomics_remote", "atomics_retried", "interrupts_sent", "links_sent_frames",
                    "links_sent_bytes",
                )
            ),
            str(row.get("links_refused", 0)),
            f"{row.get('clock_error_ns', 0) / 1000:.1f}",
        )  # fmt: skip
    return table


def _vcpus(before: Sequence[Row], now: Sequence[Row], seconds: float, *, several: bool) -> Table:
    pairs = [(number, row, rate) for number, (row, rate) in enumerate(_pairs(before, now, seconds))]
    shown = sorted(pairs, key=lambda pair: (-busy(pair[1], pair[2]), pair[0]))[:_MOST_VCPUS]
    rest = f", the busiest {len(shown)} of {len(pairs)}" if len(shown) < len(pairs) else ""
    table = _table(
        f"vCPUs, per second{rest}",
        "vCPU", *(["host"] if several else []), "state", "busy", "translations", "interrupts", "IPIs",
        "atomics", "port I/O", "MMIO", "devices", "bytes", "in devices",
    )  # fmt: skip
    for number, row, rate in sorted(shown, key=lambda pair: pair[0]):
        atomics = sum(rate.get(f"atomics_{size}", 0.0) for size in (1, 2, 4, 8, 16))
        table.add_row(
            str(number),
            *([str(row.get("host", 0))] if several else []),
            str(row.get("state", "")),
            f"{100 * busy(row, rate):.0f} %",
            *(short(rate.get(name, 0.0)) for name in ("translations", "interrupts", "ipis_sent")),
            short(atomics),
            *(
                short(rate.get(name, 0.0))
                for name in ("exits_io", "exits_mmio", "device_accesses", "device_bytes")
            ),
            f"{rate.get('device_ns', 0.0) / 1e7:.0f} %",
        )
    return table


def _devices(before: Mapping[str, Row], now: Mapping[str, Row], seconds: float) -> Table:
    """Those that did something since the last look, or ever if none did; the busiest first."""
    rows = [(name, row, rates(before.get(name, row), row, seconds)) for name, row in now.items()]
    used = [row for row in rows if any(row[2].values())] or [row for row in rows if row[1].get("accesses")]
    used.sort(key=lambda row: (-row[2].get("access_ns", 0.0), row[0]))
    table = _table(
        "devices, per second", "device", "accesses", "bytes", "µs each", "in it", "at once", "most", "vCPUs",
        "waits", "waited", "requests", "bytes", "µs each", "queue",
    )  # fmt: skip
    for name, row, rate in used[:_MOST_DEVICES]:
        requests = sum(rate.get(kind, 0.0) for kind in _REQUESTS)
        moved = sum(rate.get(kind, 0.0) for kind in _MOVED)
        table.add_row(
            name,
            short(rate.get("accesses", 0.0)),
            short(rate.get("access_bytes", 0.0)),
            _each(rate.get("access_ns", 0.0), rate.get("accesses", 0.0)),
            f"{rate.get('access_ns', 0.0) / 1e7:.0f} %",
            str(row.get("at_once", "")),
            str(row.get("most_at_once", "")),
            str(row.get("vcpus", "")),
            short(rate.get("contended", 0.0)),
            f"{rate.get('waited_ns', 0.0) / 1e7:.0f} %",
            short(requests) if any(kind in row for kind in _REQUESTS) else "",
            short(moved) if any(kind in row for kind in _MOVED) else "",
            _each(rate.get("service_ns", 0.0) + rate.get("busy_ns", 0.0), requests),
            str(row.get("deepest", "")),
        )
    return table


def _each(ns: float, times: float) -> str:
    return f"{ns / times / 1000:.1f}" if times else ""


def _contended(rows: Sequence[Row]) -> Table:
    table = _table(
        "contended pages, since the start", "gpa", "home", "moved", "remote", "again", "local", "hosts"
    )
    for row in rows:
        table.add_row(
            str(row["gpa"]),
            str(row["home"]),
            *(short(row[name]) for name in ("moves", "remote", "retried", "local")),
            ",".join(str(host) for host in row["hosts"]),
        )
    return table
