# SPDX-License-Identifier: GPL-2.0-or-later
"""The protocol with one mistake: the schedules that the real one passes must find it.

Given a copy of one source file in which a rule is broken, when it is built with the rest and the schedules
run, then a stale read, two writers, a lost addition or somebody who waits for ever is seen.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import compiled_mesh
import pytest
from test_schedules import explore, write_two_pages_in_step

#: name: (file, the rule as it is written, the mistake)
MUTANTS = {
    "the owner sends the page and keeps it": (
        "agent_orders.cpp",
        "lose(page, Access::kNone, now_us, out);\n        answer.kind = Kind::kDataM;",
        "answer.kind = Kind::kDataM;",
    ),
    "the owner gives a copy and still writes": (
        "agent_orders.cpp",
        "if (access_.get(page) == Access::kWrite) lose(page, Access::kRead, now_us, out);",
        "",
    ),
    "a sharer acknowledges and still reads": (
        "agent_orders.cpp",
        "lose(page, Access::kNone, now_us, out);\n        answer.kind = Kind::kInvAck;",
        "answer.kind = Kind::kInvAck;",
    ),
    "a writer does not wait for acknowledgements": (
        "agent.cpp",
        "(slot.acknowledged & slot.expected) != slot.expected",
        "false",
    ),
    "acknowledgements that come before the bytes are forgotten": (
        "agent.cpp",
        "if (slot->acknowledging < message.serial) slot->acknowledged = 0;",
        "slot->acknowledged = 0;",
    ),
    "an operation that was executed far away is executed here too": (
        "agent.cpp",
        "complete(message.page, message.ticket, Outcome::kValue, message.value, out);",
        "complete(message.page, message.ticket, Outcome::kRetry, message.value, out);",
    ),
    "an upgrade that has lost is granted without the bytes": (
        "directory.cpp",
        "if ((page.sharers & bit(requester)) != 0) {",
        "if (true) {",
    ),
    "the home forgets the new reader": (
        "directory.cpp",
        "page.sharers = readers(page) | bit(requester);",
        "page.sharers = readers(page);",
    ),
    "the home serves the next before the last has ended": (
        "directory.cpp",
        "if (page.active != 0) {\n        ++counters_.home_queued;",
        "if (false) {\n        ++counters_.home_queued;",
    ),
    "the home sends an operation to a page that nobody owns": (
        "directory.cpp",
        "if (owned(page) && policy_ != Policy::kNever) {",
        "if (policy_ != Policy::kNever) {",
    ),
    "the home forgets to invalidate": (
        "directory.cpp",
        "order(Kind::kInv, static_cast<HostId>(std::countr_zero(rest)), request, 0, out);",
        "continue;",
    ),
    "the home ends a transaction while others still have to acknowledge": (
        "agent_orders.cpp",
        "if (settles(homes_.of(page) == outbox_.self(), answer.sharers)) {",
        "if (homes_.of(page) == outbox_.self()) {",
    ),
    "the home ends a transaction that another host has to answer": (
        "directory.cpp",
        "order(Kind::kFwdM, from, request, others, out);",
        "order(Kind::kFwdM, from, request, others, out), end(request, out);",
    ),
    "an order is put off and no timer set": (
        "agent_orders.cpp",
        "return set_timer(message.page, hold_left(entry, now_us), out);",
        "return;",
    ),
}


def build_mutant(file: str, rule: str, mistake: str, objects: dict[str, Path], folder: Path) -> ctypes.CDLL:
    """The protocol with one rule replaced. The rule must be there, once."""
    text = (compiled_mesh.NATIVE / "coherence" / file).read_text()
    assert text.count(rule) == 1, f"{file} no longer has the rule that this mutant breaks"
    mutant = folder / file
    mutant.write_text(text.replace(rule, mistake))
    changed = objects | {file: compiled_mesh.compile_one(mutant, folder / f"{mutant.stem}.o")}
    return compiled_mesh.open_library(compiled_mesh.link(list(changed.values()), folder / "mutant.so"))


@pytest.mark.parametrize("name", MUTANTS)
def test_given_a_broken_rule_when_schedules_run_then_it_is_seen(
    name: str, objects: dict[str, Path], tmp_path: Path
) -> None:
    library = build_mutant(*MUTANTS[name], objects, tmp_path)
    with pytest.raises(compiled_mesh.Broken):
        explore(library, 40)


def test_given_no_cure_for_two_pages_when_two_hosts_need_both_then_neither_gets_on(
    objects: dict[str, Path], tmp_path: Path
) -> None:
    rule, mistake = "kStuckStreak = 8;", "kStuckStreak = 255;"
    library = build_mutant("agent_orders.cpp", rule, mistake, objects, tmp_path)
    assert max(write_two_pages_in_step(library)) < 10
