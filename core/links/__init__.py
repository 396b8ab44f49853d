# SPDX-License-Identifier: GPL-2.0-or-later
"""The ends of the links between the hosts of a machine, one module a wire.

``tcp`` and ``zmq`` reach every host that a network reaches, encrypted; ``shm`` the processes of one computer,
through shared memory. An end is made here and then used by native threads alone (``core/native/link``).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from coremesh.core._native import Link
from coremesh.core.errors import ConfigurationError
from coremesh.core.links.door import LinkEnd
from coremesh.core.links.shm import ShmEnds
from coremesh.core.links.tcp import TcpEnds
from coremesh.core.links.tuning import OVERFLOW
from coremesh.core.links.zmq import ZmqEnds

Wire = Literal["auto", "shm", "tcp", "zmq"]
WIRES: tuple[Wire, ...] = ("auto", "shm", "tcp", "zmq")


class Ends(Protocol):
    """One host's end of the links. Order: make one on every host, exchange their ``end``, ``admit`` on each.

    Then ``connect``, ``open``; at the end stop the link, then ``close``. Not thread-safe.
    """

    @property
    def end(self) -> LinkEnd:
        """What the other hosts are told of this end: where it is, and how to know it again. No secret."""

    def admit(self, peers: Mapping[int, LinkEnd]) -> None:
        """Let the other hosts, number -> ``end``, reach this one. Raises LinkError."""

    def connect(self, peers: Mapping[int, LinkEnd]) -> None:
        """Reach the other hosts, number -> ``end``; only these will be heard. Raises LinkError."""

    def open(
        self,
        machine_id: int,
        epoch: int,
        *,
        spin_us: int | None = None,
        overflow: int = OVERFLOW,
        vcpus: int = 0,
    ) -> Link:
        """The native link, silent until it is started.

        ``vcpus``: how many of the machine share this computer's cores (:func:`receives_while_waiting`).
        """

    def close(self) -> None:
        """Stop the link and give back what it used."""


def make_ends(wire: str, host: int, hosts: int, interface: str = "127.0.0.1", *, curve: bool = True) -> Ends:
    """Make the end of ``host`` for ``wire``, 'shm', 'tcp' or 'zmq'; the latter two listen on ``interface``.

    Raises :class:`~coremesh.core.errors.LinkError`, and PlatformError where a library is missing.
    """
    if wire == "shm":
        return ShmEnds(host, hosts)
    if wire == "tcp":
        return TcpEnds(host, hosts, interface)
    if wire == "zmq":
        return ZmqEnds(host, hosts, interface, curve=curve)
    raise ConfigurationError(f"the wire {wire!r}: give one of {', '.join(WIRES)}.")


def this_computer() -> str:
    """What processes have in common that can share memory: kernel, user, and namespaces.

    Hosts in different network namespaces count as different computers: that is what such namespaces are for.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    spaces = (Path(f"/proc/self/ns/{kind}").readlink() for kind in ("pid", "user", "net"))
    return "/".join([boot, str(os.geteuid()), *map(str, spaces)])


def choose_wire(wanted: str, computers: Sequence[str]) -> tuple[str, str]:
    """Return the wire for hosts on ``computers`` (each its :func:`this_computer`), and why, for a person.

    Raises :class:`~coremesh.core.errors.ConfigurationError` where ``wanted`` cannot be had.
    """
    together = len(set(computers)) == 1
    if wanted == "shm" and not together:
        raise ConfigurationError(
            "the wire shm needs all hosts on one computer, as one user and in the same namespaces; these "
            "are not: say tcp, or auto."
        )
    if wanted not in WIRES:
        raise ConfigurationError(f"the wire {wanted!r}: give one of {', '.join(WIRES)}.")
    if wanted != "auto":
        return wanted, "as asked"
    return ("shm", "all hosts are on one computer") if together else ("tcp", "hosts are on several computers")
