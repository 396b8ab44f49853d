# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk images by their format, as a person names it."""

import os
from collections.abc import Callable
from functools import partial
from typing import Final

from coremesh.core.errors import DiskError
from coremesh.hw.backend.block import BlockBackend, RawImage
from coremesh.hw.backend.nbd import QEMU_FORMATS, NbdImage
from coremesh.hw.backend.overlay import Overlay

FORMATS: Final[dict[str, Callable[..., BlockBackend]]] = {
    "raw": RawImage,
    **{name: partial(NbdImage, image_format=name) for name in QEMU_FORMATS},
}
"""How to open an image of each format: called with the path and ``read_only``."""


def open_image(
    path: str | os.PathLike[str], image_format: str, *, read_only: bool, snapshot: bool = False
) -> BlockBackend:
    """Open a disk image of ``image_format``. Raises :class:`DiskError`.

    With ``snapshot`` the image itself is only read; what is written is lost with the backend.
    """
    opener = FORMATS.get(image_format)
    if opener is None:
        raise DiskError(f"no disk format {image_format!r}; there are {', '.join(FORMATS)}.")
    image = opener(path, read_only=read_only or snapshot)
    if not snapshot:
        return image
    try:
        return Overlay(image)
    except OSError as error:
        image.close()
        raise DiskError(
            f"no temporary file for what is written to {path} ({error.strerror}). Set TMPDIR to a "
            "folder with room."
        ) from error
