# SPDX-License-Identifier: GPL-2.0-or-later
"""The two machines that are compared: Coremesh and QEMU's qemu-system-x86_64, with the same guest.

QEMU is the one in the path, or the command in COREMESH_BENCH_QEMU. Both boot the same kernel, initramfs and
command line, and are watched through the serial console alone. Each peer runs in a process of its own,
without Ray: what is counted begins with the start of emulation, in seconds of the wall clock and in seconds
of processor time (all threads), which a neighbour on the host disturbs less.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.cluster.machine.images.initramfs import Entry
from coremesh.core.x86.linux_payload import unpack_linux
from resident import own_memory_mib

# A command and its first arguments, as a shell would take them: another version, perhaps in its own root.
QEMU = shlex.split(os.environ.get("COREMESH_BENCH_QEMU", "qemu-system-x86_64"))
CMDLINE = "console=ttyS0 quiet"
HERE = Path(__file__).parent

BEGIN = "EMULATION STARTS\n"
SHELL = "~ # "  # the prompt of the initramfs's shell: the only mark of a guest without a script
FIRST, LAST = "FIRST_S=", "LAST_S="  # the guest's uptime around a script, against the host's clock
DONE = "DONE\n"

# The script's output and the lines of /bin/load are the guest's console; nothing else writes to it.
SCRIPT = """#!/bin/busybox sh
export PATH=/bin
cd /
set -e
trap 'poweroff -f' EXIT
exec >/dev/ttyS0 2>&1
echo {first}$(cut -d' ' -f1 /proc/uptime)
{script}
echo {last}$(cut -d' ' -f1 /proc/uptime)
echo DONE
"""


class PeerError(Exception):
    """A peer did not reach what was waited for; the text ends with its console."""


@dataclass(frozen=True)
class Guest:
    """One guest for both peers: paths of kernel and initramfs; ``disks`` are raw images and interfaces.

    With ``snapshot`` what it writes to its disks is lost at its end. With a ``network`` it has a virtio card:
    'user' is on the host's network by user-mode NAT, a path is the Unix socket of a switch.

    With ``unpack`` Coremesh's host unpacks the kernel, as ``coremesh boot`` does, and that time counts.
    """

    kernel: Path
    initramfs: Path
    cmdline: str = CMDLINE
    unpack: bool = True
    disks: tuple[tuple[Path, str], ...] = ()
    snapshot: bool = False
    network: str = ""

    def vmlinux(self, folder: Path) -> Guest:
        """The same with the ELF file in the bzImage, written to ``folder``: nothing left to unpack."""
        path = folder / "vmlinux"
        path.write_bytes(unpack_linux(self.kernel.read_bytes()))
        return replace(self, kernel=path, unpack=False)


@dataclass
class Value:
    """A line of the form name=number from the guest, and the peer's processor time since the line before."""

    number: float
    cpu: float


@dataclass
class Run:
    """What one run gave: seconds from the start of emulation to each mark, and the same in processor time.

    ``own_mib`` is the peer's private resident memory at the last mark without the guest's RAM.
    """

    marks: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    console: str = ""
    own_mib: float = 0.0

    def clock_error(self) -> float:
        """By which fraction the guest's clock was slow (below 0) or fast during its script.

        The guest times its own loads; this says that its seconds are the host's.
        """
        guest_seconds = self.values[LAST[:-1]].number - self.values[FIRST[:-1]].number
        return guest_seconds / (self.marks[LAST] - self.marks[FIRST]) - 1


@contextmanager
def guest(
    script: str | None = None, *, program: str = "load.c", drivers: bool = False, network: str = ""
) -> Iterator[Guest]:
    """The Debian kernel with busybox; with ``script``, a guest that runs it instead of a shell, and ends.

    The script finds ``guest/{program}``, by default load.c, under its name in /bin. With ``drivers`` those of
    disks are loaded before it, and with a ``network`` 'dhcp' its card is configured.
    """
    image = fetch_debian()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        extra: list[Entry] = []
        if script is not None:
            name = program.removesuffix(".c")
            load = work / name
            subprocess.run(["gcc", "-O2", "-static", "-o", load, HERE / "guest" / program], check=True)
            extra.append(Entry.file(f"bin/{name}", load.read_bytes(), 0o755))
            text = SCRIPT.format(script=script, first=FIRST, last=LAST)
            extra.append(Entry.file("etc/console", text.encode(), 0o755))
        initramfs = work / "initramfs"
        initramfs.write_bytes(image.initramfs(disks=drivers, network=network, extra=extra))
        yield Guest(image.kernel, initramfs)


def qemu_available() -> bool:
    """Whether a QEMU is there to be compared with. Raises SystemExit when the one that was named is not."""
    there = shutil.which(QEMU[0]) is not None
    if not there and "COREMESH_BENCH_QEMU" in os.environ:
        raise SystemExit(f"{QEMU[0]}, which COREMESH_BENCH_QEMU names, is no command")
    return there


def qemu_version() -> str:
    """The first line of what QEMU says of itself; empty without one."""
    if not qemu_available():
        return ""
    done = subprocess.run([*QEMU, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def run_qemu(what: Guest, vcpus: int, memory_mib: int, marks: tuple[str, ...], timeout: float) -> Run:
    """Boot under QEMU's multi-threaded translator.

    Raises PeerError when it ends before the last mark, or at the timeout (seconds).
    """
    with tempfile.TemporaryDirectory() as folder:
        control = Path(folder) / "control"
        command = [*QEMU, "-accel", "tcg,thread=multi", "-smp", str(vcpus), "-m", str(memory_mib)]
        command += ["-kernel", str(what.kernel), "-initrd", str(what.initramfs), "-append", what.cmdline]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]
        for number, (image, interface) in enumerate(what.disks):
            device = "ide-hd"
            if interface == "virtio":
                device = f"virtio-blk-pci,disable-legacy=on,num-queues={vcpus}"
            command += ["-drive", f"file={image},format=raw,if=none,id=d{number}"]
            command[-1] += ",snapshot=on" if what.snapshot else ""
            command += ["-device", f"{device},drive=d{number}"]
        if what.network:
            end = "user" if what.network == "user" else f"stream,addr.type=unix,addr.path={what.network}"
            # An address of its own: QEMU gives every machine the same one.
            card = f"virtio-net-pci,disable-legacy=on,netdev=n0,mac=52:54:00:{os.urandom(3).hex(':')}"
            command += ["-netdev", f"{end},id=n0", "-device", card]
        command += ["-S", "-qmp", f"unix:{control},server=on,wait=off"]
        return _watch(command, marks, timeout, memory_mib, lambda: _continue(control))


def run_coremesh(what: Guest, vcpus: int, memory_mib: int, marks: tuple[str, ...], timeout: float) -> Run:
    """The same on Coremesh."""
    command = [sys.executable, str(HERE / "one_machine.py"), str(vcpus), str(memory_mib), str(what.kernel)]
    command += [str(what.initramfs), what.cmdline, "unpack" if what.unpack else "as-is"]
    snapshot = ",snapshot" if what.snapshot else ""
    command += [f"{image},format=raw,if={interface}{snapshot}" for image, interface in what.disks]
    if what.network:
        command += ["net=user" if what.network == "user" else f"net=switch=unix:{what.network}"]
    return _watch(command, marks, timeout, memory_mib, None)


def run_apart(what: Guest, vcpus: int, memory_mib: int, marks: tuple[str, ...], timeout: float) -> Run:
    """Coremesh with the devices on a host without vCPUs. The processes are Ray's: their time is not in it."""
    command = [sys.executable, str(HERE / "one_machine.py"), str(vcpus), str(memory_mib), str(what.kernel)]
    command += [str(what.initramfs), what.cmdline, "apart"]
    command += [f"{image},format=raw,if={interface}" for image, interface in what.disks]
    return _watch(command, marks, timeout, memory_mib, None)


Peer = Callable[[Guest, int, int, tuple[str, ...], float], Run]
PEERS: dict[str, Peer] = {"coremesh": run_coremesh}
if qemu_available():
    PEERS["qemu"] = run_qemu


def _continue(control: Path) -> None:
    """Let a QEMU that waits with all set up (-S) begin to emulate."""
    deadline = time.monotonic() + 20
    with socket.socket(socket.AF_UNIX) as link:
        while link.connect_ex(str(control)) != 0:  # not there yet, or not listening yet
            if time.monotonic() > deadline:
                raise PeerError("QEMU did not start")
            time.sleep(0.01)
        answers = link.makefile("r")
        answers.readline()
        for name in ("qmp_capabilities", "cont"):
            link.sendall(json.dumps({"execute": name}).encode())
            while "return" not in answers.readline():
                continue


def _watch(
    command: list[str],
    marks: tuple[str, ...],
    timeout: float,
    memory_mib: int,
    begin: Callable[[], None] | None,
) -> Run:
    """Start a peer and note when each mark appears; ``begin`` starts emulation, else the peer says when."""
    run = Run()
    seen = b""
    lines, line_cpu = 0, 0.0
    errors = tempfile.TemporaryFile()  # noqa: SIM115 closed with the process below
    # A benchmark that is killed takes its machine with it.
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        bufsize=0,
    )
    assert process.stdout is not None
    out = process.stdout.fileno()
    started = begin is not None
    try:
        if begin is not None:
            begin()
        start, start_cpu = time.monotonic(), cpu_seconds(process.pid)
        while marks[-1] not in run.marks:
            left = start + timeout - time.monotonic()
            ready, _, _ = select.select([out], [], [], max(0.0, left))
            data = os.read(out, 65536) if ready else b""
            now = time.monotonic()
            if not data:
                how = f"ended ({process.wait(10)})" if ready else f"took more than {timeout:g} s"
                errors.seek(0)
                tail = (seen + errors.read()).decode("latin-1")[-2000:]
                raise PeerError(f"{command[0]} {how} before {marks[-1]!r}:\n{tail}")
            seen += data.replace(b"\r", b"")
            if not started:
                # Python imports its modules before.
                if BEGIN.encode() not in seen:
                    continue
                start, start_cpu, started = now, cpu_seconds(process.pid), True
            cpu = cpu_seconds(process.pid) - start_cpu
            for mark in marks:
                if mark not in run.marks and mark.encode() in seen:
                    run.marks[mark], run.cpu[mark] = now - start, cpu
            complete = seen.decode("latin-1").splitlines()[: seen.count(b"\n")]
            for line in complete[lines:]:
                name, equals, text = line.partition("=")
                if equals and re.fullmatch(r"\w+", name) and re.fullmatch(r"[\d.]+", text):
                    run.values[name] = Value(float(text), cpu - line_cpu)
                    line_cpu = cpu
            lines = len(complete)
        run.own_mib = own_memory_mib(process.pid, memory_mib)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        errors.close()
    run.console = seen.decode("latin-1")
    return run


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, the ended ones too."""
    # The kernel's process clock, to the nanosecond: clock_getcpuclockid(3) makes this number of a process id.
    return time.clock_gettime(~pid << 3 | 2)
