# SPDX-License-Identifier: GPL-2.0-or-later
"""The traps of the engine, each with the test that fails without its cure; tests/README.md shows the table.

The numbers are those of the project's list of facts about the stock engine; U10 is another
architecture's.
"""

import re
from pathlib import Path

import pytest
from raw_host import CLI_HLT, FLAT_CODE, HLT, SPIN, raw_host, until, until_halted

TESTS = Path(__file__).parents[2]
README = TESTS / "README.md"
TRAPS = {*range(1, 10), *range(11, 32)}  # U10 is another architecture's


def table() -> dict[int, list[tuple[str, str]]]:
    """From README.md: a trap's number to the (file, word of the test's name) pairs of its row."""
    rows: dict[int, list[tuple[str, str]]] = {}
    for line in README.read_text().splitlines():
        if found := re.match(r"\| U(\d+) \|", line):
            places = re.findall(r"`([\w/.]+)`(?: \((\w+)\))?", line.split("|")[3])
            rows[int(found[1])] = [(file, word) for file, word in places]
    return rows


def test_given_the_table_of_traps_when_it_is_read_then_every_trap_has_a_test_that_exists() -> None:
    rows = table()
    assert set(rows) == TRAPS
    for number, places in rows.items():
        assert places, f"U{number} has no test"
        for file, word in places:
            text = (TESTS / file).read_text()
            assert word in text, f"U{number}: {file} has no {word!r}"


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
