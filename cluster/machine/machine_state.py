# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine at one moment: vCPUs, local APICs, devices, clocks as plain data, and its RAM.

Taken from a machine of one host that is paused, put into one that was built in the same shape and has not
started: in this process, in another one, or on another computer. The guest sees no time pass between the two.

Not part of it: bytes that a person has typed and the serial port has not taken, which stay with the terminal;
what disks hold, which stays in their images; a firmware's image, which the new machine is given again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from coremesh.core.memory_layout import PAGE_BYTES
from coremesh.core.state import State, StateError, check_keys, check_shape, check_version

if TYPE_CHECKING:
    from coremesh.core.engine import Host
    from coremesh.hw.clock import Clock
    from coremesh.hw.node import DeviceNode

VERSION = 1
_OWNER = "the machine"
_CHUNK_BYTES = 1 << 20
_ZERO_PAGE = bytes(PAGE_BYTES)
_ATTEMPTS = 100
_ALL_RAM = (1 << 64) - 1  # reads and writes of every segment that ROM can stand in for
_NS_PER_SECOND = 10**9


@dataclass(frozen=True)
class MachineState:
    """`plain` is what JSON holds, `ram` are runs of bytes by guest-physical address; all the rest is zero.

    `plain` has 'version', 'host' (:meth:`Host.save_state`), 'devices' (by name) and 'clock_ns', what the
    devices' clock showed.
    """

    plain: State = field(repr=False)
    ram: list[tuple[int, bytes]] = field(repr=False)

    @classmethod
    def take(cls, host: Host, node: DeviceNode, clock: Clock) -> MachineState:
        """The state of a machine whose vCPUs are paused and whose device node is stopped; `clock` is the
        devices'.

        A person may type meanwhile: the serial port is then read again, so that vCPUs and devices belong
        together. Raises RuntimeError when the machine runs or has ended.
        """
        devices = node.save()
        for _ in range(_ATTEMPTS):
            vcpus = host.save_state()
            clock_ns = clock.now()  # beside the vCPUs' clock: a guest compares the two
            before, devices = devices, node.save()
            if devices == before:
                break
        else:
            raise StateError("the devices do not come to rest: stop what feeds them, and try again")
        plain = {"version": VERSION, "host": vcpus, "devices": devices, "clock_ns": clock_ns}
        with _ram_behind_rom(host):
            return cls(plain, list(_used_ram(host)))

    @property
    def clock_ns(self) -> int:
        """What the devices' clock showed, in ns: that of the new machine goes on from there."""
        return int(self.plain["clock_ns"])

    @property
    def tsc_hz(self) -> int:
        """The rate of the time-stamp counter that the guest was promised."""
        return int(self.plain["host"]["tsc_hz"])

    def check(self) -> None:
        """Raise :class:`StateError` unless this is a state of this version."""
        check_version(self.plain, VERSION, _OWNER)
        check_keys(self.plain, {"version", "host", "devices", "clock_ns"}, _OWNER)
        check_shape(self.plain["clock_ns"], 0, f"{_OWNER}.clock_ns")
        check_keys(self.plain["host"], {"version", "tsc", "tsc_hz", "vcpus"}, f"{_OWNER}.host")
        for name in ("tsc", "tsc_hz"):
            check_shape(self.plain["host"][name], 0, f"{_OWNER}.host.{name}")

    def put_ram(self, host: Host) -> None:
        """Lay the RAM into a host that was just made. Raises :class:`StateError` when it has less RAM."""
        with _ram_behind_rom(host):
            for gpa, data in self.ram:
                try:
                    host.load(gpa, data)
                except IndexError as error:
                    raise StateError(
                        f"the saved state has RAM at {gpa:#x}, this machine has not: give it as much memory"
                    ) from error

    def put(self, host: Host, node: DeviceNode, clock: Clock) -> None:
        """Let vCPUs and devices go on from here; `clock` was made to show :attr:`clock_ns`. Then start both.

        Raises :class:`StateError` for a machine of another shape; it is to be thrown away then.
        """
        passed = max(0, clock.now() - self.clock_ns)  # the guest's two clocks stay together
        tsc = self.plain["host"]["tsc"] + passed * self.tsc_hz // _NS_PER_SECOND
        # First, since a device that resumes may raise an interrupt at once.
        host.load_state({**self.plain["host"], "tsc": tsc})
        node.load(self.plain["devices"])

    def write(self, folder: Path) -> None:
        """Write `machine.json` and the sparse file `ram` into `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "ram").open("wb") as file:
            for gpa, data in self.ram:
                file.seek(gpa)
                file.write(data)
        (folder / "machine.json").write_text(json.dumps(self.plain))

    @classmethod
    def read(cls, folder: Path) -> MachineState:
        """What :meth:`write` wrote. Raises :class:`StateError` for what is no state of this version."""
        try:
            plain = json.loads((folder / "machine.json").read_text())
            with (folder / "ram").open("rb") as file:
                ram = list(_used_file(file.fileno()))
        except (OSError, ValueError) as error:
            raise StateError(
                f"there is no saved machine in {folder}: {error}; give another folder"
            ) from error
        state = cls(plain, ram)
        state.check()
        return state


@contextmanager
def _ram_behind_rom(host: Host) -> Iterator[None]:
    """Every address leads to its RAM, also where the machine shows ROM now. While no vCPU runs."""
    steering = host.steering
    host.steer(_ALL_RAM)
    try:
        yield
    finally:
        host.steer(steering)


def _used_ram(host: Host) -> Iterator[tuple[int, bytes]]:
    for gpa, length in host.ram_extents():
        for at in range(gpa, gpa + length, _CHUNK_BYTES):
            yield from _without_zeros(at, host.ram_read(at, min(_CHUNK_BYTES, gpa + length - at)))


def _without_zeros(gpa: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The runs of pages of `data` that hold anything."""
    begin: int | None = None
    for at in range(0, len(data) + PAGE_BYTES, PAGE_BYTES):
        page = data[at : at + PAGE_BYTES]
        if page and page != _ZERO_PAGE:
            begin = at if begin is None else begin
        elif begin is not None:
            yield gpa + begin, data[begin:at]
            begin = None


def _used_file(file: int) -> Iterator[tuple[int, bytes]]:
    end = os.fstat(file).st_size
    at = 0
    while at < end:
        try:
            data = os.lseek(file, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole
            return
        at = os.lseek(file, data, os.SEEK_HOLE)
        for begin in range(data, at, _CHUNK_BYTES):
            yield from _without_zeros(begin, os.pread(file, min(_CHUNK_BYTES, at - begin), begin))
