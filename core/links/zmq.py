# SPDX-License-Identifier: GPL-2.0-or-later
"""The wire of ZeroMQ: the sockets of one host, made and keyed here, driven by native threads.

Python makes the sockets, because a wheel of pyzmq brings libzmq with CURVE for every platform; from then on
the native link uses them (``core/native/link``) and Python must leave them alone until the link has stopped.
"""

import sys
from collections.abc import Mapping

import zmq
from coremesh.core._native import Link, link_priority, zmq_link
from coremesh.core.errors import LinkError, PlatformError
from coremesh.core.links.door import Address, LinkEnd, open_door, read_source, written
from coremesh.core.links.tuning import OVERFLOW, HostEnd, check_place, choose_cpu, outranks, spin_microseconds
from zmq.utils import z85

QUEUE = 8192
"""Frames that libzmq keeps for one peer on each side; then those that must arrive wait in the link."""
_LARGEST = 1 << 20  # bytes; the link refuses and counts what is too large, libzmq only what is absurd
_IO_LEVEL = 10  # SCHED_FIFO; the protocol thread is at 11
_SCHED_OTHER, _SCHED_FIFO = 0, 1  # sched(7)


class ZmqEnds(HostEnd):
    """One host's end of the links over ZeroMQ: an address, a key pair, and sockets to the other hosts.

    ``host`` of ``hosts``; ``interface`` is an IP address of this computer that the others reach, the port
    is chosen by the system. The secret half of the key stays in this process: nothing returns it, and the
    object cannot be pickled. ``curve=False`` turns encryption and the check of keys off, for measurements.
    ``pin`` keeps the link's threads together on one CPU, if they may outrank the vCPUs there: handing a frame
    from one to the other then costs no interrupt between CPUs, which is most of what a round trip costs.

    Order: make one on every host, exchange their ``end``, ``admit`` on every host, ``connect``, ``open``; at
    the end stop the link, then ``close``. A host that connects before it is admitted tries again after a
    second: the kernel drops its first packet (``guarded``; see :mod:`coremesh.core.links.door`).
    Raises :class:`LinkError`. Not thread-safe.
    """

    wire = "zmq"

    def __init__(
        self,
        host: int,
        hosts: int,
        interface: str = "127.0.0.1",
        *,
        curve: bool = True,
        io_threads: int = 1,
        pin: bool = True,
    ) -> None:
        super().__init__()
        check_place(host, hosts)
        if curve and not zmq.has("curve"):
            raise PlatformError("this libzmq has no CURVE; install pyzmq's own wheel, or say curve=False.")
        self.host = host
        self.hosts = hosts
        self.curve = curve
        self._public, self._secret = zmq.curve_keypair() if curve else (b"", b"")
        self._dealers: dict[int, zmq.Socket[bytes]] = {}
        self._keys: list[bytes] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.IO_THREADS, io_threads)
        self._context.set(zmq.MAX_SOCKETS, hosts + 8)
        self.priority = self._raise_io_threads()
        self.cpu = self._stay_on_one_cpu() if pin and outranks(self.priority) else None
        try:
            self._door = open_door(interface)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self.guarded = self._door.guarded  #: whether only admitted hosts can connect
        self._source = written(*self._door.source)
        try:
            self._zap = self._bind_zap() if curve else None
            self._router = self._bind(self._door.source[0])
        except BaseException:
            self._door.close()
            self._context.destroy(linger=0)
            raise

    @property
    def endpoint(self) -> str:
        """Where the other hosts connect to, as ``tcp://address:port``."""
        endpoint = self._router.get(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        return endpoint.decode().rstrip("\0")

    @property
    def public_key(self) -> bytes:
        """The public half of this host's CURVE key, 32 bytes; empty without CURVE."""
        return z85.decode(self._public) if self.curve else b""

    @property
    def end(self) -> LinkEnd:
        """What the other hosts have to know of this one."""
        return LinkEnd(self.endpoint, self.public_key, self._source)

    def admit(self, peers: Mapping[int, LinkEnd]) -> None:
        """Let the other hosts alone connect: number -> end; an entry for this host is ignored."""
        self._door.admit([read_source(end.source) for host, end in peers.items() if host != self.host])

    def connect(self, peers: Mapping[int, LinkEnd]) -> None:
        """Connect to the other hosts: number -> end, and admit them. Only their keys will be let in.

        An entry for this host itself is ignored. Once. Nothing waits: frames are kept until a peer is there.
        """
        if self._dealers:
            raise LinkError("the ends are connected already.")
        missing = [host for host in range(self.hosts) if host != self.host and host not in peers]
        if missing:
            raise LinkError(f"host {missing[0]} is missing: give the endpoint and the key of every host.")
        ends = {**peers, self.host: self.end}
        keys = [ends[host].public_key for host in range(self.hosts)]
        if self.curve and (any(len(key) != 32 for key in keys) or len(set(keys)) != self.hosts):
            raise LinkError("each host needs a public key of its own of 32 bytes.")
        self._keys = keys if self.curve else []
        self.admit(peers)
        for host in range(self.hosts):
            if host == self.host:
                continue
            dealer = self._dealers[host] = self._context.socket(zmq.DEALER)
            self._configure(dealer)
            dealer.set(zmq.RECONNECT_IVL, 50)
            if self.curve:
                dealer.set(zmq.CURVE_PUBLICKEY, self._public)
                dealer.set(zmq.CURVE_SECRETKEY, self._secret)
                dealer.set(zmq.CURVE_SERVERKEY, z85.encode(keys[host]))
            dealer.connect(f"tcp://{self._source};{peers[host].endpoint.removeprefix('tcp://')}")

    def open(
        self,
        machine_id: int,
        epoch: int,
        *,
        spin_us: int | None = None,
        overflow: int = OVERFLOW,
        vcpus: int = 0,
    ) -> Link:
        """Return the native link over these sockets; it stays silent until it is started.

        Frames of another ``machine_id`` (64 bits) or ``epoch`` (32 bits) are refused. ``spin_us``: how long
        its thread looks for frames before it sleeps, in microseconds; default: the environment variable
        COREMESH_LINK_SPIN_US, else 0.
        """
        if len(self._dealers) != self.hosts - 1:
            raise LinkError("connect the ends before the link is opened.")
        link = zmq_link(
            host=self.host,
            hosts=self.hosts,
            machine_id=machine_id,
            epoch=epoch,
            library=loaded_libzmq(),
            router=self._router.underlying,
            zap=self._zap.underlying if self._zap else 0,
            dealers=[
                self._dealers[host].underlying if host in self._dealers else 0 for host in range(self.hosts)
            ],
            keys=self._keys,
            overflow_limit=overflow,
            spin_us=spin_microseconds(spin_us),
            cpu=-1 if self.cpu is None else self.cpu,
        )
        self._links.append(link)
        return link

    def close(self) -> None:
        """Stop the link and give the sockets back, whatever the peers do; what was not sent is dropped."""
        super().close()
        # The router first: no connection may begin after the authenticator has gone.
        for socket in (self._router, *self._dealers.values(), *([self._zap] if self._zap else [])):
            socket.close(linger=0)
        self._context.term()
        self._door.close()

    def _raise_io_threads(self) -> str:
        """Let libzmq's threads outrank vCPUs as far as the computer allows; return how; before any socket."""
        # libzmq ends the process when the system says no, so it is only asked for what has been tried.
        priority = link_priority()
        if priority == "fifo":
            self._context.set(zmq.THREAD_SCHED_POLICY, _SCHED_FIFO)
            self._context.set(zmq.THREAD_PRIORITY, _IO_LEVEL)
        elif priority == "nice":
            self._context.set(zmq.THREAD_SCHED_POLICY, _SCHED_OTHER)
            self._context.set(zmq.THREAD_PRIORITY, 1)  # any positive number: nice -20 (libzmq, thread.cpp)
        return priority

    def _stay_on_one_cpu(self) -> int:
        """Let libzmq's threads run where the protocol thread will; before any socket."""
        cpu = choose_cpu(self.host)
        self._context.set(zmq.THREAD_AFFINITY_CPU_ADD, cpu)
        return cpu

    def _bind_zap(self) -> "zmq.Socket[bytes]":
        """The socket on which libzmq asks whether a key is let in (RFC 27); the native link answers."""
        zap = self._context.socket(zmq.REP)
        zap.set(zmq.LINGER, 0)
        zap.bind("inproc://zeromq.zap.01")
        return zap

    def _bind(self, address: Address) -> "zmq.Socket[bytes]":
        router = self._context.socket(zmq.ROUTER)
        self._configure(router)
        router.set(zmq.MAXMSGSIZE, _LARGEST)
        if self.curve:
            router.set(zmq.CURVE_SERVER, 1)
            router.set(zmq.CURVE_SECRETKEY, self._secret)
            router.set(zmq.ZAP_DOMAIN, b"coremesh")
            router.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an authenticator no peer gets in
        router.set(zmq.USE_FD, self._door.listener())
        router.bind(f"tcp://{written(address, 0)}")  # not bound anew: it tells libzmq the kind of socket
        return router

    def _configure(self, socket: "zmq.Socket[bytes]") -> None:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.IPV6, int(self._door.source[0].version == 6))
        socket.set(zmq.SNDHWM, QUEUE)
        socket.set(zmq.RCVHWM, QUEUE)


def loaded_libzmq() -> str:
    """Return the path of the libzmq that this process has loaded. Raises :class:`PlatformError`."""
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if "libzmq" in path and ".so" in path:
                return f"/{path}"
    # pyzmq that was built against a static libzmq carries it in its own extension module.
    backend = getattr(sys.modules.get("zmq.backend.cython._zmq"), "__file__", None)
    if backend is None:
        raise PlatformError("no libzmq is loaded; install pyzmq's own wheel.")
    return str(backend)
