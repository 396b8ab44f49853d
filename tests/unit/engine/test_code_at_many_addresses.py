# SPDX-License-Identifier: GPL-2.0-or-later
"""Code that uses its own address, mapped at several addresses: each use is of the one where it runs.

An operating system maps the pages of a library at other addresses in each process. Here one page of RAM is
mapped at several addresses, and its code runs at one after the other.
"""

import struct
from collections.abc import Callable

import pytest
from coremesh.core.engine import Host
from raw_host import SPIN, TABLES, long_mode_host, until

LIBRARY_AT, PROGRAM_AT, RESULTS_AT, TABLES_AT = 0x40_0000, 0x40_1000, 0x40_2000, 0x41_0000  # in RAM
PROGRAM, RESULTS = 0x6000_0000_0000, 0x6000_0000_1000
PAGE = 0x1000
# As an operating system would choose them, and one among the first that are shared (cm_target_shares_block).
ADDRESSES = (0x7F12_3456_7000, 0x7F98_7654_9000, 0x5555_1111_2000, 0x7E00_0000_B000, 0x0080_0000_0000)
PRESENT_FOR_USERS = 7
NOTHING = 0xEEEE_EEEE_EEEE_EEEE


def map_page(host: Host, linear: int, page: int, at: int) -> int:
    """Map one page of RAM for user code; missing tables are made at ``at``. Return where the next go."""
    table = TABLES
    for shift in (39, 30, 21):
        entry = table + 8 * (linear >> shift & 511)
        (value,) = struct.unpack("<Q", host.ram_read(entry, 8))
        if not value:
            value = at | PRESENT_FOR_USERS
            host.ram_write(at, bytes(PAGE))
            host.ram_write(entry, struct.pack("<Q", value))
            at += PAGE
        table = value & ~0xFFF
    host.ram_write(table + 8 * (linear >> 12 & 511), struct.pack("<Q", page | PRESENT_FOR_USERS))
    return at


def results_at(addresses: tuple[int, ...], library: bytes) -> list[int]:
    """What ``library`` writes to RDI when it is called by user code at one address after the other."""
    host = long_mode_host(b"", saves_x87=False)
    program = b"\x48\xbf" + struct.pack("<Q", RESULTS)  # mov rdi, RESULTS
    for address in addresses:
        program += b"\x48\xb8" + struct.pack("<Q", address) + b"\xff\xd0"  # mov rax, address; call rax
    program += b"\x31\xc0\x48\xab" + SPIN  # xor eax, eax; stosq
    count = len(addresses)
    host.ram_write(PROGRAM_AT, program)
    host.ram_write(LIBRARY_AT, library)
    host.ram_write(RESULTS_AT, struct.pack("<Q", NOTHING) * (count + 1))
    at = map_page(host, PROGRAM, PROGRAM_AT, TABLES_AT)
    at = map_page(host, RESULTS, RESULTS_AT, at)
    for address in addresses:
        at = map_page(host, address, LIBRARY_AT, at)
    code, stack = (0x33, 0, 0xFFFF_FFFF, 0xAFB), (0x2B, 0, 0xFFFF_FFFF, 0xCF3)
    host.set_registers(0, {"cs": code, "ss": stack, "rip": PROGRAM, "rsp": RESULTS + PAGE})
    host.start()
    until(lambda: host.ram_read(RESULTS_AT + 8 * count, 8) == bytes(8), "the program does not end")
    host.stop()
    return list(struct.unpack(f"<{count}Q", host.ram_read(RESULTS_AT, 8 * count)))


WRITE_AND_RETURN = b"\x48\xab\xc3"  # stosq; ret


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        # lea rax, [rip - 7]; add rax, 5
        ("48 8d 05 f9 ff ff ff  48 83 c0 05", lambda at: at + 5),
        # call over; over: pop rax
        ("e8 00 00 00 00  58", lambda at: at + 5),
        # mov rax, [rip + 64]: data of the page
        ("48 8b 05 40 00 00 00", lambda at: 0x1122_3344_5566_7788),
        # lea rdx, [rip - 7]; mov rax, [rdx + 71]
        ("48 8d 15 f9 ff ff ff  48 8b 42 47", lambda at: 0x1122_3344_5566_7788),
        # A number that happens to be an address near the first one: it stays what it is.
        ("48 b8 00 70 56 34 12 7f 00 00", lambda at: 0x7F12_3456_7000),
        # What is worked out of the address, by the translator if it can: its upper half, its lower, a part.
        ("48 8d 05 f9 ff ff ff  48 c1 e8 20", lambda at: at >> 32),
        ("48 8d 05 f9 ff ff ff  48 c1 e8 2a", lambda at: at >> 42),
        ("48 8d 05 f9 ff ff ff  89 c0", lambda at: at & 0xFFFF_FFFF),
        ("8d 05 fa ff ff ff", lambda at: at & 0xFFFF_FFFF),
        ("48 8d 05 f9 ff ff ff  48 f7 d0", lambda at: at ^ 0xFFFF_FFFF_FFFF_FFFF),
        ("48 8d 05 f9 ff ff ff  48 01 c0", lambda at: 2 * at),
        ("48 8d 05 f9 ff ff ff  25 00 f0 00 00", lambda at: at & 0xF000),
        # lea rax, [rip - 7]; mov rdx, 7F00_0000_0000h; cmp rax, rdx; setb al; movzx eax, al
        (
            "48 8d 05 f9 ff ff ff  48 ba 00 00 00 00 00 7f 00 00  48 39 d0  0f 92 c0  0f b6 c0",
            lambda at: int(at < 0x7F00_0000_0000),
        ),
        # The difference of two addresses: lea rax, [rip + 9]; lea rdx, [rip]; sub rax, rdx
        ("48 8d 05 09 00 00 00  48 8d 15 00 00 00 00  48 29 d0", lambda at: 2),
        # jmp over 16 bytes; lea rax, [rip - 7]
        ("eb 10" + "cc" * 16 + "48 8d 05 f9 ff ff ff", lambda at: at + 18),
        # xor ecx, ecx; jrcxz over one byte; lea rax, [rip - 7]
        ("31 c9 e3 01 cc 48 8d 05 f9 ff ff ff", lambda at: at + 5),
    ],
)
def test_given_code_that_uses_its_address_when_it_runs_elsewhere_then_each_use_is_of_that_place(
    library: str, expected: Callable[[int], int]
) -> None:
    code = (bytes.fromhex(library) + WRITE_AND_RETURN).ljust(71, b"\xcc")
    words = results_at(ADDRESSES, code + struct.pack("<Q", 0x1122_3344_5566_7788))
    assert [hex(word) for word in words] == [
        hex(expected(address) & 0xFFFF_FFFF_FFFF_FFFF) for address in ADDRESSES
    ]
