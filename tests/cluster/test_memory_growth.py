# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that works for long takes no more and more memory: two hosts under a shell's load, sampled.

What may grow is the guest's own: RAM that it touches for the first time, up to all it has. Translations grow
to their bound (test_code_buffer.py fills a buffer), everything else must not.
"""

import os
import re
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_image import DebianImage

RAM = "512M"
MOST_TRANSLATIONS = 512.0  # MiB, of one vCPU
SAMPLE_SECONDS = 10.0
WARM = 1 / 3  # of the time: the guest goes through its caches, the translator through the guest's code
MOST_GROWTH = 1.0  # MiB a minute, of everything; and of what is neither translations nor the guest's RAM
MOST_GROWTH_OF_THE_REST = 0.25

# Processes come and go, files of every kind are read, pipes fill: on both vCPUs, for so many seconds.
LOAD = """
end=$(($(cut -d. -f1 /proc/uptime) + {seconds}))
work() {{
    while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do
        ls / >/dev/null
        cat /proc/cpuinfo /proc/meminfo | wc -l >/dev/null
        head -c 100000 /dev/zero | sha256sum >/dev/null
    done
}}
work & work & wait
"""


@dataclass(frozen=True)
class Memory:
    """Of one host's process, in MiB."""

    seconds: float
    translations: float
    ram: float
    rest: float

    @property
    def total(self) -> float:
        return self.translations + self.ram + self.rest


def read_memory(pid: int, seconds: float) -> Memory:
    """Sort what is resident by what it is: executable and of no file, guest RAM, other and of no file."""
    kib = {"translations": 0, "ram": 0, "rest": 0}
    kind: str | None = None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \d+\s*(.*)", line):
            access, name = mapping.groups()
            if "coremesh-ram" in name:
                kind = "ram"
            elif name.startswith("/") and "memfd" not in name and "/dev/shm" not in name:
                kind = None  # a program's or a library's: the kernel may take it back
            else:
                kind = "translations" if "x" in access and not name else "rest"
        elif kind is not None and line.startswith("Rss:"):
            kib[kind] += int(line.split()[1])
    # Guest RAM is mapped twice, and counted in each view whose page tables have it.
    return Memory(seconds, kib["translations"] / 1024, kib["ram"] / 1024, kib["rest"] / 1024)


def host_processes() -> list[int]:
    """The processes below this one that hold guest RAM."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(place.name))
    found, below = [], [os.getpid()]
    while below:
        for child in children.get(below.pop(), []):
            below.append(child)
            try:
                if "coremesh-ram" in Path(f"/proc/{child}/maps").read_text():
                    found.append(child)
            except OSError:
                continue
    return sorted(found)


def slope(samples: list[tuple[float, float]]) -> float:
    """MiB a minute, of the line through (seconds, MiB) that fits best."""
    seconds, values = zip(*samples, strict=True)
    return statistics.linear_regression(seconds, values).slope * 60


def sampled(machine: Machine, seconds: int) -> dict[int, list[Memory]]:
    """Load the guest for so long; what each host took meanwhile."""
    hosts = host_processes()
    assert len(hosts) == len(machine.shares), f"processes with guest RAM: {hosts}"
    samples: dict[int, list[Memory]] = {pid: [] for pid in hosts}
    begin, over = time.monotonic(), threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            for pid in hosts:
                samples[pid].append(read_memory(pid, time.monotonic() - begin))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        result = machine.run(LOAD.format(seconds=seconds), timeout=seconds * 3 + 120)
    finally:
        over.set()
        thread.join()
    assert result.status == 0
    return samples


def report(samples: dict[int, list[Memory]]) -> str:
    """A line each two minutes, for a person who wants to see the curve."""
    lines = []
    for number, memories in enumerate(samples.values()):
        due = 0.0
        for memory in memories:
            if memory.seconds >= due or memory is memories[-1]:
                lines.append(
                    f"host {number} {memory.seconds:5.0f} s: translations {memory.translations:5.1f}, "
                    f"RAM {memory.ram:5.1f}, rest {memory.rest:5.1f}, all {memory.total:5.1f} MiB"
                )
                due = memory.seconds + 120
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("one_ray")
def test_given_two_hosts_under_a_shells_load_for_half_an_hour_then_memory_is_a_flat_line(
    debian: DebianImage,
) -> None:
    minutes = float(os.environ.get("MEMORY_GROWTH_MINUTES", "30"))
    with Machine(2, RAM, debian.kernel, debian.initramfs(), hosts=2, append="quiet") as machine:
        machine.wait_shell(120)
        samples = sampled(machine, int(minutes * 60))
    print(report(samples))
    for memories in samples.values():
        late = [memory for memory in memories if memory.seconds > WARM * minutes * 60]
        assert max(memory.translations for memory in memories) <= MOST_TRANSLATIONS
        assert slope([(memory.seconds, memory.rest) for memory in late]) < MOST_GROWTH_OF_THE_REST
        assert slope([(memory.seconds, memory.total) for memory in late]) < MOST_GROWTH


def test_given_memory_that_grows_when_the_line_is_fitted_then_it_is_not_flat() -> None:
    """The control: what was seen once, 5 MiB a minute."""
    assert slope([(t, 400 + t / 12) for t in range(0, 1200, 10)]) == pytest.approx(5.0)
    assert slope([(t, 400 + t % 20) for t in range(0, 1200, 10)]) < 0.1
