# SPDX-License-Identifier: GPL-2.0-or-later
"""The wire of shared memory: rings and pipes between the processes of one computer, made here, used natively.

Each host makes an inbox: a memory file with a ring for every other host, and a pipe whose far end wakes it.
Both have no name in any folder. Another host reaches them as files of this process under ``/proc``, which the
kernel opens for processes of the same user alone. Nothing is left behind when a process ends, however it
ends.
"""

import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from coremesh.core._native import Link, link_priority, shm_inbox_bytes, shm_link
from coremesh.core.errors import LinkError
from coremesh.core.links.door import LinkEnd
from coremesh.core.links.tuning import (
    OVERFLOW,
    HostEnd,
    check_place,
    choose_cpu,
    outranks,
    receives_while_waiting,
    spin_microseconds,
)

_TOKEN_BYTES = 16
_SCHEME = "shm://"
# fcntl.h: sealed against every change of size, and against more seals.
_F_ADD_SEALS, _SEALS = 1033, 0x0001 | 0x0002 | 0x0004


class ShmEnds(HostEnd):
    """One host's end of the links over shared memory; as :class:`~coremesh.core.links.zmq.ZmqEnds` otherwise.

    ``host`` of ``hosts``, which must all be processes of this user on this computer, in one PID namespace.
    ``public_key`` is a random token that names the inbox: it is how another host knows that it has opened the
    right file. Raises :class:`LinkError`. Not thread-safe.
    """

    wire = "shm"

    def __init__(self, host: int, hosts: int, *, pin: bool = True) -> None:
        super().__init__()
        check_place(host, hosts)
        self.host = host
        self.hosts = hosts
        self.priority = link_priority()
        self.cpu = choose_cpu(host) if pin and outranks(self.priority) else None
        self._token = os.urandom(_TOKEN_BYTES)
        self._descriptors: list[int] = []
        self._inboxes: dict[int, tuple[int, int]] = {}
        try:
            self._memory = self._keep(
                os.memfd_create(_name(self._token), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            )
            os.ftruncate(self._memory, shm_inbox_bytes(hosts))
            _seal(self._memory)
            reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._bell, self._rope = self._keep(reading), self._keep(writing)
        except OSError as error:
            self.close()
            raise LinkError(
                f"no shared memory for the links ({error}); raise 'ulimit -n', or use zmq."
            ) from error
        self._inboxes[host] = (self._memory, self._bell)

    @property
    def end(self) -> LinkEnd:
        """What the other hosts are told of this end."""
        return LinkEnd(self.endpoint, self._token, "")

    @property
    def endpoint(self) -> str:
        """Where the other hosts find the inbox: the process and the numbers of its files."""
        return f"{_SCHEME}{os.getpid()}/{self._memory}/{self._rope}"

    @property
    def public_key(self) -> bytes:
        """The token that names the inbox, 16 bytes."""
        return self._token

    def admit(self, peers: Mapping[int, LinkEnd]) -> None:
        """Nothing to do: the kernel opens the inbox for processes of this user alone."""

    def connect(self, peers: Mapping[int, LinkEnd]) -> None:
        """Open the other hosts' inboxes: number -> its ``end``. Once.

        An entry for this host is ignored.
        """
        if len(self._inboxes) > 1:
            raise LinkError("the ends are connected already.")
        missing = [host for host in range(self.hosts) if host != self.host and host not in peers]
        if missing:
            raise LinkError(f"host {missing[0]} is missing: give the end of every host.")
        for host in range(self.hosts):
            if host != self.host:
                self._inboxes[host] = self._open_inbox(host, peers[host].endpoint, peers[host].public_key)

    def _open_inbox(self, host: int, endpoint: str, token: bytes) -> tuple[int, int]:
        try:
            process, memory, rope = (int(word) for word in endpoint.removeprefix(_SCHEME).split("/"))
            files = f"/proc/{process}/fd"
            # O_NONBLOCK: what is not a pipe, or a full one, must not block a sender.
            opened = self._keep(os.open(f"{files}/{memory}", os.O_RDWR | os.O_CLOEXEC))
            bell = self._keep(os.open(f"{files}/{rope}", os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK))
            # The number may be another process's by now; the name of the memory tells.
            named = Path(f"/proc/self/fd/{opened}").readlink()
            still = Path(f"{files}/{memory}").readlink()
        except (OSError, ValueError) as error:
            raise LinkError(
                f"host {host}'s shared memory cannot be opened ({error}). All hosts must be processes of one "
                "user on one computer, in one PID namespace; else use the wire zmq."
            ) from error
        if not str(named).startswith(f"/memfd:{_name(token)}") or named != still:
            raise LinkError(
                f"host {host}'s process has ended, or is another one by now. Start the machine again."
            )
        if not stat.S_ISFIFO(os.fstat(bell).st_mode):
            raise LinkError(f"host {host} has sent the wrong file for its bell. Start the machine again.")
        return opened, bell

    def open(
        self,
        machine_id: int,
        epoch: int,
        *,
        spin_us: int | None = None,
        overflow: int = OVERFLOW,
        vcpus: int = 0,
    ) -> Link:
        """Return the native link over these inboxes; it stays silent until it is started.

        Frames of another ``machine_id`` (64 bits) or ``epoch`` (32 bits) are refused. ``spin_us`` as
        :meth:`ZmqEnds.open`.
        """
        if len(self._inboxes) != self.hosts:
            raise LinkError("connect the ends before the link is opened.")
        try:
            link = shm_link(
                host=self.host,
                hosts=self.hosts,
                machine_id=machine_id,
                epoch=epoch,
                inboxes=[self._inboxes[host] for host in range(self.hosts)],
                overflow_limit=overflow,
                spin_us=spin_microseconds(spin_us),
                lends=receives_while_waiting(vcpus),
                cpu=-1 if self.cpu is None else self.cpu,
            )
        except (ValueError, OSError) as error:
            raise LinkError(f"an inbox cannot be used ({error}). Start the machine again.") from error
        self._links.append(link)
        return link

    def close(self) -> None:
        """Stop the link and give the files back; what was not sent is dropped. Harmless when done before."""
        super().close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor


def _name(token: bytes) -> str:
    return f"coremesh-{token.hex()}"


def _seal(memory: int) -> None:
    fcntl.fcntl(memory, _F_ADD_SEALS, _SEALS)
