# SPDX-License-Identifier: GPL-2.0-or-later
"""``coremesh bench``: boot time, guest speed and scaling on this host, beside QEMU's TCG if it is there.

Every figure of a row is taken in one run on one host, with the same kernel, initramfs and command line; only
ratios carry over to other hosts. The full set of figures is in the repository's tests/bench.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from coremesh.cluster.cli.progress import fetch_progress, waiting
from coremesh.cluster.experiments import qemu
from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_image import DebianImage, fetch_debian
from coremesh.cluster.machine.options import check_vcpus
from coremesh.core.cores import usable_cores
from coremesh.core.errors import MachineStateError

_MEMORY_MIB = 1024
_BOOT_SECONDS = 300.0
_LOAD_SECONDS = 120.0

# Seconds the guest's own clock saw; integer arithmetic of a shell, and hashing in compiled code.
_LOADS = {
    "shell loop": "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done",
    "sha256sum of 32 MiB": "head -c 33554432 /dev/zero | sha256sum >/dev/null",
    "200 fork and exec": "i=0; while [ $i -lt 200 ]; do /bin/busybox true; i=$((i+1)); done",
}
_HASH = "head -c 33554432 /dev/zero | sha256sum >/dev/null"
_SCALING = {
    "one hash on one of 2 vCPUs": _HASH,
    "two hashes on 2 vCPUs at once": f"({_HASH}) & ({_HASH}); wait",
}


@dataclass(frozen=True)
class Figure:
    """One measurement in seconds of the host's clock; `reference` (QEMU's) is None where it was not taken."""

    name: str
    coremesh: float
    reference: float | None = None

    @property
    def ratio(self) -> float | None:
        """QEMU's time over ours: above 1, Coremesh is faster."""
        return None if self.reference is None else self.reference / self.coremesh


def print_benchmark(vcpus: tuple[int, ...], *, with_qemu: bool, as_json: bool) -> int:
    """Measure and print; return the exit status."""
    for count in vcpus:
        check_vcpus(count)
    with fetch_progress() as progress:
        image = fetch_debian(progress=progress)
    figures = list(measure(image, vcpus, with_qemu=with_qemu and qemu.installed()))
    if as_json:
        print(json.dumps([{**asdict(figure), "ratio": figure.ratio} for figure in figures], indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Linux {image.release}, {usable_cores()} host cores")
    table.add_column("what")
    for title in ("coremesh, s", "QEMU TCG, s", "QEMU / coremesh"):
        table.add_column(title, justify="right")
    for figure in figures:
        reference = "" if figure.reference is None else f"{figure.reference:.2f}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        table.add_row(figure.name, f"{figure.coremesh:.2f}", reference, ratio)
    Console().print(table)
    return 0


def measure(image: DebianImage, vcpus: tuple[int, ...], *, with_qemu: bool) -> Iterator[Figure]:
    """Yield the figures one by one; each machine is measured alone."""
    initrd = image.initramfs()
    for count in vcpus:
        with waiting(f"booting {count} vCPUs"):
            with Machine(count, f"{_MEMORY_MIB}M", image.kernel, initrd) as machine:
                ours, cmdline = machine.wait_shell(_BOOT_SECONDS), machine.cmdline
            theirs = None
            if with_qemu:
                with qemu.QemuMachine(count, _MEMORY_MIB, image.kernel, initrd, cmdline) as reference:
                    theirs = reference.wait_shell(_BOOT_SECONDS)
        yield Figure(f"boot to shell, {count} vCPUs", ours, theirs)
    with waiting("running loads on 2 vCPUs"), contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine(2, f"{_MEMORY_MIB}M", image.kernel, initrd))
        machine.wait_shell(_BOOT_SECONDS)
        seconds = {name: _timed(machine, command) for name, command in (_LOADS | _SCALING).items()}
        machine.stop()  # before the other runs: each is measured alone
        beside: dict[str, float] = {}
        if with_qemu:
            reference = stack.enter_context(
                qemu.QemuMachine(2, _MEMORY_MIB, image.kernel, initrd, machine.cmdline)
            )
            reference.wait_shell(_BOOT_SECONDS)
            beside = {name: _timed(reference, command) for name, command in (_LOADS | _SCALING).items()}
    for name, value in seconds.items():
        yield Figure(name, value, beside.get(name))


def _timed(machine: Machine | qemu.QemuMachine, command: str) -> float:
    """Return the host's seconds for `command`, less those of a command that does nothing."""
    begin = time.monotonic()
    machine.run("true", _LOAD_SECONDS)
    middle = time.monotonic()
    result = machine.run(command, _LOAD_SECONDS)
    end = time.monotonic()
    if result.status != 0:
        raise MachineStateError(f"the load {command!r} failed in the guest: {result.output.strip()}")
    return max(1e-6, (end - middle) - (middle - begin))
