# SPDX-License-Identifier: GPL-2.0-or-later
"""The program of the named loads, run on this computer, a Linux too: what it keeps busy, what it says."""

import os
import subprocess
import time
from importlib.resources import files
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="this process may use one core alone"
)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program; it is installed as data for a guest."""
    program = tmp_path_factory.mktemp("load") / "load"
    program.write_bytes((files("coremesh") / "core/guests/load.elf").read_bytes())
    program.chmod(0o700)
    return str(program)


def said(load: str, *words: str) -> dict[str, int]:
    """The numbers that a short run prints."""
    run = subprocess.run(
        [load, *words, "milliseconds=50"], capture_output=True, text=True, timeout=30, check=True
    )
    return {name: int(value) for name, value in (line.split("=") for line in run.stdout.splitlines())}


@pytest.mark.parametrize("via", ["pipe", "futex", "semaphore"])
def test_given_two_players_when_they_play_then_the_first_core_has_one_and_the_last_the_other(
    load: str,
    via: str,
) -> None:
    """Both were on the first core once, so that a ping-pong between hosts never left its host."""
    cores = sorted(os.sched_getaffinity(0))
    with subprocess.Popen(
        [load, "pingpong", f"via={via}", "milliseconds=2000"], stdout=subprocess.PIPE
    ) as game:
        places: set[str] = set()
        deadline = time.monotonic() + 1.5
        while len(places) < 2 and time.monotonic() < deadline:
            places = {
                line.split()[1]
                for task in Path(f"/proc/{game.pid}/task").iterdir()
                for line in (task / "status").read_text().splitlines()
                if line.startswith("Cpus_allowed_list") and line.split()[1].isdecimal()
            }
        assert places == {str(cores[0]), str(cores[-1])}
        assert game.wait(20) == 0


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        (("memory", "kind=copy"), "copies_per_second"),
        (("memory", "kind=allocate", "threads=1"), "allocations_per_second"),
        (("pingpong", "via=semaphore"), "round_trips_per_second"),
    ],
)
def test_given_a_load_when_it_runs_then_it_says_its_rate(
    load: str, words: tuple[str, ...], rate: str
) -> None:
    assert said(load, *words)[rate] > 0


def test_given_a_way_that_there_is_not_when_it_runs_then_it_says_which_there_are(load: str) -> None:
    run = subprocess.run([load, "pingpong", "via=post"], capture_output=True, text=True, timeout=30)
    assert run.returncode != 0
    assert "via is pipe, futex or semaphore" in run.stdout + run.stderr
