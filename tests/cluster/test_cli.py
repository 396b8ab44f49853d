# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a person or a script meets it: options, output, exit statuses."""

import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from coremesh.cluster.machine.images.debian_image import DebianImage

COMMAND = [sys.executable, "-m", "coremesh.cluster.cli"]

pytestmark = pytest.mark.timeout(300)


def coremesh(
    *arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None, patience: float = 240
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line without a terminal."""
    result = subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        timeout=patience,
        env={**os.environ, **(environment or {})},
    )
    assert b"Traceback" not in result.stderr, result.stderr.decode()
    return result


@pytest.fixture
def kernel(tiny_guest: Callable[[bytes], bytes], tmp_path: Path) -> Callable[[bytes], str]:
    """Write a tiny kernel to a file and return its name."""

    def write(code: bytes) -> str:
        file = tmp_path / "kernel"
        file.write_bytes(tiny_guest(code))
        return str(file)

    return write


HELLO = bytes.fromhex("66baf803") + b"".join(b"\xb0" + bytes([letter]) + b"\xee" for letter in b"hi\r\n")
EXIT_5 = bytes.fromhex("66baf400b805000000ef")
HANG = b"\xeb\xfe"


# --- words only ------------------------------------------------------------------------------------------


def test_help_is_quick_and_names_the_commands() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = coremesh("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in (b"boot", b"top", b"fetch", b"doctor", b"bench"))
    # Of its own processor time, which other work on the computer hardly lengthens: it does not import all.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1


def test_help_of_boot_has_every_option_the_statuses_and_examples() -> None:
    text = coremesh("boot", "--help", environment={"COLUMNS": "120"}).stdout.decode()
    for option in (
        "--vcpus",
        "--memory",
        "--kernel",
        "--initrd",
        "--append",
        "--timeout",
        "--run",
        "--address",
        "--hosts",
        "--policy",
    ):
        assert option in text
    assert "Examples" in text
    assert "124" in text
    assert "70" in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--vcpus", "0"], "1 to 255"),
        (["--vcpus", "256"], "1 to 255"),
        (["--vcpus", "many"], "integer"),
        (["--hosts", "0"], "1 to 64"),
        (["--hosts", "two"], "two"),
        (["--hosts", "3", "--vcpus", "2"], "at least one"),
        (["--hosts", "6,2", "--vcpus", "9"], "8 vCPUs"),
        (["--policy", "sometimes"], "adaptive"),
        (["--memory", "1Q"], "1Q"),
        (["--memory", "0"], "memory"),
        (["--memory", "900T"], "memory"),
        (["--memory", "9" * 400], "512M"),
        (["--memory", "9" * 5000 + "G"], "512M"),
        (["--vcpus", "9" * 5000], "integer"),
        (["--timeout", "-1"], "timeout"),
        (["--timeout", "nan"], "timeout"),
        (["--timeout", "1e300"], "timeout"),
        (["--address", "local"], "auto"),
        (["--append", os.fsdecode(b"\xff")], "UTF-8"),
        (["--run", os.fsdecode(b"echo \xff")], "UTF-8"),
        (["--bios", "--run", "true"], "--disk"),
        (["--run", "x" * 120_001], "120001 bytes"),
        (["--no-such-option"], "no-such-option"),
        (["--builtin", "--run", "true"], "--builtin"),
    ],
)
def test_wrong_options_are_told_in_a_line_with_status_2(arguments: list[str], word: str) -> None:
    result = coremesh("boot", *arguments)
    assert result.returncode == 2
    assert word in result.stderr.decode()
    assert result.stdout == b""


def test_a_missing_or_corrupt_kernel_is_told_with_status_1(tmp_path: Path) -> None:
    result = coremesh("boot", "--kernel", str(tmp_path / "none"))
    assert result.returncode == 1
    assert b"coremesh fetch" in result.stderr
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    result = coremesh("boot", "--kernel", str(tmp_path / "junk"))
    assert result.returncode == 1
    assert b"known kind" in result.stderr


@pytest.mark.parametrize("option", ["--kernel", "--initrd", "--module"])
def test_a_device_or_a_pipe_for_an_image_is_told_at_once(
    option: str, tmp_path: Path, kernel: Callable[[bytes], str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, word in (("/dev/zero", b"is a device"), (tmp_path / "pipe", b"is a pipe")):
        begin = time.monotonic()
        result = coremesh("boot", "--kernel", kernel(HANG), option, str(place), patience=60)
        assert (result.returncode, result.stdout) == (1, b"")
        assert word in result.stderr and result.stderr.count(b"\n") == 1
        assert time.monotonic() - begin < 20


def test_fetch_prints_where_the_image_is(debian: DebianImage) -> None:
    result = coremesh("fetch")
    assert result.returncode == 0
    assert str(debian.kernel).encode() in result.stdout


def test_fetch_without_tools_says_what_to_do(tmp_path: Path) -> None:
    result = coremesh("fetch", environment={"PATH": "/nowhere", "COREMESH_CACHE": str(tmp_path)})
    assert result.returncode == 1
    assert b"--kernel" in result.stderr


def test_doctor_reports_what_it_tried() -> None:
    findings = json.loads(coremesh("doctor", "--json").stdout)
    by_subject = {finding["subject"]: finding for finding in findings}
    assert {"host", "engine", "userfaultfd", "memory", "Ray", "image cache"} <= set(by_subject)
    assert {"pages between hosts", "wires", "link priority"} <= set(by_subject)
    assert all(finding["level"] in ("good", "note", "bad") for finding in findings)
    memory = by_subject["memory"]
    assert memory["level"] == "note" or all(
        word in memory["meaning"] for word in ("after a boot", "under load", "at most")
    )
    assert b"userfaultfd" in coremesh("doctor").stdout


def test_where_no_cluster_answers_that_is_told_soon(kernel: Callable[[bytes], str]) -> None:
    begin = time.monotonic()
    result = coremesh("boot", "--kernel", kernel(HANG), "--address", "127.0.0.1:1")
    assert result.returncode == 1
    assert b"no Ray cluster answers" in result.stderr
    assert b"RAY_AUTH_MODE" in result.stderr
    assert time.monotonic() - begin < 30


# --- guests ----------------------------------------------------------------------------------------------


def test_without_a_terminal_the_console_is_plain_text_and_debug_exit_the_status(
    address: str, kernel: Callable[[bytes], str]
) -> None:
    result = coremesh("boot", "--kernel", kernel(HELLO + EXIT_5 + HANG), "--address", address)
    assert (result.stdout, result.returncode) == (b"hi\n", 11)


def test_the_timeout_ends_a_guest_with_status_124(address: str, kernel: Callable[[bytes], str]) -> None:
    result = coremesh("boot", "--kernel", kernel(HELLO + HANG), "--timeout", "1.5", "--address", address)
    assert (result.stdout, result.returncode) == (b"hi\n", 124)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_the_status_a_shell_gives(
    address: str, kernel: Callable[[bytes], str], number: int, status: int
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "boot", "--kernel", kernel(HELLO + HANG), "--address", address],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"hi\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert b"Traceback" not in errors, errors.decode()


def test_a_crash_has_status_70_and_shows_the_vcpu(address: str, kernel: Callable[[bytes], str]) -> None:
    code = b"\xbc\x00\x00\x20\x00\x6a\x00\x6a\x00\x0f\x01\x1c\x24\xcc"
    result = coremesh("boot", "--kernel", kernel(code), "--address", address)
    assert result.returncode == 70
    assert b"triple-faulted on vCPU 0" in result.stderr
    assert b"rip=" in result.stderr


def test_where_no_image_can_be_got_the_built_in_guest_shows_cores_at_work(
    address: str, tmp_path: Path
) -> None:
    result = coremesh(
        "boot", "--vcpus", "2", "--timeout", "60", "--address", address,
        environment={"PATH": "/nowhere", "COREMESH_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert b"--kernel FILE" in result.stderr
    assert b"built-in" in result.stderr
    assert result.returncode == 0
    assert b"cores=2 failures=0" in result.stdout


def test_run_prints_the_commands_output_alone_and_leaves_with_its_status(
    debian: DebianImage, address: str
) -> None:
    command = "nproc; printf 'no newline'; exit 9"
    result = coremesh("boot", "--vcpus", "2", "--memory", "512M", "--run", command, "--address", address)
    assert (result.stdout, result.returncode) == (b"2\nno newline", 9)
    assert result.stderr == b""


def test_a_script_on_standard_input_is_typed_into_the_guests_shell(debian: DebianImage) -> None:
    """Given no cluster: the command starts a Ray of its own, and ends when the guest switches itself off."""
    result = coremesh(
        "boot",
        "--memory",
        "512M",
        "--append",
        "quiet",
        "--timeout",
        "200",
        stdin=b"echo $((6*7))\npoweroff -f\n",
    )
    assert result.returncode == 0
    assert b"\n42\n" in result.stdout
    assert b"\r" not in result.stdout
    assert b"\x1b" not in result.stdout


def test_in_a_terminal_the_console_is_the_persons_until_the_escape_key(
    debian: DebianImage, address: str
) -> None:
    """When a person types, the guest answers; Ctrl-C is the guest's; Ctrl-] leaves; the modes are back."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [*COMMAND, "boot", "--memory", "512M", "--append", "quiet", "--address", address],
        stdin=slave, stdout=slave, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    screen = b""

    def see(wanted: bytes, seconds: float) -> None:
        nonlocal screen
        deadline = time.monotonic() + seconds
        while wanted not in screen and time.monotonic() < deadline:
            if select.select([master], [], [], 0.5)[0]:
                screen += os.read(master, 65536)
        assert wanted in screen, screen[-500:]
        screen = screen.partition(wanted)[2]

    see(b"~ # ", 200)
    os.write(master, b"sleep 100\r")
    see(b"sleep 100\r\n", 20)
    time.sleep(0.5)
    os.write(master, b"\x03")
    see(b"~ # ", 20)
    os.write(master, b"echo $((6*7))\r")
    see(b"\n42\r\n", 20)
    os.write(master, b"\x1d")
    assert process.wait(30) == 0
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
