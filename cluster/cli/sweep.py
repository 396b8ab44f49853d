# SPDX-License-Identifier: GPL-2.0-or-later
"""``coremesh sweep FILE.toml``: what the command does; commands.py has its options."""

from __future__ import annotations

from pathlib import Path

from coremesh.cluster.cli.process import printable, say
from coremesh.cluster.experiments.page import require_writable
from coremesh.cluster.experiments.result import SweepResult
from coremesh.cluster.experiments.sweep import dry_run
from coremesh.cluster.experiments.sweep_file import read_sweep

INTERRUPTED_STATUS = 130
_SHOWN_COLUMNS = 12


def run_sweep(
    file: Path,
    *,
    resume: bool,
    only_list: bool,
    repeats: int | None,
    out: Path | None,
    at_once: int | None,
    address: str | None,
    report: Path | None,
) -> int:
    """Run it, print its table, and return the exit status: 1 if a trial failed."""
    sweep = read_sweep(file, repeats=repeats, out=out, at_once=at_once, address=address)
    if only_list:
        count = 0
        for line in dry_run(sweep, resume=resume):
            count += 1
            print(printable(line))
        print(f"{count} trials would run; nothing was started.")
        return 0
    if report is not None:
        require_writable(report)
    try:
        result = sweep.run(resume=resume)
    except KeyboardInterrupt:
        _say_where(sweep.out)
        return INTERRUPTED_STATUS
    except SystemExit:
        _say_where(sweep.out)
        raise
    _print(result)
    if report is not None:
        result.report(report, title=file.stem)
        say(f"the report is {report}")
    if sweep.out is not None:
        say(f"the table is {sweep.out}")
    return 1 if result.failures else 0


def _say_where(out: Path | None) -> None:
    if out is not None:
        say(f"interrupted; what is done is in {out}, and --resume goes on from there")


def _print(result: SweepResult) -> None:
    from rich.console import Console
    from rich.table import Table

    names, table = shown_columns(result), result.table
    drawn = Table()
    for name in names:
        drawn.add_column(name, justify="right", overflow="fold")
    for row in table[names].itertuples(index=False):
        drawn.add_row(*(_cell(name, value) for name, value in zip(names, row, strict=True)))
    Console().print(drawn)
    if len(names) < len(table.columns):
        say(f"{len(table.columns) - len(names)} more columns are in the table")


def shown_columns(result: SweepResult) -> list[str]:
    """Return what a terminal has room for: what was asked, what was found, and that a trial failed."""
    table = result.table
    names = [*result.names, "repeat", *result.measures, "boot_seconds", "host_seconds", "guest_seconds"]
    alike = {name for name in ("repeat", "nodes", "attempts") if table[name].nunique() <= 1}
    names = [name for name in (*names, "nodes", "attempts") if name not in alike][:_SHOWN_COLUMNS]
    return [*names, "error"] if result.failures else names


def _cell(name: str, value: object) -> str:
    if name == "error" and isinstance(value, str):
        value = value.partition(":")[0]  # all of it was told as it happened, and is in the table
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return "" if value is None else printable(str(value))
