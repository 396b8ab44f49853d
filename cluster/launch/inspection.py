# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person or a program can read of a machine: counters, registers, memory, the last messages."""

from __future__ import annotations

import os
import time
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from coremesh.cluster.launch.hosts import Hosts
from coremesh.cluster.launch.tables import (
    CONTENTION,
    Rows,
    as_table,
    contended_rows,
    device_sums,
    mesh_rows,
    sums,
    vcpu_rows,
    with_devices,
)
from coremesh.cluster.machine.assembly import topology_of
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.options import check
from coremesh.core.errors import ConfigurationError, MachineStateError
from coremesh.core.symbols import SymbolTable
from coremesh.core.x86.memory_map import MemoryMap

if TYPE_CHECKING:
    import pandas
    from coremesh.hw.backend.screen import TextScreen

_SHOWN_PAGES = 8


class Inspection(ABC):
    """The part of :class:`~coremesh.cluster.launch.machine.Machine` that looks and changes nothing.

    Any thread may call any method. A method of a machine that was stopped raises :class:`MachineStateError`,
    one of a machine whose host was lost raises :class:`HostLostError`.
    """

    vcpus: int
    memory: int
    _description: MachineDescription
    _hosts: Hosts
    _facts: dict[str, Any]
    _finalizer: weakref.finalize[..., Inspection]  # alive until the machine is stopped

    @property
    @abstractmethod
    def state(self) -> str:
        """See the machine."""

    def stats(self) -> pandas.DataFrame:
        """Return the engine's counters: one row a vCPU, columns as of ``Host.stats``; 'host' if several.

        'translations' counts blocks of guest code translated, not executed; 'code_bytes' is what they take.
        'device_accesses' are those that the device node has counted, 'device_bytes' what they moved,
        'device_ns' how long they took there, waits for the devices' locks included.
        """
        self._require_alive()
        return as_table(self._vcpu_rows(), "vcpu")

    def mesh_stats(self) -> pandas.DataFrame:
        """Return what passed between hosts: one row a host. Raises MachineStateError where there is only one.

        Columns as of ``Host.mesh_stats``: pages fetched to read and to write, their bytes and encodings;
        atomics executed here, at another host, and tried again; invalidations; the links' frames, bytes and
        refusals; how far the guest clock is from host 0's.
        """
        self._require_several()
        return as_table(mesh_rows(self._hosts.all("mesh_stats")), "host")

    def totals(self) -> dict[str, dict[str, float]]:
        """Return sums of the counters: 'stats' over vCPUs, 'mesh_stats' over hosts (empty for one host).

        'device_stats' has them over devices, and those of each device as 'uart.accesses'; what is no count,
        as the longest queue, is only in :meth:`device_stats`.
        Cheaper than the tables, for what asks often or in a process that has no other use for pandas.
        """
        self._require_alive()
        found = {"stats": sums(self._vcpu_rows()), "mesh_stats": {}}
        found["device_stats"] = device_sums(self._call("device_counters"))
        if len(self._hosts) > 1:
            found["mesh_stats"] = sums(mesh_rows(self._hosts.all("mesh_stats")))
        return found

    def contended_pages(
        self, count: int = 10, symbols: str | os.PathLike[str] | None = None, phys_base: int = 0
    ) -> pandas.DataFrame:
        """Return the `count` pages that hosts take from each other most, the worst first.

        'gpa' is the page's guest-physical address, 'home' the host that arbitrates it, 'users' where in the
        guest's code it was needed most often. With a Linux guest's `symbols`, a file System.map or a copy of
        /proc/kallsyms, users are named, and there is 'symbols': which of the kernel's variables lie there.
        `phys_base` (bytes) is for a kernel that moved itself, see :class:`SymbolTable`. Raises
        :class:`MachineStateError` where there is only one host.
        """
        count, symbols, phys_base = (
            check("count", count), check("symbols", symbols), check("phys_base", phys_base),
        )  # fmt: skip
        self._require_several()
        table = None if symbols is None else SymbolTable.read(symbols, phys_base=phys_base)
        return as_table(self._contended(count, table), "rank", ("gpa", "home", *CONTENTION, "hosts", "users"))

    def device_stats(self, by_vcpu: bool = False) -> pandas.DataFrame:
        """Return what each device has counted; a row a device. What a device does not count is NA.

        Of each: 'accesses' by vCPUs, 'access_bytes', 'access_ns' that they took, 'at_once' and 'most_at_once'
        (accesses under way), 'vcpus' (how many use it); 'contended' accesses that waited for the device's
        lock, 'waited_ns' in all; 'faults' of the model. Of a disk also requests by kind, bytes, 'service_ns'
        of all requests together, 'deepest', the longest queue. Of a network card frames and bytes each way,
        frames lost.

        With `by_vcpu` a row for each device and each vCPU that has used it: accesses, access_bytes,
        access_ns. Other threads than vCPUs', as tests have, are vCPU -1.
        """
        import pandas

        if check("by_vcpu", by_vcpu):
            rows = [(name, -1 if vcpu is None else vcpu, *counts) for name, vcpu, *counts in self._uses()]
            names = ["device", "vcpu", "accesses", "access_bytes", "access_ns"]
            return pandas.DataFrame(rows, columns=names).set_index(["device", "vcpu"]).sort_index()
        table = pandas.DataFrame.from_dict(self._call("device_counters"), orient="index").astype("Int64")
        table.index.name = "device"
        return table

    def screen(self) -> TextScreen:
        """Return what is on the VGA text screen; as a string it is the text. Raises MachineStateError."""
        shown: TextScreen = self._call("screen")
        return shown

    @property
    def restarts(self) -> int:
        """How many times a guest's reset has restarted the machine; 0 once it was stopped."""
        return int(self._hosts.call("restarts")) if self._finalizer.alive else 0

    def snapshot(self) -> dict[str, Any]:
        """Return what ``coremesh top`` shows, as data that JSON can hold.

        Keys: 'state', 'vcpus', 'memory' (bytes), 'seconds' (on the monotonic clock), 'wire' and 'hosts' (of
        :attr:`facts`, or one that stands for the machine), and while it runs 'restarts', 'stats' (a row a
        vCPU), with several hosts also 'mesh' (a row a host) and 'contended' (rows, the worst first), and
        'devices', by name what :meth:`device_stats` has.
        """
        shown: dict[str, Any] = {
            "state": self.state,
            "vcpus": self.vcpus,
            "memory": self.memory,
            "seconds": time.monotonic(),
            "wire": self._facts.get("wire", ""),
            "hosts": self._facts.get("hosts", [{"host": 0, "vcpus": self.vcpus, "node": ""}]),
        }
        if self._finalizer.alive:
            shown["restarts"] = self.restarts
            shown["stats"] = self._vcpu_rows()
            shown["devices"] = self._call("device_counters")
            if len(self._hosts) > 1:
                shown["mesh"] = mesh_rows(self._hosts.all("mesh_stats"))
                shown["contended"] = self._contended(_SHOWN_PAGES, None)
        return shown

    def registers(self, vcpu: int = 0) -> dict[str, Any]:
        """Return the registers of `vcpu`, which counts from 0, by their names in the SDM.

        Integers; a segment register is (selector, base, limit, access). Raises :class:`MachineStateError`
        unless the machine is paused or has ended, :class:`ConfigurationError` for a vCPU that there is not.
        """
        vcpu = check("vcpu", vcpu)
        if vcpu >= self.vcpus:
            raise ConfigurationError(f"there is no vCPU {vcpu}; they count from 0.")
        self._require_alive()
        host = self._description.host_of(vcpu)
        registers: dict[str, Any] = self._hosts.call("registers", vcpu, host=host)
        return registers

    def report(self) -> str:
        """Return as text what the vCPUs of each host do, and the last messages of the page protocol there.

        Of a running machine too: for one that makes no progress. While it is paused, or when it has ended,
        the text has each vCPU's mode and place.
        """
        self._require_alive()
        return "\n".join(self._hosts.all("report"))

    def trace(self, count: int = 1024) -> pandas.DataFrame:
        """Return the last messages of the page protocol: one row a message, at most `count` of each host.

        Columns: 'host' that noted it, 'time_ns' (CLOCK_MONOTONIC of that host), 'sent' (or received), 'peer',
        'kind' of message, 'page' of the RAM file and its 'gpa', 'requester' that the transaction
        is for, 'serial' of the transaction at the page's home, 'flags', the host's access 'before' and
        'after' (I, S, M), and 'rejected' for what breaks the protocol. Raises MachineStateError on a machine
        of one host.
        """
        self._require_several()
        hosts = self._hosts.all("trace", check("count", count))
        rows = [{"host": number, **row} for number, rows in enumerate(hosts) for row in rows]
        return as_table(rows, "message")

    def read_memory(self, gpa: int, length: int) -> bytes:
        """Return `length` bytes of guest RAM at guest-physical address `gpa`; at most 1 GiB.

        Raises ConfigurationError where not all of that is RAM of one region.
        """
        gpa, length = check("gpa", gpa), check("length", length)
        if not MemoryMap(self.memory).is_ram(gpa, length):
            raise ConfigurationError(f"{length} bytes at {gpa:#x} are not all RAM of this guest.")
        data: bytes = self._call("read_memory", gpa, length)
        return data

    @property
    def facts(self) -> dict[str, Any]:
        """What the host chose: 'protection', 'tsc_hz', 'pid'.

        With several hosts these are host 0's, and there are also 'placement' (Ray's strategy), 'warning',
        'wire' (what carries messages between the hosts, and why) and 'hosts', a list with each one's
        'host', 'node', 'vcpus', 'link' (the address that only its peers reach) and the keys above.
        """
        return dict(self._facts)

    @property
    def warning(self) -> str:
        """A word about where the hosts run; empty when all is as asked for."""
        return self._hosts.warning

    def _vcpu_rows(self) -> Rows:
        return with_devices(vcpu_rows(self._hosts.all("stats")), self._uses())

    def _uses(self) -> list[tuple[str, int | None, int, int, int]]:
        uses: list[tuple[str, int | None, int, int, int]] = self._call("device_uses")
        return uses

    # --- inside ------------------------------------------------------------------------------------------

    def _require_alive(self) -> None:
        if not self._finalizer.alive:
            raise MachineStateError("the machine was stopped; make another one.")

    def _require_several(self) -> None:
        self._require_alive()
        if len(self._hosts) == 1:
            raise MachineStateError("the machine has one host: nothing passes between hosts.")

    def _call(self, method: str, *arguments: Any) -> Any:
        self._require_alive()
        return self._hosts.call(method, *arguments)

    def _contended(self, count: int, symbols: SymbolTable | None) -> Rows:
        topology = topology_of(self._description)
        assert topology is not None  # asked for where there are several hosts
        # Each host lists the worst of its own: one that is bad for all may be low on every list.
        rows = self._hosts.all("contended_pages", 4 * count)
        return contended_rows(rows, count, topology, MemoryMap(self.memory).layout, symbols)
