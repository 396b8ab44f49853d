# SPDX-License-Identifier: GPL-2.0-or-later
"""The traps of the engine: each has a cure in our sources and a test that fails without it. See TRAPS.md."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from raw_host import CLI_HLT, FLAT_CODE, HLT, SPIN, raw_host, until, until_halted

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "core" / "native" / "tcg" / "TRAPS.md"
ANOTHER_ARCHITECTURE = {10}


@dataclass
class Trap:
    """A section of TRAPS.md: our files, and the (file, word of the test's name) of its tests."""

    sources: list[str]
    tests: list[tuple[str, str]]


def traps(page: str) -> dict[int, Trap]:
    """The sections of the page by their numbers."""
    found = {}
    for section in re.split(r"^## U", page, flags=re.MULTILINE)[1:]:
        number, text = section.split("\n", 1)
        here = re.search(r"^- here: (.*)$", text, re.MULTILINE)
        tests = re.search(r"^- test: ((?:.|\n)*)", text, re.MULTILINE)
        found[int(number)] = Trap(
            re.findall(r"`([\w.]+)`", here[1]) if here else [],
            re.findall(r"`([\w/.]+)`(?: \((\w+)\))?", tests[1]) if tests else [],
        )
    return found


def faults(page: str) -> list[str]:
    """What the page says that is not so."""
    rows = traps(page)
    listed = {int(number) for number in re.findall(r"^\| U(\d+) \|", page, re.MULTILINE)}
    wrong = (
        [] if listed == set(rows) == set(range(1, len(rows) + 1)) else ["the list and the sections differ"]
    )
    sources = {path.name for path in (ROOT / "core").rglob("*") if path.suffix in {".c", ".cpp", ".py"}}
    for number, trap in rows.items():
        if number in ANOTHER_ARCHITECTURE:
            continue
        wrong += [f"U{number} has no cure"] * (not trap.sources) + [f"U{number} has no test"] * (
            not trap.tests
        )
        wrong += [f"U{number}: there is no {source}" for source in trap.sources if source not in sources]
        for file, word in trap.tests:
            path = ROOT / file
            if not path.is_file() or word not in path.read_text():
                wrong.append(f"U{number}: {file} has no {word!r}")
    return wrong


def test_given_the_page_of_traps_when_it_is_read_then_each_has_a_cure_and_a_test_that_are_there() -> None:
    assert faults(PAGE.read_text()) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("`translate.c`", "`translation.c`"),
        ("(hammer)", "(hammered)"),
        ("## U7\n", "## U77\n"),
        ("- test:", "- no:"),
    ],
)
def test_given_a_page_that_names_what_is_not_there_when_it_is_read_then_that_is_found(
    before: str, after: str
) -> None:
    """Controls: a file, a test and a section that do not exist, and a trap without a test."""
    page = PAGE.read_text()
    assert before in page
    assert faults(page.replace(before, after))


def test_given_our_sources_when_they_name_a_trap_then_the_page_has_it() -> None:
    known = set(traps(PAGE.read_text()))
    for path in (ROOT / "core" / "native").rglob("*.[ch]*"):
        named = {int(number) for number in re.findall(r"\(U(\d+)[,)]", path.read_text())}
        assert named <= known, path


def test_given_code_that_reads_nothing_when_it_runs_for_long_then_it_is_translated_once() -> None:
    """U4, U5, U12, U13: no helper call and no slow path in the loop; the block count stays as it is."""
    host = raw_host(b"\xa3\x00\x50\x00\x00" + b"\xeb\xf9")  # mov [5000h], eax; jmp back
    host.start()
    until(lambda: int(host.stats()[0]["translations"]) > 0, "the loop does not run")
    blocks = host.stats()[0]["translations"]
    until(lambda: host.stats()[0]["translations"] == blocks, "blocks are made over and over")
    host.pause()
    host.resume()
    assert int(host.stats()[0]["translations"]) <= int(blocks) + 2
    host.stop()


def test_given_an_address_without_memory_when_it_is_read_then_it_gives_ones() -> None:
    """U28: the engine would stop there and execute the instruction for ever."""
    host = raw_host(b"\xa1\x00\x00\x00\xd0\xa3\x00\x50\x00\x00" + HLT)  # mov eax,[d0000000h]; mov [5000h],eax
    host.start()
    until_halted(host)
    assert host.ram_read(0x5000, 4) == b"\xff" * 4
    host.stop()


@pytest.mark.parametrize("address", [0x0, 0x7EADBEEF, 0xFFFF_FFF0])
def test_given_code_at_any_address_when_it_is_reached_then_it_runs(address: int) -> None:
    """U30: the engine compares program counters with an «until» address; no guest may meet it."""
    host = raw_host(SPIN)
    linear = 0x9000
    host.ram_write(linear, b"\xc7\x05\x00\x50\x00\x00\x01\x00\x00\x00" + CLI_HLT)  # mov dword [5000h], 1
    base = (linear - address) & 0xFFFF_FFFF
    selector, _, limit, access = FLAT_CODE
    host.set_registers(0, {"cs": (selector, base, limit, access), "rip": address})
    host.start()
    until_halted(host)
    assert host.ram_read(0x5000, 1) == b"\1"
    host.stop()
