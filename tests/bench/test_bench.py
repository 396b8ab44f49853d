# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmarks' own machinery: a sweep's rows become figures, targets are judged."""

import importlib
import json
import sys
from pathlib import Path
from typing import NoReturn

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

import coremesh
from coremesh.cluster.experiments.sweep import Sweep
from coremesh.cluster.machine.images.debian_disk import DebianDisk
from coremesh.core.errors import ImageFetchError
from figures import Figure, Figures, engines, trials
from mesh_table import Table
from resident import mappings

MIB = 1 << 20
ALONE = (
    "boot", "disk_boot", "speed", "disk", "nat", "switch", "scaling", "micro", "accesses", "attached",
    "console_boot", "ray_start",
)  # fmt: skip
SWEEPS = ("boot", "disk", "disk_boot", "nat", "speed")
MESH = ("mesh_fetch", "mesh_contention", "mesh_boot", "mesh_work", "unchanged")


class Checked(Exception):
    """A sweep was found right."""


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
def test_given_a_target_when_both_engines_have_run_then_the_best_round_is_judged(
    target: str, ours: float, theirs: float, met: bool | None
) -> None:
    figure = Figure("a load", "s", target, {"coremesh": [ours + 5, ours], "qemu": [theirs, theirs * 2]})
    assert figure.met() is met


def test_given_no_other_emulator_when_only_coremesh_ran_then_its_figures_are_shown_without_a_ratio() -> None:
    figures = Figures("Alone")
    figures.add("coremesh", "a load", 2.5, "s", "ratio >= 1.1")
    assert "| a load | s | 2.50 |  |  |  | ratio >= 1.1 |  |" in figures.show()


def test_given_an_aim_when_rounds_differ_then_the_medians_are_compared() -> None:
    table = Table("Pages", "TCP, us")
    for value, floor in ((30.0, 20.0), (90.0, 21.0), (31.0, 22.0)):
        table.add("a fetch", value, "us", floor, "<= 1.5")
    assert table.rows["a fetch"].met() is True
    assert "| a fetch | us | 31.00 | 21.00 | 1.48 | <= 1.5 | met |" in table.show()


def test_given_a_trial_with_marks_when_it_is_taken_then_each_figure_has_its_own_processor_time() -> None:
    figures = Figures("Disk")
    for engine, cpu in (("coremesh", 0.5), ("qemu", float("nan"))):
        figures.add_marked({
            "engine": engine, "read_us": 7.0, "marks.read_us.cpu_seconds": cpu, "write_us": 9.0,
            "absent_us": float("nan"), "seed": 1,
        }, "ratio >= 1.0")  # fmt: skip
    read, write = figures
    assert (read.name, read.samples, read.cpu) == (
        "read",
        {"coremesh": [7.0], "qemu": [7.0]},
        {"coremesh": [0.5]},
    )
    assert (write.name, write.cpu) == ("write", {})


def test_given_a_sweep_that_fails_or_is_stopped_when_read_then_trials_that_are_done_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        {"key": engine, "parameters": {"engine": engine}, "repeat": 0, "metrics": numbers, "error": error}
        for engine, numbers, error in (("coremesh", {"x_us": 1.0}, None), ("qemu", {}, "OSError: gone"))
    ]

    def sweep(work: str, parameters: object, out: Path, **options: object) -> coremesh.SweepResult:
        (out.parent / f"{out.name}.rows").write_text(
            "".join(json.dumps(row) + "\n" for row in [{"format": 1, "parameters": ["engine"]}, *rows])
        )
        if work == "stop":
            raise KeyboardInterrupt
        return coremesh.SweepResult(rows, ["engine"])

    monkeypatch.setattr(coremesh, "sweep", sweep)
    for work, raised in (("fail", SystemExit), ("stop", KeyboardInterrupt)):
        found: list[float] = []
        with pytest.raises(raised) as caught:
            found.extend(row["x_us"] for row in trials(work, {}, 1))
        assert found == [1.0]
        assert work == "stop" or "OSError: gone" in str(caught.value)


def test_given_a_qemu_that_is_named_and_not_there_when_engines_are_asked_for_then_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COREMESH_BENCH_QEMU", "no-such-qemu -version")
    with pytest.raises(SystemExit, match="no-such-qemu"):
        engines()


@pytest.mark.parametrize("name", SWEEPS)
def test_given_a_command_that_sweeps_when_it_is_called_then_its_trial_takes_what_is_swept(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All that is checked before the first trial is; no machine starts."""
    for part in ("disk.img", "vmlinuz", "initrd.img"):
        (tmp_path / part).write_bytes(bytes(4096))
    module = importlib.import_module(name)
    if hasattr(module, "pristine_disk"):
        monkeypatch.setattr(module, "pristine_disk", lambda: DebianDisk(tmp_path, "6.1", "root=UUID=1 rw"))
    found: list[int] = []

    def run(self: Sweep, **_: object) -> NoReturn:
        found.append(len(self.trials))
        raise Checked

    monkeypatch.setattr(Sweep, "run", run)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--rounds", "1"])
    try:
        module.main()
    except Checked:
        assert found[0] > 0
    except ImageFetchError as error:
        pytest.skip(str(error))


def test_every_command_says_how_it_is_called() -> None:
    """The README names one command a figure; each says the same in its first lines."""
    folder = Path(__file__).parent
    for name in (*ALONE, *MESH):
        assert f"python tests/bench/{name}.py" in (folder / f"{name}.py").read_text()
        assert f"tests/bench/{name}.py" in (folder / "README.md").read_text()
