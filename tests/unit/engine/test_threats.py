# SPDX-License-Identifier: GPL-2.0-or-later
"""Every claim of THREATS.md, what a guest can do to its host, names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
PAGE = TESTS.parent / "THREATS.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_given_the_page_of_threats_when_it_names_a_test_then_it_is_there() -> None:
    named = NAMED.findall(PAGE.read_text())
    assert len(named) > 20
    for file, test in named:
        source = TESTS / file
        assert source.is_file(), f"THREATS.md names {file}, which is not there"
        assert re.search(rf"^def {test}\(", source.read_text(), re.MULTILINE), f"{file} has no {test}"


def test_given_a_claim_when_it_says_that_a_guest_cannot_then_a_test_is_named() -> None:
    """In the sections of what it cannot do, each item but those of plain facts has one."""
    text = PAGE.read_text()
    section = text[text.index("## It cannot end") : text.index("## It cannot read")]
    items = section.split("\n- ")[1:]
    assert items
    for item in items:
        assert NAMED.search(item), f"no test is named for: {item}"
