# SPDX-License-Identifier: GPL-2.0-or-later
"""The machines that a trial can run on: ours, and QEMU's to compare with. One door to both."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import platform
import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from coremesh.cluster.experiments import qemu
from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.cmdline import command_line, is_linux
from coremesh.cluster.machine.option_table import PROMPT
from coremesh.cluster.machine.options import check
from coremesh.core.errors import ConfigurationError, GuestImageError, MachineStateError, near, shown
from coremesh.core.x86.linux_payload import unpack_linux

ENGINES: Final = ("coremesh", "qemu")
#: What a parameter of an experiment can set of a machine.
MACHINE_OPTIONS: Final = frozenset(inspect.signature(Machine).parameters) - {"progress", "address"}

# 'unpack' is about our host alone: QEMU's guest always unpacks what it is given.
_QEMU_OPTIONS = frozenset({
    "vcpus", "memory", "kernel", "initrd", "cmdline", "append", "hosts", "unpack", "disks", "net", "prompt",
})  # fmt: skip
_CLOCK_SECONDS = 60.0  # to ask a guest for its time
# The kernel's monotonic clock, in nanoseconds where the kernel shows it, else in hundredths of a second.
_CLOCK = "grep -m1 '^now at' /proc/timer_list 2>/dev/null || cut -d' ' -f1 /proc/uptime"


class Subject(ABC):
    """A running machine as a trial sees it; `handle` is what its function gets."""

    handle: Any
    linux: bool  # whether its kernel is Linux's, so that a shell can be waited for
    nodes: tuple[str, ...]  # names of the computers it runs on
    image: str  # of kernel and initramfs: the first 16 digits of their SHA-256

    @abstractmethod
    def wait_shell(self, timeout: float) -> float:
        """Wait for the first prompt; return the seconds of the host's clock it took from the start."""

    @abstractmethod
    def counters(self, table: str) -> Mapping[str, float]:
        """Return the sums of the columns of a table of counters; empty if the machine has no such table."""

    @abstractmethod
    def cpu_seconds(self) -> float | None:
        """Return the processor time of its process, all threads; None where it has several, or far ones."""

    def guest_clock(self) -> float | None:
        """Return the seconds that the guest's own clock has counted since its start."""
        output = self.handle.run(_CLOCK, _CLOCK_SECONDS).output
        nanoseconds = re.search(r"now at (\d+) nsecs", output)
        if nanoseconds is not None:
            return int(nanoseconds[1]) / 1e9
        seconds = re.search(r"\d+\.\d+", output)
        return None if seconds is None else float(seconds[0])


class CoremeshSubject(Subject):
    """A :class:`Machine`."""

    def __init__(self, machine: Machine, image: str, *, linux: bool) -> None:
        self.handle, self.image, self.linux = machine, image, linux
        hosts = machine.facts.get("hosts", ())
        self.nodes = tuple(str(host["node"]) for host in hosts) or (platform.node(),)

    def wait_shell(self, timeout: float) -> float:
        """As :meth:`Machine.wait_shell`."""
        return float(self.handle.wait_shell(timeout))

    def counters(self, table: str) -> Mapping[str, float]:
        """Sums over vCPUs, or hosts."""
        try:
            return dict(self.handle.totals()[table])
        except MachineStateError:  # the work has ended the machine
            return {}

    def cpu_seconds(self) -> float | None:
        """Of one host, which is a process of this computer."""
        return _cpu_seconds(self.handle.facts["pid"]) if len(self.handle.shares) == 1 else None


class QemuSubject(Subject):
    """A guest in QEMU under TCG: no counters."""

    def __init__(self, machine: qemu.QemuMachine, image: str) -> None:
        self.handle, self.image, self.linux = machine, image, True
        self.nodes = (platform.node(),)

    def wait_shell(self, timeout: float) -> float:
        """From the start of emulation."""
        return self.handle.wait_shell(timeout)  # type: ignore[no-any-return]

    def counters(self, table: str) -> Mapping[str, float]:
        """QEMU has none of these."""
        return {}

    def cpu_seconds(self) -> float | None:
        """Of QEMU's process."""
        return _cpu_seconds(self.handle.facts["pid"])


def _cpu_seconds(pid: int) -> float | None:
    """Return user and system time of a process with all its threads, the ended ones too."""
    with contextlib.suppress(OSError):  # it has ended
        # The kernel's process clock: clock_getcpuclockid(3) makes this number of a process id.
        return time.clock_gettime(~pid << 3 | 2)
    return None


@contextlib.contextmanager
def open_machine(engine: Any, options: Mapping[str, Any]) -> Iterator[Subject]:
    """Start a machine of `engine` for the length of the block.

    `options` are as of `Machine`, images as bytes. Raises :class:`ConfigurationError` for what the engine
    has not.
    """
    kernel, initrd = options["kernel"], options.get("initrd")
    image = image_hash(kernel, initrd)
    if engine == "coremesh":
        unpacked = _unpacked(kernel) if options.get("unpack", True) else kernel
        with Machine(**{**options, "kernel": unpacked}) as machine:
            yield CoremeshSubject(machine, image, linux=is_linux(kernel))
    elif engine == "qemu":
        with tempfile.TemporaryDirectory(prefix="coremesh-qemu-") as folder:
            path = Path(folder) / "kernel"
            path.write_bytes(kernel)
            with _qemu(options, path, initrd) as machine:
                yield QemuSubject(machine, image)
    else:
        raise ConfigurationError(f"no engine {shown(engine)}; there are {', '.join(ENGINES)}.")


@functools.lru_cache(maxsize=1)
def _unpacked(kernel: bytes) -> bytes:
    """Unpack a kernel once for all trials of this process, as a host does; what is no bzImage stays."""
    try:
        return unpack_linux(kernel)
    except GuestImageError:
        return kernel


def image_hash(kernel: bytes, initrd: bytes | None) -> str:
    """Return what tells one pair of kernel and initramfs from another."""
    digest = hashlib.sha256(hashlib.sha256(kernel).digest())
    digest.update(hashlib.sha256(initrd or b"").digest())
    return digest.hexdigest()[:16]


def require_engine(engine: Any, options: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigurationError` for an engine that there is not, or an option that it has not."""
    if engine not in ENGINES:
        raise ConfigurationError(
            f"no engine {shown(engine)}; there are {', '.join(ENGINES)}.{near(engine, ENGINES)}"
        )
    if engine != "qemu":
        return
    unknown = sorted(name for name in options if name not in _QEMU_OPTIONS)
    if unknown:
        raise ConfigurationError(f"QEMU's machine has no {', '.join(unknown)}: leave that out beside engine.")
    if check("hosts", options.get("hosts", 1)) not in (1, (check("vcpus", options.get("vcpus")),)):
        raise ConfigurationError(
            'QEMU\'s machine has one host; "engine, hosts" lets hosts change together with the engine.'
        )
    _device_words(options)


def _device_words(options: Mapping[str, Any]) -> list[str]:
    vcpus = check("vcpus", options.get("vcpus")) or 1
    disks, cards = check("disks", options.get("disks", ())), check("net", options.get("net", ()))
    return qemu.disk_words(disks, vcpus) + qemu.card_words(cards)


def _qemu(options: Mapping[str, Any], kernel: Path, initrd: bytes | None) -> qemu.QemuMachine:
    require_engine("qemu", options)
    image, append = options["kernel"], check("append", options.get("append", ""))
    if not is_linux(image) or initrd is None:
        raise ConfigurationError("with QEMU a trial needs a Linux kernel and an initramfs.")
    line = options.get("cmdline")
    line = (
        command_line(image, append=append) if line is None else f"{check('cmdline', line)} {append}".strip()
    )
    memory = check("memory", options.get("memory", "1G"))
    return qemu.QemuMachine(
        check("vcpus", options.get("vcpus")) or 1, memory >> 20, kernel, initrd, line,
        _device_words(options), check("prompt", options.get("prompt", PROMPT)),
    )  # fmt: skip
