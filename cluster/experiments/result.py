# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sweep has found: one row a trial, as a DataFrame, a file, pictures and a page."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coremesh.cluster.experiments.journal import Row, journal_of, read
from coremesh.cluster.experiments.plan import text_of
from coremesh.core.errors import ConfigurationError, PlatformError, near, shown

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

FORMATS: Final = (".parquet", ".csv")
_CLOCKS = (
    "boot_seconds", "boot_cpu_seconds", "host_seconds", "guest_seconds", "cpu_seconds", "start_seconds",
    "wall_seconds",
)  # fmt: skip
_LAST = ("seed", "build", "image", "nodes", "attempts", "error")


class SweepResult:
    """The rows of a sweep. `table` is a DataFrame with one row a trial, its last attempt.

    Columns: the parameters, 'repeat', the numbers that the trial returned, 'boot_seconds' (start of emulation
    to the shell), 'host_seconds' and 'guest_seconds' (the work, on the host's and on the guest's own clock,
    which commands before and after ask for: some hundredths of a second are theirs),
    'boot_cpu_seconds' and 'cpu_seconds' (processor time of the machine's process in the boot and in the work,
    all threads, its devices among them; of several hosts there is none),
    'start_seconds' (the machine's start before emulation), 'wall_seconds' (the trial in all), counters as
    'stats.interrupts', 'seed', 'build', 'image' (of kernel and initramfs), 'nodes' (names of the computers),
    'attempts', and 'error', empty for a trial that succeeded.
    """

    def __init__(self, rows: Iterable[Row], names: Sequence[str]) -> None:
        self._rows = list(rows)
        self.names = tuple(names)

    @classmethod
    def read(cls, out: str | os.PathLike[str]) -> SweepResult:
        """Return what lies on disk, of a sweep that has ended, was killed, or runs.

        `out` is as it was given to :func:`sweep`. Raises :class:`ConfigurationError`.
        """
        begun, rows = read(journal_of(Path(out)))
        return cls(rows, tuple((begun or {}).get("parameters", ())))

    @property
    def table(self) -> pandas.DataFrame:
        """One row a trial, in the order in which they ended."""
        import pandas

        rows = [_flat(row) for row in rows_by_trial(self._rows).values()]
        counters = sorted({name for row in rows for name in row if "." in name})
        columns = [*self.names, "repeat", *self.measures, *_CLOCKS, *counters, *_LAST]
        return pandas.DataFrame(rows, columns=columns)

    @property
    def failures(self) -> dict[str, str]:
        """What went wrong, by trial: the traceback from the trial's process, or the error alone."""
        return {
            row["key"]: row.get("traceback") or row["error"]
            for row in rows_by_trial(self._rows).values()
            if row["error"] is not None
        }

    @property
    def good(self) -> pandas.DataFrame:
        """The rows of :attr:`table` without an error."""
        table = self.table
        return table[table["error"].isna()]

    @property
    def measures(self) -> list[str]:
        """The names of the numbers that trials returned, in the order in which they came."""
        names: dict[str, None] = {}
        for row in rows_by_trial(self._rows).values():
            names |= dict.fromkeys(row["metrics"])
        return list(names)

    def save(self, out: Path) -> None:
        """Write :attr:`table` to `out`, whole or not at all."""
        save_table(self.table, out)

    def compare(self, value: str, by: str = "engine", base: Any = "qemu") -> pandas.DataFrame:
        """Return the means of `value` side by side for each value of the parameter `by`, and their ratios.

        One row for each combination of the other parameters. The columns '... / base' have the ratio to
        `base`.
        """
        table = self._numbers(value, [by])
        others = [name for name in self.names if name != by]
        if base not in set(table[by]):
            raise ConfigurationError(f"no trial succeeded with {by}={shown(base)}.")
        import pandas

        index: list[Any] = [table[name] for name in others] or [
            pandas.Series("", index=table.index, name="all")
        ]
        wide = table.pivot_table(index=index, columns=by, values=value, aggfunc="mean")
        for name in [name for name in wide.columns if name != base]:
            wide[f"{name} / {base}"] = wide[name] / wide[base]
        wide.columns.name = None
        return wide

    def plot(
        self, x: str, y: str, by: str | None = None, *, ideal: bool = True, axes: Axes | None = None
    ) -> Axes:
        """Plot the mean of `y` over the parameter `x`, one line for each value of `by`, and return the axes.

        Error bars are one standard deviation of the repeats. `ideal` draws the line of perfect scaling from
        the mean at the smallest `x`. Needs matplotlib, as of the extra 'notebook'.
        """
        from coremesh.cluster.experiments.plots import plot_lines

        chosen = [name for name in (x, by) if name is not None]
        return plot_lines(self._numbers(y, chosen), x, y, by, ideal=ideal, axes=axes)

    def report(self, path: str | os.PathLike[str], *, title: str = "Coremesh sweep") -> Path:
        """Write one page of HTML that needs no other file, and return its path.

        It has the parameters, pictures, tables, failures and versions.
        """
        from coremesh.cluster.experiments.page import write_page

        return write_page(self, Path(path), title)

    def __len__(self) -> int:
        return len(rows_by_trial(self._rows))

    def __repr__(self) -> str:
        return f"<SweepResult: {len(self)} trials, {len(self.failures)} failed>"

    def _repr_html_(self) -> str:
        failed = len(self.failures)
        head = f"{len(self)} trials" + (
            f", <b>{failed} failed</b>: see <code>failures</code>" if failed else ""
        )
        table: Any = self.table
        return f"<div>{head}</div>{table._repr_html_()}"

    def _numbers(self, value: str, parameters: Sequence[str]) -> pandas.DataFrame:
        table = self.good
        for name in parameters:
            if name not in table.columns:
                raise ConfigurationError(
                    f"the result has no column {shown(name)}.{near(name, table.columns)} There are "
                    f"{_list(table.columns)}."
                )
        if value not in table.columns or table[value].isna().all():
            have = [name for name in table.columns if table[name].notna().any()]
            raise ConfigurationError(
                f"the result has no numbers {shown(value)}.{near(value, have)} There are {_list(have)}."
            )
        return table[table[value].notna()]


def rows_by_trial(rows: Iterable[Row]) -> dict[str, Row]:
    """Return the last row of each trial, a success rather than a failure."""
    last: dict[str, Row] = {}
    for row in rows:
        known = last.get(row["key"])
        if known is None or known["error"] is not None or row["error"] is None:
            attempts = (known or {}).get("attempts", 0) + 1
            last[row["key"]] = {**row, "attempts": attempts}
    return last


def require_format(out: Path) -> Path:
    """Return `out` if this installation can write such a file. Raises :class:`ConfigurationError`."""
    if out.suffix not in FORMATS:
        raise ConfigurationError(f"a result is a file {' or '.join(FORMATS)}, not {shown(str(out))}.")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise PlatformError(
            "pyarrow is not installed, which writes .parquet: pip install 'coremesh[sweep]', or give a "
            "file .csv."
        )
    if out.is_dir():
        raise ConfigurationError(f"{out} is a folder; a result is a file.")
    return out


def save_table(table: pandas.DataFrame, out: Path) -> None:
    """Write a table to `out`, .parquet or .csv: whole, or not at all. Raises :class:`PlatformError`."""
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=".sweep-", delete=False) as file:
            temporary = Path(file.name)
        try:
            if out.suffix == ".parquet":
                table.to_parquet(temporary, index=False)
            else:
                table.to_csv(temporary, index=False)
            temporary.chmod(0o644)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise PlatformError(
            f"{out} cannot be written ({error.strerror or error}). Its rows are in {journal_of(out)}; make "
            "room, and resume=True (--resume) writes it from them."
        ) from error


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the journal as one of the table."""
    flat: dict[str, Any] = {name: text_of(value) for name, value in row["parameters"].items()}
    flat |= {"repeat": row["repeat"], **row["metrics"]}
    flat |= {name: row.get(name) for name in (*_CLOCKS, *_LAST)}
    flat |= row.get("counters", {})
    return flat


def _list(names: Iterable[Any]) -> str:
    return ", ".join(str(name) for name in names)
