# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of the page protocol as a Promela model: spin looks at every order of everything that may happen.

Given three hosts and a page, when spin has seen every state, then no host had an old copy, no two could
write, no write was lost or done twice, and at rest nobody waits. Given one broken rule, then spin finds where
it leads.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("pages.pml")

SPIN = shutil.which("spin")
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.timeout(900),  # seconds of work, on a host that has other work too
    pytest.mark.skipif(SPIN is None, reason="spin is not installed (apt install spin)"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler"),
]


def verify(folder: Path, *defines: str, model: Path = MODEL) -> tuple[int, int]:
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


def test_given_hosts_that_read_and_write_when_spin_has_seen_every_state_then_all_is_coherent(
    tmp_path: Path,
) -> None:
    errors, states = verify(tmp_path)
    assert errors == 0
    assert states > 10_000


def test_given_operations_too_when_spin_has_seen_every_state_then_each_is_done_once(tmp_path: Path) -> None:
    errors, states = verify(tmp_path, "-DRMW", "-DWRITES=1")
    assert errors == 0
    assert states > 10_000


@pytest.mark.parametrize(
    ("rule", "defines"),
    [
        ("a writer does not wait for acknowledgements", ("-DBROKEN=1",)),
        ("an owner keeps what it sends", ("-DBROKEN=2",)),
        ("an upgrade that has lost is granted all the same", ("-DBROKEN=3",)),
        ("the home does not wait for Done", ("-DBROKEN=4",)),
        ("an operation is executed at the owner and here", ("-DBROKEN=5", "-DRMW", "-DWRITES=1")),
        ("the home ends what others still acknowledge", ("-DBROKEN=6",)),
    ],
)
def test_given_a_broken_rule_when_spin_looks_then_it_finds_where_it_leads(
    tmp_path: Path, rule: str, defines: tuple[str, ...]
) -> None:
    errors, _ = verify(tmp_path, *defines)
    assert errors == 1, f"not seen: {rule}"
