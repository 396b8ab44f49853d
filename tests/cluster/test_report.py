# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine as a notebook shows it, live, and as a page of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremesh
import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.core.errors import MachineStateError, PlatformError

SPIN = b"\xeb\xfe"
NOTEBOOK = """
import time
from coremesh import Machine
machine = Machine(kernel=bytes.fromhex("{kernel}"), memory="16M", vcpus=2)
display(machine)
machine.pause()
time.sleep(3)
print(machine.state)
machine.stop()
time.sleep(3)
"""


def test_given_a_running_machine_when_a_report_is_written_then_it_is_one_page_and_the_machine_goes_on(
    tiny_guest: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    with Machine(kernel=tiny_guest(SPIN), memory="16M", vcpus=20) as machine:
        page = coremesh.report(machine, tmp_path / "machine.html").read_text()
        assert machine.state == "running"
        with pytest.raises(PlatformError, match="cannot be written"):
            coremesh.report(machine, tmp_path / "none" / "machine.html")
    for word in ("<!doctype html>", "uart", "running", "<th>19</th>", "memory guard"):
        assert word in page
    assert "more: <code>" not in page, "a page has all vCPUs"
    assert "http" not in page, "it needs no other file"
    with pytest.raises(MachineStateError):
        coremesh.report(machine, tmp_path / "late.html")


def test_given_no_notebook_when_a_machine_is_shown_then_nothing_follows_it(
    tiny_guest: Callable[[bytes], bytes],
) -> None:
    with Machine(kernel=tiny_guest(SPIN), memory="16M") as machine:
        shown = machine._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html"}


@pytest.mark.slow
def test_given_a_notebook_when_a_machine_changes_its_state_then_what_was_shown_follows(
    tiny_guest: Callable[[bytes], bytes],
) -> None:
    pytest.importorskip("ipywidgets")
    from nbclient import NotebookClient
    from nbformat import v4

    make: Any = v4  # without types
    notebook = make.new_notebook(
        cells=[make.new_code_cell(NOTEBOOK.format(kernel=tiny_guest(SPIN).hex()))],
    )
    NotebookClient(notebook, timeout=180, kernel_name="python3").execute()
    shown, said = notebook.cells[0].outputs
    assert said["text"] == "paused\n"
    assert "running" in shown["data"]["text/html"], "what a viewer without widgets keeps"
    view = shown["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    states = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert "stopped" in states[view]["state"]["value"]
