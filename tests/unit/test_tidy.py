# SPDX-License-Identifier: GPL-2.0-or-later
"""What clang-tidy sees in our C++, with the checks of .clang-tidy."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("core/native", "hw/native")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with compile_commands.json; nothing is compiled."""
    if shutil.which("clang-tidy") is None:
        pytest.skip("this host has no clang-tidy: apt install clang-tidy")
    if importlib.util.find_spec("nanobind") is None:
        pytest.skip(
            "the build's own packages are not in this environment: pip install nanobind scikit-build-core"
        )
    folder = tmp_path_factory.mktemp("tidy")
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"
    subprocess.run(
        [
            cmake,
            "-S",
            ROOT,
            "-B",
            folder,
            "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
        ],
        check=True,
        capture_output=True,
    )
    return folder


def findings(commands: Path, files: list[Path]) -> str:
    tidy = ["clang-tidy", f"--config-file={ROOT}/.clang-tidy", "-p", str(commands), "--quiet"]
    done = subprocess.run([*tidy, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=False)
    return "\n".join(line for line in done.stdout.splitlines() if " error: " in line or " warning: " in line)


def test_given_a_fault_that_compilers_do_not_see_when_clang_tidy_reads_it_then_it_is_found(
    commands: Path,
) -> None:
    """The control: the checks are on, and the headers of the compiler are found."""
    table = commands / "compile_commands.json"
    entries = json.loads(table.read_text())
    model = next(entry for entry in entries if entry["file"].endswith("/base/clock.cpp"))
    file = commands / "control.cpp"
    file.write_text(
        "#include <string>\n#include <utility>\n"
        "std::string twice(std::string word) { std::string other = std::move(word); return other + word; }\n"
    )
    entry = {**model, "file": str(file), "command": model["command"].replace(model["file"], str(file))}
    table.write_text(json.dumps([*entries, entry]))
    assert "bugprone-use-after-move" in findings(commands, [file])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_given_the_cpp_sources_when_clang_tidy_reads_them_then_it_finds_nothing(commands: Path) -> None:
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.cpp"))
    parts = [files[start::16] for start in range(16)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = "".join(pool.map(lambda part: findings(commands, part), parts))
    assert not found, found
