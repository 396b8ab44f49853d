# SPDX-License-Identifier: GPL-2.0-or-later
"""The TCP sockets that the hosts of a machine find each other by: a listening one that only they reach.

libzmq accepts every connection and keeps its descriptor until a handshake has failed, half a minute later. A
stranger that connects often enough takes all descriptors of the process; from then on libzmq's thread asks
for the next connection again and again, and ends the process when it needs a descriptor itself. So the kernel
keeps strangers out, before there is a connection: a packet filter on the listening socket (socket(7),
SO_ATTACH_FILTER; no privilege is needed) drops what does not come from the address and port of a peer. Hence
each host also reserves the port that it connects from.

One connection can come from one address and port, so a process that steals a peer's costs one descriptor, and
does not know the peer's key. A translation of addresses between the hosts (NAT) would make peers strangers.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from coremesh.core.errors import LinkError

Address = IPv4Address | IPv6Address
Source = tuple[Address, int]

_SO_ATTACH_FILTER: Final = 26
_BACKLOG: Final = 64  # connections that wait to be accepted; a machine has at most 63 peers

# Classic BPF (linux/bpf_common.h). In a TCP socket's filter, offset 0 is the TCP header; SKF_NET_OFF leads to
# the IP header before it.
_LOAD_WORD: Final = 0x20
_LOAD_HALF: Final = 0x28
_JUMP_IF_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_NETWORK_HEADER: Final = 0xFFF0_0000
_SOURCE_IN_IPV4: Final = 12
_SOURCE_IN_IPV6: Final = 8
_WHOLE_PACKET: Final = 0xFFFF_FFFF

_INSTRUCTION: Final = struct.Struct("=HBBI")


class LinkEnd(NamedTuple):
    """What the other hosts are told of one host's end: where it listens, its key, and where it connects from.

    ``endpoint`` as ``tcp://address:port``, ``public_key`` of 32 bytes (empty without CURVE), ``source`` as
    ``address:port``.
    """

    endpoint: str
    public_key: bytes
    source: str


class Door:
    """A listening socket on `address`, shut until :meth:`admit`, and a reserved port to connect from.

    `guarded` is False where the kernel takes no filter: then any program can connect. Raises OSError. Not
    thread-safe.
    """

    def __init__(self, address: Address) -> None:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        self._listening = socket.socket(family, socket.SOCK_STREAM)
        self._reserved = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.guarded = self._attach([])
            self._listening.bind((str(address), 0))
            self._listening.listen(_BACKLOG)
            self._listening.setblocking(False)
            # First bound alone, so that no other process has this port, then open to this process's sockets:
            # those that connect to other hosts all do it from here.
            self._reserved.bind((str(address), 0))
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        except BaseException:
            self.close()
            raise
        #: Where connections to peers come from, and where peers connect to.
        self.source: Source = (address, self._reserved.getsockname()[1])
        self.listens: Source = (address, self._listening.getsockname()[1])

    def admit(self, sources: Iterable[Source]) -> None:
        """Let peers connect from these addresses and ports, and no one else."""
        if self.guarded:
            self._attach(list(sources))

    def listener(self) -> int:
        """Return a descriptor of the listening socket; it belongs to the caller."""
        return self._listening.dup().detach()

    def close(self) -> None:
        """Give both sockets back. What was made of :meth:`listener` stays open."""
        self._listening.close()
        self._reserved.close()

    def _attach(self, sources: list[Source]) -> bool:
        program = ctypes.create_string_buffer(filter_program(sources))
        instructions = (len(program) - 1) // _INSTRUCTION.size
        # struct sock_fprog: a number of instructions, and where they are.
        described = struct.pack("@HP", instructions, ctypes.addressof(program))
        with contextlib.suppress(OSError):
            self._listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
            return True
        return False


def open_door(interface: str) -> Door:
    """Return a door on the IP address `interface` of this computer. Raises LinkError."""
    address = _address(interface)
    try:
        return Door(address)
    except OSError as error:
        raise LinkError(
            f"cannot listen on {address}: {error.strerror}; is it an address of this computer?"
        ) from error


def written(address: Address, port: int) -> str:
    """Return ``address:port``, with the brackets that IPv6 needs."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def read_source(text: str) -> Source:
    """Return what :func:`written` was given. Raises LinkError, ValueError."""
    address, _, port = text.rpartition(":")
    return _address(address.strip("[]")), int(port)


def _address(interface: str) -> Address:
    try:
        return ipaddress.ip_address(interface)
    except ValueError as error:
        raise LinkError(f"{interface!r} is no IP address; give one of this computer's.") from error


def filter_program(sources: list[Source]) -> bytes:
    """Return classic BPF that keeps TCP packets from `sources`, (address, port), and drops all others."""
    program: list[tuple[int, int, int, int]] = []
    for address, port in sources:
        at = _SOURCE_IN_IPV6 if address.version == 6 else _SOURCE_IN_IPV4
        tests = [
            (_LOAD_WORD, _NETWORK_HEADER + at + 4 * number, word)
            for number, (word,) in enumerate(struct.iter_unpack(">I", address.packed))
        ]
        tests.append((_LOAD_HALF, 0, port))
        left = 2 * len(tests) + 1  # instructions until those of the next source
        for load, offset, value in tests:
            left -= 2
            program += [(load, 0, 0, offset), (_JUMP_IF_EQUAL, 0, left, value)]
        program.append((_RETURN, 0, 0, _WHOLE_PACKET))
    program.append((_RETURN, 0, 0, 0))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
