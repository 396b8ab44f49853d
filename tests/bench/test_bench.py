# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks' own machinery: a peer is watched, its guest's figures arrive, targets are judged."""

import os
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

import peers
from coremesh.cluster.machine.images.debian_image import cached_debian
from figures import Figure, Figures
from mesh_table import Table
from resident import mappings

MIB = 1 << 20
ALONE = (
    "boot", "disk_boot", "speed", "disk", "nat", "switch", "scaling", "micro", "accesses", "attached",
    "console_boot", "ray_start",
)  # fmt: skip
MESH = ("mesh_fetch", "mesh_contention", "mesh_boot", "mesh_work", "unchanged")

SMAPS = """\
7f0000000000-7f0040000000 rw-s 00000000 00:01 9      /memfd:coremesh-ram (deleted)
Rss:              204800 kB
Private_Clean:         0 kB
Private_Dirty:    204800 kB
7f0050000000-7f0050100000 rw-p 00000000 00:00 0
Rss:                1024 kB
Private_Clean:         4 kB
Private_Dirty:       512 kB
VmFlags: rd wr mr mw me ac sd
"""


def test_given_the_mappings_of_a_process_when_they_are_read_then_names_sizes_and_private_pages_come_out() -> (
    None
):
    found = list(mappings(SMAPS))
    assert found == [
        ("/memfd:coremesh-ram (deleted)", 1024 * MIB, 200 * MIB),
        ("", MIB, 516 << 10),
    ]


@pytest.mark.parametrize(
    ("target", "ours", "theirs", "met"),
    [
        ("ratio >= 1.1", 10.0, 11.5, True),
        ("ratio >= 1.1", 10.0, 10.5, False),
        ("share <= 0.8", 7.9, 10.0, True),
        ("share <= 0.8", 8.1, 10.0, False),
        ("<= 15", 14.0, 1.0, True),
        ("<= 15", 16.0, 100.0, False),
        ("", 1.0, 1.0, None),
    ],
)
def test_given_a_target_when_both_peers_have_run_then_the_best_round_is_judged(
    target: str, ours: float, theirs: float, met: bool | None
) -> None:
    figure = Figure("a load", "s", target, {"coremesh": [ours + 5, ours], "qemu": [theirs, theirs * 2]})
    assert figure.met() is met


def test_given_no_other_emulator_when_only_coremesh_ran_then_its_figures_are_shown_without_a_ratio() -> None:
    figures = Figures("Alone")
    figures.add("coremesh", "a load", 2.5, "s", "ratio >= 1.1")
    assert "| a load | s | 2.50 |  |  |  | ratio >= 1.1 |  |" in figures.show()


def test_given_the_processor_clock_of_another_process_when_it_is_this_one_then_both_agree() -> None:
    times = os.times()
    assert peers.cpu_seconds(os.getpid()) == pytest.approx(times.user + times.system, abs=1.0)


def test_given_an_aim_when_rounds_differ_then_the_medians_are_compared() -> None:
    table = Table("Pages", "TCP, us")
    for value, floor in ((30.0, 20.0), (90.0, 21.0), (31.0, 22.0)):
        table.add("a fetch", value, "us", floor, "<= 1.5")
    assert table.rows["a fetch"].met() is True
    assert "| a fetch | us | 31.00 | 21.00 | 1.48 | <= 1.5 | met |" in table.show()


@pytest.mark.bench
@pytest.mark.linux
def test_given_a_script_when_a_machine_runs_it_then_its_values_marks_memory_and_clock_are_known() -> None:
    if cached_debian() is None:
        pytest.skip("no Debian image in the cache; 'coremesh fetch' gets one")
    with peers.guest("load time shell /bin/sh -c true\necho answer=42") as guest:
        run = peers.run_coremesh(guest, 1, 256, (peers.FIRST, peers.LAST, peers.DONE), 120)
    assert run.values["answer"].number == 42
    assert run.values["shell_ms"].number > 0
    assert 0 < run.marks[peers.FIRST] <= run.marks[peers.LAST] <= run.marks[peers.DONE]
    assert 0 < run.cpu[peers.FIRST] <= run.cpu[peers.DONE]
    assert run.own_mib > 5


@pytest.mark.bench
@pytest.mark.linux
def test_given_a_script_that_fails_when_a_machine_runs_it_then_the_console_says_why() -> None:
    if cached_debian() is None:
        pytest.skip("no Debian image in the cache; 'coremesh fetch' gets one")
    with (
        peers.guest("echo before; cat /no/such/file; echo after") as guest,
        pytest.raises(peers.PeerError, match=r"(?s)before.*No such file"),
    ):
        peers.run_coremesh(guest, 1, 256, (peers.DONE,), 120)


def test_every_command_says_how_it_is_called() -> None:
    """The README names one command a figure; each says the same in its first lines."""
    folder = Path(peers.__file__).parent
    for name in (*ALONE, *MESH):
        assert f"python tests/bench/{name}.py" in (folder / f"{name}.py").read_text()
        assert f"tests/bench/{name}.py" in (folder / "README.md").read_text()
