# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of the page protocol as a Promela model: spin looks at every order of everything that may happen.

Given three hosts and a page, when spin has seen every state, then no host had an old copy, no two could
write, no write was lost or done twice, and at rest nobody waits. Given one broken rule, then spin finds where
it leads.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from verifier import needs_spin, verify

MODEL = Path(__file__).with_name("pages.pml")
pytestmark = needs_spin


def test_given_hosts_that_read_and_write_when_spin_has_seen_every_state_then_all_is_coherent(
    tmp_path: Path,
) -> None:
    errors, states = verify(MODEL, tmp_path)
    assert errors == 0
    assert states > 10_000


def test_given_operations_too_when_spin_has_seen_every_state_then_each_is_done_once(tmp_path: Path) -> None:
    errors, states = verify(MODEL, tmp_path, "-DRMW", "-DWRITES=1")
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
    errors, _ = verify(MODEL, tmp_path, *defines)
    assert errors == 1, f"not seen: {rule}"
