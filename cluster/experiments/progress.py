# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person sees of a running sweep: a bar in a terminal, an output of a notebook, else lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from coremesh.cluster.experiments.plan import Trial

_QUIET_SECONDS = 10.0  # between lines where there is no terminal


class Progress:
    """Counts trials and says how long the rest takes. This one shows nothing."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.failed, self._run = total, done, 0, 0
        self.at_work = 0
        self._begun, self._kept = time.monotonic(), done

    def running(self, count: int) -> None:
        """The number of trials that run now."""
        self.at_work = count
        self._show()

    def ended(self, trial: Trial, row: Mapping[str, Any], *, again: bool) -> None:
        """One has ended; with `again` it failed and is tried once more."""
        if again:
            self._tell(f"{trial}: {row['error']} It is tried again.")
        else:
            self.done += 1
            if row["error"] is not None:
                self.failed += 1
                self._tell(f"{trial}: {row['error']}")
        self._show()

    @property
    def left_seconds(self) -> float | None:
        """How long the rest will take, as long as trials did until now; None before the first has ended."""
        ended = self.done - self._kept
        if ended == 0:
            return None
        return (time.monotonic() - self._begun) / ended * (self.total - self.done)

    def __str__(self) -> str:
        left = self.left_seconds
        words = [f"{self.done} of {self.total} trials done", f"{self.at_work} running"]
        words += [f"{self.failed} failed"] if self.failed else []
        words += [f"{_span(left)} left"] if left is not None and self.done < self.total else []
        return ", ".join(words)

    def _show(self) -> None: ...

    def _tell(self, text: str) -> None: ...

    def _close(self) -> None: ...


class _Lines(Progress):
    """A line from time to time, for a log."""

    _said = 0.0

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._said >= _QUIET_SECONDS and self.done < self.total:
            self._said = now
            _say(str(self))

    def _tell(self, text: str) -> None:
        _say(text)

    def _close(self) -> None:
        _say(str(self))


class _Bar(Progress):
    """A bar of rich's, in a terminal."""

    def __init__(self, total: int, done: int) -> None:
        super().__init__(total, done)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
        self._task = self._bars.add_task(str(self), total=total, completed=done)
        self._bars.start()

    def _show(self) -> None:
        self._bars.update(self._task, completed=self.done, description=str(self))

    def _tell(self, text: str) -> None:
        from rich.markup import escape

        self._bars.console.print(escape(text), highlight=False)

    def _close(self) -> None:
        self._show()
        self._bars.stop()


class _Cell(Progress):
    """One output of a notebook's cell, rewritten in place; it works without widgets, as in nbclient."""

    def __init__(self, total: int, done: int) -> None:
        super().__init__(total, done)
        import IPython.display

        display: Any = IPython.display.display  # without annotations
        self._told: list[str] = []
        self._last = ""
        self._handle: Any = display(self._html(), display_id=True)

    def _html(self) -> Any:
        import html

        import IPython.display

        shown: Any = IPython.display.HTML
        bar = f"<progress max='{self.total}' value='{self.done}'></progress> {html.escape(str(self))}"
        return shown(bar + "".join(f"<br>{html.escape(line)}" for line in self._told))

    def _show(self) -> None:
        if str(self) != self._last:
            self._last = str(self)
            self._handle.update(self._html())

    def _tell(self, text: str) -> None:
        self._told.append(text)

    def _close(self) -> None:
        self._show()


@contextlib.contextmanager
def shown_progress(total: int, done: int, *, enabled: bool) -> Iterator[Progress]:
    """Show the progress of a sweep of `total` trials, of which `done` need not run, as suits the place."""
    progress: Progress
    if not enabled:
        progress = Progress(total, done)
    elif in_notebook():
        progress = _Cell(total, done)
    elif sys.stderr.isatty():
        progress = _Bar(total, done)
    else:
        progress = _Lines(total, done)
    try:
        yield progress
    finally:
        progress._close()


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _say(text: str) -> None:
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    print(f"coremesh: {shown}", file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
