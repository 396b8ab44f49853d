# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows on disk as they come: lines are only ever added, so whatever ends the writer, what was written stays.

The journal of ``run.parquet`` is ``run.parquet.rows``: JSON, one object a line. The first says which
experiment it is; each other one is an attempt at a trial. A line that was cut off by a crash is the last one,
and is taken away when the file is opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from coremesh.core.errors import ConfigurationError, PlatformError

SUFFIX = ".rows"
_FORMAT = 1
_NEEDED = {"key", "parameters", "repeat", "metrics", "error"}  # in each row

Row = dict[str, Any]


def journal_of(out: Path) -> Path:
    """Return the journal of a result."""
    return out.with_name(out.name + SUFFIX)


class Journal:
    """The journal of one result, open for one writer. Not thread-safe.

    `rows` are those that were there when it was opened, and those added since.
    """

    def __init__(self, path: Path, experiment: Mapping[str, Any], *, resume: bool) -> None:
        """Open or make it. `experiment` must be the one that it was begun with.

        Raises :class:`ConfigurationError` when it holds rows and `resume` is false, when it belongs to
        another experiment, or another process writes it.
        """
        self.path = path
        self.rows: list[Row] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigurationError(f"rows cannot be written to {path} ({error.strerror}).") from error
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigurationError(
                    f"another process writes {path} at this moment. Wait for it, or give another 'out'."
                ) from None
            whole = _whole_lines(self._descriptor)
            begun, self.rows = parse(whole, path)
            if begun is None:
                self._append({"format": _FORMAT, **experiment})
            else:
                require_same(begun, experiment, path, resume=resume)
        except BaseException:
            os.close(self._descriptor)
            raise

    def add(self, row: Row) -> None:
        """Add a row; it is on the disk when this returns.

        Raises :class:`PlatformError` where it cannot be written; the rows before it stay.
        """
        self._append(row)
        self.rows.append(row)

    def close(self) -> None:
        """Close the file; another process may write it then."""
        os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        whole = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as error:  # a full disk takes a part of the line
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, whole)
            raise PlatformError(
                f"{self.path} cannot be written ({error.strerror}). What was done before is in it: make "
                "room, and resume=True (--resume) goes on."
            ) from error


def read(path: Path) -> tuple[Row | None, list[Row]]:
    """Return what a journal holds, (experiment, rows), while another process may write it.

    Raises :class:`ConfigurationError`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"there are no rows of a sweep in {path} ({error.strerror}).") from None
    return parse(data[: data.rfind(b"\n") + 1], path)


def parse(data: bytes, path: Path) -> tuple[Row | None, list[Row]]:
    """Return (experiment, rows) of whole lines; (None, []) of none."""
    lines: list[Row] = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or (number > 1 and not row.keys() >= _NEEDED):
                raise ValueError("no such object")
        except ValueError as error:
            raise ConfigurationError(
                f"{path} is no journal of a sweep: line {number} is not one of its rows ({error}). "
                "Give another 'out', or remove the file."
            ) from None
        lines.append(row)
    if not lines:
        return None, []
    if lines[0].get("format") != _FORMAT:
        raise ConfigurationError(f"{path} is no journal that this version reads. Give another 'out'.")
    return lines[0], lines[1:]


def _whole_lines(descriptor: int) -> bytes:
    """Read all; take away a last line without an end, which the writer's crash has cut off."""
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.ftruncate(descriptor, len(whole))
    return whole


def require_same(begun: Row, experiment: Mapping[str, Any], path: Path, *, resume: bool) -> None:
    """Raise :class:`ConfigurationError` where a journal that was `begun` is not gone on with."""
    if not resume:
        raise ConfigurationError(
            f"{path} holds rows already. resume=True (--resume) goes on with them; or give another 'out', or "
            "remove the file to begin anew."
        )
    differ = [name for name, value in experiment.items() if begun.get(name) != value]
    if differ:
        raise ConfigurationError(
            f"{path} belongs to another experiment: not the same {', '.join(differ)}. Give another 'out', or "
            "remove the file to begin anew."
        )
