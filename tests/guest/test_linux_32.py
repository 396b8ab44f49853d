# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux of 32 bits, with PAE and without: Debian's own kernels, unmodified, and memtest86+."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.launch.session import shutdown
from coremesh.cluster.machine.images.debian_image import DebianImage, fetch_debian
from coremesh.core.errors import ImageFetchError

pytestmark = [pytest.mark.linux, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def fetched(bookworm: Path) -> Iterator[Callable[[str], DebianImage]]:
    def fetch(flavour: str) -> DebianImage:
        try:
            return fetch_debian(flavour, source_list=bookworm)
        except ImageFetchError as error:
            pytest.skip(f"no Debian image: {error}")

    yield fetch
    shutdown()


@pytest.mark.parametrize(
    ("flavour", "vcpus", "hosts", "memory"),
    [
        ("686-pae", 4, 1, "1500M"),
        pytest.param("686", 1, 1, "512M", marks=pytest.mark.slow),
        pytest.param("686", 4, 2, "1500M", marks=pytest.mark.slow),
        pytest.param("686-pae", 2, 2, "5G", marks=pytest.mark.slow),
    ],
)
def test_given_debians_kernel_of_32_bits_when_it_boots_then_all_cores_work_and_agree(
    fetched: Callable[[str], DebianImage], flavour: str, vcpus: int, hosts: int, memory: str
) -> None:
    """A shell, every core, memory beyond the kernel's own mapping; with PAE, beyond 4 GiB too."""
    image = fetched(flavour)
    with Machine(
        vcpus, memory, image.kernel, image.initramfs(), hosts=hosts, append="quiet noisapnp"
    ) as machine:
        machine.wait_shell(300)
        assert machine.run("uname -m; nproc", 60).output == f"i686\n{vcpus}\n"
        seen = int(machine.run("awk '/MemTotal/ {print $2}' /proc/meminfo", 60).output)
        assert seen > 0.9 * machine.memory / 1024 if flavour == "686-pae" else seen > 400_000
        work = (
            "for cpu in $(seq 1 $(nproc)); do taskset -c $((cpu-1)) sh -c 'seq 3000 | sha256sum' & done; wait"
        )
        sums = machine.run(work, 300).output.splitlines()
        assert len(sums) == vcpus and len(set(sums)) == 1
        # Floating point and signals in a process of 32 bits.
        told = machine.run("awk 'BEGIN {printf \"%.9f\\n\", 1e6/7}'; sh -c 'kill -9 $$'; echo $?", 60).output
        assert told == "142857.142857143\nKilled\n137\n"
        complaints = "dmesg | grep -E 'BUG|Oops|WARNING:|unstable|soft lockup|rcu.*stall|segfault'"
        assert machine.run(complaints, 60).output == ""
        machine.console.write("poweroff -f\n")
        end = machine.wait(120)
        assert end is not None and end.kind == "power-off"


@pytest.mark.slow
def test_given_memtest86_when_it_runs_then_its_screen_is_seen_and_its_keys_work(
    from_debian: Callable[[str, str], bytes],
) -> None:
    """A program from outside, of a package: it finds both cores, tests memory, and opens its menu at F1."""

    def shows(text: str, seconds: float = 60.0) -> bool:
        deadline = time.monotonic() + seconds
        while text not in machine.screen() and time.monotonic() < deadline:
            time.sleep(0.2)
        return text in machine.screen()

    memtest = from_debian("memtest86+", r"boot/memtest86\+x64\.bin")
    with Machine(2, "64M", memtest, cmdline="") as machine:
        assert shows("Memtest86+ v"), machine.screen()
        assert shows("2 Cores 2 Threads") and shows("Testing: ")
        assert machine.screen().attributes[0][8] != 0x07
        assert "Errors: 0" in machine.screen()
        machine.press("f1")
        assert shows("<F10> Exit menu")
        machine.press("f10")
        assert not shows("<F10> Exit menu", 0) or shows("Testing: ")
        assert machine.state == "running"
