# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of two peers side by side: the best of several rounds for either, their ratio, and the target."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Figure:
    """One measured quantity, less is better; ``samples`` hold a value of each round by peer.

    ``cpu`` holds the processor time in seconds that the peer's process took for it. ``target`` says what is
    asked for: of the ratio if it names one ('ratio >= 1.1', QEMU's value over ours; 'share <= 0.8', ours over
    QEMU's), else of our own value ('<= 18').
    """

    name: str
    unit: str
    target: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)

    def best(self, peer: str) -> float | None:
        """The least of a peer's rounds: what the host's other load disturbed least."""
        return min(self.samples.get(peer, []), default=None)

    def ratio(self) -> float | None:
        """QEMU's best value over Coremesh's."""
        return _over(self.best("qemu"), self.best("coremesh"))

    def cpu_ratio(self) -> float | None:
        """The same of processor time."""
        theirs, ours = (min(self.cpu.get(peer, []), default=None) for peer in ("qemu", "coremesh"))
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
        self, peer: str, name: str, value: float, unit: str, target: str = "", cpu: float | None = None
    ) -> None:
        """Take one round's value; ``cpu`` is the processor time that it took the peer, in seconds."""
        row = self._rows.setdefault(name, Figure(name, unit, target))
        row.samples.setdefault(peer, []).append(value)
        if cpu is not None:
            row.cpu.setdefault(peer, []).append(cpu)

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
    parser.add_argument("--rounds", type=int, default=rounds, help="the peers take turns this many times")
    parser.add_argument("--json", type=Path, help="write every round's values to this file")
    return parser


@contextmanager
def reported(title: str, arguments: argparse.Namespace) -> Iterator[Figures]:
    """The figures to fill; the table is printed at the end, also when a round failed or was interrupted."""
    import peers  # which builds on the package, as reading this table does not

    version = peers.qemu_version()
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
