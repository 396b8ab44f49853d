# SPDX-License-Identifier: GPL-2.0-or-later
"""What the loader hands over, the memory behind it, and the page tables in front of it."""

from collections.abc import Callable
from pathlib import Path

from baremetal_machine import MIB, PASSED, run_on_coremesh


def test_given_memory_above_4_gib_when_the_guest_uses_it_then_all_of_it_is_there(
    guest: Callable[[str], Path], protection: str
) -> None:
    """5 GiB: three below the PCI hole, two above; data, code and locked accesses of two cores."""
    result = run_on_coremesh(guest("handover"), vcpus=2, protection=protection, ram_bytes=5120 * MIB)
    assert result.status == PASSED, result.story()
    assert "range base=100000000 length=80000000 type=1" in result.output
    assert result.values()["usable_kib"] > 5119 * 1024


def test_given_modules_and_a_command_line_when_the_guest_looks_then_it_finds_them(
    guest: Callable[[str], Path],
) -> None:
    """Each module starts on a page of its own, with its string."""
    modules = [(bytes(range(256)) * 20, "first one"), (b"\x01" * 4097, "second")]
    result = run_on_coremesh(guest("handover"), vcpus=1, cmdline="alpha beta=2", modules=modules)
    assert result.status == PASSED, result.story()
    assert "cmdline=alpha beta=2\n" in result.output.replace("\r", "")
    assert f"module=0 bytes=5120 sum={sum(range(256)) * 20} aligned=1 string=first one" in result.output
    assert "module=1 bytes=4097 sum=4097 aligned=1 string=second" in result.output


def test_given_page_tables_in_use_when_cores_change_them_then_no_update_is_lost_and_no_stale_page_is_used(
    guest: Callable[[str], Path], vcpus: int
) -> None:
    """Accessed and dirty bits beside other updates, shootdown by IPI, what flushes what."""
    rounds = 3000 if vcpus < 3 else 300
    result = run_on_coremesh(guest("tables"), vcpus=vcpus, cmdline=f"rounds={rounds}")
    assert result.status == PASSED, result.story()


def test_given_cores_that_store_and_load_when_others_watch_then_they_see_the_orders_of_the_manual(
    guest: Callable[[str], Path], vcpus: int
) -> None:
    """Litmus tests of total store order: store and load buffering, message passing, independent reads."""
    result = run_on_coremesh(guest("order"), vcpus=vcpus)
    assert result.status == PASSED, result.story()


def test_given_work_of_all_kinds_when_it_is_interrupted_everywhere_then_it_comes_out_the_same(
    guest: Callable[[str], Path], vcpus: int, protection: str
) -> None:
    """No instruction is done twice or by half: read-modify-write, stack, strings, x87, SSE."""
    result = run_on_coremesh(guest("interrupted"), vcpus=vcpus, protection=protection)
    assert result.status == PASSED, result.story()
