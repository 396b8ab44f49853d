# SPDX-License-Identifier: GPL-2.0-or-later
"""A 9P2000.L server: one request in, one answer out, for several threads at once.

A guest names its files by numbers of its own, fids. A fid holds descriptors of a :class:`SharedFolder`; they
are closed when the guest has given the fid up and no request uses it any more. So a number of a descriptor
never means another file while a request is under way.

Source: as of messages.py.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from coremesh.core.state import State
from coremesh.hw.backend.p9 import messages as p9
from coremesh.hw.backend.p9.folder import Changes, SharedFolder, failure
from coremesh.hw.backend.p9.messages import Fields, Qid, numbers, text

logger = logging.getLogger(__name__)

LONGEST: Final = 512 << 10
"""Bytes of a message, at most: what Linux offers over virtio."""
SHORTEST: Final = 4096
MOST_FIDS: Final = 16384
_IO_HEADER: Final = 24  # what a read or a write takes beside its data, as Linux counts it
_MOST_ENTRIES: Final = 1 << 20  # of a folder that a guest lists
_REMOVE_FOLDER: Final = 0x200  # AT_REMOVEDIR
_GETATTR_BASIC: Final = 0x7FF
_SETATTR = {
    "mode": 1,
    "uid": 2,
    "gid": 4,
    "size": 8,
    "atime": 16,
    "mtime": 32,
    "atime_set": 128,
    "mtime_set": 256,
}
_BLOCK: Final = 4096
_MAGIC: Final = 0x01021997  # V9FS_MAGIC of Linux


class _Fid:
    """A file of the guest's. Guarded by the server's lock but for what a request that uses it does."""

    def __init__(self, file: int, uid: int = 0) -> None:
        self.file = file
        self.uid = uid
        self.data = -1
        self.flags = 0
        self.users = 0
        self.dropped = False
        self.listing: list[tuple[bytes, int, Qid]] = []

    def close(self) -> None:
        for descriptor in (self.file, self.data):
            if descriptor >= 0:
                os.close(descriptor)


class Server:
    """Serves ``folder``. Any thread, several at once."""

    def __init__(self, folder: SharedFolder, counts: dict[str, int] | None = None) -> None:
        """``counts`` go on from an earlier server's."""
        self.folder = folder
        self.retired = False
        self._lock = threading.Lock()  # of the fids and of what is under way
        self._answered = threading.Condition(self._lock)
        self._under_way: dict[int, int] = {}  # requests by tag
        self._fids: dict[int, _Fid] = {}
        self._longest = LONGEST
        names = ("requests", "errors", "malformed", "bytes_read", "bytes_written")
        self.counts = dict.fromkeys(names, 0) if counts is None else counts
        self._handlers: dict[int, Callable[[Fields], bytes]] = {
            p9.STATFS: self._statfs, p9.LOPEN: self._open, p9.LCREATE: self._create,
            p9.SYMLINK: self._symlink, p9.MKNOD: self._mknod, p9.READLINK: self._readlink,
            p9.GETATTR: self._getattr, p9.SETATTR: self._setattr, p9.READDIR: self._readdir,
            p9.FSYNC: self._fsync, p9.LOCK: self._lock_file, p9.GETLOCK: self._getlock,
            p9.LINK: self._link, p9.MKDIR: self._mkdir, p9.RENAMEAT: self._rename,
            p9.UNLINKAT: self._unlink, p9.TVERSION: self._version, p9.ATTACH: self._attach,
            p9.WALK: self._walk, p9.READ: self._read, p9.WRITE: self._write, p9.CLUNK: self._clunk,
            p9.REMOVE: self._remove,
        }  # fmt: skip

    # --- one request

    def answer(self, request: bytes, room: int) -> bytes:
        """The answer to ``request``, of at most ``room`` bytes (11 at least). Never raises.

        May block as long as the host's file system does.
        """
        if len(request) < p9.HEADER.size:
            self.counts["malformed"] += 1
            return p9.error(p9.NO_TAG, errno.EPROTO)
        size, kind, tag = p9.HEADER.unpack_from(request)
        with self._lock:
            self._under_way[tag] = self._under_way.get(tag, 0) + 1
        try:
            if not p9.HEADER.size <= size <= len(request):
                raise p9.MalformedError("a size that is not the message's")
            fields = Fields(request[p9.HEADER.size : size])
            if kind == p9.FLUSH:
                body = self._flush(fields, tag)
            else:
                handler = self._handlers.get(kind)
                if handler is None:
                    raise failure(errno.EOPNOTSUPP)
                body = handler(fields)
            reply = p9.message(kind + 1, tag, body)
            if len(reply) > room:
                raise p9.MalformedError("no room for the answer")
            return reply
        except p9.MalformedError:
            self.counts["malformed"] += 1
            return p9.error(tag, errno.EPROTO)
        except OSError as error:
            self.counts["errors"] += 1
            return p9.error(tag, error.errno or errno.EIO)
        except Exception:
            # A mistake of ours: the guest gets an error, and the log says which it was.
            self.counts["errors"] += 1
            logger.exception("the shared folder cannot answer a request of kind %d", kind)
            return p9.error(tag, errno.EIO)
        finally:
            with self._lock:
                self.counts["requests"] += 1
                left = self._under_way[tag] - 1
                if left:
                    self._under_way[tag] = left
                else:
                    del self._under_way[tag]
                self._answered.notify_all()

    def reset(self) -> None:
        """A new session: all files are closed, as soon as no request uses them."""
        with self._lock:
            fids, self._fids = self._fids, {}
            for fid in fids.values():
                self._drop(fid)

    def retire(self) -> None:
        """The guest has gone: as :meth:`reset`, and a request that is still under way opens nothing."""
        self.retired = True
        self.reset()

    # --- fids

    def _drop(self, fid: _Fid) -> None:
        """With the lock held."""
        fid.dropped = True
        if not fid.users:
            fid.close()

    @contextlib.contextmanager
    def _using(self, number: int) -> Iterator[_Fid]:
        with self._lock:
            fid = self._fids.get(number)
            if fid is None:
                raise failure(errno.EBADF)
            fid.users += 1
        try:
            yield fid
        finally:
            with self._lock:
                fid.users -= 1
                if fid.dropped and not fid.users:
                    fid.close()

    def _add(self, number: int, fid: _Fid, *, instead: _Fid | None = None) -> None:
        """Enter a fid, whose descriptors are closed if it cannot be."""
        with self._lock:
            present = self._fids.get(number)
            if present is not instead or self.retired:
                error = errno.EBADF
            elif present is None and (number == p9.NO_FID or len(self._fids) >= MOST_FIDS):
                error = errno.EMFILE
            else:
                if present is not None:
                    self._drop(present)
                self._fids[number] = fid
                return
        fid.close()
        raise failure(error)

    @staticmethod
    def _data(fid: _Fid) -> int:
        if fid.data < 0:
            raise failure(errno.EBADF)
        return fid.data

    # --- the session

    def _version(self, fields: Fields) -> bytes:
        longest, version = fields.number(4), fields.text()
        fields.end()
        self.reset()
        if longest < SHORTEST:
            raise failure(errno.EMSGSIZE)
        self._longest = min(longest, LONGEST)
        return numbers((4, self._longest)) + text(p9.VERSION if version == p9.VERSION else b"unknown")

    def _flush(self, fields: Fields, own: int) -> bytes:
        """Answered after the request that it is about, which is not broken off: none lasts long."""
        tag = fields.number(2)
        fields.end()
        with self._lock:
            while tag != own and tag in self._under_way:
                self._answered.wait(1.0)
        return b""

    def _attach(self, fields: Fields) -> bytes:
        number, _, _, _ = fields.number(4), fields.number(4), fields.text(), fields.text()
        uid = fields.number(4)
        fields.end()
        fid = _Fid(self.folder.again(self.folder.root), uid)
        qid = self.folder.qid(fid.file)
        self._add(number, fid)
        return qid.pack()

    def _walk(self, fields: Fields) -> bytes:
        number, new, count = fields.number(4), fields.number(4), fields.number(2)
        if count > p9.MOST_WALKED:
            raise p9.MalformedError("a walk of too many names")
        names = [fields.text() for _ in range(count)]
        fields.end()
        with self._using(number) as fid:
            if fid.data >= 0 and names:
                raise failure(errno.EBADF)
            file = self.folder.again(fid.file)
            qids = []
            try:
                for name in names:
                    following = self.folder.walk(file, name)
                    os.close(file)
                    file = following
                    qids.append(self.folder.qid(file))
            except OSError:
                os.close(file)
                if not qids:
                    raise
                return self._walked(qids)  # as far as it went; the new fid does not come to be
            self._add(new, _Fid(file, fid.uid), instead=fid if new == number else None)
        return self._walked(qids)

    @staticmethod
    def _walked(qids: list[Qid]) -> bytes:
        return numbers((2, len(qids))) + b"".join(qid.pack() for qid in qids)

    def _clunk(self, fields: Fields) -> bytes:
        number = fields.number(4)
        fields.end()
        with self._lock:
            fid = self._fids.pop(number, None)
            if fid is None:
                raise failure(errno.EBADF)
            self._drop(fid)
        return b""

    def _remove(self, fields: Fields) -> bytes:
        """The fid is given up in any case; by name alone does Linux remove."""
        self._clunk(fields)
        raise failure(errno.EOPNOTSUPP)

    # --- files

    def _open(self, fields: Fields) -> bytes:
        number, flags = fields.number(4), fields.number(4)
        fields.end()
        with self._using(number) as fid:
            data = self.folder.open(fid.file, flags)
            self._opened(fid, data, flags)
            return self.folder.qid(fid.file).pack() + numbers((4, self._longest - _IO_HEADER))

    def _opened(self, fid: _Fid, data: int, flags: int) -> None:
        with self._lock:
            if fid.data < 0:
                fid.data, fid.flags = data, flags
                return
        os.close(data)
        raise failure(errno.EBADF)  # a fid is opened once

    def _create(self, fields: Fields) -> bytes:
        number, name = fields.number(4), fields.text()
        flags, mode, gid = fields.number(4), fields.number(4), fields.number(4)
        fields.end()
        with self._using(number) as fid:
            if fid.data >= 0:
                raise failure(errno.EBADF)
            file, data = self.folder.create(fid.file, name, flags, mode, (fid.uid, gid))
            made = _Fid(file, fid.uid)
            made.data, made.flags = data, flags
            qid = self.folder.qid(file)
            self._add(number, made, instead=fid)
        return qid.pack() + numbers((4, self._longest - _IO_HEADER))

    def _read(self, fields: Fields) -> bytes:
        number, offset, count = fields.number(4), fields.number(8), fields.number(4)
        fields.end()
        count = min(count, self._longest - p9.HEADER.size - 4)
        with self._using(number) as fid:
            data = os.pread(self._data(fid), count, self._offset(offset))
        self.counts["bytes_read"] += len(data)
        return numbers((4, len(data))) + data

    def _write(self, fields: Fields) -> bytes:
        number, offset, count = fields.number(4), fields.number(8), fields.number(4)
        data = fields.data(count)
        fields.end()
        with self._using(number) as fid:
            written = os.pwrite(self._data(fid), data, self._offset(offset))
        self.counts["bytes_written"] += written
        return numbers((4, written))

    @staticmethod
    def _offset(offset: int) -> int:
        if offset >= 1 << 63:
            raise failure(errno.EINVAL)
        return offset

    def _fsync(self, fields: Fields) -> bytes:
        number, only_data = fields.number(4), fields.number(4)
        fields.end()
        with self._using(number) as fid:
            (os.fdatasync if only_data else os.fsync)(self._data(fid))
        return b""

    def _readdir(self, fields: Fields) -> bytes:
        number, offset, count = fields.number(4), fields.number(8), fields.number(4)
        fields.end()
        count = min(count, self._longest - p9.HEADER.size - 4)
        with self._using(number) as fid:
            if not stat.S_ISDIR(os.fstat(self._data(fid)).st_mode):
                raise failure(errno.ENOTDIR)
            listing = fid.listing
            if not listing or offset == 0:
                listing = fid.listing = self.folder.entries(fid.data)[:_MOST_ENTRIES]
        entries = bytearray()
        for at in range(min(offset, len(listing)), len(listing)):
            name, kind, qid = listing[at]
            entry = qid.pack() + numbers((8, at + 1), (1, kind)) + text(name)
            if len(entries) + len(entry) > count:
                break
            entries += entry
        return numbers((4, len(entries))) + entries

    def _readlink(self, fields: Fields) -> bytes:
        number = fields.number(4)
        fields.end()
        with self._using(number) as fid:
            return text(self.folder.target(fid.file))

    # --- attributes

    def _getattr(self, fields: Fields) -> bytes:
        number, _ = fields.number(4), fields.number(8)
        fields.end()
        with self._using(number) as fid:
            found = self.folder.attributes(fid.file)
        s = found.status
        times = [part for ns in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns) for part in divmod(ns, 10**9)]
        return (
            numbers((8, _GETATTR_BASIC))
            + found.qid.pack()
            + numbers(
                (4, found.mode), (4, found.uid), (4, found.gid), (8, s.st_nlink), (8, 0), (8, s.st_size)
            )
            + numbers((8, _BLOCK), (8, s.st_blocks), *((8, part) for part in times))
            + numbers((8, 0), (8, 0), (8, 0), (8, 0))  # time of birth, generation, data version
        )

    def _setattr(self, fields: Fields) -> bytes:
        number, valid = fields.number(4), fields.number(4)
        mode, uid, gid, size = (fields.number(length) for length in (4, 4, 4, 8))
        times = [fields.number(8) * 10**9 + fields.number(8) for _ in range(2)]
        fields.end()

        def wanted(name: str, value: int) -> int | None:
            return value if valid & _SETATTR[name] else None

        def time(name: str, value: int) -> int | None:
            if not valid & _SETATTR[name]:
                return None
            return min(value, (1 << 63) - 1) if valid & _SETATTR[f"{name}_set"] else -1

        changes = Changes(
            wanted("mode", mode),
            wanted("uid", uid),
            wanted("gid", gid),
            wanted("size", self._offset(size) if valid & _SETATTR["size"] else 0),
            time("atime", times[0]),
            time("mtime", times[1]),
        )
        with self._using(number) as fid:
            self.folder.change(fid.file, changes)
        return b""

    def _statfs(self, fields: Fields) -> bytes:
        number = fields.number(4)
        fields.end()
        with self._using(number):
            s = self.folder.statistics()
        return numbers(
            (4, _MAGIC), (4, s.f_bsize), (8, s.f_blocks), (8, s.f_bfree), (8, s.f_bavail), (8, s.f_files),
            (8, s.f_ffree), (8, 0), (4, s.f_namemax),
        )  # fmt: skip

    def _lock_file(self, fields: Fields) -> bytes:
        """The guest's kernel keeps the locks among its own programs; between guests there are none."""
        with self._using(fields.number(4)):
            return numbers((1, 0))

    def _getlock(self, fields: Fields) -> bytes:
        with self._using(fields.number(4)):
            fields.number(1)
        start, length, process = fields.number(8), fields.number(8), fields.number(4)
        client = fields.text()
        fields.end()
        free = 2  # F_UNLCK
        return numbers((1, free), (8, start), (8, length), (4, process)) + text(client)

    # --- names

    def _symlink(self, fields: Fields) -> bytes:
        number, name, target = fields.number(4), fields.text(), fields.text()
        fields.number(4)
        fields.end()
        with self._using(number) as fid:
            return self.folder.make_link(fid.file, name, target).pack()

    def _mknod(self, fields: Fields) -> bytes:
        number, name = fields.number(4), fields.text()
        mode, _, _, gid = (fields.number(4) for _ in range(4))
        fields.end()
        with self._using(number) as fid:
            return self.folder.make_node(fid.file, name, mode, (fid.uid, gid)).pack()

    def _mkdir(self, fields: Fields) -> bytes:
        number, name, mode, gid = fields.number(4), fields.text(), fields.number(4), fields.number(4)
        fields.end()
        with self._using(number) as fid:
            return self.folder.make_folder(fid.file, name, mode, (fid.uid, gid)).pack()

    def _link(self, fields: Fields) -> bytes:
        folder, number, name = fields.number(4), fields.number(4), fields.text()
        fields.end()
        with self._using(folder) as into, self._using(number) as fid:
            self.folder.link(fid.file, into.file, name)
        return b""

    def _rename(self, fields: Fields) -> bytes:
        old, name, new, new_name = fields.number(4), fields.text(), fields.number(4), fields.text()
        fields.end()
        with self._using(old) as source, self._using(new) as target:
            self.folder.rename(source.file, name, target.file, new_name)
        return b""

    def _unlink(self, fields: Fields) -> bytes:
        number, name, flags = fields.number(4), fields.text(), fields.number(4)
        fields.end()
        with self._using(number) as fid:
            self.folder.remove(fid.file, name, is_folder=bool(flags & _REMOVE_FOLDER))
        return b""

    # --- saving

    def save(self) -> State:
        """The guest's files by their names. No request is under way."""
        files = []
        for number, fid in self._fids.items():
            path = self.folder.path_of(fid.file)
            files.append(
                [number, fid.uid, None if path is None else path.hex(), fid.flags if fid.data >= 0 else None]
            )
        return {"longest": self._longest, "files": files}

    def load(self, state: Any) -> None:
        """The reverse. A file that is not there any more is one that the guest finds closed."""
        self.reset()
        self._longest = int(state["longest"])
        for number, uid, path, flags in state["files"]:
            with contextlib.suppress(OSError):
                if path is None:
                    continue
                fid = _Fid(self.folder.find(bytes.fromhex(path)), uid)
                self._fids[number] = fid
                if flags is not None:
                    # What was made or cut short by opening it is so already.
                    fid.data = self.folder.open(fid.file, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC))
                    fid.flags = flags
