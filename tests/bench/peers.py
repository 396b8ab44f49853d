# SPDX-License-Identifier: GPL-2.0-or-later
"""The two machines that are compared: Coremesh and Debian's qemu-system-x86_64, with the same guest.

Both boot the same kernel, initramfs and command line, and are watched through the serial console alone. Each
peer runs in a process of its own, without Ray: what is counted begins with the start of emulation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from coremesh.cluster.images import fetch_debian
from coremesh.cluster.initramfs import Entry, busybox_initramfs

QEMU = "qemu-system-x86_64"
CMDLINE = "console=ttyS0 quiet"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Guest:
    """One guest for both peers: paths of kernel and initramfs."""

    kernel: Path
    initramfs: Path
    cmdline: str = CMDLINE


@dataclass
class Run:
    """What one run gave: seconds from the start of emulation to each mark, the console, peak memory in MiB."""

    marks: dict[str, float] = field(default_factory=dict)
    console: str = ""
    peak_mib: float = 0.0

    def values(self) -> dict[str, float]:
        """The guest's lines of the form name=number."""
        found: dict[str, float] = {}
        for line in self.console.splitlines():
            name, equals, text = line.strip().partition("=")
            if equals and name.replace("_", "").isalnum():
                try:
                    found[name] = float(text)
                except ValueError:
                    continue
        return found


@contextmanager
def guest(script: str | None = None, folder: Path | None = None) -> Iterator[Guest]:
    """The Debian kernel with busybox; with ``script``, a guest that runs it instead of a shell, and ends.

    The script finds the program of ``guest/load.c`` as /bin/load.
    """
    image = fetch_debian()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        extra: list[Entry] = []
        if script is not None:
            load = work / "load"
            source = HERE / "guest" / "load.c"
            subprocess.run(["gcc", "-O2", "-static", "-o", load, source], check=True)
            extra.append(Entry.file("bin/load", load.read_bytes(), 0o755))
            text = f"#!/bin/busybox sh\nexport PATH=/bin\ncd /\necho READY >/dev/ttyS0\n{script}\npoweroff -f\n"
            extra.append(Entry.file("etc/console", text.encode(), 0o755))
        initramfs = work / "initramfs"
        initramfs.write_bytes(busybox_initramfs(image.busybox.read_bytes(), extra))
        yield Guest(image.kernel, initramfs)


def qemu_available() -> bool:
    """Whether Debian's QEMU is there to be compared with."""
    return shutil.which(QEMU) is not None


def run_qemu(what: Guest, vcpus: int, memory_mib: int, marks: tuple[str, ...], timeout: float) -> Run:
    """Boot under QEMU's multi-threaded translator; ends at the last mark, at power-off or at the timeout."""
    command = [QEMU, "-accel", "tcg,thread=multi", "-smp", str(vcpus), "-m", str(memory_mib), "-nographic"]
    command += ["-kernel", str(what.kernel), "-initrd", str(what.initramfs), "-append", what.cmdline]
    command += ["-no-reboot", "-nic", "none"]
    return _watch(command, marks, timeout)


def run_coremesh(what: Guest, vcpus: int, memory_mib: int, marks: tuple[str, ...], timeout: float) -> Run:
    """The same on Coremesh."""
    command = [sys.executable, str(HERE / "one_machine.py"), str(vcpus), str(memory_mib), str(what.kernel)]
    command += [str(what.initramfs), what.cmdline]
    return _watch(command, marks, timeout)


PEERS = {"coremesh": run_coremesh, "qemu": run_qemu}


def _watch(command: list[str], marks: tuple[str, ...], timeout: float) -> Run:
    run = Run()
    seen = b""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    start = time.monotonic()
    try:
        while time.monotonic() - start < timeout:
            data = process.stdout.read(65536)
            now = time.monotonic()
            if data == b"":
                break
            run.peak_mib = max(run.peak_mib, _resident_mib(process.pid))
            if data is None:
                time.sleep(0.005)
                continue
            seen += data
            # Coremesh says when emulation starts; before that Python imports its modules.
            if b"EMULATION STARTS\n" in seen and "EMULATION STARTS" not in run.marks:
                run.marks["EMULATION STARTS"] = 0.0
                start = now
            for mark in marks:
                if mark not in run.marks and mark.encode() in seen:
                    run.marks[mark] = now - start
            if marks and marks[-1] in run.marks:
                break
    finally:
        process.kill()
        process.wait()
    run.console = seen.decode("latin-1")
    return run


def _resident_mib(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
