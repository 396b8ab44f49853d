# SPDX-License-Identifier: GPL-2.0-or-later
"""Formatting, lint and types of the whole tree: never discussed, always checked."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON_FOLDERS = ("core", "hw", "cluster", "tests", "deploy")


def run(command: list[str | Path], **more: object) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **more,  # type: ignore[call-overload]
    )
    if done.returncode != 0:
        pytest.fail(f"{command[0]}: {done.stdout[-4000:]}{done.stderr[-2000:]}", pytrace=False)


def tool(name: str) -> str:
    """The tool beside this Python; the test extra installs it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed; the test extra has it")
    return found


def test_given_the_tree_when_ruff_reads_it_then_it_finds_nothing() -> None:
    ruff = tool("ruff")
    run([ruff, "check", "--no-cache", *PYTHON_FOLDERS])
    run([ruff, "format", "--no-cache", "--check", *PYTHON_FOLDERS])


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is mapped at installation, with the extension's declared types beside the sources."""
    import coremesh.core

    folder = tmp_path_factory.mktemp("types")
    package = folder / "coremesh"
    for part in ("core", "hw", "cluster"):
        shutil.copytree(ROOT / part, package / part, ignore=shutil.ignore_patterns("native", "guests"))
    installed = Path(coremesh.core.__path__[0])
    for declared in installed.glob("_native.pyi"):
        shutil.copy(declared, package / "core" / declared.name)
    shutil.copy(ROOT / "cluster" / "api.py", package / "__init__.py")
    return folder


def mypy(packages: Path, checked: Path) -> None:
    """Check with ``mypy --strict``, as pyproject.toml says it."""
    path = os.pathsep.join([str(packages), str(checked), str(ROOT / "typing")])
    environment = {**os.environ, "MYPYPATH": path}
    command: list[str | Path] = [
        tool("mypy"),
        "--config-file",
        ROOT / "pyproject.toml",
        "--cache-dir",
        packages / "cache",
    ]
    run([*command, checked], env=environment)


def test_given_the_package_when_mypy_reads_it_strictly_then_it_finds_nothing(packages: Path) -> None:
    mypy(packages, packages / "coremesh")


def test_given_the_tests_when_mypy_reads_them_strictly_then_it_finds_nothing(
    packages: Path, tmp_path: Path
) -> None:
    """Tests import each other by name, so they are read from one folder, without names that come twice."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    names = Counter(file.name for file in files)
    for file in files:
        parts = file.relative_to(ROOT / "tests").parts
        shutil.copy(file, tmp_path / (file.name if names[file.name] == 1 else "_".join(parts)))
    mypy(packages, tmp_path)


def test_given_the_native_sources_when_clang_format_reads_them_then_it_changes_nothing() -> None:
    clang_format = tool("clang-format")
    files = [
        path
        for folder in (
            "core/native",
            "hw/native",
            "core/guests",
            "tests",
        )
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".c", ".h", ".cpp", ".hpp"}
    ]
    run([clang_format, "--dry-run", "--Werror", *files])
