# SPDX-License-Identifier: GPL-2.0-or-later
"""What a vCPU can ask of the device node, as a message: the same calls for a vCPU on another host.

A request is 32 bytes and a reply 16, little-endian, so that native code on the other end needs no Python to
make one (core/native/bus/device_message.hpp is the same in C++). Bytes that no vCPU sends are refused before
a device sees them.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

PORT, MMIO = 0, 1  # address spaces
_REQUEST = struct.Struct("<QBBBBIQQ")
_REPLY = struct.Struct("<QQ")
_SIZES = {PORT: (1, 2, 4), MMIO: (1, 2, 4, 8)}
_ADDRESSES = {PORT: 1 << 16, MMIO: 1 << 52}
"""A processor has 16 bits of port address, and 52 of physical address at most."""


class Kind(IntEnum):
    """The three things that go from a vCPU to the device node."""

    ACCESS = 0
    EOI = 1  # value: the vector
    ACKNOWLEDGE = 2  # the reply's value: the vector; all ones when there is none


@dataclass(frozen=True, slots=True)
class Request:
    """``ticket`` is the sender's own number for it and comes back in the reply.

    Its upper 16 bits name the vCPU: requests of one vCPU are served one after the other.
    """

    ticket: int
    kind: Kind
    space: int = PORT
    address: int = 0
    size: int = 1
    is_write: bool = False
    value: int = 0

    def pack(self) -> bytes:
        """The 32 bytes."""
        return _REQUEST.pack(
            self.ticket, self.kind, self.space, self.is_write, 0, self.size, self.address, self.value
        )

    @classmethod
    def unpack(cls, data: bytes) -> "Request":
        """The reverse. ValueError for anything that is no request."""
        if len(data) != _REQUEST.size:
            raise ValueError(f"a device request has {_REQUEST.size} bytes, not {len(data)}")
        ticket, kind, space, is_write, zero, size, address, value = _REQUEST.unpack(data)
        if zero or is_write > 1:
            raise ValueError("a device request with bits that have no meaning")
        request = cls(ticket, Kind(kind), space, address, size, bool(is_write), value)
        if not request._is_possible():
            raise ValueError(f"no vCPU makes the access {request}")
        return request

    def _is_possible(self) -> bool:
        if self.kind is not Kind.ACCESS:
            largest = 0xFF if self.kind is Kind.EOI else 0
            nowhere = (self.space, self.address, self.size, self.is_write) == (PORT, 0, 1, False)
            return nowhere and self.value <= largest
        if self.size not in _SIZES.get(self.space, ()) or self.address >= _ADDRESSES[self.space]:
            return False
        return self.value < (1 << 8 * self.size if self.is_write else 1)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the request with the same ticket; the reply to a write or an EOI carries zero."""

    ticket: int
    value: int

    def pack(self) -> bytes:
        """The 16 bytes."""
        return _REPLY.pack(self.ticket, self.value)

    @classmethod
    def unpack(cls, data: bytes) -> "Reply":
        """The reverse. ValueError for anything that is no reply."""
        if len(data) != _REPLY.size:
            raise ValueError(f"a device reply has {_REPLY.size} bytes, not {len(data)}")
        return cls(*_REPLY.unpack(data))
