# SPDX-License-Identifier: GPL-2.0-or-later
"""The wire of TCP: one encrypted connection for two hosts, written by the thread that has something to send.

Python makes the keys and the listening socket; the native link (``core/native/link/tcp.hpp``) connects,
proves the keys and carries the frames. Encryption is libsodium's: key exchange over X25519, then AES-256-GCM
where both processors have instructions for it, else ChaCha20-Poly1305.
"""

import ctypes.util
from collections.abc import Mapping

import zmq as _  # noqa: F401 - its wheel loads a libsodium
from coremesh.core._native import Link, link_priority, tcp_keypair, tcp_link
from coremesh.core.errors import LinkError, PlatformError
from coremesh.core.links.door import LinkEnd, open_door, read_source, written
from coremesh.core.links.tuning import (
    OVERFLOW,
    HostEnd,
    check_place,
    choose_cpu,
    outranks,
    receives_while_waiting,
    spin_microseconds,
)

_SCHEME = "tcp://"


class TcpEnds(HostEnd):
    """One host's end of the links over TCP; as :class:`~coremesh.core.links.zmq.ZmqEnds` otherwise.

    ``host`` of ``hosts``; ``interface`` is an IP address of this computer that the others reach, the port is
    chosen by the system. Of two hosts the one with the smaller number connects. The secret half of the key
    stays in this process. Raises :class:`LinkError`, and :class:`PlatformError` without libsodium. Not
    thread-safe.
    """

    wire = "tcp"

    def __init__(self, host: int, hosts: int, interface: str = "127.0.0.1", *, pin: bool = True) -> None:
        super().__init__()
        check_place(host, hosts)
        self.host = host
        self.hosts = hosts
        self.priority = link_priority()
        self.cpu = choose_cpu(host) if pin and outranks(self.priority) else None
        self._libsodium = loaded_libsodium()
        self._public, self._secret = tcp_keypair(self._libsodium)
        self._peers: dict[int, LinkEnd] = {}
        self._door = open_door(interface)
        self.guarded = self._door.guarded  #: whether only admitted hosts can connect

    @property
    def endpoint(self) -> str:
        """Where the other hosts connect to, as ``tcp://address:port``."""
        return _SCHEME + written(*self._door.listens)

    @property
    def public_key(self) -> bytes:
        """The public half of this host's key, 32 bytes."""
        return self._public

    @property
    def end(self) -> LinkEnd:
        """What the other hosts have to know of this one."""
        return LinkEnd(self.endpoint, self.public_key, written(*self._door.source))

    def admit(self, peers: Mapping[int, LinkEnd]) -> None:
        """Let the other hosts alone connect: number -> end; an entry for this host is ignored."""
        self._door.admit([read_source(end.source) for host, end in peers.items() if host != self.host])

    def connect(self, peers: Mapping[int, LinkEnd]) -> None:
        """Take the other hosts' ends, number -> end, and admit them. Only their keys will be let in.

        An entry for this host itself is ignored. Once. The link connects when it is started.
        """
        if self._peers:
            raise LinkError("the ends are connected already.")
        missing = [host for host in range(self.hosts) if host != self.host and host not in peers]
        if missing:
            raise LinkError(f"host {missing[0]} is missing: give the endpoint and the key of every host.")
        ends = {**peers, self.host: self.end}
        keys = {ends[host].public_key for host in range(self.hosts)}
        if len(keys) != self.hosts or any(len(key) != len(self._public) for key in keys):
            raise LinkError("each host needs a public key of its own of 32 bytes.")
        self.admit(peers)
        self._peers = {host: ends[host] for host in range(self.hosts)}

    def open(
        self,
        machine_id: int,
        epoch: int,
        *,
        spin_us: int | None = None,
        overflow: int = OVERFLOW,
        vcpus: int = 0,
    ) -> Link:
        """Return the native link; it stays silent until it is started.

        Frames of another ``machine_id`` (64 bits) or ``epoch`` (32 bits) are refused. ``spin_us`` as
        :meth:`ZmqEnds.open`.
        """
        if not self._peers:
            raise LinkError("connect the ends before the link is opened.")
        address, port = self._door.source
        places = [read_source(self._peers[host].endpoint.removeprefix(_SCHEME)) for host in range(self.hosts)]
        link = tcp_link(
            host=self.host,
            hosts=self.hosts,
            machine_id=machine_id,
            epoch=epoch,
            libsodium=self._libsodium,
            listener=self._door.listener(),
            source=(str(address), port),
            peers=[(str(address), port) for address, port in places],
            secret=self._secret,
            keys=[self._peers[host].public_key for host in range(self.hosts)],
            overflow_limit=overflow,
            spin_us=spin_microseconds(spin_us),
            lends=receives_while_waiting(vcpus),
            cpu=-1 if self.cpu is None else self.cpu,
        )
        self._links.append(link)
        return link

    def close(self) -> None:
        """Stop the link and give the sockets back; what was not sent is dropped. Idempotent."""
        super().close()
        self._door.close()


def loaded_libsodium() -> str:
    """Return the libsodium to use: the one that pyzmq's wheel brought, else the system's.

    Raises :class:`~coremesh.core.errors.PlatformError`.
    """
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if "libsodium" in path and ".so" in path:
                return f"/{path}"
    found = ctypes.util.find_library("sodium")
    if found is None:
        raise PlatformError(
            "the wire tcp needs libsodium: install pyzmq's own wheel, or Debian's package libsodium23; "
            "or say --wire zmq."
        )
    return found
