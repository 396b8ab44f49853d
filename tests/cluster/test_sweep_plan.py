# SPDX-License-Identifier: GPL-2.0-or-later
"""What of an experiment needs no machine: its trials, its rows on disk, the numbers in a command's output."""

import contextlib
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coremesh.cluster.cli.sweep import _cell, run_sweep, shown_columns
from coremesh.cluster.experiments import loads, qemu
from coremesh.cluster.experiments.experiment import Command, TrialFailedError
from coremesh.cluster.experiments.journal import Journal, journal_of, read
from coremesh.cluster.experiments.marks import Marks
from coremesh.cluster.experiments.plan import plan
from coremesh.cluster.experiments.plots import ideal_line
from coremesh.cluster.experiments.result import SweepResult
from coremesh.cluster.experiments.sweep import claim_of, dry_run, prepare
from coremesh.cluster.experiments.sweep_file import read_sweep
from coremesh.cluster.machine.disks import check_disks
from coremesh.cluster.machine.networks import check_networks
from coremesh.cluster.machine.shell import CommandResult
from coremesh.core.errors import ConfigurationError, PlatformError

IDENTITY = {"trial": "a", "machine": "b", "parameters": ["vcpus"]}


def row(vcpus: int, error: str | None = None, repeat: int = 0, **metrics: float) -> dict[str, Any]:
    return {
        "key": f"{vcpus} {repeat}", "parameters": {"vcpus": vcpus}, "repeat": repeat, "metrics": metrics,
        "error": error,
    }  # fmt: skip


def test_given_parameters_when_planned_then_all_combinations_come_once_before_any_comes_again() -> None:
    trials = plan({"vcpus": [1, 2], "hosts": [1, [1, 1]]}, repeats=2, seed=0)
    combinations = [(trial.parameters["vcpus"], trial.parameters["hosts"]) for trial in trials]
    assert combinations[:4] == [(1, 1), (1, [1, 1]), (2, 1), (2, [1, 1])]
    assert combinations[4:] == combinations[:4]
    assert len({trial.key for trial in trials}) == len({trial.seed for trial in trials}) == 8
    again = plan({"hosts": [[1, 1], 1], "vcpus": [2, 1]}, repeats=2, seed=0)
    assert {trial.key: trial.seed for trial in again} == {trial.key: trial.seed for trial in trials}


def test_given_names_that_change_together_when_planned_then_each_has_its_own_column_and_key() -> None:
    together = plan({"vcpus, memory": [(1, "256M"), (64, "1G")], "kind": ["a", "b"]}, repeats=1, seed=0)
    assert [tuple(trial.parameters.values()) for trial in together] == [
        (1, "256M", "a"), (1, "256M", "b"), (64, "1G", "a"), (64, "1G", "b"),
    ]  # fmt: skip
    alone = plan({"kind": ["a"], "memory": ["1G"], "vcpus": [64]}, repeats=1, seed=0)
    assert (alone[0].key, alone[0].seed) == (together[2].key, together[2].seed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"parameters": {"vcpus, memory": [1, 2]}}, r"a list of 2, one for each, not 1"),
        ({"parameters": {"vcpus, memory": [(1, "1G", 3)]}}, "a list of 2"),
        ({"parameters": {"vcpus, memory": [(1, "1X")]}}, "memory size"),
        ({"parameters": {"vcpus, vcpus": [(1, 2)]}}, "vcpus is there twice"),
        ({"parameters": {"vcpus, memory": [(1, "1G")], "vcpus": [2]}}, "vcpus is there twice"),
        ({"parameters": {"vcpus,": [(1, 2)]}}, "like a Python name"),
        ({"parameters": {"vcpus, memory": "1G"}}, r'"vcpus, memory": '),
        ({"parameters": [("vcpus", [1])]}, "by name"),
        ({"parameters": {"engine": ["coremesh", "qemu"]}, "machine": {"rng": True}}, "QEMU.* has no rng"),
        ({"parameters": {"engine": ["qemu"], "hosts": [2], "vcpus": [2]}}, '"engine, hosts"'),
        ({"parameters": {"engine": ["qemu"]}, "machine": {"net": "user,queues=2"}}, "one pair of queues"),
        ({"trial": len, "collect": ["marks"]}, "lines that a command prints"),
        ({"trial": loads.loop, "collect": ["marks"]}, "lines that a command prints"),
        ({"parameters": {"vcpus": 4}}, "a list of the values"),
        ({"parameters": {"vcpus": [1, 1]}}, "twice"),
        ({"parameters": {"vcpus": []}}, "no value"),
        ({"parameters": {"vcpus": [0]}}, "1 to 255 vCPUs"),
        ({"parameters": {"hosts": [4], "vcpus": [2]}}, "cannot be spread"),
        ({"parameters": {"engine": ["bochs"]}}, "coremesh, qemu"),
        ({"parameters": {"seed": [1]}}, "column of each result"),
        ({"parameters": {"colour": [1]}, "trial": len}, "does not take it"),
        ({"parameters": {"vcpus": [object()]}}, "number, text"),
        ({"machine": {"cores": 4}}, "no option"),
        ({"machine": {"vcpus": 4}, "parameters": {"vcpus": [1]}}, "both"),
        ({"trial": 5}, "function of a machine"),
        ({"trial": "true", "numbers": {"x": "abc"}}, "group"),
        ({"trial": "true", "numbers": "x=(.*)"}, "regular expressions by name"),
        ({"trial": "true", "numbers": {"wall_seconds": "(.*)"}}, "wall_seconds.* is another column"),
        ({"trial": "true", "numbers": {"vcpus": "(.*)"}, "parameters": {"vcpus": [1]}}, "another column"),
        ({"shell": "no"}, "shell is True or False"),
        ({"seed": "a"}, "seed is a whole number"),
        ({"timeout": 0}, "more than 0 seconds"),
        ({"out": "run.xlsx"}, ".parquet or .csv"),
        ({"collect": ["statistics"]}, "stats, mesh_stats, device_stats"),
        ({"collect": ["mesh_stats.page_byte"]}, r"page_bytes.*COUNTERS\.md"),
        ({"collect": ["stats", "stats.interupts"]}, "interrupts"),
        ({"collect": ["stats."]}, "no counter"),
        ({"collect": ["mesh_stats.protocol_thread"]}, "no counter that has a sum"),
        ({"collect": ["device_stats.acceses"]}, r"accesses.*device_stats\(\)"),
        ({"collect": ["device_stats.art.accesses"]}, "such a device.*uart"),
        ({"collect": ["device_stats.virtio-blk0.read"]}, "reads"),
        ({"parameters": {"vcpu": [1, 2]}}, "Did you mean vcpus"),
        ({"parameters": {"megabyte": [1]}, "trial": loads.hashing}, "megabytes"),
        ({"parameters": {"engine": ["qemo"]}}, "Did you mean qemu"),
        ({"machine": {"memry": "1G"}}, "Did you mean memory"),
        ({"machine": {"repeat": 3}}, "Did you mean repeats"),
        ({"repeats": 0}, "from 1"),
        ({"repeats": 200_000}, "100000"),
    ],
)
def test_given_a_sweep_that_makes_no_sense_when_prepared_then_it_says_what_would(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        prepare(arguments.pop("trial", "true"), arguments.pop("parameters", {}), **arguments)


@pytest.mark.parametrize(
    "name",
    [
        "stats.device_ns",
        "mesh_stats.links_sent_bytes",
        "device_stats.ide1.busy_ns",
        "device_stats.fw-cfg.transfers",
    ],
)
def test_given_a_counter_that_there_is_when_it_is_collected_then_it_is_taken(name: str) -> None:
    assert prepare("true", {}, collect=[name]).experiment.collect == (name,)


def test_given_a_misspelt_column_when_plotted_or_compared_then_the_one_that_was_meant_is_named() -> None:
    result = SweepResult([row(1, throughput=2.0)], ["vcpus"])
    with pytest.raises(ConfigurationError, match="Did you mean throughput"):
        result.plot("vcpus", "troughput")
    with pytest.raises(ConfigurationError, match="Did you mean vcpus"):
        result.plot("vcpu", "throughput")
    with pytest.raises(ConfigurationError, match="no column 'engin'"):
        result.compare("throughput", by="engin")


def test_given_a_trial_when_it_is_admitted_then_it_claims_its_guests_cores_and_memory() -> None:
    sweep = prepare("true", {"vcpus": [4], "hosts": [1, 2]}, machine={"memory": "64M"})
    claims = [claim_of(sweep.experiment, trial) for trial in sweep.trials]
    assert [(claim.cores, claim.memory, claim.single) for claim in claims] == [
        (4.0, 64 << 20, True),
        (4.0, 64 << 20, False),
    ]


def test_given_a_line_that_a_crash_cut_off_when_the_journal_is_opened_then_only_that_one_is_gone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.csv.rows"
    with Journal(path, IDENTITY, resume=False) as journal:
        journal.add(row(1))
        journal.add(row(2))
    with path.open("ab") as file:
        file.write(b'{"key":"3 0","parame')
    assert [one["key"] for one in read(path)[1]] == ["1 0", "2 0"]
    with Journal(path, IDENTITY, resume=True) as journal:
        assert [one["key"] for one in journal.rows] == ["1 0", "2 0"]
        journal.add(row(4))
    lines = path.read_text().splitlines()
    assert [json.loads(line).get("key") for line in lines] == [None, "1 0", "2 0", "4 0"]


def test_given_rows_of_another_experiment_or_writer_when_opened_then_they_are_left_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.csv.rows"
    with Journal(path, IDENTITY, resume=False) as journal:
        journal.add(row(1))
        with pytest.raises(ConfigurationError, match="another process"):
            Journal(path, IDENTITY, resume=True)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="resume=True"):
        Journal(path, IDENTITY, resume=False)
    with pytest.raises(ConfigurationError, match="not the same trial"):
        Journal(path, {**IDENTITY, "trial": "other"}, resume=True)
    path.write_bytes(b"a picture\n" + before)
    with pytest.raises(ConfigurationError, match="line 1"):
        Journal(path, IDENTITY, resume=True)
    path.write_bytes(before)
    Journal(path, IDENTITY, resume=True).close()


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """A disk with room for files of so many bytes alone: a limit of this process, and no signal."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)


def test_given_a_full_disk_when_a_row_or_a_table_is_written_then_what_was_there_stays_and_goes_on(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run.csv"
    path = journal_of(out)
    with Journal(path, IDENTITY, resume=False) as journal:
        journal.add(row(1))
        SweepResult(journal.rows, ["vcpus"]).save(out)
        before, table = path.read_bytes(), out.read_bytes()
        with room(len(before) + 20), pytest.raises(PlatformError, match=r"make room.*--resume"):
            journal.add(row(2))
        assert path.read_bytes() == before, "no part of the row stays"
        with room(20), pytest.raises(PlatformError, match=r"rows are in .*run\.csv\.rows"):
            SweepResult([row(1), row(2)], ["vcpus"]).save(out)
        assert out.read_bytes() == table and set(tmp_path.iterdir()) == {out, path}
        journal.add(row(4))
    assert [one["key"] for one in read(path)[1]] == ["1 0", "4 0"]


def test_given_rows_that_are_there_when_only_listed_then_it_is_refused_as_the_run_would_be(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run.csv"
    sweep = prepare("true", {"vcpus": [1, 2]}, out=out)
    with Journal(journal_of(out), sweep.identity(), resume=False) as journal:
        journal.add({**row(1), "key": sweep.trials[0].key})
    assert [*dry_run(sweep, resume=True)] == ["vcpus=2, repeat 0"]
    with pytest.raises(ConfigurationError, match="--resume"):
        [*dry_run(sweep)]
    with pytest.raises(ConfigurationError, match="not the same trial"):
        [*dry_run(prepare("false", {"vcpus": [1]}, out=out), resume=True)]
    with journal_of(out).open("a") as file:
        file.write('{"key": "no more"}\n')
    with pytest.raises(ConfigurationError, match="line 3"):
        [*dry_run(sweep, resume=True)]
    with pytest.raises(ConfigurationError, match="resume is True or False"):
        sweep.run(resume="yes")  # type: ignore[arg-type]


def test_given_what_a_command_printed_when_read_then_its_numbers_are_found_or_missed_aloud() -> None:
    assert Command("x").read("hello\nrate=3.5e2\ncount: 7\nname=abc\n") == {"rate": 350.0, "count": 7}
    named = Command("x", {"speed": r"([0-9.]+) MB/s"})
    assert named.read("16777216 bytes, 0.1 s, 160.5 MB/s") == {"speed": 160.5}
    with pytest.raises(TrialFailedError, match="dd: no such file"):
        named.read("dd: no such file")
    with pytest.raises(TrialFailedError, match="no line"):
        Command("x").read("nothing here")


def test_given_numbers_that_come_one_by_one_when_marked_then_each_has_the_seconds_since_the_one_before() -> (
    None
):
    used = iter([1.0, 1.5, 3.5])
    marks = Marks(lambda: next(used), {})
    marks.on_output(b"warming up\r\nread_us=")
    assert marks.columns() == {}
    marks.on_output(b"7.5\r\nwri")
    time.sleep(0.05)
    marks.on_output(b"te_us: 9\nno=number\n")
    columns = marks.columns()
    assert columns["marks.read_us.cpu_seconds"] == 0.5
    assert columns["marks.write_us.cpu_seconds"] == 2.0
    assert columns["marks.read_us.host_seconds"] < 0.05 <= columns["marks.write_us.host_seconds"]
    assert len(columns) == 4


def test_given_patterns_and_no_processor_time_when_marked_then_their_lines_have_the_clock_alone() -> None:
    marks = Marks(lambda: None, {"speed": r"([0-9.]+) MB/s"})
    marks.on_output(b"count=3\n0.1 s, 160.5 MB/s\n")
    assert list(marks.columns()) == ["marks.speed.host_seconds"]


@pytest.mark.parametrize(
    ("parameters", "machine", "vcpus"),
    [({"hosts": [[0, 2]]}, {}, "2"), ({}, {"hosts": 3}, "3"), ({"vcpus": [4]}, {}, "4"), ({}, {}, "1")],
)
def test_given_a_machine_when_its_trial_asks_for_vcpus_then_they_are_those_of_all_hosts(
    parameters: dict[str, Any], machine: dict[str, Any], vcpus: str
) -> None:
    sweep = prepare("true", parameters, machine=machine)
    assert str(sweep.experiment.taken(sweep.trials[0])["vcpus"]) == vcpus


def test_given_disks_and_cards_when_qemu_gets_them_then_its_words_are_those_of_the_same_devices() -> None:
    disks = check_disks(["/a,,b.img,if=virtio,format=raw,snapshot", "/c.vhd,readonly"])
    assert qemu.disk_words(disks, 3) == [
        "-drive", "file=/a,,b.img,format=raw,if=none,id=disk0,snapshot=on",
        "-device", "virtio-blk-pci,disable-legacy=on,num-queues=3,drive=disk0",
        "-drive", "file=/c.vhd,format=vpc,if=none,id=disk1,readonly=on",
        "-device", "ide-hd,drive=disk1",
    ]  # fmt: skip
    mac = "mac=52:54:00:12:34:56"
    cards = check_networks([f"user,forward=tcp:2222:22,restrict,{mac}", f"switch=unix:/s,{mac}"])
    cards += check_networks([f"socket=here:7,{mac}", f"tap=tap0,{mac}"])
    ends = qemu.card_words(cards)[1::4]
    assert ends == [
        "user,restrict=on,hostfwd=tcp:127.0.0.1:2222-:22,id=card0",
        "stream,addr.type=unix,addr.path=/s,id=card1",
        "stream,addr.type=inet,addr.host=here,addr.port=7,id=card2",
        "tap,ifname=tap0,script=no,downscript=no,id=card3",
    ]
    assert qemu.card_words(cards)[3] == f"virtio-net-pci,disable-legacy=on,netdev=card0,{mac}"


def test_given_attempts_of_a_trial_when_tabled_then_a_success_counts_and_each_try_is_counted() -> None:
    rows = [row(1, "OSError: x"), row(1, rate=4.0), row(1, "late"), row(2, "ValueError: y"), row(4, rate=8.0)]
    result = SweepResult(rows, ["vcpus"])
    table = result.table.set_index("vcpus")
    assert table["rate"].tolist()[0] == 4.0
    assert table["attempts"].tolist() == [2, 1, 1]
    assert result.failures == {"2 0": "ValueError: y"}
    assert len(result.good) == 2


def test_given_rates_and_times_when_the_ideal_is_drawn_then_rates_grow_and_times_fall() -> None:
    rows = [row(vcpus, rate=10.0 * vcpus, seconds=8.0 / vcpus) for vcpus in (1, 2, 4)]
    table = SweepResult(rows, ["vcpus"]).table
    assert ideal_line(table, "vcpus", "rate") == ([1.0, 2.0, 4.0], [10.0, 20.0, 40.0])
    assert ideal_line(table, "vcpus", "seconds") == ([1.0, 2.0, 4.0], [8.0, 4.0, 2.0])
    assert ideal_line(table.assign(vcpus=["a", "b", "c"]), "vcpus", "rate") is None


def test_given_two_engines_when_compared_then_the_ratio_is_a_column() -> None:
    rows = [
        {
            "key": f"{engine} {vcpus}", "parameters": {"engine": engine, "vcpus": vcpus}, "repeat": 0,
            "metrics": {"rate": rate * vcpus}, "error": None,
        }
        for engine, rate in (("coremesh", 30.0), ("qemu", 20.0))
        for vcpus in (1, 2)
    ]  # fmt: skip
    result = SweepResult(rows, ["engine", "vcpus"])
    compared = result.compare("rate")
    assert compared["coremesh / qemu"].tolist() == [1.5, 1.5]
    with pytest.raises(ConfigurationError, match="bochs"):
        result.compare("rate", base="bochs")
    with pytest.raises(ConfigurationError, match="rate"):
        result.compare("speed")


def test_given_a_result_when_a_terminal_shows_it_then_what_differs_is_there_and_names_of_errors() -> None:
    rows = [row(1, rate=2.0), row(2, error="TrialFailedError: " + "much text " * 50)]
    assert shown_columns(SweepResult(rows[:1], ["vcpus"])) == [
        "vcpus", "rate", "boot_seconds", "host_seconds", "guest_seconds",
    ]  # fmt: skip
    failed = SweepResult([row(1, rate=2.0, repeat=1), *rows], ["vcpus"])
    names = shown_columns(failed)
    assert names[:3] == ["vcpus", "repeat", "rate"] and names[-1] == "error"
    assert _cell("error", rows[1]["error"]) == "TrialFailedError"


def test_given_a_report_that_cannot_be_written_when_a_sweep_is_typed_then_no_trial_runs(
    tmp_path: Path,
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text('out = "out.csv"\n[trial]\ncommand = "true"\n')
    for report in (tmp_path / "none" / "page.html", tmp_path):
        with pytest.raises(PlatformError, match="cannot be written"):
            run_sweep(
                file, resume=False, only_list=False, repeats=None, out=None, at_once=None, address=None,
                report=report,
            )  # fmt: skip
    assert not list(tmp_path.glob("out.csv*"))


def test_given_a_file_when_read_then_it_is_the_sweep_that_it_says(tmp_path: Path) -> None:
    file = tmp_path / "hash.toml"
    file.write_text(
        'out = "hash.csv"\nrepeats = 2\n[trial]\nload = "hashing@1"\n[parameters]\nvcpus = [1, 2]\n'
        '[machine]\nmemory = "256M"\n'
    )
    sweep = read_sweep(file, repeats=3)
    assert sweep.out == tmp_path / "hash.csv"
    assert len(list(dry_run(sweep))) == 6
    assert sweep.experiment.work == loads.hashing
    assert not (tmp_path / "hash.csv.rows").exists()


def test_given_a_load_that_prints_its_threads_when_they_are_swept_then_they_are_a_parameter_alone() -> None:
    class Guest:
        def run(self, command: str, timeout: float, on_output: object = None) -> CommandResult:
            return CommandResult("threads=2\noperations_per_second=5\n", 0)

    assert loads.loop(Guest(), {"vcpus": 2}, 60.0) == {"threads": 2, "operations_per_second": 5}
    assert loads.loop(Guest(), {"vcpus": 2, "threads": 2}, 60.0) == {"operations_per_second": 5}


def test_given_the_page_of_experiments_when_read_then_it_lists_the_loads_that_there_are() -> None:
    page = Path(loads.__file__).with_name("README.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and "@" in line]
    assert rows == [f"| `{load.identity()}` | {load.about} |" for load in loads.ALL]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("repeats = ", "not TOML"),
        ('[trial]\ncommand = "true"\n[machines]\n', "machines"),
        ("[parameters]\nvcpus = [1]\n", "one of command, load and function"),
        ('[trial]\nload = "hashing@7"\n', "version 1"),
        ('[trial]\nload = "tetris"\n', "no load"),
        ('[trial]\nload = "hasing"\n', "Did you mean hashing"),
        ('repeat = 3\n[trial]\ncommand = "true"\n', "Did you mean repeats"),
        ('collect = ["stats.run_n"]\n[trial]\ncommand = "true"\n', "Did you mean run_ns"),
        ('[trial]\nfunction = "nowhere:f"\n', "no function"),
        ('[trial]\nfunction = "f"\n', "module:function"),
        ('[trial]\nfunction = "unfinished:f"\n', "SyntaxError.*never closed"),
        ('[trial]\nfunction = "raises:f"\n', r"RuntimeError: no licence, .*raises\.py, line 2"),
        ('trial = "true"\n', "a table"),
    ],
)
def test_given_a_file_that_is_wrong_when_read_then_the_word_is_named(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    (tmp_path / "unfinished.py").write_text("def f(machine:\n")
    (tmp_path / "raises.py").write_text("\nraise RuntimeError('no licence')\n")
    with pytest.raises(ConfigurationError, match=said):
        read_sweep(file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_sweep(tmp_path / "none.toml")
