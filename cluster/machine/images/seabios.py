# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware of a machine that boots as a PC does: Debian's SeaBIOS, fetched once, verified at each use.

With it comes the firmware of a VGA card, by which boot loaders print on the screen (INT 10h).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from coremesh.cluster.machine.images import cache, packages
from coremesh.core.errors import ImageFetchError

_PACKAGE: Final = "seabios"
_IMAGE: Final = "bios-256k.bin"
_VGA_IMAGE: Final = "vgabios-isavga.bin"
_SPACE_NEEDED: Final = 120 << 20  # package lists above all, in bytes


def cached_seabios(name: str = _IMAGE) -> bytes | None:
    """Return an image in the cache after checking its hash, or None if there is none or it is damaged."""
    return cache.kept(_PACKAGE, name)


def fetch_seabios(*, progress: packages.Progress | None = None, source_list: Path | None = None) -> bytes:
    """Return Debian's SeaBIOS of 256 KiB, from the cache if it has it.

    `source_list` stands in for the system's apt sources. Any thread or process. Raises
    :class:`ImageFetchError`.
    """
    return _fetch(_IMAGE, progress, source_list)


def fetch_vga_bios(*, progress: packages.Progress | None = None, source_list: Path | None = None) -> bytes:
    """Return the firmware of a VGA card, an option ROM for SeaBIOS; as :func:`fetch_seabios`."""
    return _fetch(_VGA_IMAGE, progress, source_list)


def _fetch(name: str, progress: packages.Progress | None, source_list: Path | None) -> bytes:
    if (image := cached_seabios(name)) is not None:
        return image
    folder = cache.cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with cache.locked(folder / f"{_PACKAGE}.lock"):
            if (image := cached_seabios(name)) is not None:
                return image
            cache.sweep(folder, f"fetch-{_PACKAGE}-")
            cache.check_space(folder, _SPACE_NEEDED)
            with tempfile.TemporaryDirectory(prefix=f"fetch-{_PACKAGE}-", dir=folder) as work:
                images = _fetched(Path(work), progress or (lambda what, done: None), source_list)
                cache.keep(_PACKAGE, images, Path(work))
    except OSError as error:
        raise cache.fetch_error(error, folder) from error
    image = cached_seabios(name)
    if image is None:
        raise ImageFetchError(f"the firmware just written to {folder} does not read back. Check that disk.")
    return image


def _fetched(work: Path, report: packages.Progress, source_list: Path | None) -> dict[str, bytes]:
    apt_root = work / "apt"
    apt_root.mkdir()
    apt = packages.Apt(apt_root, source_list)
    apt.update(report)
    archive = apt.download(_PACKAGE, report)
    return {name: packages.extract(archive, rf"usr/share/seabios/{name}")[1] for name in (_IMAGE, _VGA_IMAGE)}
