# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine as a notebook shows it."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from coremesh.core.errors import CoremeshError

if TYPE_CHECKING:
    from coremesh.cluster.launch.machine import Machine

_HOST_COLUMNS = (
    "read_fetches",
    "write_fetches",
    "page_bytes",
    "invalidations",
    "atomics_local",
    "atomics_remote",
    "links_sent_bytes",
    "clock_error_ns",
)
_COLUMNS = ("state", "translations", "interrupts", "kicks", "halted_ns", "run_ns")
_ROWS = 16


def machine_html(machine: Machine) -> str:
    """Return a table of what the machine is, does and did. Never raises because the machine has ended."""
    facts = {"state": machine.state, "vCPUs": machine.vcpus, "memory": f"{machine.memory >> 20} MiB"}
    for name, seconds in machine.timings.items():
        facts[name.replace("_", " ")] = "-" if seconds is None else f"{seconds:.2f} s"
    if protection := machine.facts.get("protection"):
        facts["memory guard"] = protection
    if machine.cmdline:
        facts["command line"] = machine.cmdline
    if machine.warning:
        facts["warning"] = machine.warning
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>"
        f"{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<div><b>Coremesh machine</b><table>{rows}</table>{_hosts(machine)}{_vcpus(machine)}</div>"


def _hosts(machine: Machine) -> str:
    if len(machine.shares) == 1:
        return ""
    try:
        table = machine.mesh_stats()
    except CoremeshError:
        return ""
    places = machine.facts["hosts"]
    table.insert(0, "vCPUs", [place["vcpus"] for place in places])
    table.insert(0, "node", [place["node"] for place in places])
    columns = ["node", "vCPUs", *(column for column in _HOST_COLUMNS if column in table.columns)]
    return str(table[columns].to_html())


def _vcpus(machine: Machine) -> str:
    try:
        table = machine.stats()
    except CoremeshError:
        return ""
    columns = [column for column in _COLUMNS if column in table.columns]
    columns = ["host", *columns] if "host" in table.columns else columns
    head = table[columns].head(_ROWS)
    more = f"<p>and {len(table) - _ROWS} more: <code>stats()</code></p>" if len(table) > _ROWS else ""
    return f"{head.to_html()}{more}"
