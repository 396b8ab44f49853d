# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest SSE on host SSE against the bare host: values, MXCSR, exceptions, and every wrap reached."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
WRAPS = REPOSITORY / "core/native/tcg/x86/float.wraps"
ROWS = 3000

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other hosts keep the engine's own helpers"
)


def _tool(name: str) -> str | None:
    """The tool that was installed beside this Python, or the system's."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _engine() -> dict[str, Path] | None:
    """The engine's source and its build: from the environment, or the latest build tree of the package."""
    names = ("UNICORN_SOURCE_DIR", "UNICORN_BUILD_DIR")
    if all(name in os.environ for name in names):
        return {name: Path(os.environ[name]) for name in names}
    trees = REPOSITORY.glob("build/*/unicorn-build/libunicorn.a")
    for library in sorted(trees, key=lambda path: path.stat().st_mtime, reverse=True):
        build = library.parent
        for source in build.parent.glob("unicorn-*/src"):
            return dict(zip(names, (source, build), strict=True))
    return None


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built test programs."""
    engine = _engine()
    if engine is None:
        pytest.skip(
            "the package's build tree is not in build/: install the package from this folder, or set "
            "UNICORN_SOURCE_DIR and UNICORN_BUILD_DIR"
        )
    cmake = _tool("cmake")
    if cmake is None:
        pytest.fail("no cmake found; pip install 'coremesh[test]' brings one", pytrace=False)
    build = tmp_path_factory.mktemp("float")
    configure: list[str | Path] = [cmake, "-S", Path(__file__).parent / "float", "-B", build]
    if ninja := _tool("ninja"):
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    subprocess.run([*configure, *(f"-D{name}={path}" for name, path in engine.items())], check=True)
    subprocess.run([cmake, "--build", build], check=True)
    return build


def _rows(program: Path) -> dict[str, Any]:
    done = subprocess.run([program, "check", str(ROWS)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="session")
def rows(programs: Path) -> dict[str, Any]:
    return _rows(programs / "float_rows")


@pytest.fixture(scope="session")
def state(programs: Path) -> list[str]:
    done = subprocess.run([programs / "float_state"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


def test_given_any_values_and_controls_when_run_in_the_engine_then_the_guest_sees_what_the_host_gives(
    rows: dict[str, Any],
) -> None:
    """NaNs, denormals, limits; all roundings, FZ, DAZ, masks: registers, MXCSR and #XM are the host's."""
    assert rows["instructions"] > 220
    assert rows["raised"] > 0, "no row reached an unmasked exception"
    found = {name: rows[name] for name in ("differing", "values", "flags", "exceptions", "misplaced")}
    assert found == {"differing": {}, "values": 0, "flags": 0, "exceptions": 0, "misplaced": 0}


def test_given_the_engines_own_helpers_when_compared_then_the_rows_differ(
    programs: Path,
) -> None:
    """The control: the comparison fails without the replacements, in values, in flags and in exceptions."""
    alone = _rows(programs / "float_rows_engine")
    assert alone["values"] > 0
    assert alone["flags"] > 0
    assert alone["exceptions"] > 0


def test_given_sticky_flags_when_the_guest_or_the_machine_looks_then_they_are_there_and_only_the_guests(
    state: list[str],
) -> None:
    """STMXCSR and XSAVE merge; loads drop; reserved bits fault; host arithmetic leaves no trace."""
    stories = [line for line in state if not line.startswith("hit: ")]
    assert len(stories) > 20
    assert [story for story in stories if not story.startswith("ok: ")] == []


def test_given_the_list_of_wraps_when_both_programs_ran_then_each_was_hit(
    rows: dict[str, Any], state: list[str]
) -> None:
    """A wrap of a name that the engine does not call links silently and catches nothing."""
    hit = {name for name, was_hit in rows["hit"] if was_hit} | {
        line.removeprefix("hit: ") for line in state if line.startswith("hit: ")
    }
    listed = {name.removesuffix("_x86_64") for name in WRAPS.read_text().split()}
    assert listed - hit == set()
    assert hit - listed == set()
