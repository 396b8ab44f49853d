# SPDX-License-Identifier: GPL-2.0-or-later
"""A result as one page of HTML that needs no other file: to be sent, kept, and read in ten years."""

from __future__ import annotations

import base64
import datetime
import html
import io
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coremesh.cluster.machine.build import own_build
from coremesh.core.cores import usable_cores
from coremesh.core.errors import PlatformError

if TYPE_CHECKING:
    from coremesh.cluster.experiments.result import SweepResult

_PACKAGES = ("coremesh", "ray", "pandas", "matplotlib")
_MOST_PICTURES = 6
_STYLE = """
body { font-family: sans-serif; max-width: 70em; margin: 2em auto; color: #222; }
table { border-collapse: collapse; font-size: 85%; } th, td { padding: .2em .6em; text-align: right; }
tr:nth-child(even) { background: #f4f4f4; } pre { background: #f4f4f4; padding: 1em; overflow: auto; }
.wide { overflow: auto; } img { max-width: 48%; }
"""


def require_writable(path: Path) -> None:
    """Raise :class:`PlatformError` for a page that could not be written: hours later it would be too late."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PlatformError(f"the report cannot be written to {path}: name a file in a folder that is yours.")


def write_page(result: SweepResult, path: Path, title: str) -> Path:
    """Write the page; see :meth:`SweepResult.report`."""
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(_summary(result))}</p>"]
    parts += ["<h2>Parameters</h2>", _parameters(result), "<h2>Pictures</h2>", *_pictures(result)]
    parts += ["<h2>Means</h2>", _wide(_means(result)), "<h2>All trials</h2>", _wide(_all_trials(result))]
    if result.failures:
        parts.append("<h2>Failures</h2>")
        for trial, text in result.failures.items():
            parts.append(f"<h3>{html.escape(trial)}</h3><pre>{html.escape(text)}</pre>")
    parts += ["<h2>Versions</h2>", _wide(_versions(result))]
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise PlatformError(f"the report cannot be written to {path} ({error.strerror}).") from error
    return path


def _summary(result: SweepResult) -> str:
    day = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    failed = len(result.failures)
    return f"{len(result)} trials, {failed} failed; written {day}."


def _parameters(result: SweepResult) -> str:
    table = result.table
    rows = [
        f"<tr><th>{html.escape(name)}</th><td>"
        f"{html.escape(', '.join(str(value) for value in table[name].drop_duplicates()))}</td></tr>"
        for name in (*result.names, "repeat")
    ]
    return f"<table>{''.join(rows)}</table>"


def _pictures(result: SweepResult) -> list[str]:
    try:
        from coremesh.cluster.experiments.plots import new_axes, numeric_parameters

        new_axes().figure.clear()
    except PlatformError as error:
        return [f"<p>{html.escape(str(error))}</p>"]
    import matplotlib.pyplot as plt

    table = result.good
    axes = numeric_parameters(table, result.names)
    if not axes:
        return ["<p>No parameter is a number that was varied.</p>"]
    x = axes[0]
    others = [name for name in result.names if name != x and table[name].nunique() > 1]
    pictures = []
    for y in _measures(result)[:_MOST_PICTURES]:
        drawn: Any = result.plot(x, y, by=others[0] if others else None)
        data = io.BytesIO()
        drawn.figure.savefig(data, format="png", dpi=100, bbox_inches="tight")
        plt.close(drawn.figure)
        encoded = base64.b64encode(data.getvalue()).decode()
        pictures.append(
            f"<img alt='{html.escape(y)} over {html.escape(x)}' src='data:image/png;base64,{encoded}'>"
        )
    return pictures


def _measures(result: SweepResult) -> list[str]:
    """The trial's own numbers, then the clocks."""
    table = result.good
    own = [*result.measures, "host_seconds", "guest_seconds", "boot_seconds"]
    return [
        name
        for name in own
        if name in table and table[name].dtype.kind in "iuf" and table[name].notna().any()
    ]


def _means(result: SweepResult) -> Any:
    names = list(result.names)
    measures = _measures(result)
    if not names or not measures:
        return result.good[measures].agg(["mean", "std"])
    return result.good.groupby(names, sort=True)[measures].agg(["mean", "std"]).round(4)


def _all_trials(result: SweepResult) -> Any:
    return result.table.drop(columns=["build", "image"])


def _versions(result: SweepResult) -> Any:
    import pandas

    table = result.table
    rows = {"build (writer of this page)": str(own_build())}
    for column, what in (
        ("build", "builds of the trials"),
        ("image", "guest images"),
        ("nodes", "computers"),
    ):
        rows[what] = "; ".join(str(value) for value in table[column].dropna().drop_duplicates())
    for package in _PACKAGES:
        try:
            rows[package] = version(package)
        except PackageNotFoundError:
            rows[package] = "not installed"
    rows["Python"] = platform.python_version()
    rows["kernel of this computer"] = platform.release()
    rows["processor"] = _processor()
    rows["cores"] = str(usable_cores())
    return pandas.DataFrame({"": rows})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")


def _wide(table: Any) -> str:
    return f"<div class='wide'>{table.to_html(na_rep='')}</div>"
