# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts that are linked but have no machine: a probe at each end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from coremesh.core._native import Link, LinkProbe
from coremesh.core.links import Ends, make_ends
from coremesh.core.links.door import LinkEnd
from coremesh.core.links.tuning import OVERFLOW
from coremesh.core.links.zmq import ZmqEnds

MACHINE, EPOCH = 0x0123_4567_89AB_CDEF, 5


@dataclass
class Linked:
    """The ends, links and probes of one machine's hosts, by number."""

    ends: list[Ends] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    probes: list[LinkProbe] = field(default_factory=list)
    stolen: list[LinkEnd] = field(default_factory=list)

    def peers(self) -> dict[int, LinkEnd]:
        return {host: end.end for host, end in enumerate(self.ends)}

    def close(self) -> None:
        for probe in self.probes:
            probe.stop()
        for end in self.ends:
            end.close()


Connect = Callable[..., Linked]
"""The fixture `connect`: link_up(), and the hosts are closed at the end of the test."""


def link_up(
    hosts: int = 2,
    *,
    wire: str = "zmq",
    curve: bool = True,
    epochs: Sequence[int] | None = None,
    overflow: int = OVERFLOW,
    start: bool = True,
) -> Linked:
    linked = Linked()
    for host in range(hosts):
        linked.ends.append(make_ends(wire, host, hosts, curve=curve))
    for end in linked.ends:
        end.admit(linked.peers())
    for host, end in enumerate(linked.ends):
        end.connect(linked.peers())
        epoch = epochs[host] if epochs else EPOCH
        linked.links.append(end.open(MACHINE, epoch, overflow=overflow))
        linked.probes.append(LinkProbe(linked.links[-1]))
        if start:
            linked.probes[-1].start()
    return linked


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return condition()


def zmq_end(machine: Linked, host: int) -> ZmqEnds:
    """A host's end, of a machine on ZeroMQ."""
    end = machine.ends[host]
    assert isinstance(end, ZmqEnds)
    return end


def written(end: LinkEnd) -> str:
    return f"{end.endpoint} {end.public_key.hex()} {end.source or '-'}"


def read(line: str) -> LinkEnd:
    endpoint, key, source = line.split()
    return LinkEnd(endpoint, bytes.fromhex(key), source)


def links_probe(end: Ends) -> LinkProbe:
    probe = LinkProbe(end.open(MACHINE, EPOCH))
    probe.start()
    return probe
