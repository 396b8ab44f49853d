# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled protocol, built once a session."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import compiled_mesh


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The protocol's object files by the names of their sources."""
    if compiled_mesh.compiler() is None:
        pytest.skip("no C++ compiler")
    return compiled_mesh.compile_all(tmp_path_factory.mktemp("protocol"))


@pytest.fixture(scope="session")
def library(objects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The protocol as it is."""
    path = compiled_mesh.link(list(objects.values()), tmp_path_factory.mktemp("library") / "protocol.so")
    return compiled_mesh.open_library(path)
