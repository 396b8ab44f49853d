# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds a verifier of a Promela model with spin and runs it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SPIN = shutil.which("spin")
COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_spin = [
    pytest.mark.timeout(900),  # seconds of work, on a host that has other work too
    pytest.mark.skipif(SPIN is None, reason="spin is not installed (apt install spin)"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler"),
]


def verify(model: Path, folder: Path, *defines: str) -> tuple[int, int]:
    """Builds a verifier and runs it: (errors, states). It must not end for want of depth or memory."""
    assert SPIN is not None and COMPILER is not None
    steps: list[list[str]] = [
        [SPIN, "-a", *defines, str(model)],
        [COMPILER, "-O1", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", "-DMEMLIM=4096", "-o", "pan", "pan.c"],
        ["./pan", "-m1000000"],
    ]
    output = ""
    for command in steps:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=800, check=False)
        output = done.stdout + done.stderr
        assert done.returncode == 0, output[-3000:]
    print(output)
    assert "max search depth too small" not in output
    errors = re.search(r"errors: (\d+)", output)
    states = re.search(r"(\d+) states, stored", output)
    assert errors and states, output[-3000:]
    if int(errors[1]) == 0:
        assert "Search not completed" not in output
    return int(errors[1]), int(states[1])
