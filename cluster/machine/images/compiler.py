# SPDX-License-Identifier: GPL-2.0-or-later
"""A C compiler for guests without one: Debian's tcc and its libraries, fetched once, verified at each use."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from coremesh.cluster.machine.images import cache, packages
from coremesh.cluster.machine.images.initramfs import Entry, pack
from coremesh.core.errors import ImageFetchError

#: In the guest. The program is started by the loader beside it, which finds the libraries there.
FOLDER: Final = "coremesh-tcc"
COMMAND: Final = f"/{FOLDER}/ld.so --library-path /{FOLDER} /{FOLDER}/tcc"

_KEPT: Final = "tcc"
_ARCHIVE: Final = "tcc.cpio"
_SPACE_NEEDED: Final = 120 << 20  # package lists above all, in bytes
_LIBRARIES: Final = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0")


def fetch_compiler(*, progress: packages.Progress | None = None, source_list: Path | None = None) -> bytes:
    """Return an initramfs with tcc alone, to follow another one; from the cache if it has it.

    `source_list` stands in for the system's apt sources. Any thread or process. Raises
    :class:`ImageFetchError`.
    """
    if (archive := cache.kept(_KEPT, _ARCHIVE)) is not None:
        return archive
    folder = cache.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with cache.locked(folder / f"{_KEPT}.lock"):
            if (archive := cache.kept(_KEPT, _ARCHIVE)) is not None:
                return archive
            cache.sweep(folder, f"fetch-{_KEPT}-")
            cache.check_space(folder, _SPACE_NEEDED)
            with tempfile.TemporaryDirectory(prefix=f"fetch-{_KEPT}-", dir=folder) as work:
                data = _archive(Path(work), progress or (lambda what, done: None), source_list)
                cache.keep(_KEPT, {_ARCHIVE: data}, Path(work))
    except OSError as error:
        raise cache.fetch_error(error, folder) from error
    archive = cache.kept(_KEPT, _ARCHIVE)
    if archive is None:
        raise ImageFetchError(f"the compiler just written to {folder} does not read back. Check that disk.")
    return archive


def _archive(work: Path, report: packages.Progress, source_list: Path | None) -> bytes:
    apt_root = work / "apt"
    apt_root.mkdir()
    apt = packages.Apt(apt_root, source_list)
    apt.update(report)
    _, compiler = packages.extract(apt.download("tcc", report), r"usr/bin/tcc")
    library = apt.download("libc6", report)
    entries = [Entry.directory(FOLDER), Entry.file(f"{FOLDER}/tcc", compiler, 0o755)]
    for name, kept in (("ld-linux-x86-64.so.2", "ld.so"), *((name, name) for name in _LIBRARIES)):
        _, data = packages.extract(library, rf"(usr/)?lib/x86_64-linux-gnu/{name}")
        entries.append(Entry.file(f"{FOLDER}/{kept}", data, 0o755))
    return pack(entries)
