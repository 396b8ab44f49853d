# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures beside a floor or beside another form of the same machine, as one table of Markdown."""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Row:
    """One figure: a value of each round, and what it is held against. ``aim`` is of the ratio, or empty."""

    name: str
    unit: str
    aim: str = ""
    values: list[float] = field(default_factory=list)
    against: list[float] = field(default_factory=list)

    def ratio(self) -> float | None:
        """The median of the values over that of what they are held against."""
        if not self.values or not self.against or not statistics.median(self.against):
            return None
        return statistics.median(self.values) / statistics.median(self.against)

    def met(self) -> bool | None:
        """Whether the aim is reached; None without one."""
        ratio = self.ratio()
        if not self.aim or ratio is None:
            return None
        sign, limit = self.aim.split()
        return ratio >= float(limit) if sign == ">=" else ratio <= float(limit)


class Table:
    """The rows of one command; ``against`` names what the values are held against."""

    def __init__(self, title: str, against: str) -> None:
        self.title = title
        self.against = against
        self.rows: dict[str, Row] = {}

    def add(self, name: str, value: float, unit: str, against: float | None = None, aim: str = "") -> None:
        """Take one round's value."""
        row = self.rows.setdefault(name, Row(name, unit, aim))
        row.values.append(value)
        if against is not None:
            row.against.append(against)

    def show(self) -> str:
        """The table as Markdown, medians of the rounds."""
        head = ["figure", "unit", "value", self.against, "ratio", "aim", ""]
        lines = [f"{self.title}\n", f"| {' | '.join(head)} |", "|---|---|---:|---:|---:|---|---|"]
        for row in self.rows.values():
            verdict = {True: "met", False: "missed", None: ""}[row.met()]
            ratio = row.ratio()
            cells = [
                row.name,
                row.unit,
                _number(statistics.median(row.values)),
                _number(statistics.median(row.against)) if row.against else "",
                "" if ratio is None else f"{ratio:.2f}",
                row.aim,
                verdict,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Keep every round's value as JSON."""
        rows = [asdict(row) for row in self.rows.values()]
        path.write_text(json.dumps({"title": self.title, "against": self.against, "rows": rows}, indent=1))


def say(text: str) -> None:
    """A word on the way, to the person who waits."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def shown(title: str, against: str, arguments: argparse.Namespace) -> Iterator[Table]:
    """The table to fill; printed at the end, also when a round failed or was interrupted."""
    table = Table(title, against)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        yield table
    finally:
        print(table.show())
        if arguments.json is not None:
            table.save(arguments.json)


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
