# SPDX-License-Identifier: GPL-2.0-or-later
"""Each counter is declared once, grows somewhere, and is what its page says.

tests/guest/mesh/test_counters.py looks at those of a machine of several hosts.
"""

import re
from collections import Counter as Count
from pathlib import Path

from coremesh.core import counters
from raw_host import SPIN, raw_host

NATIVE = Path(__file__).parents[3] / "core/native"


def test_given_the_declarations_when_the_page_is_made_then_it_is_the_one_beside_the_sources() -> None:
    """``python -m coremesh.core.counters > core/native/COUNTERS.md`` makes it anew."""
    assert counters.page() == (NATIVE / "COUNTERS.md").read_text()


def test_given_the_declarations_when_they_are_read_then_each_name_is_there_once_and_says_what_it_is() -> None:
    declared = counters.counters()
    names = Count((counter.place, counter.name) for counter in declared)
    assert [name for name, times in names.items() if times > 1] == []
    assert [counter.name for counter in declared if not counter.text] == []


def test_given_the_native_sources_when_they_are_read_then_every_declared_counter_grows_somewhere() -> None:
    """A row whose name is never counted would be a promise; two of the engine's were."""
    sources = [path.read_text() for path in NATIVE.rglob("*") if path.suffix in {".c", ".h", ".cpp", ".hpp"}]
    text = "\n".join(sources)
    rows = set(re.findall(r"^    X\((\w+), \"", text, re.MULTILINE))
    assert len(rows) > 60
    sized = {f"atomics_{size}" for size in (1, 2, 4, 8, 16)}  # by the logarithm of the size: atomics.c
    ways = (
        r"\+\+\(?[^;]*\b{0}\b", r"\b{0}\+\+", r"\b{0} \+?= ", r"\b{0}\.(fetch_add|store)\(",
        r"add\([\w.\[\]()]*\b{0}\b", r"\b{0}\)\.fetch_add", r"([:?]|return) counters_\.{0}\b",
    )  # fmt: skip
    counted = {name for name in rows if any(re.search(way.format(name), text) for way in ways)}
    assert rows - counted == sized


def test_given_a_machine_of_one_host_when_it_is_asked_then_it_gives_what_was_declared_and_nothing_else() -> (
    None
):
    host = raw_host(SPIN)
    try:
        for place, given in (("stats", host.stats()[0]), ("code_counters", host.code_counters())):
            assert set(given) == {counter.name for counter in counters.counters() if counter.place == place}
        assert host.mesh_stats() == {}
    finally:
        host.stop()
