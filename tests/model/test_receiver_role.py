# SPDX-License-Identifier: GPL-2.0-or-later
"""The hand-over of the receiver's role as a Promela model: no frame is left lying, whichever thread receives.

Given a protocol thread, two threads that wait, and a host that sends to all of them, when spin has seen every
order of their steps, then each frame was handed on. Given one broken rule, then spin finds where it leads.
"""

from pathlib import Path

import pytest
from verifier import needs_spin, verify

pytestmark = needs_spin
MODEL = Path(__file__).with_name("receiver.pml")


def test_given_threads_that_receive_in_turn_when_spin_has_seen_every_order_then_no_frame_is_left(
    tmp_path: Path,
) -> None:
    errors, states = verify(MODEL, tmp_path)
    assert errors == 0
    assert states > 10_000


@pytest.mark.parametrize(
    "rule", ["NO_LOOK", "GIVE_FIRST", "NO_CLAIM", "NO_CLAIM_BY_BELL", "CHECK_EARLY", "NO_RECALL"]
)
def test_given_one_broken_rule_when_spin_looks_then_it_finds_a_frame_that_is_left(
    tmp_path: Path, rule: str
) -> None:
    errors, _ = verify(MODEL, tmp_path, f"-D{rule}")
    assert errors > 0
