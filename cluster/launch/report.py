# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine as a notebook shows it, and as a page of its own."""

from __future__ import annotations

import datetime
import html
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coremesh.core.errors import CoremeshError, PlatformError

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
_CONTENDED_ROWS = 16
_LIVE_SECONDS = 1.0
_STYLE = """
body { font-family: sans-serif; margin: 2em; color: #222; }
table { border-collapse: collapse; font-size: 85%; }
th, td { padding: .2em .6em; text-align: right; } tr:nth-child(even), pre { background: #f4f4f4; }
"""

#: The view of each machine that follows it: the one that was shown last.
_views: weakref.WeakKeyDictionary[Machine, Any] = weakref.WeakKeyDictionary()


def machine_bundle(machine: Machine) -> dict[str, Any]:
    """Return what a cell shows of a machine, by MIME type: a live view where the front end has widgets."""
    shown: dict[str, Any] = {"text/plain": repr(machine), "text/html": machine_html(machine)}
    widget = _live_view(machine)
    if widget is not None:
        bundle = widget._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        shown = {**data, **shown}
    return shown


def _live_view(machine: Machine) -> Any:
    """Return a widget that follows the machine once a second until its end; None outside a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return None
    try:
        import ipywidgets
    except ImportError:
        return None
    widget = ipywidgets.HTML(machine_html(machine))
    _views[machine] = widget
    follower = threading.Thread(
        target=_follow, args=(weakref.ref(machine), widget), name="machine view", daemon=True
    )
    follower.start()
    return widget


def _follow(reference: weakref.ref[Machine], widget: Any) -> None:
    pause = threading.Event()
    while not pause.wait(_LIVE_SECONDS):
        machine = reference()
        view = None if machine is None else _views.get(machine)
        if machine is None or view is None or view is not widget:
            return
        view.value = machine_html(machine)
        if machine.state not in ("running", "paused"):
            return
        del machine


def report(machine: Machine, path: str | os.PathLike[str]) -> Path:
    """Write what a machine is and does at this moment as one page of HTML that needs no other file; its path.

    Options and timings, counters of vCPUs, hosts and devices, the pages that hosts take from each other, and
    :meth:`Machine.report`. The machine goes on. Raises :class:`PlatformError` where the file cannot be
    written, :class:`MachineStateError` for a machine that was stopped, :class:`HostLostError`. Any thread.
    """
    from coremesh.cluster.machine.build import own_build

    parts = [machine_html(machine, rows=len(machine.stats())), "<h2>Devices</h2>"]
    parts.append(str(machine.device_stats().to_html(na_rep="")))
    if len(machine.shares) > 1:
        parts += ["<h2>Contended pages</h2>", str(machine.contended_pages(_CONTENDED_ROWS).to_html())]
    parts += ["<h2>What the vCPUs do</h2>", f"<pre>{html.escape(machine.report())}</pre>"]
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    parts.append(f"<p>{when}; {html.escape(str(own_build()))}</p>")
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Coremesh machine</title>"
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    place = Path(path)
    try:
        place.write_text(page, encoding="utf-8")
    except OSError as error:
        raise PlatformError(f"the report cannot be written to {place} ({error.strerror}).") from error
    return place


def machine_html(machine: Machine, rows: int = _ROWS) -> str:
    """Return a table of what the machine is, does and did, with at most `rows` vCPUs.

    Never raises because the machine has ended.
    """
    facts = {"state": machine.state, "vCPUs": machine.vcpus, "memory": f"{machine.memory >> 20} MiB"}
    for name, seconds in machine.timings.items():
        facts[name.replace("_", " ")] = "-" if seconds is None else f"{seconds:.2f} s"
    if protection := machine.facts.get("protection"):
        facts["memory guard"] = protection
    if machine.cmdline:
        facts["command line"] = machine.cmdline
    if machine.warning:
        facts["warning"] = machine.warning
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>"
        f"{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<div><b>Coremesh machine</b><table>{cells}</table>{_hosts(machine)}{_vcpus(machine, rows)}</div>"


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


def _vcpus(machine: Machine, rows: int) -> str:
    try:
        table = machine.stats()
    except CoremeshError:
        return ""
    columns = [column for column in _COLUMNS if column in table.columns]
    columns = ["host", *columns] if "host" in table.columns else columns
    head = table[columns].head(rows)
    more = f"<p>and {len(table) - rows} more: <code>stats()</code></p>" if len(table) > rows else ""
    return f"{head.to_html()}{more}"
