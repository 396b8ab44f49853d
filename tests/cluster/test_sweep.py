# SPDX-License-Identifier: GPL-2.0-or-later
"""Sweeps on real machines: what fails, is lost, killed or interrupted costs no row of any other trial."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremesh
import pandas
import pytest
from coremesh.cluster.experiments import qemu
from coremesh.cluster.experiments.columns import require_collect, sums_of
from coremesh.cluster.experiments.journal import journal_of, read
from coremesh.cluster.machine.images.compiler import fetch_compiler
from coremesh.cluster.machine.images.debian_image import DebianImage
from coremesh.core.errors import ImageFetchError

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

pytestmark = pytest.mark.timeout(300)

SPIN = b"\xeb\xfe"

# A sweep in a process of its own: `folder` has the kernel, the result, and a file for each trial that began.
SCRIPT = """
import sys, time
from pathlib import Path
import coremesh
folder = Path(sys.argv[1])
def trial(machine, size, folder):
    Path(folder, f"began-{size}").touch()
    time.sleep(0.3 if size < 3 else 60)
    return {"double": 2 * size}
coremesh.sweep(trial, {"size": [1, 2, 3, 4], "folder": [str(folder)]}, kernel=folder / "kernel", memory="16M",
    shell=False, out=folder / "run.csv", resume=True, at_once=1)
"""


@pytest.fixture
def kernel(tiny_guest: Callable[[bytes], bytes]) -> bytes:
    """A guest that spins from its first instruction on: a machine in a tenth of a second."""
    return tiny_guest(SPIN)


def test_given_trials_that_fail_and_die_when_swept_then_each_is_a_row_and_no_other_is_lost(
    one_ray: None, kernel: bytes, tmp_path: Path
) -> None:
    def trial(machine: Any, size: int, seed: int, marks: str) -> dict[str, float]:
        tries = len(list(Path(marks).glob(f"{size}-*")))
        Path(marks, f"{size}-{tries}").touch()
        if size == 2:
            raise ValueError("two is not liked")
        if size == 3 and tries == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if size == 4:
            time.sleep(60)
        return {"double": 2.0 * size, "drawn": seed, "nice": os.getpriority(os.PRIO_PROCESS, 0)}

    def sweep(**more: Any) -> coremesh.SweepResult:
        return coremesh.sweep(
            trial, {"size": sizes, "marks": [str(tmp_path)]}, kernel=kernel, memory="16M", shell=False,
            out=tmp_path / "run.parquet", timeout=6, progress=False, **more,
        )  # fmt: skip

    sizes = [1, 2, 3, 4]
    result = sweep(retries=1)
    table = result.table.set_index("size").sort_index()
    assert table.loc[1, "double"] == 2.0
    assert table.loc[3, "double"] == 6.0, result.failures
    assert table["attempts"].tolist() == [1, 2, 2, 2], read(journal_of(tmp_path / "run.parquet"))
    assert "ValueError: two is not liked" in str(table.loc[2, "error"])
    assert "TrialTimeout" in str(table.loc[4, "error"])
    assert table.loc[1, "drawn"] == table.loc[1, "seed"]
    assert table.loc[1, "stats.run_ns"] >= 0
    assert table.loc[1, "nice"] == os.getpriority(os.PRIO_PROCESS, 0), "trials run as this program does"
    assert table.loc[1, "host_seconds"] < table.loc[1, "wall_seconds"] < 60
    assert any("Path(marks, f" in text or "in trial" in text for text in result.failures.values())
    lost = [row["error"] for row in read(journal_of(tmp_path / "run.parquet"))[1] if row["error"]]
    assert any("TrialLostError" in error for error in lost), lost
    pandas.testing.assert_frame_equal(
        pandas.read_parquet(tmp_path / "run.parquet")[["size", "double"]], result.table[["size", "double"]]
    )

    # Again, with one value more: what succeeded is not run again.
    sizes.append(5)
    marks = {path.name for path in tmp_path.glob("[13]-*")}
    assert sweep(resume=True).table.set_index("size").loc[5, "double"] == 10.0
    assert {path.name for path in tmp_path.glob("[13]-*")} == marks


def in_its_third_trial(text: str, kernel: bytes, folder: Path, family: Any) -> subprocess.Popen[str]:
    (folder / "kernel").write_bytes(kernel)
    script = folder / "script.py"
    script.write_text(text)
    command = [sys.executable, str(script), str(folder)]
    process = subprocess.Popen(command, env=family.environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "began-3").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_given_a_sweep_that_is_ended_when_resumed_then_its_rows_are_there_and_nothing_runs_on(
    kernel: bytes, tmp_path: Path, family: Any, number: signal.Signals
) -> None:
    process = in_its_third_trial(SCRIPT, kernel, tmp_path, family)
    script, command = tmp_path / "script.py", process.args
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert family.wait_gone(15) == {}
    journal = journal_of(tmp_path / "run.csv")
    assert [row["metrics"] for row in read(journal)[1]] == [{"double": 2}, {"double": 4}], said
    assert (tmp_path / "run.csv").exists() == (number == signal.SIGINT), (
        "the table is made from rows at the end"
    )

    with journal.open("ab") as file:
        file.write(b'{"key":"[{"')  # as a crash of the whole computer leaves it
    stamps = [(tmp_path / f"began-{size}").stat().st_mtime_ns for size in (1, 2)]
    script.write_text(SCRIPT.replace("else 60", "else 0.1"))
    header, *rows = journal.read_text().splitlines()
    other = subprocess.run(command, env=family.environment, capture_output=True, text=True, timeout=120)
    assert "another experiment" in other.stderr, other.stderr
    begun = json.loads(header)
    script.write_text(SCRIPT.replace('"size": [1, 2, 3, 4]', '"size": [1, 2]'))
    done = subprocess.run(command, env=family.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"began-{size}").stat().st_mtime_ns for size in (1, 2)] == stamps
    assert pandas.read_csv(tmp_path / "run.csv")["double"].tolist() == [2, 4]
    assert read(journal)[0] == begun
    assert len(rows) == 3


def test_given_a_trial_that_does_not_end_when_interrupted_twice_then_it_is_ended_by_force_and_rows_stay(
    kernel: bytes, tmp_path: Path, family: Any
) -> None:
    """A person who presses Ctrl-C again does not want to wait: that must cost nothing that is done."""
    waits = "\n    while size == 3:\n        try: time.sleep(60)\n        except BaseException: pass"
    text = SCRIPT.replace("    time.sleep(0.3 if size < 3 else 60)", waits)
    process = in_its_third_trial(text, kernel, tmp_path, family)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert family.wait_gone(15) == {}
    assert pandas.read_csv(tmp_path / "run.csv")["double"].tolist() == [2, 4], said


def test_given_a_sweep_in_an_event_loop_when_cancelled_then_trials_stop_and_what_is_done_stays_and_resumes(
    one_ray: None, kernel: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.csv"

    def trial(machine: Any, size: int, marks: str) -> float:
        Path(marks, f"began-{size}").write_text(str(machine.facts["pid"]))
        time.sleep(0 if size < 3 or Path(marks, "quick").exists() else 60)
        return 2.0 * size

    def sweep(sizes: list[int], **more: Any) -> Any:
        return coremesh.sweep_async(
            trial, {"size": sizes, "marks": [str(tmp_path)]}, kernel=kernel, memory="16M", shell=False,
            out=out, at_once=1, **more,
        )  # fmt: skip

    async def cancelled() -> int:
        ticks, running = 0, asyncio.create_task(sweep([1, 2, 3, 4]))
        async with asyncio.timeout(120):
            while not (tmp_path / "began-3").exists():
                await asyncio.sleep(0.05)
                ticks += 1
            assert coremesh.SweepResult.read(out).table["value"].tolist() == [2.0, 4.0]
            running.cancel()
            await asyncio.sleep(0)
            running.cancel()  # the user asks a second time
            with pytest.raises(asyncio.CancelledError):
                await running
        return ticks

    assert asyncio.run(cancelled()) > 2, "the event loop went on while trials ran"
    pid = int((tmp_path / "began-3").read_text())
    ended = time.monotonic() + 5
    while Path("/proc", str(pid)).exists() and time.monotonic() < ended:
        time.sleep(0.05)
    assert not Path("/proc", str(pid)).exists(), "the machine that ran has ended"
    assert not (tmp_path / "began-4").exists()
    assert pandas.read_csv(out)["value"].tolist() == [2.0, 4.0]
    assert "2 of 4 trials done" in capsys.readouterr().err

    (tmp_path / "quick").touch()
    stamp = (tmp_path / "began-1").stat().st_mtime_ns
    result = asyncio.run(sweep([1, 2, 3, 4], resume=True, progress=False))
    assert sorted(result.table["value"]) == [2.0, 4.0, 6.0, 8.0]
    assert (tmp_path / "began-1").stat().st_mtime_ns == stamp
    with pytest.raises(coremesh.ConfigurationError, match="Did you mean retries"):
        asyncio.run(sweep([1], retrys=1))


@pytest.mark.linux
def test_given_machines_with_all_devices_or_two_hosts_when_asked_then_each_counter_can_be_collected(
    one_ray: None, debian: DebianImage, tmp_path: Path
) -> None:
    """A list of names that lags behind the machine would refuse what there is, or take what there is not."""
    for name in ("virtio", "ide"):
        (tmp_path / f"{name}.img").write_bytes(bytes(1 << 20))
    (tmp_path / "shared").mkdir()
    with coremesh.Machine(
        memory="256M", net="user", console="virtio", folders=[tmp_path / "shared"],
        disks=[f"{tmp_path / name}.img,format=raw,if={name}" for name in ("virtio", "ide")],
        rng=True, bios=True,
    ) as machine:  # fmt: skip
        found = machine.totals()
        assert set(found["stats"]) == sums_of("stats")
        assert {name for name in found["device_stats"] if "." not in name} <= sums_of("device_stats")
        require_collect([f"device_stats.{name}" for name in found["device_stats"]])
    with coremesh.Machine(hosts=2, vcpus=2, memory="128M", append="quiet") as machine:
        assert set(machine.totals()["mesh_stats"]) == sums_of("mesh_stats")


@pytest.mark.linux
def test_given_a_named_load_when_swept_over_cores_then_a_table_a_picture_and_a_page_come_out(
    one_ray: None, debian: DebianImage, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib").use("agg")
    result = coremesh.sweep(
        coremesh.loads.lock, {"vcpus": [1, 2], "kind": ["mcs"]}, memory="256M", append="quiet",
        progress=False, collect=["stats", "device_stats", "device_stats.uart.accesses"],
    )  # fmt: skip
    assert not result.failures, result.failures
    table = result.table.set_index("vcpus")
    assert table.loc[2, "threads"] == 2
    assert (table["acquisitions_per_second"] > 0).all()
    assert (table["stats.interrupts"] > 0).all()
    # What it printed went through the serial port, and nothing through the keyboard's controller.
    uart = table["device_stats.uart.accesses"]
    assert (uart > 10).all() and (table["device_stats.accesses"] >= uart).all()
    devices = {str(name) for name in table if str(name).startswith("device_stats.")}
    assert "device_stats.access_ns" in devices and not devices & {
        "device_stats.i8042.accesses", "device_stats.most_at_once",
    }  # fmt: skip
    assert table["image"].nunique() == 1
    assert (table["boot_cpu_seconds"] > 0.1).all()
    # Of two busy vCPUs, for a second; other work on the computer leaves them a part of it.
    assert table.loc[2, "cpu_seconds"] > 0.1
    # The load measures for one second of the guest's clock.
    assert (table["guest_seconds"] > 0.9).all() and (table["host_seconds"] > 0.9).all()

    axes = result.plot("vcpus", "acquisitions_per_second", by="kind")
    labels = {text.get_text() for text in (axes.get_legend() or pytest.fail("no legend")).get_texts()}
    assert labels == {"kind=mcs", "ideal"}
    page = result.report(tmp_path / "run.html").read_text()
    assert "data:image/png;base64," in page
    assert "acquisitions_per_second" in page and "guest images" in page
    assert "http" not in page.replace("http-equiv", ""), "a page that needs no network"


@pytest.mark.slow
@pytest.mark.linux
def test_given_loads_of_devices_when_swept_then_the_initramfs_has_the_drivers_and_each_gives_its_numbers(
    one_ray: None, debian: DebianImage, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(32 << 20))
    options: dict[str, Any] = {"memory": "256M", "append": "quiet", "progress": False}
    for load, device in (
        (coremesh.loads.disk, {"disks": [f"{image},if=virtio"]}),
        (coremesh.loads.network, {"net": "user"}),
    ):
        result = coremesh.sweep(load, {"vcpus": [2]}, **device, **options)
        assert not result.failures, result.failures
        for name in load.measures.split(", "):
            assert result.table[name][0] > 0, name
    result = coremesh.sweep(coremesh.loads.disk, {"vcpus": [1]}, **options)
    assert "give the machine disks" in result.table["error"][0]


@pytest.mark.linux
def test_given_the_load_that_compiles_when_swept_then_its_programs_run_and_a_wrong_one_is_an_error(
    one_ray: None, debian: DebianImage
) -> None:
    try:
        fetch_compiler()
    except ImageFetchError as error:
        pytest.skip(str(error))
    # A control: the program gives other numbers than awk, as one that was compiled wrong would.
    right = coremesh.loads.compile
    wrong = dataclasses.replace(
        right, command=right.command.replace("(a * %d + %d + c)", "(a * %d + %d - c)")
    )
    results = [
        coremesh.sweep(
            load, {"vcpus": [2], "functions": [50]}, memory="256M", append="quiet", progress=False
        ).table.iloc[0]
        for load in (right, wrong)
    ]
    assert results[0]["error"] is None and results[0]["lines_per_second"] > 0
    assert results[0]["compiler"].startswith("tcc version 0.9.2")
    assert "gives another result" in results[1]["error"]


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.skipif(not qemu.installed(), reason="qemu-system-x86_64 is not installed")
def test_given_both_engines_when_swept_then_their_ratio_is_a_column(
    one_ray: None, debian: DebianImage
) -> None:
    result = coremesh.sweep(
        coremesh.loads.loop, {"engine": ["coremesh", "qemu"]}, memory="256M", append="quiet", progress=False
    )
    assert not result.failures, result.failures
    assert result.table["image"].nunique() == 1
    assert result.compare("operations_per_second", base="qemu")["coremesh / qemu"].iloc[0] > 0.5


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.skipif(not qemu.installed(), reason="qemu-system-x86_64 is not installed")
def test_given_disks_a_card_and_a_prompt_when_both_engines_are_swept_then_the_guest_has_them_on_both(
    one_ray: None, debian: DebianImage, tmp_path: Path
) -> None:
    disks = []
    for interface, mib in (("virtio", 3), ("ide", 5)):
        (tmp_path / interface).write_bytes(interface.encode().ljust(mib << 20, b"\0"))
        disks.append(f"{tmp_path / interface},if={interface}")
    result = coremesh.sweep(
        "for d in vda sda; do echo $d=$(cat /sys/block/$d/size); done; head -c 3 /dev/sda; echo; "
        "head -c 3 /dev/sda | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null; sleep 0.3; "
        "ip addr show eth0 | grep -c 'inet 10.0.2.15'; echo net=$(ls /sys/class/net | grep -c eth)",
        {"engine, hosts": [("coremesh", 1), ("coremesh", [0, 2]), ("qemu", 1)]}, vcpus=2, memory="256M",
        append="quiet", progress=False, disks=disks, net="user", collect=["marks"],
    )  # fmt: skip
    assert not result.failures, result.failures
    table = result.table
    assert table["vda"].tolist() == [6144] * 3 and table["sda"].tolist() == [10240] * 3
    assert table["net"].tolist() == [1, 1, 1]
    assert (tmp_path / "virtio").read_bytes()[:6] == b"idetio", "what the guests wrote is in the image"
    assert (table["marks.net.host_seconds"] > 0.3).all()
    known = table["marks.net.cpu_seconds"].notna().tolist()
    assert known == [True, False, True], "of several hosts there is no processor time"
