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
from coremesh.cluster.launch import warden

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

pytestmark = pytest.mark.timeout(180)

DRIVER = """
import sys, time
from coremesh.cluster.launch.machine import Machine
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


# --- signals to the whole group ---------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "coremesh.cluster.cli", "boot", "--memory", "16M", "--kernel"]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
#: Seconds for an end: 1 to 2 on a computer with nothing else to do, 31 where Ray is waited for.
PATIENCE = 12.0


def boot(family: Any, kernel: Path, hosts: int = 1) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, str(kernel), "--hosts", str(hosts)],
        env=family.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def await_member(family: Any, word: str) -> None:
    """Wait until a process of the family has `word` in its command line."""
    deadline = time.monotonic() + 90
    while not any(word in command for command in family.members().values()):
        assert time.monotonic() < deadline, f"no {word} has come up"
        time.sleep(0.02)


def check_end(family: Any, driver: subprocess.Popen[bytes], status: int) -> None:
    """The driver ends soon with `status`, and nothing is left of it.

    For some milliseconds of Ray's start its native code has a handler of its own, which writes a stack trace
    and then calls ours: that is not looked at here.
    """
    begin = time.monotonic()
    _, errors = driver.communicate(timeout=60)
    assert time.monotonic() - begin < PATIENCE
    assert driver.returncode == status, errors
    assert b"Traceback" not in errors
    assert family.wait_gone(10) == {}
    assert set(Path(tempfile.gettempdir()).glob(f"coremesh-{driver.pid}-*")) == set()


@pytest.mark.parametrize("moment", ["gcs_server", "raylet/raylet", "ray::HostProcess"])
def test_a_signal_to_the_group_ends_all_in_time_and_with_its_status(
    family: Any, spinning: Path, moment: str
) -> None:
    """As timeout(1) and a closing terminal send it; in the middle of Ray's start, and with a machine."""
    driver = boot(family, spinning, hosts=2)
    await_member(family, moment)
    os.killpg(driver.pid, signal.SIGTERM)
    check_end(family, driver, 143)


def test_a_signal_to_every_process_ends_all_in_time_and_with_its_status(family: Any, spinning: Path) -> None:
    """As systemd sends it to a service: Ray's daemons and the warden get it too."""
    driver = boot(family, spinning, hosts=2)
    await_member(family, "ray::HostProcess.wait")
    for pid in family.members():
        os.kill(pid, signal.SIGTERM)
    check_end(family, driver, 143)


def test_a_thread_that_starts_a_machine_may_end_before_it(family: Any, spinning: Path) -> None:
    """The kernel ends Ray's daemons with the thread that started them, so that is one of our own."""
    script = (
        "import sys, threading, time\nfrom coremesh.cluster.launch.machine import Machine\nmade = []\n"
        "thread = threading.Thread(target=lambda: made.append(Machine(1, '16M', sys.argv[1])))\n"
        "thread.start(); thread.join(); time.sleep(0.5)\nmade.append(Machine(1, '16M', sys.argv[1]))\n"
        "print(*(machine.state for machine in made), flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(spinning)],
        env=family.environment, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == b"running running\n", done.stderr
    assert family.wait_gone(10) == {}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", sorted(STATUS))
def test_a_signal_at_any_moment_leaves_nothing(family: Any, spinning: Path, number: signal.Signals) -> None:
    for tenths in range(0, 90, 7):
        driver = boot(family, spinning)
        await_member(family, "warden.py")  # what ends a process before its first line is no matter of ours
        time.sleep(tenths / 10)
        os.killpg(driver.pid, number)
        check_end(family, driver, STATUS[number])


def test_given_a_warden_that_gets_no_core_when_it_is_dismissed_then_it_is_gone_without_an_error(
    tmp_path: Path,
) -> None:
    process = warden.appoint(str(tmp_path / "folder"))
    process.send_signal(signal.SIGSTOP)
    warden.dismiss(process)
    assert process.returncode == -signal.SIGKILL
