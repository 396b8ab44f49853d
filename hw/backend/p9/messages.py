# SPDX-License-Identifier: GPL-2.0-or-later
"""The messages of 9P2000.L as bytes: numbers are little-endian, a text has two bytes of length before it.

Source: the 9P manual pages of Plan 9 (section 5), and Linux's Documentation/filesystems/9p.rst for the
dialect, whose numbers are in include/net/9p/9p.h.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

HEADER: Final = struct.Struct("<IBH")
"""Size of the message, its type, its tag."""
NO_TAG: Final = 0xFFFF
NO_FID: Final = 0xFFFF_FFFF
VERSION: Final = b"9P2000.L"
MOST_WALKED: Final = 16  # names in one Twalk

# Requests; the answer's number is one more.
LERROR = 6  # of which there is only the answer, 7
STATFS, LOPEN, LCREATE, SYMLINK, MKNOD, RENAME, READLINK = 8, 12, 14, 16, 18, 20, 22
GETATTR, SETATTR, XATTRWALK, XATTRCREATE, READDIR, FSYNC = 24, 26, 30, 32, 40, 50
LOCK, GETLOCK, LINK, MKDIR, RENAMEAT, UNLINKAT = 52, 54, 70, 72, 74, 76
TVERSION, AUTH, ATTACH, FLUSH, WALK = 100, 102, 104, 108, 110
READ, WRITE, CLUNK, REMOVE = 116, 118, 120, 122

_NUMBERS: Final = {size: struct.Struct(code) for size, code in ((1, "<B"), (2, "<H"), (4, "<I"), (8, "<Q"))}


class MalformedError(ValueError):
    """A message that ends within a field, or goes on behind the last."""


class Fields:
    """The fields of a message, read one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, size: int) -> int:
        """An unsigned number of 1, 2, 4 or 8 bytes."""
        return int.from_bytes(self.data(size), "little")

    def data(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        end = self._at + length
        if end > len(self._data):
            raise MalformedError("a message that is too short")
        found = self._data[self._at : end]
        self._at = end
        return found

    def text(self) -> bytes:
        """A name or a path, as bytes: Linux does not say in what characters."""
        return self.data(self.number(2))

    def end(self) -> None:
        """There is no more."""
        if self._at != len(self._data):
            raise MalformedError("a message that is too long")


def numbers(*pairs: tuple[int, int]) -> bytes:
    """Numbers as (size, value), one behind the other."""
    return b"".join(_NUMBERS[size].pack(value & ((1 << 8 * size) - 1)) for size, value in pairs)


def text(data: bytes) -> bytes:
    """A text of at most 65,535 bytes."""
    return len(data).to_bytes(2, "little") + data


def message(kind: int, tag: int, body: bytes = b"") -> bytes:
    """A whole message."""
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


def error(tag: int, number: int) -> bytes:
    """Rlerror with one of Linux's error numbers, which are those of this host."""
    return message(LERROR + 1, tag, numbers((4, number)))


DIRECTORY, SYMBOLIC_LINK, FILE = 0x80, 0x02, 0x00


@dataclass(frozen=True)
class Qid:
    """What a file is to the protocol: its kind, a number that changes with it, and one that is its own."""

    kind: int
    version: int
    path: int

    def pack(self) -> bytes:
        """13 bytes."""
        return numbers((1, self.kind), (4, self.version), (8, self.path))


def kind_of(mode: int) -> int:
    """The kind of a qid by a file's mode."""
    if mode & 0o170000 == 0o040000:
        return DIRECTORY
    return SYMBOLIC_LINK if mode & 0o170000 == 0o120000 else FILE


def qid_of(status: os.stat_result, root_device: int) -> Qid:
    """The qid of a file. Two file systems beneath one folder have numbers of their own."""
    path = status.st_ino
    if status.st_dev != root_device:
        path ^= (status.st_dev * 0x9E37_79B9_7F4A_7C15) & ((1 << 64) - 1)
    return Qid(kind_of(status.st_mode), status.st_mtime_ns ^ status.st_size, path)
