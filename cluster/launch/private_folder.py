# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders that no other user of this computer can enter, in places where every user may make folders.

A folder in /tmp is safe to use when it belongs to this user, has mode 0700, and no other user can put another
folder in its place (sticky bit, or a parent that only this user can write). Owner and mode are read from an
open descriptor, so that a link planted in between is not followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from coremesh.core.errors import PlatformError

_ATTEMPTS = 20
_FALLBACK = "/tmp"


def check(path: Path) -> None:
    """Raise :class:`PlatformError` unless `path` is a folder, not a link, that only this user can enter."""
    try:
        descriptor = _open(path)
    except OSError as error:
        raise PlatformError(f"{path} cannot be used ({error.strerror}). Remove it.") from error
    try:
        if not _is_private(os.fstat(descriptor)):
            raise PlatformError(
                f"{path} is not a folder of this user alone: another user may have made it. Remove it, or "
                "set XDG_RUNTIME_DIR or TMPDIR to a folder of yours."
            )
    finally:
        os.close(descriptor)


def is_safe_base(base: Path) -> bool:
    """Whether no other user can replace what this user makes in `base`, or any folder above it."""
    try:
        real = base.resolve(strict=True)
        return all(_keeps_entries(folder.stat()) for folder in (real, *real.parents))
    except OSError:
        return False


def base_folder(longest: int) -> Path:
    """Return the folder for temporary ones: TMPDIR's if its name has at most `longest` bytes, else /tmp.

    Raises :class:`PlatformError` if neither is safe.
    """
    chosen = Path(tempfile.gettempdir())
    for base in (chosen, Path(_FALLBACK)):
        if len(os.fsencode(base)) <= longest and is_safe_base(base) and os.access(base, os.W_OK | os.X_OK):
            return base
    raise PlatformError(
        f"neither {chosen} nor {_FALLBACK} can be used for temporary folders: another user could replace "
        f"them, or the name has more than {longest} bytes. Set TMPDIR to a folder with a short name that "
        "only you can write (chmod 700)."
    )


class PrivateFolder:
    """A new folder of mode 0700 in `base`, held by this process until :meth:`remove` or its end.

    Holding is a lock (flock(2)) on the folder itself: it goes with the process, whatever ends that, and is
    the same in every pid namespace. :func:`abandoned` finds folders that are no longer held.
    """

    def __init__(self, base: Path, prefix: str) -> None:
        """Raises :class:`PlatformError` if none can be made."""
        for _ in range(_ATTEMPTS):
            try:
                self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
            except OSError as error:
                raise PlatformError(
                    f"no temporary folder can be made in {base} ({error.strerror}). Make room there, or set "
                    "TMPDIR."
                ) from error
            with contextlib.suppress(OSError):  # a process that sweeps took it before we could hold it
                self._descriptor = _open(self.path)
                if _hold(self._descriptor) and self.path.lstat().st_ino == os.fstat(self._descriptor).st_ino:
                    break
                os.close(self._descriptor)
        else:
            raise PlatformError(f"temporary folders vanish from {base}. Set TMPDIR to another folder.")
        if not _is_private(os.fstat(self._descriptor)):
            self.remove()
            raise PlatformError(f"{base} makes folders that others can enter. Set TMPDIR to another folder.")

    def write(self, name: str, content: str) -> Path:
        """Make a file in it that only this user can read; return its path."""
        path = self.path / name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
        return path

    def remove(self) -> None:
        """Remove it with all that is in it. Harmless when that was done before."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def abandoned(base: Path, prefix: str) -> Iterator[Path]:
    """Give the folders of this user in `base` whose holder has ended; each is held while it is looked at."""
    for path in base.glob(f"{prefix}*"):
        try:
            descriptor = _open(path)
        except OSError:  # a link, a file, another user's, or gone
            continue
        try:
            if os.fstat(descriptor).st_uid == os.getuid() and _hold(descriptor):
                yield path
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _hold(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_private(status: os.stat_result) -> bool:
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and stat.S_IMODE(status.st_mode) == 0o700
    )


def _keeps_entries(status: os.stat_result) -> bool:
    """Others cannot rename what lies in a folder that they cannot write, or that is sticky (inode(7))."""
    others_write = status.st_mode & 0o022
    owned = status.st_uid in (0, os.getuid()) or status.st_uid == _unmapped_owner()
    return owned and (not others_write or bool(status.st_mode & stat.S_ISVTX))


def _unmapped_owner() -> int | None:
    """In a user namespace, the owner that stands for all users without a number there, as the real root."""
    first, outside, count = Path("/proc/self/uid_map").read_text().split()[:3]
    if (first, outside, count) == ("0", "0", "4294967295"):  # the whole map: not in a namespace of its own
        return None
    return int(Path("/proc/sys/kernel/overflowuid").read_text())
