# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of other formats than raw: ``qemu-nbd`` knows them, and we speak to it.

It is a child of this process, gets a listening socket as systemd hands one over (sd_listen_fds(3)), and ends
when its last client has gone: with this process, whatever ends that. The format is always told to it.

Source: NBD protocol, doc/proto.md ("fixed newstyle" negotiation, simple replies).
"""

import errno
import os
import queue
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from coremesh.core.errors import DiskError
from coremesh.hw.backend.block import SECTOR_BYTES, Buffer

PROGRAM: Final = "qemu-nbd"
PACKAGE: Final = "qemu-utils"
#: By the name that ``--disk`` gives a format: the name that QEMU gives it.
QEMU_FORMATS: Final = {"qcow2": "qcow2", "vmdk": "vmdk", "vhdx": "vhdx", "vdi": "vdi", "vhd": "vpc"}
CONNECTIONS: Final = 4  # requests under way at once
_SECONDS: Final = 10.0  # for the start
_MOST: Final = 8 << 20  # bytes of a request; a server takes 32 MiB at least

_MAGIC, _OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_OPTION_REPLY: Final = 0x3E889045565A9
_REQUEST, _REPLY = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_GO, _ACK, _INFO, _INFO_EXPORT = 7, 1, 3, 0
_FAILED: Final = 1 << 31
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_NO_HOLE: Final = 2
_READ_ONLY, _SEND_FLUSH, _SEND_TRIM, _SEND_WRITE_ZEROES = 1 << 1, 1 << 2, 1 << 5, 1 << 6


class NbdConnection:
    """One connection, one request at a time. Raises OSError for what the server or the socket fails at."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._handle = 0
        try:
            self._socket.settimeout(_SECONDS)
            self._socket.connect(address)
            self.size, self.flags = self._negotiate()
            self._socket.settimeout(None)
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self) -> tuple[int, int]:
        if self._receive(16) != _MAGIC + _OPTION_MAGIC:
            raise OSError(errno.EPROTO, "the server does not speak NBD")
        (flags,) = struct.unpack(">H", self._receive(2))
        self._socket.sendall(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
        body = struct.pack(">IH", 0, 0)  # the default export, and no wishes
        self._socket.sendall(_OPTION_MAGIC + struct.pack(">II", _GO, len(body)) + body)
        export: tuple[int, int] | None = None
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _OPTION_REPLY or length > 4096:
                raise OSError(errno.EPROTO, "the server's answer is damaged")
            data = self._receive(length)
            if kind & _FAILED:
                raise OSError(errno.EPROTO, data.decode(errors="replace") or f"answer {kind:#x}")
            if kind == _ACK and export is not None:
                return export
            if kind == _INFO and struct.unpack_from(">H", data)[0] == _INFO_EXPORT:
                export = struct.unpack_from(">QH", data, 2)

    def request(
        self,
        kind: int,
        offset: int = 0,
        length: int = 0,
        data: Sequence[Buffer] = (),
        into: memoryview | None = None,
        flags: int = 0,
    ) -> None:
        """Send a request and wait for its reply, whose data go ``into`` a buffer of ``length`` bytes."""
        self._handle += 1
        header = struct.pack(">IHHQQI", _REQUEST, flags, kind, self._handle, offset, length)
        self._socket.sendall(header)
        for part in data:
            self._socket.sendall(part)
        magic, error, handle = struct.unpack(">IIQ", self._receive(16))
        if magic != _REPLY or handle != self._handle:
            self.close()
            raise OSError(errno.EPROTO, "the NBD server's reply is damaged")
        if error:
            raise OSError(error, os.strerror(error))
        while into:
            got = self._socket.recv_into(into)
            if not got:
                raise OSError(errno.EIO, "the NBD server has gone")
            into = into[got:]

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise OSError(errno.EIO, "the NBD server has gone")
            data += part
        return bytes(data)

    def close(self) -> None:
        """Say good-bye if there is anyone to hear it."""
        with suppress(OSError):
            self._socket.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        self._socket.close()


class NbdImage:
    """An image that ``qemu-nbd`` opens. See :class:`~coremesh.hw.backend.block.BlockBackend`."""

    def __init__(
        self, path: str | os.PathLike[str], *, read_only: bool = False, image_format: str = "qcow2"
    ) -> None:
        """Raises :class:`DiskError`: no such image, not of that format, in use, or no ``qemu-nbd``."""
        self.path = Path(path)
        self.read_only = read_only
        if not self.path.exists():
            hint = "" if read_only else f" 'qemu-img create -f {image_format} {self.path} 4G' makes one."
            raise DiskError(f"no disk image {self.path}.{hint}")
        program = shutil.which(PROGRAM)
        if program is None:
            raise DiskError(
                f"{PROGRAM} is missing, which opens images of format {image_format}: 'apt install "
                f"{PACKAGE}', or convert the image to raw where there is one."
            )
        self._free: queue.SimpleQueue[NbdConnection] = queue.SimpleQueue()
        self._connections: list[NbdConnection] = []
        command = [
            program, "--format", QEMU_FORMATS[image_format], "--cache", "writeback", "--discard", "unmap",
            "--detect-zeroes", "unmap", "--shared", str(CONNECTIONS), *(["--read-only"] if read_only else []),
            str(self.path.absolute()),
        ]  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="coremesh-nbd-") as folder:  # for this user alone
            self._process = _serve(command, f"{folder}/socket")
            try:
                for _ in range(CONNECTIONS):
                    self._connections.append(NbdConnection(f"{folder}/socket"))
            except OSError as error:
                self.close()
                reason = (self._process.stderr.read() if self._process.stderr else "").strip()
                raise DiskError(
                    f"the disk image {self.path} cannot be opened as {image_format}: {reason or error}"
                ) from None
        for connection in self._connections:
            self._free.put(connection)
        first = self._connections[0]
        self.size = first.size // SECTOR_BYTES * SECTOR_BYTES
        self.can_discard = bool(first.flags & _SEND_TRIM) and not read_only
        self._can_zero = bool(first.flags & _SEND_WRITE_ZEROES)
        if not self.size:
            self.close()
            raise DiskError(f"the disk image {self.path} is empty.")

    def read(self, offset: int, buffers: Sequence[bytearray | memoryview]) -> None:
        """See :class:`BlockBackend`."""
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            for at in range(0, len(view), _MOST):
                part = view[at : at + _MOST]
                self._request(_READ, offset + at, len(part), into=part)
            offset += len(view)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See :class:`BlockBackend`."""
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            for at in range(0, len(view), _MOST):
                part = view[at : at + _MOST]
                self._request(_WRITE, offset + at, len(part), data=[part])
            offset += len(view)

    def flush(self) -> None:
        """See :class:`BlockBackend`."""
        if not self.read_only:
            self._request(_FLUSH)

    def discard(self, offset: int, length: int) -> None:
        """See :class:`BlockBackend`."""
        if self.can_discard:
            self._in_pieces(_TRIM, offset, length)

    def zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """See :class:`BlockBackend`."""
        if self._can_zero:
            self._in_pieces(_WRITE_ZEROES, offset, length, 0 if unmap else _NO_HOLE)
            return
        empty = bytes(min(length, _MOST))
        for at in range(0, length, _MOST):
            self.write(offset + at, [memoryview(empty)[: min(_MOST, length - at)]])

    def close(self) -> None:
        """See :class:`BlockBackend`."""
        for connection in self._connections:
            connection.close()
        if not self._connections:
            self._process.terminate()
        try:
            self._process.wait(_SECONDS)  # it writes what it has of the image's tables
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _in_pieces(self, kind: int, offset: int, length: int, flags: int = 0) -> None:
        piece = 1 << 30
        for at in range(0, length, piece):
            self._request(kind, offset + at, min(piece, length - at), flags=flags)

    def _request(
        self,
        kind: int,
        offset: int = 0,
        length: int = 0,
        data: Sequence[Buffer] = (),
        into: memoryview | None = None,
        flags: int = 0,
    ) -> None:
        if self.read_only and kind != _READ:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if offset + length > self.size:
            raise OSError(errno.EINVAL, f"{length} bytes at {offset} lie beyond the disk's {self.size}")
        connection = self._free.get()
        try:
            connection.request(kind, offset, length, data, into, flags)
        finally:
            self._free.put(connection)


def _serve(command: list[str], address: str) -> "subprocess.Popen[str]":
    """Start ``command`` with a socket that listens at ``address`` as its descriptor 3."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(CONNECTIONS)
        # The child's own number is known to the child alone: so a shell tells it, and becomes the program.
        script = 'exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$@"'
        return subprocess.Popen(
            ["sh", "-c", script, "sh", *command],
            stdin=listener.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the person's program, which ends this one in its turn
        )
