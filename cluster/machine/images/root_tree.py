# SPDX-License-Identifier: GPL-2.0-or-later
"""A root file system from Debian packages, as ``dpkg --unpack`` leaves it, made without privileges.

The packages' files are laid into a folder, and dpkg's database says "unpacked" of each. What only root may
give a file (its owner, its special mode bits) is not given here but remembered, for the module that writes
the file system (:mod:`coremesh.cluster.machine.images.ext4`). What is left to do, ``dpkg --configure -a``,
runs the packages' own scripts and belongs into the guest.

Source: dpkg(1), deb(5); Debian policy, chapter 6.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from coremesh.cluster.machine.images.packages import WAY_OUT, contents, control
from coremesh.core.errors import ImageFetchError

#: Debian's file systems have these merged into /usr; older packages still name the old places.
MERGED: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_DATABASE: Final = "var/lib/dpkg"


@dataclass(frozen=True)
class Attributes:
    """What a file's inode is to say: user, group, and all mode bits."""

    uid: int
    gid: int
    mode: int


class RootTree:
    """A folder that is filled package by package. One thread."""

    def __init__(self, folder: Path) -> None:
        """`folder` is empty and the caller's."""
        self.folder = folder
        self.attributes: dict[str, Attributes] = {}
        self.packages: list[str] = []
        self._status: list[str] = []
        for name in MERGED:
            self.symlink(name, f"usr/{name}")
            self.directory(f"usr/{name}")
        self.directory(f"{_DATABASE}/info")
        self.directory(f"{_DATABASE}/updates")
        self.directory(f"{_DATABASE}/triggers")
        self.file(f"{_DATABASE}/info/format", b"1\n")
        self.file(f"{_DATABASE}/available", b"")

    # --- single files ------------------------------------------------------------------------------------

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Make a directory and the ones above it."""
        place = self.folder / path
        place.mkdir(parents=True, exist_ok=True)
        self._note(path, stat.S_IFDIR | mode, 0, 0)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Lay a file."""
        place = self._place(path)
        place.write_bytes(data)
        self._note(path, stat.S_IFREG | mode, 0, 0)

    def symlink(self, path: str, target: str) -> None:
        """Lay a symbolic link."""
        self._place(path).symlink_to(target)
        self._note(path, stat.S_IFLNK | 0o777, 0, 0)

    def _note(self, path: str, mode: int, uid: int, gid: int) -> None:
        self.attributes[path] = Attributes(uid, gid, mode)

    def _place(self, path: str) -> Path:
        place = self.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink() or place.exists():
            if place.is_dir() and not place.is_symlink():
                return place
            place.unlink()
        return place

    # --- packages ----------------------------------------------------------------------------------------

    def unpack(self, archive: Path) -> None:
        """Lay the files of a .deb and enter it into dpkg's database. Raises :class:`ImageFetchError`."""
        files = control(archive)
        fields = files["control"].decode()
        name, architecture = _field(fields, "Package"), _field(fields, "Architecture")
        if _field(fields, "Multi-Arch") == "same":
            name = f"{name}:{architecture}"
        with contents(archive) as stream:
            try:
                paths = self._unpack(stream)
            except (tarfile.TarError, OSError) as error:
                raise ImageFetchError(f"{archive.name} cannot be unpacked: {error}. {WAY_OUT}") from error
        self.packages.append(name)
        info = f"{_DATABASE}/info/{name}"
        self.file(f"{info}.list", "".join(f"{path}\n" for path in paths).encode())
        for part, data in files.items():
            if part != "control":
                executable = part in ("preinst", "postinst", "prerm", "postrm", "config")
                self.file(f"{info}.{part}", data, 0o755 if executable else 0o644)
        self._status.append(_status(fields, self._configuration_files(files.get("conffiles", b""))))

    def _configuration_files(self, listed: bytes) -> str:
        """The files that are the administrator's from now on, each with the hash that the package gave it."""
        lines = []
        for line in listed.decode().splitlines():
            path = line.split()[-1] if line.strip() else ""
            place = self.folder / merged(path.lstrip("/"))
            if path and place.is_file():
                lines.append(f" {path} {hashlib.md5(place.read_bytes()).hexdigest()}\n")
        return "".join(lines)

    def _unpack(self, stream: IO[bytes]) -> list[str]:
        paths = []
        with tarfile.open(fileobj=stream, mode="r|") as members:
            for member in members:
                original = safe(member.name)
                paths.append(f"/{original}" if original else "/.")
                if not original:
                    continue
                path = merged(original)
                place = self.folder / path
                mode = member.mode & 0o7777
                if member.isdir():
                    if not place.is_symlink():
                        place.mkdir(parents=True, exist_ok=True)
                        self._note(path, stat.S_IFDIR | mode, member.uid, member.gid)
                elif member.issym():
                    if path not in MERGED:
                        self._place(path).symlink_to(member.linkname)
                        self._note(path, stat.S_IFLNK | 0o777, member.uid, member.gid)
                elif member.islnk():
                    target = merged(safe(member.linkname))
                    self._place(path).hardlink_to(self.folder / target)
                    self.attributes[path] = self.attributes[target]  # one inode
                elif member.isreg():
                    content = members.extractfile(member)
                    assert content is not None  # a regular file always has one
                    with self._place(path).open("wb") as file:
                        shutil.copyfileobj(content, file, 1 << 20)
                    os.utime(place, (member.mtime, member.mtime))
                    self._note(path, stat.S_IFREG | mode, member.uid, member.gid)
                # Device nodes: the guest has its own /dev.
        return paths

    def finish(self) -> None:
        """Write dpkg's list of packages."""
        self.file(f"{_DATABASE}/status", "".join(self._status).encode())

    def size(self) -> int:
        """Bytes of the files, in blocks of 4 KiB."""
        total = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                total += -(-os.lstat(Path(folder, name)).st_size // 4096) * 4096
        return total


def safe(name: str) -> str:
    """Return the path of an archive's member relative to the root. Raises TarError for one that leaves it."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".")]
    if ".." in parts:
        raise tarfile.TarError(f"a path that leaves the root: {name}")
    return "/".join(parts)


def merged(path: str) -> str:
    """Return `path` with the folders that are merged into /usr named there. Pure."""
    first, slash, _ = path.partition("/")
    return f"usr/{path}" if slash and first in MERGED else path


def every_file(tree: RootTree, visit: Callable[[str, Attributes], None]) -> None:
    """Call `visit` with the path and the attributes of each file of `tree`, the folder itself as ''."""
    default = Attributes(0, 0, stat.S_IFDIR | 0o755)
    visit("", default)
    for folder, folders, names in os.walk(tree.folder):
        base = os.path.relpath(folder, tree.folder)
        for name in [*folders, *names]:
            path = name if base == "." else f"{base}/{name}"
            found = tree.attributes.get(path)
            if found is None:
                mode = os.lstat(Path(folder, name)).st_mode
                found = default if stat.S_ISDIR(mode) else Attributes(0, 0, mode)
            visit(path, found)


def _field(fields: str, name: str) -> str:
    for line in fields.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def _status(fields: str, configuration_files: str) -> str:
    """Return a package's paragraph in dpkg's list: unpacked, and not yet configured."""
    first, _, rest = fields.strip().partition("\n")
    listed = f"Conffiles:\n{configuration_files}" if configuration_files else ""
    return f"{first}\nStatus: install ok unpacked\n{rest}\n{listed}\n"
