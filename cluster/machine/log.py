# SPDX-License-Identifier: GPL-2.0-or-later
"""What the processes of a machine tell while they run: one line an event, for people or as JSON.

Quiet unless asked for: by ``--log``, or by COREMESH_LOG in the environment, 'text' or 'json' and behind a
colon the least level, as ``json:debug``. A program can as well give the logger ``coremesh`` of the standard
library a level and handlers of its own. The driver's events go to its standard error. A host keeps its own
until the driver asks for them (:meth:`Keeper.take`), which writes them among its own; an actor of Ray also
writes them to its standard error, which Ray puts into the log files of its node.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from coremesh.core.errors import ConfigurationError, shown

VARIABLE: Final = "COREMESH_LOG"
FORMS: Final = ("text", "json")
LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_MOST_KEPT = 1000  # events of a host that its driver has not asked for yet; older ones are dropped
_FIELDS = "coremesh_fields"  # where a record of the standard library has ours
_logger = logging.getLogger("coremesh")
_logger.addHandler(logging.NullHandler())  # else the standard library prints warnings by itself
_context: dict[str, Any] = {"process": "driver"}  # of this process; set before it tells anything
_installed: list[logging.Handler] = []


@dataclass(frozen=True)
class Wanted:
    """How events are written, one of FORMS, and the least level of those that are, one of LEVELS."""

    form: str
    level: str = "info"

    @classmethod
    def read(cls, text: str) -> Wanted:
        """Return what 'json' or 'text:debug' asks for. Raises :class:`ConfigurationError`."""
        form, _, level = text.partition(":")
        if form not in FORMS or (level or "info") not in LEVELS:
            raise ConfigurationError(
                f"a log is {' or '.join(FORMS)}, with the least level behind a colon, {', '.join(LEVELS)}: "
                f"as json:debug, not {shown(text)}."
            )
        return cls(form, level or "info")

    def __str__(self) -> str:
        return f"{self.form}:{self.level}"


def event(level: str, name: str, **fields: Any) -> None:
    """Tell of an event. `level` is one of LEVELS; `fields` are numbers and texts. Any thread.

    Cheap where nothing is wanted, but no place for it on a guest's path.
    """
    if _logger.isEnabledFor(LEVELS[level]) and (_installed or _logger.level):
        _logger.log(LEVELS[level], name, extra={_FIELDS: fields})


def bind(**context: Any) -> None:
    """Say what all events of this process have: 'process' (its part), 'machine', 'host', 'epoch'."""
    _context.update(context)


def wanted() -> Wanted | None:
    """Return what this process was asked to tell, by the environment or by its logger; None for nothing."""
    if text := os.environ.get(VARIABLE, ""):
        return Wanted.read(text)
    if _logger.level:
        names = [name for name, level in LEVELS.items() if level >= _logger.level]
        return Wanted("text", names[0] if names else "error")
    return None


def begin() -> Wanted | None:
    """Write this process's events to its standard error if the environment says so; return what is wanted.

    Raises :class:`ConfigurationError` for a variable that cannot be read. The second time it does nothing.
    """
    asked = wanted()
    if asked is not None and os.environ.get(VARIABLE) and not _installed:
        _install(logging.StreamHandler(), asked)
    return asked


def replay(entries: list[dict[str, Any]]) -> None:
    """Write events of another process, as its keeper gave them, among those of this one."""
    for entry in entries:
        record = _logger.makeRecord(
            _logger.name, LEVELS[entry["level"]], "", 0, entry["event"], (), None, extra={_FIELDS: entry}
        )
        if _logger.isEnabledFor(record.levelno):
            _logger.handle(record)


class Keeper(logging.Handler):
    """Keeps the events of this process until they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._entries: deque[dict[str, Any]] = deque(maxlen=_MOST_KEPT)
        self._some = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        with self._some:
            self._entries.append(entry_of(record))
            self._some.notify_all()

    def take(self, timeout: float) -> list[dict[str, Any]]:
        """Return what has come since the last time; wait `timeout` seconds for it if there is nothing."""
        with self._some:
            self._some.wait_for(lambda: bool(self._entries), timeout)
            taken = list(self._entries)
            self._entries.clear()
        return taken


def keep(asked: Wanted, *, aloud: bool) -> Keeper:
    """Keep this process's events for its driver; with `aloud` also write them to standard error."""
    keeper = Keeper()
    _install(keeper, asked)
    if aloud:
        _install(logging.StreamHandler(), asked)
    return keeper


def entry_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return an event as data: 'time' (UTC), 'level', 'event', the process's context, its fields."""
    fields = getattr(record, _FIELDS, {})
    told = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "event": record.getMessage(),
        "node": platform.node(),
        "pid": record.process,
        **_context,
        **fields,
    }
    if record.name != _logger.name:  # of a part that knows of no machine: a device, the clock
        told["part"] = record.name.removeprefix(f"{_logger.name}.")
    if record.exc_info:
        told["error"] = logging.Formatter().formatException(record.exc_info)
    return told


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(entry_of(record), default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = entry_of(record)
        head = [str(told.pop(name)) for name in ("time", "level", "event")]
        return " ".join([*head, *(f"{name}={_word(value)}" for name, value in told.items())])


def _word(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and text and not any(letter in ' "=' for letter in text)
    return text if plain else json.dumps(text)


def _install(handler: logging.Handler, asked: Wanted) -> None:
    handler.setFormatter(_Json() if asked.form == "json" else _Text())
    handler.setLevel(LEVELS[asked.level])
    _logger.addHandler(handler)
    _logger.setLevel(min(LEVELS[asked.level], _logger.level or logging.ERROR))
    _installed.append(handler)


def silence() -> None:
    """Undo what was installed here."""
    while _installed:
        _logger.removeHandler(_installed.pop())
    _logger.setLevel(logging.NOTSET)
