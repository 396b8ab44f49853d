# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's counters, of all hosts put together: as rows, and as DataFrames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coremesh.core.memory_layout import PAGE_BYTES, MemoryLayout
from coremesh.core.symbols import MOST_NAMES

if TYPE_CHECKING:
    import pandas
    from coremesh.core.symbols import SymbolTable
    from coremesh.core.topology import Topology

Rows = list[dict[str, Any]]

_NAMES = ("host", "peer", "apic_id")  # columns that number things
# Columns of devices that are of one moment, or the most that was seen: they have no sum.
_LEVELS = ("at_once", "most_at_once", "vcpus", "deepest", "keys_waiting")
#: What is counted of a page.
CONTENTION = ("moves", "remote", "retried", "local")


def vcpu_rows(hosts: Sequence[Rows]) -> Rows:
    """One row a vCPU, in the order of hosts; with 'host' when there are several."""
    if len(hosts) == 1:
        return hosts[0]
    return [{"host": number, **row} for number, rows in enumerate(hosts) for row in rows]


def with_devices(rows: Rows, uses: Sequence[tuple[str, int | None, int, int, int]]) -> Rows:
    """The rows of vCPUs with what they did to all devices, of (device, vCPU, accesses, bytes, ns) each."""
    names = ("device_accesses", "device_bytes", "device_ns")
    found = [{**row, **dict.fromkeys(names, 0)} for row in rows]
    for _, vcpu, *counts in uses:
        if vcpu is not None and vcpu < len(found):
            for name, count in zip(names, counts, strict=True):
                found[vcpu][name] += count
    return found


def mesh_rows(hosts: Sequence[Mapping[str, Any]]) -> Rows:
    """One row a host; what the engine gives in groups becomes 'group_name', what it lists by peer a sum."""
    rows = [_flat(host) for host in hosts]
    # What only the host with the devices counts, or only the others, is 0 elsewhere.
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, 0) for name in names} for row in rows]


def contended_rows(
    hosts: Sequence[Rows],
    count: int,
    topology: Topology,
    memory: MemoryLayout,
    symbols: SymbolTable | None = None,
) -> Rows:
    """One row a page, those that changed hands or were operated on from afar most often first.

    Each host has counted what its own threads met; a page's numbers are the sums over all. 'hosts' lists the
    hosts that used it, 'users' the instructions that needed it most often; these have names, and there is
    'symbols', when a table of them is given.
    """
    pages: dict[int, dict[str, Any]] = {}
    users: dict[int, Counter[int]] = {}
    for number, rows in enumerate(hosts):
        for row in rows:
            gpa = int(row["gpa"])
            total = pages.setdefault(gpa, {**dict.fromkeys(CONTENTION, 0), "hosts": []})
            total["hosts"].append(number)
            users.setdefault(gpa, Counter()).update(dict(row.get("users", ())))
            for name in CONTENTION:
                total[name] += int(row.get(name, 0))
    worst = sorted(pages, key=lambda gpa: (-pages[gpa]["moves"] - pages[gpa]["remote"], gpa))[:count]
    found = []
    for gpa in worst:
        home = topology.home_of(memory.offset_of(gpa) // PAGE_BYTES)
        row = {"gpa": f"{gpa:#x}", "home": home, **pages[gpa]}
        places = [place for place, _ in users[gpa].most_common(MOST_NAMES)]
        row["users"] = ", ".join(f"{place:#x}" if symbols is None else symbols.at(place) for place in places)
        if symbols is not None:
            row["symbols"] = ", ".join(symbols.within(gpa, PAGE_BYTES))
        found.append(row)
    return found


def sums(rows: Rows) -> dict[str, float]:
    """Return the sum of each column that counts something."""
    found: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in _NAMES:
                found[name] = found.get(name, 0) + value
    return found


def device_sums(devices: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Return what all devices counted together, and what each did as 'device.column'."""
    counted = {
        device: {name: value for name, value in row.items() if name not in _LEVELS}
        for device, row in devices.items()
    }
    each = {f"{device}.{name}": value for device, row in counted.items() for name, value in row.items()}
    return sums(list(counted.values())) | each


def as_table(rows: Rows, index: str, columns: Sequence[str] = ()) -> pandas.DataFrame:
    """A DataFrame of `rows` with a named index; `columns` it has even when there are no rows."""
    import pandas

    table = pandas.DataFrame(rows, columns=None if rows else list(columns))
    table.index.name = index
    return table


def _flat(host: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in host.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}_{inner}": number for inner, number in _flat(value).items()}
        elif isinstance(value, Sequence) and not isinstance(value, str):
            flat |= {f"{name}_{inner}": number for inner, number in _sums(value).items()}
        else:
            flat[name] = value
    return flat


def _sums(rows: Sequence[Any]) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    for row in rows:
        for name, value in (_flat(row) if isinstance(row, Mapping) else {}).items():
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and name not in ("host", "peer")
            ):
                sums[name] = sums.get(name, 0) + value
    return sums
