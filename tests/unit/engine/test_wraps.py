# SPDX-License-Identifier: GPL-2.0-or-later
"""Every function of the engine that is replaced at link time is really reached.

``--wrap`` of a symbol that the library does not call across files links silently and catches nothing. Each
replacement records that it ran (core/native/tcg/wraps.h); here everything that a guest can do is done once in
this process, and the records are compared with the lists that the linker was given.
"""

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED, REPOSITORY, build_float_guest, run_on_coremesh
from coremesh.core._native import wrap_hits
from raw_host import HLT, raw_host, until_halted

LISTS = REPOSITORY / "core" / "native" / "tcg"

NOT_REACHABLE = {
    # What would end the process: the engine calls it for states that none of its running code can be in.
    "cpu_abort": "the engine has nothing left to give up for",
    # CPUID announces no XSAVE, so these instructions are undefined and are not translated. The wraps keep
    # MXCSR right for the day when it does.
    "helper_xsave": "no XSAVE in CPUID",
    "helper_xsaveopt": "no XSAVE in CPUID",
    "helper_xrstor": "no XSAVE in CPUID",
    # What fetches the old value is BTS, BTR and BTC, which have no form for bytes.
    "helper_atomic_fetch_andb": "BTR has no byte form",
    "helper_atomic_fetch_orb": "BTS has no byte form",
    "helper_atomic_fetch_xorb": "BTC has no byte form",
}


def listed() -> set[str]:
    """The wraps of this architecture, without the suffix of the engine's target."""
    lists = sorted(LISTS.rglob("*.wraps"))
    if platform.machine() not in ("x86_64", "AMD64"):
        lists = [file for file in lists if file.name != "float.wraps"]
    symbols = {line.strip() for file in lists for line in file.read_text().splitlines() if line.strip()}
    return {
        symbol.removesuffix("_x86_64").removesuffix("@") for symbol in symbols if not symbol.startswith("#")
    }


def run_vectors() -> None:
    """The string comparisons of SSE4.2, the sums of neighbours of SSSE3, a store of bytes, each once."""
    code = b"".join(bytes((0x66, 0x0F, 0x3A, opcode, 0xCA, 0)) for opcode in range(0x60, 0x64))
    for prefix in (b"", b"\x66"):
        code += b"".join(prefix + bytes((0x0F, 0x38, opcode, 0xCA)) for opcode in (1, 2, 3, 5, 6, 7))
    # mov edi, 6000; pcmpeqb mm2, mm2; maskmovq mm1, mm2
    code += b"\xbf\x00\x60\x00\x00\x0f\x74\xd2\x0f\xf7\xca"
    host = raw_host(code + HLT)
    host.set_registers(0, {"cr4": 0x200})
    host.start()
    until_halted(host)
    host.stop()


def run_stores_over_pages() -> None:
    """Values of x87 that begin on one page and end on the next: the engine's own stores."""
    # fld1; fist word [6fff]; fst dword [6ffe]
    host = raw_host(b"\xd9\xe8\xdf\x15\xff\x6f\x00\x00\xd9\x15\xfe\x6f\x00\x00" + HLT)
    host.start()
    until_halted(host)
    host.stop()
    assert host.ram_read(0x6FFE, 4) == b"\0\0\x80\x3f"


def run_two_level_paging() -> None:
    """32-bit paging with entries of four bytes (SDM vol. 3A 4.3): data through a table, both bits set."""
    directory, table = 0x1_0000, 0x1_1000
    # mov eax,[5000]; mov [6000],eax; invlpg [5000]
    host = raw_host(b"\xa1\x00\x50\x00\x00\xa3\x00\x60\x00\x00\x0f\x01\x3d\x00\x50\x00\x00" + HLT)
    host.ram_write(directory, (table | 7).to_bytes(4, "little"))
    host.ram_write(table, b"".join((page << 12 | 7).to_bytes(4, "little") for page in range(32)))
    host.ram_write(0x5000, b"walk")
    host.set_registers(0, {"cr3": directory, "cr0": 0x8001_0011})
    host.start()
    until_halted(host)
    host.stop()
    assert host.ram_read(0x6000, 4) == b"walk"
    assert host.ram_read(table + 4 * 5, 1)[0] == 0x27  # accessed
    assert host.ram_read(table + 4 * 6, 1)[0] == 0x67  # accessed and dirty
    assert host.ram_read(table + 4 * 7, 1)[0] == 0x07


def run_far_call_in_real_mode() -> None:
    """To the HLT behind it, at 100h:5."""
    host = raw_host(b"\x9a\x05\x00\x00\x01" + HLT)
    segments = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), (0, 0, 0xFFFF, 0x93))
    host.set_registers(0, {"cr0": 0x10, "rip": 0, "cs": (0x100, 0x1000, 0xFFFF, 0x9B), **segments})
    host.start()
    until_halted(host)
    host.stop()
    assert host.ram_read(0x7FFC, 4) == b"\x05\x00\x00\x01"


def test_given_all_that_guests_do_when_it_is_done_once_then_every_replaced_function_has_run(
    guest: Callable[[str], Path], tmp_path: Path
) -> None:
    """What is never reached stands in NOT_REACHABLE with its reason, and nothing else does."""
    if not LISTS.is_dir():
        pytest.skip("the lists of wraps are in the source tree, which is not here")
    symbols = listed()
    assert set(wrap_hits()) == symbols, "a replacement without CM_HIT, or one that is not linked"
    for theme, cmdline in (
        ("atomics", "rounds=16"),
        ("smc", "strict"),
        ("exceptions", "strict"),
        ("legacy", "limits"),
        ("timers", "rounds=200"),
    ):
        result = run_on_coremesh(guest(theme), vcpus=1, cmdline=cmdline)
        assert result.status == PASSED, result.story()
    if platform.machine() in ("x86_64", "AMD64"):
        result = run_on_coremesh(build_float_guest(tmp_path), vcpus=1)
        assert result.status == PASSED, result.story()
    run_vectors()
    assert run_on_coremesh(guest("triple"), vcpus=1).ended == "triple-fault"
    run_stores_over_pages()
    run_two_level_paging()
    run_far_call_in_real_mode()
    never = {symbol for symbol, ran in wrap_hits().items() if not ran}
    assert never == symbols & set(NOT_REACHABLE)
