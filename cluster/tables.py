# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's counters as DataFrames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coremesh.core.memory_map import HIGH_RAM_BASE, PAGE_BYTES, MemoryMap

if TYPE_CHECKING:
    import pandas
    from coremesh.core.symbols import SymbolTable
    from coremesh.core.topology import Topology

Rows = list[dict[str, Any]]

_COUNTS = ("moves", "local", "remote", "retried")


def vcpu_table(hosts: Sequence[Rows]) -> pandas.DataFrame:
    """One row a vCPU, numbered through all hosts; a column 'host' when there are several."""
    import pandas

    rows = [
        {"host": number, **row} if len(hosts) > 1 else row
        for number, host in enumerate(hosts)
        for row in host
    ]
    table = pandas.DataFrame(rows)
    table.index.name = "vcpu"
    return table


def mesh_table(hosts: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """One row a host; what the engine gives in groups becomes 'group_name', what it lists by peer a sum."""
    import pandas

    table = pandas.DataFrame([_flat(host) for host in hosts])
    table.index.name = "host"
    return table


def contended_table(
    hosts: Sequence[Rows], count: int, topology: Topology, memory: MemoryMap, symbols: SymbolTable | None
) -> pandas.DataFrame:
    """One row a page, those that changed hands or were operated on from afar most often first.

    Each host has counted what its own threads met; a page's numbers are the sums over all. 'hosts' lists who
    met it at all.
    """
    import pandas

    pages: dict[int, dict[str, Any]] = {}
    for number, rows in enumerate(hosts):
        for row in rows:
            page = int(row["page"])
            total = pages.setdefault(page, {"hosts": [], **dict.fromkeys(_COUNTS, 0)})
            total["hosts"].append(number)
            for name in _COUNTS:
                total[name] += int(row.get(name, 0))
    worst = sorted(pages, key=lambda page: (-pages[page]["moves"] - pages[page]["remote"], page))[:count]
    columns = ["gpa", "home", *_COUNTS, "hosts", *(["symbols"] if symbols is not None else [])]
    found = []
    for page in worst:
        gpa = _gpa(page, memory)
        row = {"gpa": f"{gpa:#x}", "home": topology.home_of(page), **pages[page]}
        if symbols is not None:
            row["symbols"] = ", ".join(symbols.within(gpa, PAGE_BYTES))
        found.append(row)
    table = pandas.DataFrame(found, columns=columns)
    table.index.name = "rank"
    return table


def _gpa(page: int, memory: MemoryMap) -> int:
    offset = page * PAGE_BYTES
    return offset if offset < memory.low_ram_bytes else offset - memory.low_ram_bytes + HIGH_RAM_BASE


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
