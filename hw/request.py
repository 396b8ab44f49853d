# SPDX-License-Identifier: GPL-2.0-or-later
"""What a vCPU can ask of the device node, as a message: the same calls for a vCPU on another host.

A request is 32 bytes and a reply 16, little-endian, so that native code on the other end needs no Python to
make one.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

PORT, MMIO = 0, 1  # address spaces
_REQUEST = struct.Struct("<QBBBxIQQ")
_REPLY = struct.Struct("<QQ")


class Kind(IntEnum):
    """The three things that go from a vCPU to the device node."""

    ACCESS = 0
    EOI = 1  # value: the vector
    ACKNOWLEDGE = 2  # the reply's value: the vector


@dataclass(frozen=True, slots=True)
class Request:
    """``ticket`` is the sender's own number for it and comes back in the reply."""

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
            self.ticket, self.kind, self.space, self.is_write, self.size, self.address, self.value
        )

    @classmethod
    def unpack(cls, data: bytes) -> "Request":
        """The reverse. ValueError for anything that is no request."""
        if len(data) != _REQUEST.size:
            raise ValueError(f"a device request has {_REQUEST.size} bytes, not {len(data)}")
        ticket, kind, space, is_write, size, address, value = _REQUEST.unpack(data)
        return cls(ticket, Kind(kind), space, address, size, bool(is_write), value)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the request with the same ticket; a posted write's reply carries zero."""

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
