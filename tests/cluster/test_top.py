# SPDX-License-Identifier: GPL-2.0-or-later
"""``coremesh top``: processes tell of their machines on sockets of their user's own; two looks make rates."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from coremesh.cluster.cli import top
from coremesh.cluster.launch import telemetry
from coremesh.core.errors import MachineStateError, PlatformError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of this test's own; the folder of the sockets, which does not exist yet."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(telemetry, "_server", None)
    return tmp_path / "coremesh"


class Machine:
    """What tells of itself when asked."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self._snapshot = snapshot

    def snapshot(self) -> dict[str, Any]:
        return self._snapshot


SNAPSHOT: dict[str, Any] = {
    "state": "running",
    "vcpus": 3,
    "memory": 1 << 30,
    "seconds": 10.0,
    "hosts": [{"host": 0, "node": "10.0.0.1", "vcpus": 2}, {"host": 1, "node": "10.0.0.2", "vcpus": 1}],
    "stats": [
        {"host": 0, "state": "running", "translations": 0, "halted_ns": 0, "run_ns": 0},
        {"host": 0, "state": "halted", "translations": 10, "halted_ns": 0, "run_ns": 0},
        {
            "host": 1,
            "state": "halted",
            "translations": 10,
            "halted_ns": 0,
            "run_ns": 0,
            "atomics_4": 0,
            "atomics_8": 0,
            "atomics_misaligned": 0,
            "atomics_long_way": 0,
        },
    ],
    "mesh": [
        {"read_fetches": 100, "page_bytes": 0, "links_refused": 0, "clock_error_ns": 1500},
        {"read_fetches": 0, "page_bytes": 0, "links_refused": 7, "clock_error_ns": -200},
    ],
    "devices": {
        "uart": {"accesses": 5, "contended": 0, "access_ns": 0, "at_once": 0, "most_at_once": 2, "vcpus": 3},
        "post": {"accesses": 0, "contended": 0, "access_ns": 0},
        "virtio0": {"accesses": 0, "reads": 0, "bytes_read": 0, "service_ns": 0, "deepest": 7},
    },
    "contended": [
        {
            "gpa": "0x2a06000",
            "home": 0,
            "moves": 1234567,
            "remote": 5,
            "retried": 0,
            "local": 0,
            "hosts": [0, 1],
        }
    ],
}


def later(seconds: float) -> dict[str, Any]:
    """The same machine so much later: 5000 pages read, vCPU 2 ran half of the time."""
    now: dict[str, Any] = json.loads(json.dumps(SNAPSHOT))
    now["seconds"] += seconds
    now["mesh"][0]["read_fetches"] += int(5000 * seconds)
    now["stats"][2]["run_ns"] += int(0.5e9 * seconds)
    for name in ("atomics_4", "atomics_8", "atomics_misaligned", "atomics_long_way"):
        now["stats"][2][name] += int(150 * seconds)
    now["devices"]["uart"]["accesses"] += int(1000 * seconds)
    now["devices"]["uart"]["access_ns"] += int(0.25e9 * seconds)
    now["devices"]["virtio0"]["reads"] += int(20 * seconds)
    now["devices"]["virtio0"]["service_ns"] += int(0.001e9 * seconds)
    return now


def drawn(before: dict[str, Any], now: dict[str, Any]) -> str:
    from rich.console import Console

    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(top.view({(42, 0): before}, {(42, 0): now}))
    return capture.get()


# --- the socket ------------------------------------------------------------------------------------------


def test_a_process_tells_of_its_machines_as_long_as_somebody_refers_to_them(place: Path) -> None:
    machine: Any = Machine(SNAPSHOT)
    telemetry.show(machine)
    assert telemetry.processes() == [os.getpid()]
    answer = telemetry.ask(os.getpid())
    assert answer["pid"] == os.getpid()
    assert answer["machines"] == [SNAPSHOT]
    del machine
    assert telemetry.ask(os.getpid())["machines"] == []
    stopped: Any = Machine(SNAPSHOT)
    telemetry.show(stopped)
    telemetry.hide(stopped)
    assert telemetry.ask(os.getpid())["machines"] == []


def test_given_a_machine_that_fails_with_one_exception_when_it_is_asked_then_no_other_is_kept_alive(
    place: Path,
) -> None:
    """An exception has the frames that it passed; a machine that keeps one must not keep others with it."""

    class Lost(Machine):
        loss = MachineStateError("host 1 has gone.")

        def snapshot(self) -> dict[str, Any]:
            raise self.loss

    machine: Any = Machine(SNAPSHOT)
    lost: Any = Lost({})
    telemetry.show(machine)
    telemetry.show(lost)
    assert telemetry.ask(os.getpid())["machines"] == [SNAPSHOT]
    del machine
    assert telemetry.ask(os.getpid())["machines"] == []


def test_nobody_else_may_enter_the_folder(place: Path) -> None:
    machine: Any = Machine(SNAPSHOT)
    telemetry.show(machine)
    assert place.stat().st_mode & 0o777 == 0o700
    place.chmod(0o755)
    with pytest.raises(PlatformError, match="this user alone"):
        telemetry._listen()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_not_read(place: Path, tmp_path: Path) -> None:
    place.mkdir(mode=0o777)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / f"{os.getpid()}.sock"))
        server.listen()
        stale = place / "999999999.sock"
        stale.touch()
        os.chown(place, 65534, 65534)
        for _ in range(2):
            with pytest.raises(PlatformError, match="another user"):
                top.look(None)
            with pytest.raises(MachineStateError, match="another user"):
                top.look(os.getpid())
            assert stale.exists(), "what is theirs is not removed"
            os.chown(place, 0, 0)  # now only its mode is wrong
            place.chmod(0o777)
        # A link in its place is not followed, wherever it leads.
        place.rename(tmp_path / "theirs")
        (tmp_path / "theirs").chmod(0o700)
        place.symlink_to(tmp_path / "theirs")
        with pytest.raises(PlatformError):
            top.look(None)


def test_control_characters_do_not_reach_the_terminal(place: Path) -> None:
    told = json.loads(json.dumps(SNAPSHOT))
    told["state"] = "\x1b]0;owned\x07 [bold]run\x9b2J"
    told["hosts"][0]["node"] = "\x1b[31mred[/] \u202e"
    machine: Any = Machine(told)
    telemetry.show(machine)
    look = next(iter(top.look(os.getpid()).values()))
    text = drawn(dict(look), dict(look))
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
    assert r"\x1b]0;owned\x07 [bold]run\x9b2J" in text
    assert r"\x1b[31mred[/] \u202e" in text


def test_sockets_of_killed_processes_are_swept(place: Path) -> None:
    place.mkdir(mode=0o700)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    stale = place / f"{child.pid}.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(stale))
    (place / "notes.txt").touch()
    assert telemetry.processes() == []
    assert not stale.exists()
    assert (place / "notes.txt").exists(), "only what is ours is removed"


def test_a_socket_left_by_process_1_of_a_container_is_swept_although_there_is_a_process_1(
    place: Path,
) -> None:
    place.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "1.sock"))
    assert telemetry.processes() == []
    assert list(place.iterdir()) == []


def test_to_see_which_processes_drive_machines_costs_these_no_answer(place: Path) -> None:
    asked: list[None] = []

    class Counting(Machine):
        def snapshot(self) -> dict[str, Any]:
            asked.append(None)
            return super().snapshot()

    machine: Any = Counting(SNAPSHOT)
    telemetry.show(machine)
    for _ in range(20):
        assert telemetry.processes() == [os.getpid()]
    assert telemetry.ask(os.getpid())["machines"] == [SNAPSHOT]
    assert len(asked) == 1, "a look that has left again is answered all the same"


def test_a_process_without_machines_is_told_as_such(place: Path) -> None:
    with pytest.raises(MachineStateError, match="tells of no machine"):
        telemetry.ask(1)
    with pytest.raises(MachineStateError):
        top.look(1)
    assert top.look(None) == {}


# --- the view --------------------------------------------------------------------------------------------


def test_the_view_shows_hosts_vcpus_contended_pages_and_rates() -> None:
    text = drawn(SNAPSHOT, later(2.0))
    assert "process 42  3 vCPUs on 2 hosts, 1024 MiB, running" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    host_rows = [line for line in text.splitlines() if "10.0.0." in line]
    assert "5.0k" in host_rows[0]
    assert "1.5" in host_rows[0]  # microseconds from host 0's clock
    assert " 7 " in host_rows[1]  # refused
    assert "1.2M" in lines["0x2a06000"]
    assert "0,1" in lines["0x2a06000"]
    assert " 50 %" in lines["2"]
    assert " 300 " in lines["2"]  # locked operations: those on 4 and on 8 bytes
    uart = lines["uart"].split()
    assert uart[1] == "1.0k" and uart[3] == "250.0" and uart[4:6] == ["25", "%"]  # µs each, and of the time
    assert lines["virtio0"].split()[-4:] == ["20", "0", "50.0", "7"]  # requests, bytes, µs each, queue
    assert "post" not in lines, "a device without work"
    assert "100 %" in text  # one that runs and runs has ended no stretch yet
    assert all(len(line) <= 140 for line in text.splitlines())


def test_a_machine_that_has_just_appeared_or_ended_is_shown_too() -> None:
    assert "running" in drawn(SNAPSHOT, SNAPSHOT)
    ended = {key: SNAPSHOT[key] for key in ("vcpus", "memory", "seconds", "hosts")} | {"state": "power-off"}
    assert "power-off" in drawn(SNAPSHOT, ended)


def test_of_many_vcpus_the_busiest_are_shown() -> None:
    rows = [{"state": "halted", "run_ns": 0, "halted_ns": 0} for _ in range(255)]
    before = {
        "state": "running",
        "vcpus": 255,
        "memory": 1 << 30,
        "seconds": 0.0,
        "hosts": [{}],
        "stats": rows,
    }
    now = {**before, "seconds": 1.0, "stats": [*rows[:200], {**rows[0], "run_ns": 10**9}, *rows[201:]]}
    text = drawn(before, now)
    assert "the busiest 24 of 255" in text
    assert any(line.split()[:1] == ["200"] and "100 %" in line for line in text.splitlines())
    assert len(text.splitlines()) < 30


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999.4, "999"),
        (999.9, "1.0k"),
        (34_000, "34k"),
        (5.6e6, "5.6M"),
        (2e13, "20T"),
    ],
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert top.short(number) == text


# --- with a machine --------------------------------------------------------------------------------------


@pytest.fixture
def spinning(tiny_guest: Callable[[bytes], bytes], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that drives a machine of two vCPUs, one of which spins."""
    pytest.importorskip("coremesh.core._native", reason="the engine is not built")
    kernel = tmp_path / "spin"
    kernel.write_bytes(tiny_guest(b"\xe6\x80\xeb\xfc"))  # out 0x80, al; jmp back
    script = (
        "import sys\nfrom coremesh.cluster.launch.machine import Machine\n"
        "machine = Machine(2, '16M', sys.argv[1])\nprint('running', flush=True)\n"
        "sys.stdin.read()\nmachine.stop()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(kernel)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"running\n"
    yield process
    process.stdin.close()
    assert process.wait(60) == 0


def test_without_a_terminal_it_is_printed_once_and_afterwards_there_is_none(
    place: Path, spinning: subprocess.Popen[bytes]
) -> None:
    command = [sys.executable, "-m", "coremesh.cluster.cli", "top"]
    shown = subprocess.run(command, capture_output=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout.decode()
    assert f"process {spinning.pid}  2 vCPUs, 16 MiB, running" in text
    assert "wait-for-sipi" in text
    assert "\x1b" not in text
    assert spinning.stdin is not None
    spinning.stdin.close()
    assert spinning.wait(60) == 0
    assert not place.exists(), "nothing is left, not even the folder"
    after = subprocess.run(command, capture_output=True, timeout=60)
    assert (after.returncode, after.stdout) == (1, b"")
    assert b"coremesh boot" in after.stderr
