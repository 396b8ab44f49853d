# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of a result: a mean for each value of a parameter, its spread, and the line of perfect scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coremesh.core.errors import PlatformError

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


def plot_lines(
    table: pandas.DataFrame, x: str, y: str, by: str | None, *, ideal: bool, axes: Axes | None
) -> Axes:
    """Draw `y` over `x`, a line for each value of `by`; see :meth:`SweepResult.plot`."""
    axes = new_axes() if axes is None else axes
    groups: list[tuple[Any, Any]] = [("", table)] if by is None else list(table.groupby(by, sort=True))
    for name, rows in groups:
        means = rows.groupby(x, sort=True)[y].agg(["mean", "std", "count"])
        spread = means["std"].fillna(0.0)
        places, ticks = _places(means.index)
        axes.errorbar(
            places, means["mean"], yerr=spread if spread.any() else None, fmt="o-", capsize=3,
            label=f"{by}={name}" if by is not None else y,
        )  # fmt: skip
        if ticks is not None:
            axes.set_xticks(places, ticks)
    if ideal:
        _draw_ideal(axes, table, x, y)
    axes.set(xlabel=x, ylabel=y)
    axes.set_ylim(bottom=0)
    axes.legend()
    return axes


def new_axes() -> Axes:
    """Return empty axes of a figure of their own. Raises :class:`PlatformError` without matplotlib."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise PlatformError(
            "matplotlib is not installed, which draws the plots: pip install 'coremesh[notebook]'."
        ) from error
    _, axes = plt.subplots(figsize=(6, 4))
    return axes


def ideal_line(table: pandas.DataFrame, x: str, y: str) -> tuple[list[float], list[float]] | None:
    """Return (x, y) of perfect scaling from the smallest `x`, None where `x` is no quantity.

    A rate grows with `x`. A time ('...seconds', '..._ns') falls with it.
    """
    if table[x].dtype.kind not in "iuf" or (table[x] <= 0).any():
        return None
    values = sorted({float(value) for value in table[x]})
    if len(values) < 2:
        return None
    first = float(table.loc[table[x] == values[0], y].mean())
    falls = y.endswith(("seconds", "_ns", "nanoseconds")) and not y.endswith("per_second")
    factors = [values[0] / value if falls else value / values[0] for value in values]
    return values, [first * factor for factor in factors]


def _draw_ideal(axes: Axes, table: pandas.DataFrame, x: str, y: str) -> None:
    line = ideal_line(table, x, y)
    if line is not None:
        top = float(table[y].max())
        axes.plot(*line, "--", color="grey", label="ideal")
        axes.set_ylim(top=min(max(line[1]), 2.5 * top) * 1.05)


def _places(index: Any) -> tuple[list[Any], list[str] | None]:
    """Where values stand on the axis, and their names if they are no numbers."""
    if index.dtype.kind in "iuf":
        return list(index), None
    return list(range(len(index))), [str(value) for value in index]


def numeric_parameters(table: pandas.DataFrame, names: tuple[str, ...]) -> list[str]:
    """Return the parameters that were varied and are numbers, the first choice for a plot's x."""
    return [name for name in names if table[name].dtype.kind in "iuf" and table[name].nunique() > 1]
