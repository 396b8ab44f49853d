# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine to compare with: qemu-system-x86_64 under TCG, driven through its console as ours is."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from coremesh.cluster.machine.shell import PROMPT, CommandResult, Dialogue, State
from coremesh.core.errors import ConsoleTimeoutError, HostLostError, PlatformError

PROGRAM = "qemu-system-x86_64"

_QUIET_SECONDS = 0.05


def installed() -> bool:
    """Tell whether this host has QEMU for x86-64 guests."""
    return shutil.which(PROGRAM) is not None


class QemuMachine:
    """A guest in QEMU, until the end of the ``with`` block. For one thread at a time."""

    def __init__(self, vcpus: int, memory_mib: int, kernel: Path, initrd: bytes, cmdline: str) -> None:
        if not installed():
            raise PlatformError(f"{PROGRAM} is not installed; Debian has it in qemu-system-x86.")
        with tempfile.NamedTemporaryFile(prefix="coremesh-initrd-", delete=False) as file:
            file.write(initrd)
        self._initrd = Path(file.name)
        command = [PROGRAM, "-accel", "tcg,thread=multi", "-smp", str(vcpus), "-m", str(memory_mib)]
        command += ["-kernel", str(kernel), "-initrd", str(self._initrd), "-append", cmdline]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )

    def wait_shell(self, timeout: float) -> float:
        """Return the seconds from the start of the process to the first prompt."""
        tail, seen_at = b"", None
        deadline = self._started_at + timeout
        while True:
            data = self._read(_QUIET_SECONDS if seen_at is not None else deadline - time.monotonic())
            if data:
                tail = (tail + data)[-4096:]
                seen_at = time.monotonic() if re.search(PROMPT, tail) else None
            elif seen_at is not None:
                return seen_at - self._started_at
            elif time.monotonic() >= deadline:
                raise ConsoleTimeoutError(f"QEMU's guest showed no prompt in {timeout:g} s.", tail)

    def run(self, command: str, timeout: float) -> CommandResult:
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
        assert dialogue.status is not None  # set on the way to DONE
        return CommandResult(bytes(output).decode(errors="replace"), dialogue.status, bytes(output))

    def __enter__(self) -> QemuMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._initrd.unlink(missing_ok=True)

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
