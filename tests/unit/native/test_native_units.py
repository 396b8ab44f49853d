# SPDX-License-Identifier: GPL-2.0-or-later
"""The native parts that need no engine: built as plain programs, and again under ThreadSanitizer.

Given the sources of the local APIC, the timers and the memory protocol, when their test programs are built
with the system's compiler, then every story in them ends well, and no schedule that was tried holds a race.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coremesh.core.links.tcp import loaded_libsodium

# The first story of a variant waits for its build, which a busy machine takes minutes for.
pytestmark = pytest.mark.timeout(900)

SOURCE = Path(__file__).parent
VARIANTS = ("plain", "thread")
PROGRAMS = re.findall(r"^coremesh_native_test\((\w+)", (SOURCE / "CMakeLists.txt").read_text(), re.MULTILINE)


def find_tool(name: str) -> str | None:
    """The tool that was installed beside this Python, or the system's."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def run(command: list[str | Path], timeout: float) -> None:
    """Runs a command; its output is the failure's message."""
    environment = os.environ | {
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66 second_deadlock_stack=1",
        "COREMESH_LIBSODIUM": loaded_libsodium(),
    }
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"{command[0]} ended with status {done.returncode}\n{done.stdout[-8000:]}", pytrace=False)
    print(done.stdout)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The folder of one variant's programs, built once a session."""
    variant: str = request.param
    cmake = find_tool("cmake")
    if cmake is None:
        pytest.fail("no cmake found; pip install 'coremesh[test]' brings one", pytrace=False)
    folder = tmp_path_factory.mktemp(f"native-{variant}")
    configure: list[str | Path] = [cmake, "-S", SOURCE, "-B", folder]
    if variant != "plain":
        configure.append(f"-DSANITIZE={variant}")
    if ninja := find_tool("ninja"):
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run(configure, timeout=60)
    run([cmake, "--build", folder, "--parallel", "2"], timeout=800)
    return folder


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("built", VARIANTS, indirect=True)
def test_every_story_of_the_program_ends_well(built: Path, program: str) -> None:
    run([built / program], timeout=120)
