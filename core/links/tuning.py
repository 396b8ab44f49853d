# SPDX-License-Identifier: GPL-2.0-or-later
"""What all wires have in common on this side: an end's life, limits, and where the link's threads run."""

import os
from types import TracebackType
from typing import NoReturn, Self

from coremesh.core._native import Link
from coremesh.core.cores import usable_cores
from coremesh.core.errors import ConfigurationError, LinkError

MAX_LINKED = 64
OVERFLOW = 16384
"""Frames that wait in the link's own queue before the peer is given up."""
_HOSTS_OF_ONE_CPU = 4


class HostEnd:
    """One host's end of the links as a context manager, which stays in its process."""

    def __init__(self) -> None:
        self._links: list[Link] = []

    def close(self) -> None:
        """Stop the links and give back what they used; what was not sent is dropped. Idempotent."""
        for link in self._links:
            link.stop()
        self._links.clear()

    def __reduce__(self) -> NoReturn:
        raise TypeError("the ends of links hold a secret key or open files, and stay in their process.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_place(host: int, hosts: int) -> None:
    """Raise :class:`LinkError` unless ``host`` is one of 2 to 64 ``hosts``, counted from 0."""
    if not 0 <= host < hosts <= MAX_LINKED or hosts < 2:
        raise LinkError(
            f"host {host} of {hosts}: a machine has 2 to {MAX_LINKED} linked hosts, counted from 0."
        )


def choose_cpu(host: int) -> int:
    """The CPU for the link's threads of ``host``, the same for hosts of one computer.

    A frame between two hosts of one computer then costs no interrupt between CPUs. More than four hosts would
    be too much for one CPU when all of them move pages.
    """
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[host // _HOSTS_OF_ONE_CPU % len(allowed)]


def outranks(priority: str) -> bool:
    """Whether a thread of such a priority gets a CPU at once: only then may it stay on one."""
    return priority in ("fifo", "nice")


def spin_microseconds(wanted: int | None) -> int:
    """How long a link looks for frames before it sleeps: ``wanted``, else COREMESH_LINK_SPIN_US, else 0."""
    if wanted is not None:
        return wanted
    said = os.environ.get("COREMESH_LINK_SPIN_US", "0")
    if not said.isdecimal() or int(said) > 1_000_000:
        raise ConfigurationError(
            f"COREMESH_LINK_SPIN_US={said!r}: give microseconds, 0 to 1000000, or remove the variable."
        )
    return int(said)


def receives_while_waiting(vcpus: int) -> bool:
    """Whether a thread that waits for a page receives its answer itself, and what comes for others meanwhile.

    Not where ``vcpus`` of the machine are more than this computer's cores: the protocol thread outranks
    vCPUs, and a vCPU that has the receiver's role waits for a core among them. COREMESH_LINK_LEND=0 or 1
    decides it, to measure either.
    """
    said = os.environ.get("COREMESH_LINK_LEND", "")
    if said not in ("", "0", "1"):
        raise ConfigurationError(f"COREMESH_LINK_LEND={said!r}: give 0 or 1, or remove the variable.")
    return vcpus <= usable_cores() if not said else said == "1"
