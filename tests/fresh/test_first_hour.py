# SPDX-License-Identifier: GPL-2.0-or-later
"""The README's commands on a bare Debian: minutes for each release, so with -m slow."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import first_hour
from debian_root import RELEASES, unavailable

REPOSITORY = Path(__file__).parents[2]


def bare_system(test: Callable[..., None]) -> Callable[..., None]:
    """A test that makes a system: slow, and skipped with the reason where none can be made."""
    reason = unavailable()
    marks = (
        pytest.mark.slow,
        pytest.mark.timeout(3600),
        pytest.mark.skipif(bool(reason), reason=str(reason)),
    )
    for mark in marks:
        test = mark(test)
    return test


def hour(release: str, folder: Path, *words: str) -> None:
    options = first_hour.parse(["--release", release, "--folder", str(folder), *words])
    first_hour.first_hour(release, options)
    assert list(folder.iterdir()) == [], "the root was left behind"


@bare_system
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("user", ["root", "sudo"])
def test_given_a_bare_debian_when_the_readme_is_followed_then_guests_boot_and_tests_pass(
    release: str, user: str, tmp_path: Path
) -> None:
    hour(release, tmp_path, *(["--sudo"] if user == "sudo" else []))


@bare_system
def test_given_a_bare_debian_without_a_compiler_when_the_wheel_is_installed_then_guests_boot(
    tmp_path: Path,
) -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the oldest release that is supported has Python 3.11, and the wheel is for the one here")
    subprocess.run([REPOSITORY / "deploy/wheel", sys.executable], check=True)
    [*_, wheel] = sorted((REPOSITORY / "dist").glob("*-cp311-cp311-manylinux*.whl"))
    hour("bookworm", tmp_path, "--wheel", str(wheel))


def test_given_the_readmes_when_they_are_read_then_the_commands_of_the_first_hour_are_there() -> None:
    boot, test = first_hour.readme_commands((REPOSITORY / "README.md").read_text())
    assert boot.startswith("deploy/setup &&")
    assert test.startswith("deploy/setup test &&")
    assert ".venv/bin/pip install" in first_hour.wheel_command((REPOSITORY / "deploy/README.md").read_text())


def test_given_a_readme_without_them_when_it_is_read_then_that_is_the_error() -> None:
    with pytest.raises(first_hour.StepError, match=r"README\.md"):
        first_hour.readme_commands("# Coremesh\n\n    pip install coremesh\n")
