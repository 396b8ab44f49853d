# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is left running: whatever ends the process that made a machine, all it started ends too."""

import os
import signal
import subprocess
import sys
import tempfile
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


def test_after_an_orderly_end_nothing_is_left_not_even_a_folder(family: Any, spinning: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("coremesh-*"))
    driver, _ = start(family, spinning, "machine.stop()")
    assert driver.wait(60) == 0
    assert family.wait_gone(10) == {}
    assert set(Path(tempfile.gettempdir()).glob("coremesh-*")) <= before


def test_after_an_exception_nothing_is_left(family: Any, spinning: Path) -> None:
    driver, _ = start(family, spinning, "raise RuntimeError")
    assert driver.wait(60) == 1
    assert family.wait_gone(10) == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_after_a_signal_to_the_driver_nothing_is_left(family: Any, spinning: Path, number: int) -> None:
    driver, host = start(family, spinning, "time.sleep(600)")
    begin = time.monotonic()
    driver.send_signal(number)
    driver.wait(60)
    while Path(f"/proc/{host}").exists() and time.monotonic() - begin < 30:
        time.sleep(0.02)
    assert time.monotonic() - begin < 15, "the vCPUs ran on"
    assert family.wait_gone(30) == {}
    assert set(Path(tempfile.gettempdir()).glob(f"coremesh-{driver.pid}-*")) == set()


def test_ctrl_c_in_a_terminal_reaches_the_whole_group_and_still_nothing_is_left(
    family: Any, spinning: Path
) -> None:
    driver, _ = start(family, spinning, "time.sleep(600)")
    os.killpg(driver.pid, signal.SIGINT)
    driver.wait(60)
    assert family.wait_gone(30) == {}
