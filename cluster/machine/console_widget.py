# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's console as a terminal in a notebook: anywidget, and xterm.js, which the build has put here.

Bytes go to the front end in pieces of at most 64 KiB, each with its place in the guest's output; a front end
that is slow is sent no more than 1 MiB ahead of what it has taken. One that comes anew, as a page loaded
again, gets the last 256 KiB once more. Without anywidget, xterm.js or a front end a console is shown as its
last lines.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coremesh.core.errors import CoremeshError, PlatformError

if TYPE_CHECKING:
    from coremesh.cluster.machine.console import Source

SHOWN_LINES = 40

_FOLDER = Path(__file__).parent
_SCROLLBACK = 256 << 10
_PIECE = 64 << 10
_AHEAD = 1 << 20
_PAUSE_SECONDS = 0.025  # what the guest prints meanwhile goes with the next piece
_POLL_SECONDS = 0.5
_STYLE = ".coremesh-console { width: 100%; padding: 4px; background: #000; }\n"


def terminal_script() -> str:
    """Return the front end's module. Raises :class:`PlatformError` if the build has no xterm.js."""
    try:
        names = {"Terminal": "xterm.js", "FitAddon": "addon-fit.js"}
        texts = {name: (_FOLDER / "xterm" / file).read_text() for name, file in names.items()}
    except OSError:
        raise PlatformError(
            "this installation has no xterm.js: the build could not fetch it. Build it again with a network, "
            "or with COREMESH_XTERM_WHEEL."
        ) from None
    parts = [
        f"const {name} = (() => {{ const module = {{ exports: {{}} }}; const exports = module.exports;\n"
        f"{text}\nreturn module.exports.{name}; }})();\n"
        for name, text in texts.items()
    ]
    return "".join([*parts, (_FOLDER / "console_widget.js").read_text()])


def make_widget(source: Source, ended: Callable[[], object], *, rows: int = 24, columns: int = 80) -> Any:
    """Return a widget that shows the console of `source`; `ended` tells how its machine ended.

    Raises :class:`PlatformError` with the way out where there is no anywidget or no xterm.js.
    """
    try:
        import anywidget
        import traitlets
    except ImportError:
        raise PlatformError(
            "a console in a notebook needs anywidget: pip install 'coremesh[notebook]'."
        ) from None
    script = terminal_script()

    class ConsoleWidget(anywidget.AnyWidget):
        _esm = script
        _css = (_FOLDER / "xterm" / "xterm.css").read_text() + _STYLE
        rows = traitlets.Int().tag(sync=True)
        columns = traitlets.Int().tag(sync=True)

        def _repr_mimebundle_(self, **options: Any) -> Any:
            bundle = super()._repr_mimebundle_(**options)
            data = bundle[0] if isinstance(bundle, tuple) else bundle
            if data is not None:  # what a viewer without widgets shows
                data["text/plain"] = last_lines(source)
            return bundle

    widget = ConsoleWidget(rows=rows, columns=columns)
    feeder = Feeder(source, ended, widget.send)
    widget.on_msg(lambda _, message, buffers: feeder.hear(message))
    return widget


def last_lines(source: Source, count: int = SHOWN_LINES) -> str:
    """Return the last lines that a console has shown, as plain text; empty for one that cannot be asked."""
    from coremesh.cluster.machine.terminal import PlainText

    try:
        end = int(source.call("console_end"))
        data = source.call("read_console", max(0, end - _SCROLLBACK // 4), 0.0)[0]
    except CoremeshError:
        return ""
    text = PlainText().feed(data).decode(errors="replace")
    return "\n".join(re.split(r"\r?\n", text.rstrip())[-count:])


class Feeder:
    """Brings the guest's output to a front end, and what is typed there to the guest.

    `send` takes a message and a list of buffers. It is called on a thread of the feeder, which runs from the
    first word of a front end to the machine's end.
    """

    def __init__(
        self, source: Source, ended: Callable[[], object], send: Callable[[dict[str, Any], list[bytes]], None]
    ) -> None:
        self._source = source
        self._ended = ended
        self._send = send
        self._changed = threading.Condition()
        self._cursor = 0  # guarded by _changed, as are the next three
        self._taken = 0
        self._life = 0  # counts front ends that came anew
        self._thread: threading.Thread | None = None

    def hear(self, message: Any) -> None:
        """Do what the front end asks for. A message that it never sends is dropped. The kernel's thread."""
        if not isinstance(message, dict):
            return
        with contextlib.suppress(CoremeshError):  # the machine has ended, and the terminal says so
            match message:
                case {"kind": "ready"}:
                    self._begin()
                case {"kind": "taken", "at": int(at)}:
                    with self._changed:
                        self._taken = max(self._taken, min(at, self._cursor))
                        self._changed.notify_all()
                case {"kind": "typed", "text": str(text)}:
                    self._source.call("feed_console", text.encode(errors="replace"))
                case {"kind": "resized", "columns": int(columns), "rows": int(rows)}:
                    if 0 < columns < 1 << 16 and 0 < rows < 1 << 16:
                        self._source.call("resize_console", columns, rows)

    def _begin(self) -> None:
        end = int(self._source.call("console_end"))
        with self._changed:
            self._life += 1
            self._cursor = self._taken = max(0, end - _SCROLLBACK)
            self._changed.notify_all()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._feed, name="console widget", daemon=True)
                self._thread.start()

    def _feed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._cursor - self._taken < _AHEAD, _POLL_SECONDS)
                if self._cursor - self._taken >= _AHEAD:
                    continue
                life, cursor = self._life, self._cursor
            try:
                data, after, over = self._source.call("read_console", cursor, _POLL_SECONDS)
            except Exception as error:
                self._send({"kind": "ended", "text": str(error)}, [])
                return
            with self._changed:
                if life != self._life:  # another front end wants other bytes
                    continue
                self._cursor = after
            for at in range(0, len(data), _PIECE):
                piece = data[at : at + _PIECE]
                self._send({"kind": "output", "at": after - len(data) + at}, [piece])
            if over:
                self._send({"kind": "ended", "text": str(self._ended() or "the machine has ended")}, [])
                return
            if data:
                time.sleep(_PAUSE_SECONDS)
