# SPDX-License-Identifier: GPL-2.0-or-later
"""Formatting, lint and types of the whole tree: never discussed, always checked."""

import shutil
import subprocess
import sys
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


def test_given_the_package_when_mypy_reads_it_strictly_then_it_finds_nothing(tmp_path: Path) -> None:
    mypy = tool("mypy")
    import coremesh.core

    # The package as it is mapped at installation, with the extension's declared types beside the sources.
    package = tmp_path / "coremesh"
    for folder in ("core", "hw", "cluster"):
        shutil.copytree(ROOT / folder, package / folder, ignore=shutil.ignore_patterns("native", "guests"))
    installed = Path(coremesh.core.__path__[0])
    for declared in installed.glob("_native.pyi"):
        shutil.copy(declared, package / "core" / declared.name)
    (package / "__init__.py").write_text("")
    run([mypy, "--config-file", ROOT / "pyproject.toml", "--cache-dir", tmp_path / "cache", package])


def test_given_the_native_sources_when_clang_format_reads_them_then_it_changes_nothing() -> None:
    clang_format = tool("clang-format")
    files = [
        path
        for folder in (
            "core/native",
            "hw/native",
            "core/guests",
            "tests/unit/native",
            "tests/guest/baremetal",
        )
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".c", ".h", ".cpp", ".hpp"}
    ]
    run([clang_format, "--dry-run", "--Werror", *files])
