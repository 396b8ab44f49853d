# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs batches of blocks: on the bare processor, and in a guest on one host or on two."""

import mmap
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from baremetal_machine import MIB, BaremetalMachine, build_guest
from block_layout import (
    BATCH_BYTES,
    BLOCKS_OFFSET,
    CODE_OFFSET,
    HEADER,
    IMAGE_OFFSET,
    OUTCOME,
    OUTCOMES_OFFSET,
    Block,
    Outcome,
)
from coremesh.core.engine import Host
from mesh_machine import MeshMachine

HERE: Final = Path(__file__).parent
BATCH: Final = 0x200_0000
SERVED: Final = 12
RAM: Final = 128 * MIB
PATIENCE: Final = 6.0
"""Seconds without a finished block after which it is said not to end."""


class DidNotEnd(Exception):
    """A block that neither ends nor faults, or that ended the machine; ``index`` is its place."""

    def __init__(self, index: int, how: str) -> None:
        super().__init__(f"block {index}: {how}")
        self.index = index
        self.how = how


class Runner(Protocol):
    """Runs blocks whose code is in ``code``, on data that is ``image`` before each."""

    def run(self, blocks: Sequence[Block], code: bytes, image: bytes) -> list[Outcome]:
        """What each leaves. Raises DidNotEnd."""


def _packed(blocks: Sequence[Block]) -> bytes:
    return b"".join(block.pack() for block in blocks)


def _outcomes(data: bytes, count: int) -> list[Outcome]:
    return [Outcome.unpack(data[at * OUTCOME.size : (at + 1) * OUTCOME.size]) for at in range(count)]


def build_native(folder: Path) -> Path:
    """The program for the bare processor. Raises subprocess.CalledProcessError when the compiler refuses."""
    program = folder / "native"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", program, HERE / "native.c"], check=True)
    return program


class NativeRunner:
    """The bare processor. A context manager."""

    def __init__(self, program: Path, folder: Path) -> None:
        file = folder / "batch"
        with file.open("wb") as empty:
            empty.truncate(BATCH_BYTES)
        self._file = file.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), BATCH_BYTES)
        self._process = subprocess.Popen(
            [program, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> "NativeRunner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)
        self._map.close()
        self._file.close()

    def run(self, blocks: Sequence[Block], code: bytes, image: bytes) -> list[Outcome]:
        """What each leaves. Raises DidNotEnd."""
        self._map[: HEADER.size] = HEADER.pack(len(blocks), 0, 0, 0)
        self._map[IMAGE_OFFSET : IMAGE_OFFSET + len(image)] = image
        self._map[CODE_OFFSET : CODE_OFFSET + len(code)] = code
        packed = _packed(blocks)
        self._map[BLOCKS_OFFSET : BLOCKS_OFFSET + len(packed)] = packed
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        answer = self._process.stdout.readline().strip()
        if answer != "done":
            raise DidNotEnd(HEADER.unpack(self._map[: HEADER.size])[2], answer or "the program ended")
        end = OUTCOMES_OFFSET + len(blocks) * OUTCOME.size
        return _outcomes(self._map[OUTCOMES_OFFSET:end], len(blocks))


def build_block_guest(folder: Path) -> Path:
    """The guest that runs blocks."""
    return build_guest("guest", folder, sources=HERE)


def _hosts(machine: BaremetalMachine | MeshMachine) -> list[Host]:
    return machine.hosts if isinstance(machine, MeshMachine) else [machine.host]


class GuestRunner:
    """A guest in this process, on one host or on two. A context manager.

    On two hosts the data of the blocks is at home on the other one, whose core puts it back after each block.
    A machine that a block has ended is followed by another.
    """

    def __init__(self, guest: Path, hosts: int = 1) -> None:
        self._guest = guest
        self._shares = (1,) * hosts
        self._machine: BaremetalMachine | MeshMachine | None = None
        self._served = 0

    def __enter__(self) -> "GuestRunner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the machine; the next batch starts another."""
        if self._machine:
            self._machine.__exit__()
            self._machine = None

    @property
    def between_hosts(self) -> int:
        """Pages that the machine's hosts have fetched from each other."""
        if not isinstance(self._machine, MeshMachine):
            return 0
        stats = [host.mesh_stats() for host in self._machine.hosts]
        return sum(int(host["read_fetches"] + host["write_fetches"]) for host in stats)

    def _started(self) -> BaremetalMachine | MeshMachine:
        if self._machine is None:
            self._served = 0
            if len(self._shares) == 1:
                self._machine = BaremetalMachine(self._guest, vcpus=1, ram_bytes=RAM)
            else:
                kernel = self._guest.read_bytes()
                self._machine = MeshMachine(kernel, shares=self._shares, cmdline="other", ram_bytes=RAM)
            self._machine.__enter__()
            self._machine.start()
            self._machine.wait_for("ready")
            for host in _hosts(self._machine):
                host.pause()
        return self._machine

    def run(self, blocks: Sequence[Block], code: bytes, image: bytes) -> list[Outcome]:
        """What each leaves. Raises DidNotEnd."""
        machine = self._started()
        hosts = _hosts(machine)
        host = hosts[0]
        self._served += 1
        host.ram_write(BATCH + BLOCKS_OFFSET, _packed(blocks))
        host.ram_write(BATCH + IMAGE_OFFSET, image)
        host.ram_write(BATCH + CODE_OFFSET, code)
        host.ram_write(BATCH, HEADER.pack(len(blocks), self._served, 0, self._served - 1)[:16])
        for each in hosts:
            each.resume()
        done, since = 0, time.monotonic()
        while int.from_bytes(host.ram_read(BATCH + SERVED, 4), "little") != self._served:
            time.sleep(0.001)
            before, done = done, int.from_bytes(host.ram_read(BATCH + 8, 4), "little")
            if done != before:
                since = time.monotonic()
            ended = [each.wait(0.0) for each in hosts]
            if any(ended) or machine.events or time.monotonic() - since > PATIENCE:
                how = f"does not end; {machine.output()[-300:]} {machine.events} {ended}"
                self.end()
                raise DidNotEnd(done, how)
        for each in hosts:
            each.pause()
        return _outcomes(host.ram_read(BATCH + OUTCOMES_OFFSET, len(blocks) * OUTCOME.size), len(blocks))
