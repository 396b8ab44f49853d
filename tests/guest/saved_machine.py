# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux in this process, without Ray: booted, saved into a folder, or taken up from there.

As a program it takes up the machine that was saved in a folder, runs shell commands in it, and prints their
output as JSON: ``saved_machine.py FOLDER VCPUS MEMORY DISKS TYPED COMMAND...``. DISKS is a JSON list
of [path, interface]. TYPED goes first, into the very shell that was saved; each command runs in a
shell of its own.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coremesh.cluster.machine.command import run_command
from coremesh.cluster.machine.console import Console
from coremesh.cluster.machine.describe import describe
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.device_host import DeviceHost
from coremesh.cluster.machine.disks import Disk, check_disks
from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.machine_state import MachineState


class LinuxHost:
    """A machine of one host. A context manager: leaving it ends the machine."""

    def __init__(self, description: MachineDescription, state: MachineState | None = None) -> None:
        self.host = DeviceHost(description)
        self.console = Console(self, lambda: self.host.wait(0.0))
        if state is None:
            self.host.prepare()
        else:
            self.host.restore(state)
        self.host.start()

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.host, method)(*arguments)

    def __enter__(self) -> "LinuxHost":
        return self

    def __exit__(self, *_: object) -> None:
        self.host.stop()

    def wait_shell(self, seconds: float) -> None:
        assert self.host.wait_shell(seconds) is not None, "no shell"
        self.console.read()

    def type(self, line: str) -> None:
        """Type a line into the shell itself."""
        self.console.write(line + "\n")

    def run(self, command: str, seconds: float = 60.0) -> str:
        """What a command prints in the guest's shell; it must succeed."""
        result = run_command(self.console, command, seconds)
        assert result.status == 0, result
        return result.output

    def save(self, folder: Path) -> None:
        """The state of this moment, into ``folder``; the machine stays paused."""
        self.host.pause()
        self.host.save().write(folder)

    def power_off(self, seconds: float = 60.0) -> MachineEnd | None:
        self.console.write("poweroff -f\n")
        return self.host.wait(seconds)


def boot(vcpus: int, memory: str, disks: Sequence[Disk] = ()) -> LinuxHost:
    """Debian's kernel with busybox, started."""
    return LinuxHost(describe(vcpus=vcpus, memory=memory, append="quiet", disks=list(disks)))


def resume(folder: Path, vcpus: int, memory: str, disks: Sequence[Disk] = ()) -> LinuxHost:
    """The machine that was saved in ``folder``, going on. No kernel is read."""
    ram_bytes = int(memory.removesuffix("M")) << 20
    description = MachineDescription(vcpus=vcpus, ram_bytes=ram_bytes, kernel=b"", disks=check_disks(disks))
    return LinuxHost(description, MachineState.read(folder))


def main() -> None:
    folder, vcpus, memory, images, typed, *commands = sys.argv[1:]
    disks = [Disk(path, interface=interface) for path, interface in json.loads(images)]
    begin = time.monotonic()
    with resume(Path(folder), int(vcpus), memory, disks) as linux:
        linux.type(typed)
        outputs = [linux.run(command) for command in commands]
        seconds = time.monotonic() - begin
        end = linux.power_off()
    print(json.dumps({"outputs": outputs, "seconds": seconds, "end": None if end is None else end.kind}))


if __name__ == "__main__":
    main()
