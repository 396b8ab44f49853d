# SPDX-License-Identifier: GPL-2.0-or-later
"""A folder of this computer for a guest: each file is held by a descriptor, and no path is ever followed.

A guest cannot leave the folder. A file is reached from the folder's descriptor name by name, each a single
component that is neither '..' nor has a '/', with O_PATH and O_NOFOLLOW: so a symbolic link is never
followed here, also one that is exchanged for a folder in the middle of a walk. The guest's own kernel
follows it, among the guest's files. A descriptor is opened for data through /proc/self/fd, which is that
file and no other; and only if it is a regular file or a folder, since to open a device or a pipe is an act.

Identities: with 'none' the guest sees those of the host, the emulator's own user and group as root's, and a
change of owner has no effect. With 'mapped' the guest's owner, group and mode are kept in the extended
attributes user.virtfs.*, as other emulators do, and the host's file stays its user's. Neither lets a guest
make a file with a set-user-ID bit, nor a device.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coremesh.hw.backend.p9.messages import Qid, qid_of

_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ALWAYS: Final = os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
#: Flags of Linux on x86 that a guest may open with; others are left out.
_ALLOWED: Final = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_DSYNC | os.O_SYNC
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND
_PERMISSIONS: Final = 0o1777  # not the set-user-ID and set-group-ID bits
_UID, _GID, _MODE = "user.virtfs.uid", "user.virtfs.gid", "user.virtfs.mode"
_WORD: Final = struct.Struct("<I")

SECURITY: Final = ("none", "mapped")


def failure(number: int) -> OSError:
    """An error for the guest."""
    return OSError(number, os.strerror(number))


@dataclass(frozen=True)
class Attributes:
    """What Tgetattr tells of a file, with the guest's owner, group and mode."""

    qid: Qid
    mode: int
    uid: int
    gid: int
    status: os.stat_result


@dataclass(frozen=True)
class Changes:
    """What Tsetattr is to change; None stays. Times in nanoseconds, -1 for now."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    accessed: int | None = None
    modified: int | None = None


def checked_name(name: bytes) -> bytes:
    """``name`` if it is one component of a path, and does not lead upwards. Raises OSError."""
    if not name or name == b"." or name == b".." or b"/" in name or b"\0" in name:
        raise failure(errno.EINVAL)
    if len(name) > 255:
        raise failure(errno.ENAMETOOLONG)
    return name


class SharedFolder:
    """The folder ``path``. Files are descriptors that :meth:`walk` opened; the caller closes them.

    Every call may block, and raises OSError with the number that the guest is to see. Any thread.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, read_only: bool = False, security: str = "none"
    ) -> None:
        """Raises OSError for what is no folder of this computer."""
        self.root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.read_only = read_only
        self.mapped = security == "mapped"
        self._device = os.fstat(self.root).st_dev
        self._own = (os.getuid(), os.getgid())
        try:
            # A share that cannot be read is said at once, and not to the guest.
            os.close(os.open(f"/proc/self/fd/{self.root}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        if self.root >= 0:
            os.close(self.root)
            self.root = -1

    def _writable(self) -> None:
        if self.read_only:
            raise failure(errno.EROFS)

    # --- looking

    def walk(self, folder: int, name: bytes) -> int:
        """A descriptor of the file ``name`` in ``folder``."""
        return os.open(checked_name(name), _PATH, dir_fd=folder)

    def again(self, file: int) -> int:
        """A second descriptor of a file."""
        return os.dup(file)

    def qid(self, file: int) -> Qid:
        """The file's identity."""
        return qid_of(os.fstat(file), self._device)

    def attributes(self, file: int) -> Attributes:
        """All that there is to know of a file."""
        status = os.fstat(file)
        uid = 0 if status.st_uid == self._own[0] else status.st_uid
        gid = 0 if status.st_gid == self._own[1] else status.st_gid
        mode = status.st_mode
        if self.mapped:
            uid = self._attribute(file, _UID, uid)
            gid = self._attribute(file, _GID, gid)
            mode = stat.S_IFMT(mode) | stat.S_IMODE(self._attribute(file, _MODE, mode))
        return Attributes(qid_of(status, self._device), mode, uid, gid, status)

    def _attribute(self, file: int, name: str, default: int) -> int:
        try:
            return int(_WORD.unpack(os.getxattr(self._place(file), name))[0])
        except (OSError, struct.error):
            return default

    @staticmethod
    def _place(file: int) -> str:
        return f"/proc/self/fd/{file}"

    def entries(self, file: int) -> list[tuple[bytes, int, Qid]]:
        """The (name, type as of readdir(3), qid) of a folder that is open for data."""
        own = self.qid(file)
        found = [(b".", 4, own), (b"..", 4, own)]
        with os.scandir(file) as entries:
            for entry in entries:
                kind = 10 if entry.is_symlink() else 4 if entry.is_dir(follow_symlinks=False) else 8
                number = {10: 0x02, 4: 0x80, 8: 0}[kind]
                found.append((os.fsencode(entry.name), kind, Qid(number, 0, entry.inode())))
        return found

    def target(self, file: int) -> bytes:
        """What a symbolic link says."""
        return os.fsencode(os.readlink("", dir_fd=file))

    def statistics(self) -> os.statvfs_result:
        """Of the file system."""
        return os.fstatvfs(self.root)

    # --- opening

    def open(self, file: int, flags: int) -> int:
        """A descriptor for data. ``flags`` are the guest's."""
        mode = os.fstat(file).st_mode
        if flags & _WRITING:
            self._writable()
        if stat.S_ISDIR(mode):
            return os.open(self._place(file), os.O_RDONLY | os.O_DIRECTORY | _ALWAYS)
        if not stat.S_ISREG(mode):
            raise failure(errno.ELOOP if stat.S_ISLNK(mode) else errno.EOPNOTSUPP)
        return os.open(self._place(file), flags & _ALLOWED & ~os.O_APPEND | _ALWAYS)

    def create(
        self, folder: int, name: bytes, flags: int, mode: int, owner: tuple[int, int]
    ) -> tuple[int, int]:
        """Make a file, or open the one that is there; its descriptors (for walking, for data)."""
        self._writable()
        name = checked_name(name)
        flags &= _ALLOWED | os.O_EXCL
        try:
            opened = os.open(
                name,
                os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | _ALWAYS | flags & ~os.O_APPEND,
                mode & (0o600 if self.mapped else 0o777) | (0o600 if self.mapped else 0),
                dir_fd=folder,
            )
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # By its descriptor, so that a pipe or a device of that name is refused before it is opened.
            file = self.walk(folder, name)
            try:
                return file, self.open(file, flags)
            except BaseException:
                os.close(file)
                raise
        try:
            self._own_it(opened, mode, owner)
            return os.open(self._place(opened), os.O_PATH | os.O_CLOEXEC), opened
        except BaseException:
            os.close(opened)
            raise

    def _own_it(self, file: int, mode: int, owner: tuple[int, int]) -> None:
        """A file was made: keep what the guest wants it to be; this process's umask does not count."""
        place = self._place(file)
        if not self.mapped:
            Path(place).chmod(mode & _PERMISSIONS)
        else:
            for name, value in ((_UID, owner[0]), (_GID, owner[1]), (_MODE, stat.S_IMODE(mode))):
                os.setxattr(place, name, _WORD.pack(value & 0xFFFF_FFFF))

    # --- changing

    def make_folder(self, folder: int, name: bytes, mode: int, owner: tuple[int, int]) -> Qid:
        """A new folder."""
        self._writable()
        name = checked_name(name)
        os.mkdir(name, 0o700 if self.mapped else mode & 0o1777, dir_fd=folder)
        return self._made(folder, name, mode, owner)

    def make_node(self, folder: int, name: bytes, mode: int, owner: tuple[int, int]) -> Qid:
        """A file, or a pipe; to the host's kernel a device of the guest would be a device of the host."""
        self._writable()
        name = checked_name(name)
        permissions = 0o600 if self.mapped else mode & 0o777
        if stat.S_ISFIFO(mode):
            os.mkfifo(name, permissions, dir_fd=folder)
        elif stat.S_ISREG(mode) or not stat.S_IFMT(mode):
            flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | _ALWAYS
            os.close(os.open(name, flags, permissions, dir_fd=folder))
        else:
            raise failure(errno.EPERM)
        return self._made(folder, name, mode, owner)

    def _made(self, folder: int, name: bytes, mode: int, owner: tuple[int, int]) -> Qid:
        file = self.walk(folder, name)
        try:
            if not stat.S_ISFIFO(os.fstat(file).st_mode):  # a pipe has no attributes
                self._own_it(file, mode, owner)
            return self.qid(file)
        finally:
            os.close(file)

    def make_link(self, folder: int, name: bytes, target: bytes) -> Qid:
        """A symbolic link; what it says is the guest's affair."""
        self._writable()
        name = checked_name(name)
        if not target or b"\0" in target:
            raise failure(errno.EINVAL)
        os.symlink(target, name, dir_fd=folder)
        file = self.walk(folder, name)
        try:
            return self.qid(file)
        finally:
            os.close(file)

    def link(self, file: int, folder: int, name: bytes) -> None:
        """A second name for a file."""
        self._writable()
        os.link(self._place(file), checked_name(name), dst_dir_fd=folder, follow_symlinks=True)

    def rename(self, folder: int, name: bytes, new_folder: int, new_name: bytes) -> None:
        """Within the share."""
        self._writable()
        os.rename(checked_name(name), checked_name(new_name), src_dir_fd=folder, dst_dir_fd=new_folder)

    def remove(self, folder: int, name: bytes, *, is_folder: bool) -> None:
        """A name, or an empty folder."""
        self._writable()
        (os.rmdir if is_folder else os.unlink)(checked_name(name), dir_fd=folder)

    def change(self, file: int, changes: Changes) -> None:
        """Mode, owner, size and times."""
        self._writable()
        status = os.fstat(file)
        place = self._place(file)
        is_link = stat.S_ISLNK(status.st_mode)
        if changes.mode is not None and not is_link:
            if self.mapped:
                os.setxattr(place, _MODE, _WORD.pack(stat.S_IMODE(changes.mode)))
            else:
                Path(place).chmod(changes.mode & _PERMISSIONS)
        if self.mapped and not is_link:
            for name, value in ((_UID, changes.uid), (_GID, changes.gid)):
                if value is not None:
                    os.setxattr(place, name, _WORD.pack(value & 0xFFFF_FFFF))
        if changes.size is not None:
            if not stat.S_ISREG(status.st_mode):
                raise failure(errno.EINVAL)
            os.truncate(place, changes.size)
        if (changes.accessed, changes.modified) != (None, None) and not is_link:
            now = time.time_ns()
            times = [
                before if wanted is None else now if wanted < 0 else wanted
                for before, wanted in (
                    (status.st_atime_ns, changes.accessed), (status.st_mtime_ns, changes.modified)
                )
            ]  # fmt: skip
            os.utime(place, ns=(times[0], times[1]))

    # --- saving

    def path_of(self, file: int) -> bytes | None:
        """The names that lead to a file from the folder; None for one that has none any more."""
        root = os.fsencode(Path(self._place(self.root)).readlink())
        place = os.fsencode(Path(self._place(file)).readlink())
        if place == root:
            return b""
        if not place.startswith(root.rstrip(b"/") + b"/"):
            return None
        return place[len(root.rstrip(b"/")) + 1 :]

    def find(self, path: bytes) -> int:
        """The reverse of :meth:`path_of`."""
        file = os.dup(self.root)
        for name in path.split(b"/") if path else ():
            try:
                following = self.walk(file, name)
            finally:
                with contextlib.suppress(OSError):
                    os.close(file)
            file = following
        return file
