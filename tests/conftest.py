# SPDX-License-Identifier: GPL-2.0-or-later
"""What several folders of tests start from: bare-metal guests, built once a session."""

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
