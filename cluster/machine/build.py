# SPDX-License-Identifier: GPL-2.0-or-later
"""Which build of coremesh this process runs, so that the nodes of a machine can be compared."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from coremesh.core.errors import PlatformError

_UNINSTALLED = "not installed"


@dataclass(frozen=True)
class Build:
    """A release and the SHA-256 of its native extension's file."""

    version: str
    extension: str

    def require(self, other: Build, node: str) -> None:
        """Raise :class:`PlatformError` if `node`, which runs `other`, cannot be a host beside this one."""
        if other != self:
            raise PlatformError(
                f"node {node} runs another build of coremesh ({other}) than this process ({self}). "
                "Install the same wheel on every node."
            )

    def __str__(self) -> str:
        return f"{self.version}, extension {self.extension[:12]}"


@functools.cache
def own_build() -> Build:
    """Return what this process runs. Raises :class:`PlatformError` if the extension is not built."""
    spec = importlib.util.find_spec("coremesh.core._native")
    if spec is None or spec.origin is None:
        raise PlatformError("coremesh's native engine is not installed. Build it with 'pip install .'.")
    with Path(spec.origin).open("rb") as file:
        extension = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        return Build(version("coremesh"), extension)
    except PackageNotFoundError:
        return Build(_UNINSTALLED, extension)
