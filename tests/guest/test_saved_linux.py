# SPDX-License-Identifier: GPL-2.0-or-later
"""A running Linux is saved and built anew in another process; the person goes on typing in the same shell."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.machine.disks import Disk
from coremesh.core.errors import ImageFetchError
from saved_machine import boot

pytestmark = [pytest.mark.linux, pytest.mark.timeout(300)]

VCPUS, MEMORY = 2, "256M"
TERMS = 1_000_000

# In the background: a counter that sleeps between its steps, and floating point on each core.
SETUP = [
    "word='typed before'; mkdir -p /tmp/s; cd /tmp/s",
    "(i=0; while :; do i=$((i+1)); echo $i >count; sleep 0.05; done) &",
    f"sums() {{ taskset -c $1 awk 'BEGIN {{ for (; i++ < {TERMS}; ) x += 1 / i; printf \"%.12f\", x }}'; }}",
    "for cpu in 0 1; do sums $cpu >sum.$cpu & done",
]
CLOCKS = "cut -d' ' -f1 /proc/uptime; date +%s"
COMPLAINTS = "dmesg | grep -E 'BUG|Oops|WARNING:|unstable|soft lockup|rcu.*stall|timekeeping|skew' || true"


def go_on(
    folder: Path, disks: Sequence[tuple[str, str]], typed: str, commands: Sequence[str]
) -> dict[str, Any]:
    """What the machine saved in ``folder`` answers in another process; see saved_machine.py."""
    script = Path(__file__).parent / "saved_machine.py"
    done = subprocess.run(
        [sys.executable, script, folder, str(VCPUS), MEMORY, json.dumps(disks), typed, *commands],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_person_goes_on_typing_in_the_shell_of_a_machine_that_was_saved(tmp_path: Path) -> None:
    """Given Linux on two cores with a shell, jobs in the background and floating point under way.

    When it is saved, and a machine built from that in another process, then the shell knows its variable, the
    jobs go on and their results are right, and time goes on from the saved moment.
    """
    try:
        linux = boot(VCPUS, MEMORY)
    except ImageFetchError as error:
        pytest.skip(f"no Debian image: {error}")
    with linux:
        linux.wait_shell(120)
        for line in SETUP:
            linux.type(line)
        assert len(linux.run("sleep 0.2; pidof awk").split()) == VCPUS, "too late to save it in the midst"
        uptime, date = (float(value) for value in linux.run(CLOCKS).split())
        count = int(linux.run("cat count"))
        linux.save(tmp_path / "saved")
        saved_at = time.time()

    time.sleep(2)  # that the guest must not see
    commands = [
        "cat shell",
        CLOCKS,
        "cat count",
        "while ! [ -s sum.0 -a -s sum.1 ]; do sleep 0.1; done; cat sum.0; echo; cat sum.1",
        "sleep 0.3; cat count",
        CLOCKS,
        "for cpu in 0 1; do taskset -c $cpu sh -c 'seq 2000 | sha256sum'; done",
        COMPLAINTS,
    ]
    answer = go_on(tmp_path / "saved", [], 'echo "$word" in $PWD >shell', commands)
    shell, first, count_then, sums, count_later, last, hashes, complaints = answer["outputs"]

    assert shell == "typed before in /tmp/s\n"
    expected = math.fsum(1 / i for i in range(1, TERMS + 1))
    assert all(math.isclose(float(value), expected, rel_tol=1e-11) for value in sums.split())
    assert len(sums.split()) == VCPUS
    assert len(set(sums.split())) == 1, "the cores came to different sums"
    assert count <= int(count_then) < int(count_later)
    first_uptime, first_date = (float(value) for value in first.split())
    last_uptime, last_date = (float(value) for value in last.split())
    assert uptime <= first_uptime < uptime + 1 + answer["seconds"]
    assert date <= first_date <= last_date <= date + 2 + answer["seconds"]
    assert last_uptime - uptime < time.time() - saved_at, "the guest saw the time when it was not there"
    assert last_uptime > first_uptime
    assert len(set(hashes.splitlines())) == 1
    assert complaints == ""
    assert answer["end"] == "power-off"


WRITE = "for n in $(seq 120); do dd if=/tmp/data of={disk} bs=64k conv=fsync; done 2>/dev/null; touch {done}"
SAME = "dd if={disk} bs=64k 2>/dev/null | cmp -n $(stat -c %s /tmp/data) - /tmp/data"


@pytest.mark.slow
def test_disks_that_are_written_across_a_save_hold_what_was_written(tmp_path: Path) -> None:
    """Given a virtio and an IDE disk under load, when the machine goes on elsewhere with the same images.

    Then no request hangs, and the disks hold the data.
    """
    images = [(str(tmp_path / f"{interface}.img"), interface) for interface in ("virtio", "ide")]
    for path, _ in images:
        with Path(path).open("wb") as file:
            file.truncate(16 << 20)
    try:
        linux = boot(VCPUS, MEMORY, [Disk(path, interface=interface) for path, interface in images])
    except ImageFetchError as error:
        pytest.skip(f"no Debian image: {error}")
    with linux:
        linux.wait_shell(120)
        linux.run("seq 150000 >/tmp/data")
        for disk in ("/dev/vda", "/dev/sda"):
            linux.type(f"({WRITE.format(disk=disk, done=f'/tmp/{disk[5:]}')}) &")
        assert linux.run("sleep 0.3; ls /tmp") == "data\n", "too late to save it in the midst"
        linux.save(tmp_path / "saved")
    commands = [
        "while ! [ -e /tmp/vda -a -e /tmp/sda ]; do sleep 0.1; done; echo 3 >/proc/sys/vm/drop_caches",
        *(SAME.format(disk=disk) for disk in ("/dev/vda", "/dev/sda")),
        "dmesg | grep -E 'I/O error|timed? ?out|exception Emask' || true",
    ]
    answer = go_on(tmp_path / "saved", images, "", commands)
    assert answer["outputs"] == [""] * len(commands)
    assert answer["end"] == "power-off"
