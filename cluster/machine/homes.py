# SPDX-License-Identifier: GPL-2.0-or-later
"""Which host lays which bytes of the images: each those of the pages whose home it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coremesh.core.memory_map import HIGH_RAM_BASE, PAGE_BYTES, MemoryMap

Write = tuple[int, bytes]
Home = tuple[int, int, int]


def divide(writes: Iterable[Write], memory: MemoryMap, homes: Sequence[Home]) -> dict[int, list[Write]]:
    """Cut `writes`, (guest-physical address, bytes), by the homes of the pages they touch.

    `homes` are (first page, page behind the last, host), pages counted through RAM, without the devices' hole
    below 4 GiB; together they cover all of RAM. The result has an entry for each host that is to write
    something, in the order of `writes`. Raises ValueError for a page without a home.
    """
    shares: dict[int, list[Write]] = {}
    for gpa, data in writes:
        at = 0
        while at < len(data):
            offset = ram_offset(gpa + at, memory)
            end, host = _home(offset // PAGE_BYTES, homes)
            size = min(len(data) - at, end * PAGE_BYTES - offset)
            shares.setdefault(host, []).append((gpa + at, bytes(data[at : at + size])))
            at += size
    return shares


def ram_offset(gpa: int, memory: MemoryMap) -> int:
    """Return where the guest-physical address of a byte of RAM lies in RAM, counted without the hole."""
    return gpa if gpa < HIGH_RAM_BASE else gpa - HIGH_RAM_BASE + memory.low_ram_bytes


def _home(page: int, homes: Sequence[Home]) -> tuple[int, int]:
    for first, end, host in homes:
        if first <= page < end:
            return end, host
    raise ValueError(f"RAM page {page} has no home")
