# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is left running: whatever ends the process that made a machine, all it started ends too."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

pytestmark = pytest.mark.timeout(180)

DRIVER = """
import sys, time
from coremesh.cluster.machine import Machine
machine = Machine(2, "16M", sys.argv[1])
print("running", machine.facts["pid"], flush=True)
{end}
"""


@pytest.fixture
def spinning(tiny_guest: Callable[[bytes], bytes], tmp_path: Path) -> Path:
    kernel = tmp_path / "spin.elf"
    kernel.write_bytes(tiny_guest(b"\xeb\xfe"))
    return kernel


def start(family: Any, kernel: Path, end: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a driver in a session of its own; return it and the pid of the process with the vCPUs."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(end=end), str(kernel)],
        env=family.environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert driver.stdout is not None
    words = driver.stdout.readline().split()
    assert words[:1] == [b"running"], "the machine did not start"
    return driver, int(words[1])


@pytest.mark.parametrize(
    "end",
    ["machine.stop()", "", "raise RuntimeError", "sys.exit(3)"],
    ids=["stopped", "forgotten", "exception", "exit"],
)
def test_after_a_script_ends_by_itself_nothing_is_left(family: Any, spinning: Path, end: str) -> None:
    driver, _ = start(family, spinning, end)
    driver.wait(60)
    assert family.wait_gone(10) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_after_a_signal_to_the_driver_nothing_is_left(family: Any, spinning: Path, number: int) -> None:
    driver, host = start(family, spinning, "time.sleep(600)")
    begin = time.monotonic()
    driver.send_signal(number)
    driver.wait(60)
    while Path(f"/proc/{host}").exists() and time.monotonic() - begin < 30:
        time.sleep(0.02)
    assert time.monotonic() - begin < 15, "the vCPUs ran on"
    assert family.wait_gone(30) == {}


def test_ctrl_c_in_a_terminal_reaches_the_whole_group_and_still_nothing_is_left(
    family: Any, spinning: Path
) -> None:
    driver, _ = start(family, spinning, "time.sleep(600)")
    os.killpg(driver.pid, signal.SIGINT)
    driver.wait(60)
    assert family.wait_gone(30) == {}


def test_the_session_folder_goes_with_an_orderly_end(family: Any, spinning: Path, tmp_path: Path) -> None:
    family.environment["TMPDIR"] = "/tmp"
    before = set(Path("/tmp").glob("coremesh-*"))
    driver, _ = start(family, spinning, "machine.stop()")
    driver.wait(60)
    assert set(Path("/tmp").glob("coremesh-*")) - before == set()
