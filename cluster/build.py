# SPDX-License-Identifier: GPL-2.0-or-later
"""Which build of the native extension this process runs, so that the nodes of a machine can be compared."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from pathlib import Path

from coremesh.core.errors import PlatformError


@functools.cache
def extension_hash() -> str:
    """Return the SHA-256 of the native extension's file. Raises :class:`PlatformError` if it is not built."""
    spec = importlib.util.find_spec("coremesh.core._native")
    if spec is None or spec.origin is None:
        raise PlatformError("coremesh's native engine is not installed. Build it with 'pip install .'.")
    with Path(spec.origin).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
