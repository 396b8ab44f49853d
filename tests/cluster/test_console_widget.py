# SPDX-License-Identifier: GPL-2.0-or-later
"""The console in a notebook: a real machine at one end, the front end's own script in node at the other."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")
pytest.importorskip("anywidget", reason="a console in a notebook needs the extra 'notebook'")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine import console_widget
from coremesh.cluster.machine.console_widget import Feeder, last_lines, terminal_script
from coremesh.core.errors import PlatformError

with_xterm = pytest.mark.skipif(
    not (Path(console_widget.__file__).parent / "xterm").exists(), reason="the build has no xterm.js"
)
# out 0x3f8, 'a' .. 'z', then what is received is sent back
ECHO = bytes.fromhex("b061 66baf803 ee fec0 3c7b 75f9 66bafd03 ec a801 74f7 66baf803 ec ee ebef")


class FrontEnd:
    """What a feeder sends, in order; answers like the script does."""

    def __init__(self) -> None:
        self.output = b""
        self.ended = ""
        self.first: int | None = None
        self.feeder: Feeder | None = None
        self.answers = True
        self.largest = 0
        self.changed = threading.Condition()

    def send(self, message: dict[str, Any], buffers: list[bytes]) -> None:
        with self.changed:
            if message["kind"] == "ended":
                self.ended = message["text"]
            else:
                if self.first is None:
                    self.first = message["at"]
                assert message["at"] == self.first + len(self.output), "a gap, or bytes twice"
                self.output += buffers[0]
                self.largest = max(self.largest, len(buffers[0]))
            self.changed.notify_all()
        if self.answers and self.feeder is not None:
            self.feeder.hear({"kind": "taken", "at": (self.first or 0) + len(self.output)})

    def wait_for(self, what: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(what, 60), (self.output[-200:], self.ended)


def test_given_a_machine_when_a_front_end_types_then_the_guest_hears_it_and_its_words_come_back(
    tiny_guest: Callable[[bytes], bytes],
) -> None:
    front = FrontEnd()
    with Machine(kernel=tiny_guest(ECHO), memory="16M") as machine:
        front.feeder = Feeder(machine._hosts, lambda: machine.wait(0), front.send)
        front.feeder.hear({"kind": "ready"})
        front.wait_for(lambda: front.output.endswith(b"xyz"))
        front.feeder.hear({"kind": "typed", "text": "héllo"})
        front.wait_for(lambda: front.output.endswith("xyzhéllo".encode()))
        assert last_lines(machine._hosts).startswith("abcdef")
        again = FrontEnd()
        other = Feeder(machine._hosts, lambda: None, again.send)
        other.hear({"kind": "ready"})  # a page that was loaded again
        again.wait_for(lambda: again.output == front.output)
        for nonsense in (None, {"kind": "typed"}, {"kind": "typed", "text": 3}, {"kind": "taken", "at": "x"}):
            front.feeder.hear(nonsense)
        machine.stop()
        front.wait_for(lambda: bool(front.ended))


class Flood:
    """A console that has much to say."""

    def call(self, method: str, *arguments: Any) -> Any:
        if method == "console_end":
            return 8 << 20
        start, size = int(arguments[0]), 128 << 10
        return b"x" * size, start + size, False


def test_given_a_front_end_that_takes_nothing_when_the_guest_floods_then_it_is_sent_a_bounded_amount() -> (
    None
):
    front = FrontEnd()
    front.answers = False
    feeder = Feeder(Flood(), lambda: None, front.send)
    feeder.hear({"kind": "ready"})
    front.wait_for(lambda: len(front.output) >= 1 << 20)
    time.sleep(0.3)
    assert len(front.output) <= (1 << 20) + (128 << 10)
    assert front.largest <= 64 << 10
    assert front.first == (8 << 20) - (256 << 10), "it begins with the scroll-back"
    held = len(front.output)
    feeder.hear({"kind": "taken", "at": front.first + held})
    front.wait_for(lambda: len(front.output) > held)
    feeder._source = None  # type: ignore[assignment]  # ends the thread


@with_xterm
def test_given_a_front_end_when_a_console_is_shown_then_it_is_a_widget_with_a_text_for_other_viewers(
    tiny_guest: Callable[[bytes], bytes],
) -> None:
    with Machine(kernel=tiny_guest(ECHO), memory="16M") as machine:
        machine.console.expect(b"xyz", 60)
        widget = machine.console.widget(rows=30)
        for shown in (widget, machine.console):
            bundle = shown._repr_mimebundle_()
            data = bundle[0] if isinstance(bundle, tuple) else bundle
            assert "application/vnd.jupyter.widget-view+json" in data
            assert data["text/plain"].startswith("abcdef")
        assert widget.rows == 30


NOTEBOOK = """
from coremesh import Machine
machine = Machine(kernel=bytes.fromhex("{kernel}"), memory="16M")
machine.console.expect(b"xyz", 60)
machine.console
"""


@with_xterm
@pytest.mark.slow
def test_given_a_notebook_that_is_executed_without_a_page_when_a_console_is_shown_then_its_text_is_kept(
    tiny_guest: Callable[[bytes], bytes],
) -> None:
    from nbclient import NotebookClient
    from nbformat import v4

    make: Any = v4  # without types
    notebook = make.new_notebook(cells=[make.new_code_cell(NOTEBOOK.format(kernel=tiny_guest(ECHO).hex()))])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    data = notebook.cells[0].outputs[-1]["data"]
    assert data["text/plain"].startswith("abcdefgh")
    assert "application/vnd.jupyter.widget-view+json" in data


def test_given_no_xterm_in_the_build_when_a_console_is_shown_then_its_last_lines_are_and_the_way_out_is_said(
    tiny_guest: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(console_widget, "_FOLDER", tmp_path)
    with Machine(kernel=tiny_guest(ECHO), memory="16M") as machine:
        machine.console.expect(b"xyz", 60)
        assert machine.console._repr_mimebundle_() == {"text/plain": "abcdefghijklmnopqrstuvwxyz"}
        with pytest.raises(PlatformError, match="COREMESH_XTERM_WHEEL"):
            machine.console.widget()


# The page's side without a page: node has no document in which to open xterm.js, so `open` is left out,
# and the terminal is xterm's own buffer.
NODE = """
const script = process.argv[1];
globalThis.window = globalThis; globalThis.self = globalThis;
const {default: front, Terminal} = await import(script);
Terminal.prototype.open = function () {};
const heard = [], handlers = [];
const model = {get: (name) => ({rows: 24, columns: 80})[name],
  on: (_, handler) => handlers.push(handler), send: (message) => heard.push(message)};
front.initialize({model});
const element = {classList: {add() {}}, addEventListener() {}};
const terminals = [];
const write = Terminal.prototype.write;
Terminal.prototype.write = function (...words) { if (!terminals.includes(this)) terminals.push(this);
  return write.apply(this, words); };
const say = (at, text) => { const bytes = new TextEncoder().encode(text);
  for (const handler of handlers) handler({kind: "output", at}, [new DataView(bytes.buffer)]); };
const leave = front.render({model, el: element});
say(100, "\\x1b[31mred\\x1b[0m \\u00e9");  // 15 bytes
say(108, "\\x1b[0m \\u00e9\\r\\nnext");    // its first 7 bytes again, as after a loss
front.render({model, el: element});
await new Promise((done) => setTimeout(done, 200));
const line = (one, at) => one.buffer.active.getLine(at).translateToString(true);
const lines = terminals.map((one) => [line(one, 0), line(one, 1)]);
terminals[0].input("ls\\r");
console.log(JSON.stringify({lines, heard}));
leave();
process.exit(0);
"""


@with_xterm
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_given_the_front_ends_script_when_bytes_come_twice_then_each_view_shows_them_once(
    tmp_path: Path,
) -> None:
    script = tmp_path / "front.mjs"
    script.write_text(terminal_script() + "\nexport { Terminal };\n")
    done = subprocess.run(
        ["node", "--input-type=module", "-e", NODE, str(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["lines"] == [["red é", "next"]] * 2
    assert found["heard"][0] == {"kind": "ready"}
    assert [one["at"] for one in found["heard"] if one["kind"] == "taken"] == [115, 121]
    assert {"kind": "typed", "text": "ls\r"} in found["heard"]
