# SPDX-License-Identifier: GPL-2.0-or-later
"""The hostile-guest tests import their neighbours; one builds the extension under AddressSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import coremesh.core
import pytest

sys.path.append(str(Path(__file__).parent))

REPOSITORY = Path(__file__).parents[2]


def _tool(name: str) -> str:
    """The tool that was installed beside this Python, or the system's."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(scope="session")
def address_sanitizer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python whose ``coremesh`` has our native code under AddressSanitizer.

    Built in build/asan, where later runs find it; COREMESH_ASAN_BUILD names another folder.
    """
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("gcc has no AddressSanitizer here")
    folder = Path(os.environ.get("COREMESH_ASAN_BUILD", REPOSITORY / "build" / "asan"))
    cmake = _tool("cmake")
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(
        [cmake, "-S", REPOSITORY, "-B", folder, *options, "-DCOREMESH_SANITIZE=address"], check=True
    )
    subprocess.run([cmake, "--build", folder, "--parallel", "2", "--target", "_native"], check=True)
    package = tmp_path_factory.mktemp("asan") / "coremesh"
    installed = Path(coremesh.core.__path__[0]).parent
    leave_out = shutil.ignore_patterns("_native*.so", "native", "__pycache__")
    for part in ("core", "hw", "cluster"):
        shutil.copytree(installed / part, package / part, ignore=leave_out)
    shutil.copy(installed / "__init__.py", package)
    for module in (folder / "core" / "native").glob("_native*.so"):
        shutil.copy(module, package / "core")
    # Faults on guest memory are ours to handle; the interpreter's own leaks are not looked at.
    quiet = "detect_leaks=0:handle_segv=0:handle_sigbus=0:allow_user_segv_handler=1:use_sigaltstack=0"
    return os.environ | {
        "PYTHONPATH": str(package.parent),
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": quiet,
    }
