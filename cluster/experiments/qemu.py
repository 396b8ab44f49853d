# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine to compare with: qemu-system-x86_64 under TCG, driven through its console as ours is.

COREMESH_BENCH_QEMU names another one: a command with its first arguments, as a shell would take them.
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
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from coremesh.cluster.machine.disks import Disk
from coremesh.cluster.machine.networks import Network
from coremesh.cluster.machine.shell import PROMPT, CommandResult, Dialogue, State
from coremesh.core.errors import ConfigurationError, ConsoleTimeoutError, HostLostError, PlatformError, shown
from coremesh.hw.backend.network.stream import parse_address

PROGRAM = "qemu-system-x86_64"

# The names of disk formats that QEMU calls otherwise.
_FORMATS = {"vhd": "vpc"}
_QUIET_SECONDS = 0.05
_START_SECONDS = 20.0


def program() -> list[str]:
    """Return QEMU's command with its first arguments."""
    return shlex.split(os.environ.get("COREMESH_BENCH_QEMU", "")) or [PROGRAM]


def installed() -> bool:
    """Tell whether this host has QEMU for x86-64 guests."""
    return shutil.which(program()[0]) is not None


def disk_words(disks: Iterable[Disk], vcpus: int) -> list[str]:
    """Return the words of QEMU's command line for a machine's disks, which were checked.

    A virtio disk has a queue for each vCPU, as ours has. Raises :class:`ConfigurationError`.
    """
    words = []
    for number, disk in enumerate(disks):
        if disk.is_fetched:
            raise ConfigurationError(
                f"with QEMU a disk is a file: give the path, not {shown(str(disk.path))}."
            )
        file = str(disk.path).replace(",", ",,")
        image_format = _FORMATS.get(disk.image_format or "raw", disk.image_format)
        drive = f"file={file},format={image_format},if=none,id=disk{number}"
        drive += ",snapshot=on" if disk.snapshot else ""
        drive += ",readonly=on" if disk.read_only else ""
        device = f"virtio-blk-pci,disable-legacy=on,num-queues={vcpus}"
        words += ["-drive", drive, "-device"]
        words += [f"{device if disk.interface == 'virtio' else 'ide-hd'},drive=disk{number}"]
    return words


def card_words(cards: Iterable[Network]) -> list[str]:
    """Return the words of QEMU's command line for a machine's network cards, which were checked.

    Raises :class:`ConfigurationError`.
    """
    words = []
    for number, card in enumerate(cards):
        if card.queues > 1:
            raise ConfigurationError("with QEMU a network card has one pair of queues: leave 'queues' out.")
        if card.kind == "user":
            end = "user" + (",restrict=on" if card.restrict else "")
            for forward in card.forwards:
                end += f",hostfwd={forward.protocol}:{forward.host_address}:{forward.host_port}"
                end += f"-:{forward.guest_port}"
        elif card.kind == "tap":
            end = f"tap,ifname={card.address},script=no,downscript=no"
        else:
            family, address = parse_address(card.address)
            if family == socket.AF_UNIX:
                end = f"stream,addr.type=unix,addr.path={str(address).replace(',', ',,')}"
            else:
                end = f"stream,addr.type=inet,addr.host={address[0]},addr.port={address[1]}"
        words += ["-netdev", f"{end},id=card{number}", "-device"]
        words += [f"virtio-net-pci,disable-legacy=on,netdev=card{number},mac={card.mac}"]
    return words


class QemuMachine:
    """A guest in QEMU, until the end of the ``with`` block. For one thread at a time.

    Emulation starts when all is set up, as a :class:`Machine`'s does. `facts` has the 'pid' of its process.
    """

    def __init__(
        self,
        vcpus: int,
        memory_mib: int,
        kernel: Path,
        initrd: bytes,
        cmdline: str,
        devices: Sequence[str] = (),
        prompt: bytes = PROMPT,
    ) -> None:
        """`devices` are further words of the command line, as of :func:`disk_words` and :func:`card_words`.

        Raises :class:`PlatformError` where QEMU is missing or does not start.
        """
        if not installed():
            raise PlatformError(f"{program()[0]} is not installed; Debian has it in qemu-system-x86.")
        self._folder = tempfile.TemporaryDirectory(prefix="coremesh-qemu-")
        folder = Path(self._folder.name)
        (folder / "initrd").write_bytes(initrd)
        command = [*program(), "-accel", "tcg,thread=multi", "-smp", str(vcpus), "-m", str(memory_mib)]
        command += ["-kernel", str(kernel), "-initrd", str(folder / "initrd"), "-append", cmdline]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]
        command += devices
        command += ["-S", "-qmp", f"unix:{folder / 'control'},server=on,wait=off"]
        with (folder / "errors").open("wb") as errors:  # nothing reads it in time, so not a pipe
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
            )
        self.facts: dict[str, Any] = {"pid": self._process.pid}
        self._prompt = re.compile(prompt)
        try:
            self._let_run(folder)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self._started_at = time.monotonic()

    def _let_run(self, folder: Path) -> None:
        """Let a QEMU that waits with all set up (-S) begin to emulate."""
        deadline = time.monotonic() + _START_SECONDS
        with socket.socket(socket.AF_UNIX) as link:
            while link.connect_ex(str(folder / "control")) != 0:  # not there yet, or not listening yet
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = (folder / "errors").read_text(errors="replace").strip()
                    raise PlatformError(f"{program()[0]} did not start ({said or 'it said nothing'}).")
                time.sleep(0.005)
            link.settimeout(_START_SECONDS)
            answers = link.makefile("r")
            answers.readline()
            for name in ("qmp_capabilities", "cont"):
                link.sendall(json.dumps({"execute": name}).encode())
                while "return" not in answers.readline():
                    continue

    def wait_shell(self, timeout: float) -> float:
        """Return the seconds from the start of emulation to the first prompt."""
        tail, seen_at = b"", None
        deadline = self._started_at + timeout
        while True:
            data = self._read(_QUIET_SECONDS if seen_at is not None else deadline - time.monotonic())
            if data:
                tail = (tail + data)[-4096:]
                seen_at = time.monotonic() if self._prompt.search(tail) else None
            elif seen_at is not None:
                return seen_at - self._started_at
            elif time.monotonic() >= deadline:
                raise ConsoleTimeoutError(f"QEMU's guest showed no prompt in {timeout:g} s.", tail)

    def run(
        self, command: str, timeout: float, on_output: Callable[[bytes], None] | None = None
    ) -> CommandResult:
        """Run `command` in the guest's shell, as :meth:`Machine.run` does."""
        dialogue, output = Dialogue(command), bytearray()
        deadline = time.monotonic() + timeout
        self._write(dialogue.start())
        while dialogue.state is not State.DONE:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConsoleTimeoutError(
                    f"the command took longer than {timeout:g} s in QEMU.", bytes(output)
                )
            step = dialogue.on_bytes(self._read(left))
            self._write(step.send)
            output += step.output
            if on_output is not None and step.output:
                on_output(step.output)
        assert dialogue.status is not None  # set on the way to DONE
        return CommandResult(bytes(output).decode(errors="replace"), dialogue.status, bytes(output))

    def __enter__(self) -> QemuMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def _read(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, timeout))
        if not ready:
            return b""
        data = os.read(self._process.stdout.fileno(), 65536)
        if not data:
            raise HostLostError("QEMU ended by itself.")
        return data

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        while data:
            data = data[self._process.stdin.write(data) or 0 :]
