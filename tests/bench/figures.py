# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of two engines side by side: the best of several rounds of either, their ratio, and the target."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import coremesh
from coremesh.cluster.experiments import qemu


@dataclass
class Figure:
    """One measured quantity, less is better; ``samples`` hold a value of each round by engine.

    ``cpu`` holds the processor time in seconds that the engine's process took for it. ``target`` says what is
    asked for: of the ratio if it names one ('ratio >= 1.1', QEMU's value over ours; 'share <= 0.8', ours over
    QEMU's), else of our own value ('<= 18').
    """

    name: str
    unit: str
    target: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def best(self, engine: str) -> float | None:
        """The least of an engine's rounds: what the host's other load disturbed least."""
        return min(self.samples.get(engine, []), default=None)

    def ratio(self) -> float | None:
        """QEMU's best value over Coremesh's."""
        return _over(self.best("qemu"), self.best("coremesh"))

    def cpu_ratio(self) -> float | None:
        """The same of processor time."""
        theirs, ours = (min(self.cpu.get(engine, []), default=None) for engine in ("qemu", "coremesh"))
        return _over(theirs, ours)

    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none or no value."""
        if not self.target:
            return None
        *what, sign, limit = self.target.split()
        value = self.best("coremesh")
        if what:
            ratio = self.ratio()
            value = 1 / ratio if ratio and what == ["share"] else ratio
        if value is None:
            return None
        return value >= float(limit) if sign == ">=" else value <= float(limit)


class Figures:
    """The table of one command, in the order of its first values."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._rows: dict[str, Figure] = {}

    def add(
        self, engine: str, name: str, value: float, unit: str, target: str = "", cpu: float | None = None
    ) -> None:
        """Take one round's value; ``cpu`` is the processor time that it took the engine, in seconds."""
        row = self._rows.setdefault(name, Figure(name, unit, target))
        row.samples.setdefault(engine, []).append(value)
        if cpu is not None:
            row.cpu.setdefault(engine, []).append(cpu)

    def add_marked(self, trial: Mapping[Any, Any], target: str) -> None:
        """Take the microseconds that a trial's command printed, and what its 'marks' say of each."""
        for column, value in trial.items():
            cpu = trial.get(f"marks.{column}.cpu_seconds")
            if str(column).endswith("_us") and not math.isnan(value):
                known = None if cpu is None or math.isnan(cpu) else cpu
                self.add(trial["engine"], column.removesuffix("_us"), value, "us", target, cpu=known)

    def __iter__(self) -> Iterator[Figure]:
        return iter(self._rows.values())

    def show(self) -> str:
        """The table as Markdown."""
        head = ["figure", "unit", "Coremesh", "QEMU", "QEMU / Coremesh", "by processor time", "target", ""]
        lines = [f"{self.title}\n", "| " + " | ".join(head) + " |", "|---|---|---:|---:|---:|---:|---|---|"]
        for row in self:
            verdict = {True: "met", False: "missed", None: ""}[row.met()]
            best = [_number(row.best("coremesh")), _number(row.best("qemu"))]
            cells = [row.name, row.unit, *best, _number(row.ratio(), 2), _number(row.cpu_ratio(), 2)]
            lines.append("| " + " | ".join([*cells, row.target, verdict]) + " |")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Keep every round's value as JSON."""
        path.write_text(json.dumps({"title": self.title, "rows": [asdict(row) for row in self]}, indent=1))


def options(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that all commands share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="the engines take turns this many times")
    parser.add_argument("--json", type=Path, help="write every round's values to this file")
    return parser


def engines() -> list[str]:
    """Coremesh, and QEMU where there is one. Raises SystemExit when the one that was named is not there."""
    if not qemu.installed() and "COREMESH_BENCH_QEMU" in os.environ:
        raise SystemExit(f"{qemu.program()[0]}, which COREMESH_BENCH_QEMU names, is no command")
    return ["coremesh", *(["qemu"] if qemu.installed() else [])]


def engines_apart(vcpus: int) -> dict[str, Any]:
    """Parameters of a sweep: the engines, of which Coremesh has its devices on a host without vCPUs."""
    hosts = {"coremesh": [0, vcpus], "qemu": 1}
    return {"engine, hosts": [(engine, hosts[engine]) for engine in engines()]}


def qemu_version() -> str:
    """The first line of what QEMU says of itself; empty without one."""
    if "qemu" not in engines():
        return ""
    done = subprocess.run([*qemu.program(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def trials(work: Any, parameters: dict[str, Any], rounds: int, **options: Any) -> Iterator[dict[Any, Any]]:
    """Sweep, one trial at a time; the rows of trials that succeeded, also of a sweep that was interrupted.

    Raises SystemExit at the end with what went wrong in the others.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "trials.csv"
        interruption: BaseException | None = None
        try:
            result = coremesh.sweep(work, parameters, repeats=rounds, at_once=1, out=out, **options)
        except (KeyboardInterrupt, SystemExit) as error:
            interruption, result = error, coremesh.SweepResult.read(out)
    yield from result.good.to_dict("records")
    if interruption is not None:
        raise interruption
    if result.failures:
        sys.exit("\n".join(result.failures.values()))


def charged(row: Mapping[Any, Any], column: str) -> float:
    """Return a trial's number; 0 where its engine, or its form, has none."""
    value = float(row.get(column, 0.0))
    return 0.0 if math.isnan(value) else value


@contextmanager
def reported(title: str, arguments: argparse.Namespace) -> Iterator[Figures]:
    """The figures to fill; the table is printed at the end, also when a round failed or was interrupted."""
    version = qemu_version()
    figures = Figures(f"{title}, beside {version}" if version else title)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        yield figures
    finally:
        print(figures.show())
        if arguments.json is not None:
            figures.save(arguments.json)


def _over(theirs: float | None, ours: float | None) -> float | None:
    return theirs / ours if theirs and ours else None


def _number(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return ""
    if digits is None:
        digits = 0 if value >= 1000 else 1 if value >= 100 else 2
    return f"{value:.{digits}f}"
