# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware of a machine that boots as a PC does: Debian's SeaBIOS, fetched once, verified at each use."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Final

from coremesh.cluster.machine.images import cache, packages
from coremesh.core.errors import ImageFetchError

_PACKAGE: Final = "seabios"
_IMAGE: Final = "bios-256k.bin"
_SUM: Final = "sha256"
_SPACE_NEEDED: Final = 120 << 20  # package lists above all, in bytes


def cached_seabios() -> bytes | None:
    """Return the image in the cache after checking its hash, or None if there is none or it is damaged."""
    folder = cache.cache_folder() / _PACKAGE
    try:
        image = (folder / _IMAGE).read_bytes()
        return image if hashlib.sha256(image).hexdigest() == (folder / _SUM).read_text().strip() else None
    except OSError:
        return None


def fetch_seabios(*, progress: packages.Progress | None = None, source_list: Path | None = None) -> bytes:
    """Return Debian's SeaBIOS of 256 KiB, from the cache if it has it.

    `source_list` stands in for the system's apt sources. Any thread or process. Raises
    :class:`ImageFetchError`.
    """
    if (image := cached_seabios()) is not None:
        return image
    folder = cache.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with cache.locked(folder / f"{_PACKAGE}.lock"):
            if (image := cached_seabios()) is not None:
                return image
            cache.sweep(folder, f"fetch-{_PACKAGE}-")
            cache.check_space(folder, _SPACE_NEEDED)
            with tempfile.TemporaryDirectory(prefix=f"fetch-{_PACKAGE}-", dir=folder) as work:
                _fill(Path(work), progress or (lambda what, done: None), source_list)
                cache.exchange(Path(work) / "image", folder / _PACKAGE)
    except OSError as error:
        raise cache.fetch_error(error, folder) from error
    image = cached_seabios()
    if image is None:
        raise ImageFetchError(f"the firmware just written to {folder} does not read back. Check that disk.")
    return image


def _fill(work: Path, report: packages.Progress, source_list: Path | None) -> None:
    apt_root = work / "apt"
    apt_root.mkdir()
    apt = packages.Apt(apt_root, source_list)
    apt.update(report)
    _, image = packages.extract(apt.download(_PACKAGE, report), rf"usr/share/seabios/{_IMAGE}")
    made = work / "image"
    made.mkdir()
    total = cache.write(made / _IMAGE, image)
    cache.write(made / _SUM, f"{total}\n".encode())
