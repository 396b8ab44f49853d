# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands behind a disk: bytes that are read and written by position.

A controller (IDE, virtio-blk) knows :class:`BlockBackend` and nothing of files or formats. The format of an
image is what a person says it is, and never guessed from its content: a guest could write the header of
another format into its disk, and read any file of its host after the next start.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from coremesh.core.errors import DiskError, shown

SECTOR_BYTES: Final = 512

Buffer = bytes | bytearray | memoryview


class BlockBackend(Protocol):
    """A disk's content. Any thread, several at once; what overlaps has no order unless the caller makes one.

    Offsets and lengths are in bytes and lie within ``size``. Every method but ``close`` raises OSError when
    the host's disk fails or is full: the controller reports that to the guest as its datasheet says.
    """

    size: int
    """Bytes; a multiple of :data:`SECTOR_BYTES`."""
    read_only: bool
    """Writes, discards and zeroes are refused with EROFS."""
    can_discard: bool
    """Whether a discard gives space back to the host; without, it does nothing."""

    def read(self, offset: int, buffers: Sequence[bytearray | memoryview]) -> None:
        """Fill ``buffers``, one behind the other, from ``offset`` on."""

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write ``buffers``, one behind the other, from ``offset`` on. It is durable after :meth:`flush`."""

    def flush(self) -> None:
        """Return when everything that was written before is durable."""

    def discard(self, offset: int, length: int) -> None:
        """The guest needs these bytes no more; they read as anything, mostly zeroes."""

    def zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """These bytes read as zeroes; ``unmap``: they need no space on the host."""

    def close(self) -> None:
        """Give everything back. No other call is under way or follows. Idempotent."""


# --- raw ---------------------------------------------------------------------------------------------------

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16  # fallocate(2)
_MOST_VECTORS = 1024  # IOV_MAX
_ZEROES = bytes(1 << 20)

# The bytes that QEMU locks of an image, so that two programs exclude each other whichever opens it first: one
# for each permission that is used, and one for each that no other program may use.
_USED_BASE, _UNSHARED_BASE = 100, 200
_READ, _WRITE, _RESIZE = 0, 1, 3
_FLOCK: Final = "hhqqi4x"  # struct flock with 64-bit offsets


class RawImage:
    """A raw image: a regular file, or a block device. Sparse files stay sparse. See :class:`BlockBackend`."""

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        """Raises :class:`DiskError` for what cannot be a disk, or is another program's at the moment."""
        self.path = Path(path)
        self.read_only = read_only
        self.fd = _open(self.path, read_only=read_only)
        try:
            self.size = _size(self.fd, self.path)
            _lock(self.fd, self.path, read_only=read_only)
            self.can_discard = not read_only and self._try_discard()
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_descriptor(cls, fd: int, name: str = "a temporary file") -> RawImage:
        """The open file ``fd``, a whole number of sectors. It is not locked, and is the image's to close."""
        image = cls.__new__(cls)
        image.path = Path(name)
        image.read_only = False
        image.fd = fd
        image.size = _size(fd, image.path)
        image.can_discard = image._try_discard()
        return image

    def read(self, offset: int, buffers: Sequence[bytearray | memoryview]) -> None:
        """See :class:`BlockBackend`."""
        self._check(offset, sum(map(len, buffers)))
        _whole(os.preadv, self.fd, [memoryview(buffer).cast("B") for buffer in buffers], offset)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See :class:`BlockBackend`."""
        self._check_writable(offset, sum(map(len, buffers)))
        _whole(os.pwritev, self.fd, [memoryview(buffer).cast("B") for buffer in buffers], offset)

    def flush(self) -> None:
        """See :class:`BlockBackend`."""
        if not self.read_only:
            os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        """See :class:`BlockBackend`. The file gets a hole."""
        self._check_writable(offset, length)
        if length and self.can_discard:
            _fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)

    def zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """See :class:`BlockBackend`."""
        self._check_writable(offset, length)
        if not length:
            return
        for mode in (
            (_PUNCH_HOLE | _KEEP_SIZE,) if unmap and self.can_discard else (_ZERO_RANGE | _KEEP_SIZE,)
        ):
            try:
                _fallocate(self.fd, mode, offset, length)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                    raise
        for at in range(offset, offset + length, len(_ZEROES)):
            self.write(at, [memoryview(_ZEROES)[: min(len(_ZEROES), offset + length - at)]])

    def close(self) -> None:
        """See :class:`BlockBackend`. The locks go with the file."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(errno.EINVAL, f"{length} bytes at {offset} lie beyond the disk's {self.size}")

    def _check_writable(self, offset: int, length: int) -> None:
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self._check(offset, length)

    def _try_discard(self) -> bool:
        """Whether the host's file system makes holes: found by making one behind the end, where none is."""
        try:
            _fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, self.size, SECTOR_BYTES)
        except OSError:
            return False
        return True


def _open(path: Path, *, read_only: bool) -> int:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise DiskError(f"{path} is neither a file nor a block device; give a disk image.")
        return os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except FileNotFoundError:
        hint = "" if read_only else f" 'truncate -s 4G {path}' makes an empty one."
        raise DiskError(f"no disk image {path}.{hint}") from None
    except OSError as error:
        hint = ""
        if not read_only and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = " Add ',readonly' if the guest is only to read it."
        raise DiskError(f"the disk image {path} cannot be opened ({error.strerror}).{hint}") from None
    except ValueError as error:  # a zero byte in the name
        raise DiskError(f"{shown(os.fspath(path))} names no disk image ({error}).") from None


def _size(fd: int, path: Path) -> int:
    size = os.lseek(fd, 0, os.SEEK_END)
    if not size or size % SECTOR_BYTES:
        raise DiskError(
            f"the disk image {path} has {size} bytes, which is not a whole number of sectors of "
            f"{SECTOR_BYTES}. 'truncate -s %{SECTOR_BYTES} {path}' rounds it up; an empty one needs a size."
        )
    return size


def _lock(fd: int, path: Path, *, read_only: bool) -> None:
    used = {_READ} if read_only else {_READ, _WRITE}
    unshared = {_WRITE, _RESIZE}
    mine = [*(_USED_BASE + each for each in used), *(_UNSHARED_BASE + each for each in unshared)]
    contrary = [*(_UNSHARED_BASE + each for each in used), *(_USED_BASE + each for each in unshared)]
    try:
        for byte in mine:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        # Only now look: of two programs that open it at once, at least one sees the other.
        for byte in contrary:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
            if struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK:
                raise BlockingIOError(errno.EAGAIN, "")
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise DiskError(
                f"the disk image {path} is in use: another machine or program has it open"
                f"{' for writing' if read_only else ''}. Stop that one, or copy the image."
            ) from None
        # A file system without such locks (some network ones): nothing can be excluded there.


def _whole(
    move: Callable[[int, Sequence[memoryview], int], int], fd: int, buffers: list[memoryview], offset: int
) -> None:
    """Move all of ``buffers``, however little the kernel moves at a time."""
    while buffers:
        done = move(fd, buffers[:_MOST_VECTORS], offset)
        if not done and any(len(buffer) for buffer in buffers[:_MOST_VECTORS]):
            raise OSError(errno.EIO, "the image has become shorter than it was when it was opened")
        offset += done
        while buffers and done >= len(buffers[0]):
            done -= len(buffers.pop(0))
        if buffers and done:
            buffers[0] = buffers[0][done:]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
