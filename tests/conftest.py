# SPDX-License-Identifier: GPL-2.0-or-later
"""What several folders of tests start from: bare-metal guests, built once a session, and a disk.

And how `pytest -n 2` shares them among its processes: most wait, so that two get done what one core would.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

# Stories that start Ray, or look for all that is left of a machine: one after the other, in one process.
BY_THEMSELVES = ("tests/cluster/", "tests/netns/", "tests/fresh/")

sys.path.append(str(Path(__file__).parent / "guest"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "LoadScopeScheduling":
    """A file's stories share what its fixtures have made, so a process takes a file as a whole."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "" if nodeid.startswith(BY_THEMSELVES) else nodeid.split("::", 1)[0]

    return ByFile(config, log)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes in a story's name can differ from one process to the next (gzip's have the time in them).

    Then the processes do not agree on what there is to run, and nothing runs.
    """
    return argname if isinstance(val, bytes) else None


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
