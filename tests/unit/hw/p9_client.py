# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of the shared folder's server, without a guest or a device between them."""

import errno
import os
from typing import Any

from coremesh.hw.backend.p9 import messages as p9
from coremesh.hw.backend.p9.messages import Fields, numbers, text
from coremesh.hw.backend.p9.server import LONGEST, Server

ROOM = LONGEST
WRITE_FLAGS = os.O_RDWR


class Client:
    """Speaks 9P2000.L to a server; fid 0 is the root. An error of the server is an OSError here."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.next = 1
        fields = self.ask(p9.TVERSION, numbers((4, 65536)) + text(b"9P2000.L"))
        assert (fields.number(4), fields.text()) == (65536, b"9P2000.L")
        self.ask(p9.ATTACH, numbers((4, 0), (4, p9.NO_FID)) + text(b"root") + text(b"") + numbers((4, 0)))

    def ask(self, kind: int, body: bytes) -> Fields:
        reply = self.server.answer(p9.message(kind, 5, body), ROOM)
        size, answered, tag = p9.HEADER.unpack_from(reply)
        assert (size, tag) == (len(reply), 5)
        fields = Fields(reply[7:])
        if answered == p9.LERROR + 1:
            raise OSError(fields.number(4), "from the server")
        assert answered == kind + 1
        return fields

    def walk(self, *names: bytes, start: int = 0) -> int:
        new = self.next
        self.next += 1
        found = self.ask(
            p9.WALK, numbers((4, start), (4, new), (2, len(names))) + b"".join(map(text, names))
        ).number(2)
        if found < len(names):
            raise OSError(errno.ENOENT, "part of the way")
        return new

    def open(self, fid: int, flags: int = 0) -> int:
        self.ask(p9.LOPEN, numbers((4, fid), (4, flags)))
        return fid

    def read(self, fid: int, offset: int = 0, count: int = 60000) -> bytes:
        fields = self.ask(p9.READ, numbers((4, fid), (8, offset), (4, count)))
        return fields.data(fields.number(4))

    def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        return self.ask(p9.WRITE, numbers((4, fid), (8, offset), (4, len(data))) + data).number(4)

    def create(self, name: bytes, mode: int = 0o644, flags: int = WRITE_FLAGS, start: int = 0) -> int:
        fid = self.walk(start=start)
        self.ask(p9.LCREATE, numbers((4, fid)) + text(name) + numbers((4, flags), (4, mode), (4, 0)))
        return fid

    def clunk(self, fid: int) -> None:
        self.ask(p9.CLUNK, numbers((4, fid)))

    def names(self, fid: int) -> list[bytes]:
        found: list[bytes] = []
        offset = 0
        while True:
            fields = self.ask(p9.READDIR, numbers((4, fid), (8, offset), (4, 200)))
            left = fields.number(4)
            if not left:
                return sorted(found)
            while left:
                fields.data(13)
                offset = fields.number(8)
                fields.number(1)
                name = fields.text()
                found.append(name)
                left -= 24 + len(name)

    def attributes(self, fid: int) -> tuple[int, int, int]:
        """Mode, uid and gid."""
        fields = self.ask(p9.GETATTR, numbers((4, fid), (8, 0x7FF)))
        fields.data(8 + 13)
        return fields.number(4), fields.number(4), fields.number(4)

    def change(self, fid: int, valid: int, mode: int = 0, uid: int = 0, gid: int = 0, size: int = 0) -> None:
        self.ask(
            p9.SETATTR,
            numbers(
                (4, fid), (4, valid), (4, mode), (4, uid), (4, gid), (8, size), (8, 0), (8, 0), (8, 0), (8, 0)
            ),
        )


def error_of(action: Any) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or 0
    return 0
