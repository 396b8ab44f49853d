# SPDX-License-Identifier: GPL-2.0-or-later
"""User-mode NAT by libslirp: the guest reaches what the host's user reaches, without privileges.

The guest is 10.0.2.15 by DHCP, the host 10.0.2.2, the name server 10.0.2.3, as with QEMU. Ports of the host
are forwarded to the guest also while it runs.

libslirp is one thread's: everything but :meth:`SlirpPort.send` and the queue of calls happens on it. Its time
is the host's, so that a guest that is paused loses its connections as a real one would, and none hangs.

Source: libslirp.h of libslirp 4.7, whose structures are declared here as far as version 1 of its settings.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import ipaddress
import itertools
import logging
import os
import re
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from coremesh.core.errors import ConfigurationError, NetworkError, shown
from coremesh.hw.backend.network.port import LONGEST_FRAME, Frames, Receive

logger = logging.getLogger(__name__)

_LIBRARY: Final = "libslirp.so.0"
_MOST_WAITING: Final = 4096  # frames of the guest that libslirp has not yet taken
_IN, _OUT, _PRI, _ERR, _HUP = 1, 2, 4, 8, 16  # SLIRP_POLL_*
_POLL: Final = ((_IN, select.POLLIN), (_OUT, select.POLLOUT), (_PRI, select.POLLPRI))
_ANSWERS: Final = (
    *((poll, slirp) for slirp, poll in _POLL), (select.POLLERR, _ERR), (select.POLLHUP, _HUP)
)  # fmt: skip
_NETWORK: Final = ipaddress.IPv4Network("10.0.2.0/24")
HOST_ADDRESS: Final = "10.0.2.2"
NAME_SERVER: Final = "10.0.2.3"
GUEST_ADDRESS: Final = "10.0.2.15"


@dataclass(frozen=True)
class Forward:
    """A port of the host, ``host_address``:``host_port``, that leads to ``guest_port`` of the guest.

    ``host_port`` 0 lets the host choose one. By default only programs of this computer reach it.
    """

    protocol: str
    host_port: int
    guest_port: int
    host_address: str = "127.0.0.1"


_FORWARD = re.compile(r"(?:(tcp|udp):)?(?:([0-9.]+|\*):)?(\d{1,5}):(\d{1,5})", re.ASCII)


def parse_forward(text: str) -> Forward:
    """Return what a person wrote as ``[tcp|udp:][ADDRESS:]PORT:GUESTPORT``; ADDRESS ``*`` is every one.

    Raises :class:`ConfigurationError`.
    """
    match = _FORWARD.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[3]) > 65535 or not 1 <= int(match[4]) <= 65535:
        raise ConfigurationError(
            f"{shown(text)} is no forwarded port; write tcp:2222:22, the host's port before the guest's."
        )
    address = {None: "127.0.0.1", "*": "0.0.0.0"}.get(match[2], match[2])
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        raise ConfigurationError(f"{shown(text)}: {shown(address)} is no address of this host.") from None
    return Forward(match[1] or "tcp", int(match[3]), int(match[4]), address)


class _InAddr(ctypes.Structure):
    _fields_ = [("s_addr", ctypes.c_uint32)]  # in network order

    @classmethod
    def of(cls, address: str) -> _InAddr:
        return cls(int.from_bytes(ipaddress.IPv4Address(address).packed, sys.byteorder))


class _In6Addr(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint32 * 4)]


class _Config(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32),
        ("restricted", ctypes.c_int),
        ("in_enabled", ctypes.c_bool),
        ("vnetwork", _InAddr),
        ("vnetmask", _InAddr),
        ("vhost", _InAddr),
        ("in6_enabled", ctypes.c_bool),
        ("vprefix_addr6", _In6Addr),
        ("vprefix_len", ctypes.c_uint8),
        ("vhost6", _In6Addr),
        ("vhostname", ctypes.c_char_p),
        ("tftp_server_name", ctypes.c_char_p),
        ("tftp_path", ctypes.c_char_p),
        ("bootfile", ctypes.c_char_p),
        ("vdhcp_start", _InAddr),
        ("vnameserver", _InAddr),
        ("vnameserver6", _In6Addr),
        ("vdnssearch", ctypes.c_void_p),
        ("vdomainname", ctypes.c_char_p),
        ("if_mtu", ctypes.c_size_t),
        ("if_mru", ctypes.c_size_t),
        ("disable_host_loopback", ctypes.c_bool),
        ("enable_emu", ctypes.c_bool),
    ]


_pointer = ctypes.c_void_p
_TimerCall = ctypes.PYFUNCTYPE(None, _pointer)
_SendPacket = ctypes.PYFUNCTYPE(ctypes.c_ssize_t, _pointer, ctypes.c_size_t, _pointer)
_GuestError = ctypes.PYFUNCTYPE(None, ctypes.c_char_p, _pointer)
_ClockGet = ctypes.PYFUNCTYPE(ctypes.c_int64, _pointer)
_TimerNew = ctypes.PYFUNCTYPE(_pointer, _pointer, _pointer, _pointer)
_TimerFree = ctypes.PYFUNCTYPE(None, _pointer, _pointer)
_TimerModify = ctypes.PYFUNCTYPE(None, _pointer, ctypes.c_int64, _pointer)
_PollFd = ctypes.PYFUNCTYPE(None, ctypes.c_int, _pointer)
_Notify = ctypes.PYFUNCTYPE(None, _pointer)
_AddPoll = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, _pointer)
_GetEvents = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, _pointer)


class _Callbacks(ctypes.Structure):
    _fields_ = [
        ("send_packet", _SendPacket),
        ("guest_error", _GuestError),
        ("clock_get_ns", _ClockGet),
        ("timer_new", _TimerNew),
        ("timer_free", _TimerFree),
        ("timer_mod", _TimerModify),
        ("register_poll_fd", _PollFd),
        ("unregister_poll_fd", _PollFd),
        ("notify", _Notify),
    ]


def _load() -> Any:
    try:
        # A call is a few microseconds and never waits: giving the interpreter's lock up would cost more.
        library: Any = ctypes.PyDLL(_LIBRARY)
    except OSError:
        raise NetworkError(
            "user networking needs libslirp, which this computer lacks: 'apt install libslirp0', or give "
            "--net none."
        ) from None
    library.slirp_new.restype = _pointer
    library.slirp_new.argtypes = [ctypes.POINTER(_Config), ctypes.POINTER(_Callbacks), _pointer]
    library.slirp_cleanup.argtypes = [_pointer]
    library.slirp_pollfds_fill.argtypes = [_pointer, ctypes.POINTER(ctypes.c_uint32), _AddPoll, _pointer]
    library.slirp_pollfds_poll.argtypes = [_pointer, ctypes.c_int, _GetEvents, _pointer]
    library.slirp_input.argtypes = [_pointer, ctypes.c_char_p, ctypes.c_int]
    forward = [_pointer, ctypes.c_int, _InAddr, ctypes.c_int]
    library.slirp_add_hostfwd.argtypes = [*forward, _InAddr, ctypes.c_int]
    library.slirp_add_hostfwd.restype = ctypes.c_int
    library.slirp_remove_hostfwd.argtypes = forward
    library.slirp_remove_hostfwd.restype = ctypes.c_int
    return library


def available() -> bool:
    """Whether libslirp is on this computer."""
    try:
        _load()
    except NetworkError:
        return False
    return True


class SlirpPort:
    """See :class:`~coremesh.hw.backend.network.port.NetworkPort`. ``restricted``: no way out of the NAT."""

    def __init__(self, forwards: tuple[Forward, ...] = (), *, restricted: bool = False) -> None:
        """Raises :class:`NetworkError` without libslirp, or for a port that cannot be forwarded."""
        self._library = _load()
        self._receive: Receive = lambda frames: None
        self._waiting: deque[bytes] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._incoming: list[bytes] = []
        self._dropped = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._wakes, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._woken = False
        self._timers: dict[int, tuple[Any, int]] = {}  # number -> function, its argument
        self._deadlines: dict[int, int] = {}  # number -> ms
        self._numbers = itertools.count(1)
        # Of all calls of the library but the first and the last; not held while the thread waits.
        self._lock = threading.Lock()
        self._asked: list[tuple[int, int]] = []  # (file, events) of the turn that is under way
        self._found: dict[int, int] = {}
        self._add_poll, self._get_events = _AddPoll(self._on_add_poll), _GetEvents(self._on_get_events)
        self._callbacks = _Callbacks(
            _SendPacket(self._on_packet),
            _GuestError(lambda text, _: logger.debug("slirp: %s", text)),
            _ClockGet(lambda _: time.monotonic_ns()),
            _TimerNew(self._on_timer_new),
            _TimerFree(self._on_timer_free),
            _TimerModify(self._on_timer_modify),
            _PollFd(lambda fd, _: None),
            _PollFd(lambda fd, _: None),
            _Notify(lambda _: self._wake()),
        )
        config = _Config(
            version=1,
            restricted=int(restricted),
            in_enabled=True,
            vnetwork=_InAddr.of(str(_NETWORK.network_address)),
            vnetmask=_InAddr.of(str(_NETWORK.netmask)),
            vhost=_InAddr.of(HOST_ADDRESS),
            vhostname=b"coremesh",
            vdhcp_start=_InAddr.of(GUEST_ADDRESS),
            vnameserver=_InAddr.of(NAME_SERVER),
        )
        self._slirp = self._library.slirp_new(ctypes.byref(config), ctypes.byref(self._callbacks), None)
        if not self._slirp:
            raise NetworkError("libslirp refused to start; give --net none.")
        try:
            for forward in forwards:
                self._add(forward)
        except BaseException:
            self.close()
            raise

    # --- any thread --------------------------------------------------------------------------------------

    def start(self, receive: Receive) -> None:
        """See :class:`NetworkPort`."""
        if self._thread is None:
            self._receive = receive
            self._stopping = False
            self._thread = threading.Thread(target=self._run, name="slirp", daemon=True)
            self._thread.start()

    def send(self, frames: Frames) -> None:
        """See :class:`NetworkPort`."""
        room = _MOST_WAITING - len(self._waiting)
        self._waiting.extend(frames[:room])
        self._dropped += max(0, len(frames) - room)
        # While the port's thread waits, the frames go on from here, which saves them the way through it.
        if self._thread is not None and self._lock.acquire(False):
            try:
                self._input()
                self._deliver()
            finally:
                self._lock.release()
        self._wake()  # to look at other sockets than before

    def stop(self) -> None:
        """See :class:`NetworkPort`."""
        if self._thread is not None:
            self._stopping = True
            self._wake()
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """See :class:`NetworkPort`. Connections are closed."""
        self.stop()
        slirp, self._slirp = self._slirp, None
        if slirp:
            self._library.slirp_cleanup(slirp)
            os.close(self._wakes)
            os.close(self._wake_end)

    def forward(self, forward: Forward) -> int:
        """Forward a port from now on; the host's port, which the host has chosen if it was 0.

        Raises :class:`NetworkError` when the port is taken.
        """
        return int(self._on_thread(lambda: self._add(forward)))

    def unforward(self, forward: Forward) -> None:
        """End it. Connections that are open stay. Raises :class:`NetworkError` for one that there is not."""
        self._on_thread(lambda: self._remove(forward))

    def counts(self) -> dict[str, int]:
        """See :class:`NetworkPort`."""
        return {"frames_dropped": self._dropped}

    def _on_thread(self, call: Callable[[], Any]) -> Any:
        if self._thread is None:
            return call()
        future: Future[Any] = Future()
        self._calls.append((call, future))
        self._wake()
        return future.result(10)

    def _wake(self) -> None:
        if not self._woken and self._slirp:
            self._woken = True
            with contextlib.suppress(BlockingIOError):  # full: it has been told often enough
                os.write(self._wake_end, b"\0")

    # --- the port's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except Exception:
                logger.exception("the user network failed once, and goes on")
                time.sleep(0.1)

    def _turn(self) -> None:
        """Wait for sockets, the guest or a timer, and serve them."""
        poller = select.poll()
        timeout = ctypes.c_uint32(1000)
        with self._lock:
            self._asked.clear()
            self._library.slirp_pollfds_fill(self._slirp, ctypes.byref(timeout), self._add_poll, None)
            wait = min(int(timeout.value), self._until_timer())
        for fd, events in self._asked:
            poller.register(fd, _translated(events, _POLL))
        poller.register(self._wakes, select.POLLIN)
        found: dict[int, int] = {}
        failed = 0
        try:
            found = dict(poller.poll(wait))
        except OSError:
            failed = 1
        if found.pop(self._wakes, 0):
            self._woken = False  # before the queues are read: a frame that is added later wakes it again
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakes, 4096)
        with self._lock:
            self._found = found
            self._library.slirp_pollfds_poll(self._slirp, failed, self._get_events, None)
            self._run_timers()
            self._input()
            self._deliver()
            while self._calls:
                call, future = self._calls.popleft()
                try:
                    future.set_result(call())
                except Exception as error:
                    future.set_exception(error)

    def _input(self) -> None:
        """With the lock held."""
        while self._waiting:
            frame = self._waiting.popleft()
            if len(frame) <= LONGEST_FRAME:
                self._library.slirp_input(self._slirp, frame, len(frame))

    def _deliver(self) -> None:
        """With the lock held, so that frames reach the guest in their order."""
        if self._incoming:
            frames, self._incoming = self._incoming, []
            self._receive(frames)

    def _add(self, forward: Forward) -> int:
        port = forward.host_port or _free_port(forward)
        arguments = (
            self._slirp, int(forward.protocol == "udp"), _InAddr.of(forward.host_address), port
        )  # fmt: skip
        ctypes.set_errno(0)
        if self._library.slirp_add_hostfwd(*arguments, _InAddr.of(GUEST_ADDRESS), forward.guest_port) < 0:
            raise NetworkError(
                f"port {forward.protocol}:{port} of {forward.host_address} cannot be forwarded: another "
                "program has it, or it is one below 1024. Choose another."
            )
        return port

    def _remove(self, forward: Forward) -> None:
        is_udp = int(forward.protocol == "udp")
        address = _InAddr.of(forward.host_address)
        if self._library.slirp_remove_hostfwd(self._slirp, is_udp, address, forward.host_port) < 0:
            raise NetworkError(f"port {forward.protocol}:{forward.host_port} is not forwarded.")

    # --- what libslirp calls, on the thread that calls it ------------------------------------------------

    def _on_add_poll(self, fd: int, events: int, _: Any) -> int:
        self._asked.append((fd, events))
        return len(self._asked) - 1

    def _on_get_events(self, index: int, _: Any) -> int:
        return _translated(self._found.get(self._asked[index][0], 0), _ANSWERS)

    def _on_packet(self, data: int, length: int, _: Any) -> int:
        self._incoming.append(ctypes.string_at(data, length))
        return length

    def _on_timer_new(self, call: int, argument: int, _: Any) -> int:
        number = next(self._numbers)
        self._timers[number] = (_TimerCall(call), argument)
        return number

    def _on_timer_free(self, number: int, _: Any) -> None:
        self._timers.pop(number, None)
        self._deadlines.pop(number, None)

    def _on_timer_modify(self, number: int, deadline_ms: int, _: Any) -> None:
        self._deadlines[number] = deadline_ms

    def _until_timer(self) -> int:
        if not self._deadlines:
            return 60_000
        return max(0, min(self._deadlines.values()) - time.monotonic_ns() // 1_000_000)

    def _run_timers(self) -> None:
        now = time.monotonic_ns() // 1_000_000
        due = [(deadline, number) for number, deadline in self._deadlines.items() if deadline <= now]
        for _, number in sorted(due):
            if self._deadlines.pop(number, None) is not None:
                call, argument = self._timers[number]
                call(argument)


@functools.cache
def _translated(events: int, table: tuple[tuple[int, int], ...]) -> int:
    """The library's events as poll's, or the reverse: ``table`` has (of the one, of the other)."""
    return sum(other for one, other in table if events & one)


def _free_port(forward: Forward) -> int:
    kind = socket.SOCK_DGRAM if forward.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((forward.host_address, 0))
        return int(probe.getsockname()[1])
