# SPDX-License-Identifier: GPL-2.0-or-later
"""What the numbers of a machine mean: the names in ``Machine.stats`` and ``Machine.mesh_stats``.

The native core declares each counter once, where it is counted, with its unit and what it counts; this reads
the declarations. ``python -m coremesh.core.counters`` prints them as the page ``core/native/COUNTERS.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coremesh.core._native import counter_table

_PLACES = {
    "stats": "A vCPU: a row of `Machine.stats()`",
    "mesh_stats": "A host of several: a row of `Machine.mesh_stats()`",
    "links": "A link to another host: summed over the peers as `links_NAME` in `Machine.mesh_stats()`",
    "code_counters": "Guest RAM of a host: `Host.code_counters()`",
}


@dataclass(frozen=True)
class Counter:
    """One number: `place` is a key of `_PLACES`; `unit` is '' if it is no amount."""

    place: str
    name: str
    unit: str
    text: str


def counters() -> list[Counter]:
    """Return every number that a host gives, in the order in which it gives them."""
    return [Counter(*row) for row in counter_table()]


def page() -> str:
    """Return the page of all counters, as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# What a machine counts"
    yield ""
    yield "Made by `python -m coremesh.core.counters` from the declarations in the sources."
    yield "All count from the start of the machine; what is the state of this moment says so."
    for place, title in _PLACES.items():
        yield ""
        yield f"## {title}"
        yield ""
        yield "| name | unit | what it counts |"
        yield "|---|---|---|"
        for counter in counters():
            if counter.place == place:
                yield f"| `{counter.name}` | {counter.unit} | {counter.text} |"


if __name__ == "__main__":
    print(page(), end="")
