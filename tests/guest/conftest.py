# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the guest tests: guests built once a session, and the machines to run them on."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from baremetal_machine import build_builtin_guest, build_guest
from coremesh.core._native import doctor


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the built guest of a theme; 'built-in' is the one of the package."""
    folder = tmp_path_factory.mktemp("guests")
    built: dict[str, Path] = {}

    def build(theme: str) -> Path:
        if theme not in built:
            built[theme] = build_builtin_guest(folder) if theme == "built-in" else build_guest(theme, folder)
        return built[theme]

    return build


@pytest.fixture(params=[1, 2, 4], ids=["1-vcpu", "2-vcpus", "4-vcpus"])
def vcpus(request: pytest.FixtureRequest) -> int:
    """Machines of one, two and four vCPUs."""
    return int(request.param)


@pytest.fixture(params=["userfaultfd", "mprotect"])
def protection(request: pytest.FixtureRequest) -> str:
    """Both ways of guarding translated code; skipped where the host refuses one."""
    way = str(request.param)
    if not doctor()[way]:
        pytest.skip(f"this host has no {way}")
    return way
