# SPDX-License-Identifier: GPL-2.0-or-later
"""Translations take bounded memory: a full code buffer is emptied, and the guest goes on."""

import re
from pathlib import Path

from raw_host import HLT, RAM, raw_host, until_halted

MIB = 1 << 20
FIRST = 0x10_0000
STEP = 16
FUNCTIONS = (RAM - FIRST) // STEP
# Each of the functions is a block of its own: inc eax; ret.
FUNCTION = b"\x40\xc3".ljust(STEP, b"\xcc")
CALL_EACH = (
    b"\x31\xc0"  # xor eax, eax
    b"\xbf\x00\x00\x10\x00"  # mov edi, FIRST
    b"\xff\xd7"  # each: call edi
    b"\x83\xc7\x10"  # add edi, STEP
    b"\x81\xff\x00\x00\x20\x00"  # cmp edi, RAM
    b"\x72\xf3"  # jb each
) + HLT


def anonymous_bytes() -> int:
    """Memory of this process that is of no file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


def run_all_functions(code_buffer_bytes: int) -> tuple[int, int]:
    """Return how far the code buffer was filled at the end, and the blocks translated."""
    host = raw_host(CALL_EACH, code_buffer_bytes=code_buffer_bytes)
    host.ram_write(FIRST, FUNCTION * FUNCTIONS)
    host.start()
    until_halted(host)
    host.pause()
    stats = host.stats()[0]
    assert host.registers(0)["rax"] == FUNCTIONS, "a call was lost, or made twice"
    host.stop()
    return int(stats["code_bytes"]), int(stats["translations"])


def test_given_more_code_than_a_buffer_holds_when_it_runs_then_memory_stays_bounded_and_no_step_is_lost() -> (
    None
):
    run_all_functions(MIB)  # what is only once allocated is there now
    before = anonymous_bytes()
    filled, translations = run_all_functions(MIB)
    assert translations > FUNCTIONS
    assert filled <= MIB
    assert anonymous_bytes() - before < 4 * MIB


def test_given_a_block_that_lies_where_its_caller_did_when_it_returns_then_no_stale_code_runs() -> None:
    """Functions longer than all that came before the buffer was emptied; they return by a known address."""
    step, increments = 256, 200
    functions = (RAM - FIRST) // step
    code = CALL_EACH.replace(b"\x83\xc7\x10", b"\x81\xc7\x00\x01\x00\x00").replace(b"\x72\xf3", b"\x72\xf0")
    host = raw_host(code, code_buffer_bytes=MIB)
    host.ram_write(FIRST, (b"\x40" * increments + b"\xc3").ljust(step, b"\xcc") * functions)
    host.ram_write(FIRST, FUNCTION)
    host.start()
    until_halted(host)
    host.pause()
    assert host.registers(0)["rax"] == 1 + (functions - 1) * increments
    assert host.stats()[0]["translations"] > functions + 10, "the buffer was never emptied"
    host.stop()


def test_control_given_a_buffer_that_holds_all_when_it_runs_then_all_of_it_is_kept() -> None:
    filled, _ = run_all_functions(0)
    assert filled > 8 * MIB, "the test above would empty no buffer"
