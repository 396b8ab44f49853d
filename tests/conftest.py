# SPDX-License-Identifier: GPL-2.0-or-later
"""What several folders of tests start from: bare-metal guests, built once a session, and a disk."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "guest"))


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the built guest of a theme; 'built-in' is the one of the package."""
    from baremetal_machine import build_builtin_guest, build_guest

    folder = tmp_path_factory.mktemp("guests")
    built: dict[str, Path] = {}

    def build(theme: str) -> Path:
        if theme not in built:
            built[theme] = build_builtin_guest(folder) if theme == "built-in" else build_guest(theme, folder)
        return built[theme]

    return build


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An ext4 file system, made and later checked by the host's own tools."""
    if shutil.which("mkfs.ext4") is None or shutil.which("e2fsck") is None:
        pytest.skip("this host has no mkfs.ext4 and e2fsck: apt install e2fsprogs")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    return path
