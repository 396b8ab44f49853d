# SPDX-License-Identifier: GPL-2.0-or-later
"""The user's cache of fetched images: folders that appear by one rename, under a lock between processes.

It lives in ``$COREMESH_CACHE``, else in the platform's user cache directory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from coremesh.core.errors import ConfigurationError, ImageFetchError, shown

_SUM = ".sha256"  # behind the name of a kept file: the file beside it


def cache_folder() -> Path:
    """Return the folder that holds fetched images; it need not exist."""
    chosen = os.environ.get("COREMESH_CACHE")
    try:
        return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("coremesh"))
    except RuntimeError as error:  # ~user, and no such user
        raise ConfigurationError(
            f"COREMESH_CACHE is {shown(chosen)}, which names no folder ({error})."
        ) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file `path`, which other processes wait for."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def exchange(fresh: Path, place: Path) -> None:
    """Put the folder `fresh` at `place`, by one rename; what was there moves beside `fresh`."""
    if place.exists():
        place.rename(fresh.with_name("old"))
    fresh.rename(place)


def sweep(folder: Path, prefix: str) -> None:
    """Remove what killed fetches left behind; the caller holds the lock that says none is at work."""
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError unless `needed` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free >> 20} MiB free, {needed >> 20} MiB needed")


def fetch_error(error: OSError, cache: Path) -> ImageFetchError:
    """Return what a person is to be told of a cache that cannot be used."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f"no room in the image cache {cache} ({error.strerror})"
    else:
        what = f"the image cache {cache} cannot be used ({error.strerror})"
    return ImageFetchError(f"{what}. Set COREMESH_CACHE to a folder on another disk, or give --kernel FILE.")


def write(path: Path, data: bytes) -> str:
    """Write through to the disk, so that a rename never publishes a file that a power cut would empty.

    Returns the SHA-256 of `data`.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def kept(name: str, file: str) -> bytes | None:
    """Return a `file` of the folder `name` after checking its hash; else None."""
    folder = cache_folder() / name
    try:
        data, total = (folder / file).read_bytes(), (folder / f"{file}{_SUM}").read_text().strip()
        return data if hashlib.sha256(data).hexdigest() == total else None
    except OSError:
        return None


def keep(name: str, files: Mapping[str, bytes], work: Path) -> None:
    """Make the folder `name` with these files, by way of `work`, a folder in the cache; under its lock."""
    made = work / "image"
    made.mkdir()
    for file, data in files.items():
        total = write(made / file, data)
        write(made / f"{file}{_SUM}", f"{total}\n".encode())
    exchange(made, cache_folder() / name)


def sync(path: Path) -> None:
    """Return when a file's data are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
