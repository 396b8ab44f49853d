# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person sees while waiting: on standard error, moving only where there is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from coremesh.cluster.machine.images.packages import Progress


@contextlib.contextmanager
def fetch_progress() -> Iterator[Progress]:
    """Yield a callback that draws a bar for each thing fetched; without a terminal it prints a line.

    Nothing is drawn or printed until the first call: a cached image is got in silence.
    """
    if not sys.stderr.isatty():
        named: set[str] = set()

        def tell(what: str, done: float) -> None:
            if what not in named:
                named.add(what)
                print(f"coremesh: getting the Debian image: {what}", file=sys.stderr, flush=True)

        yield tell
        return

    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}

    def draw(what: str, done: float) -> None:
        if not tasks:
            bars.start()
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=1.0)
        bars.update(tasks[what], completed=done)

    try:
        yield draw
    finally:
        bars.stop()


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show `text` with a spinner on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
