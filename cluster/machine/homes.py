# SPDX-License-Identifier: GPL-2.0-or-later
"""Which host lays which bytes of the images: each those of the pages whose home it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coremesh.core.memory_layout import PAGE_BYTES, MemoryLayout

Write = tuple[int, bytes]
Home = tuple[int, int, int]


def divide(writes: Iterable[Write], memory: MemoryLayout, homes: Sequence[Home]) -> dict[int, list[Write]]:
    """Cut `writes`, (guest-physical address, bytes), by the homes of the pages they touch.

    `homes` are (first page, page behind the last, host), pages counted through the memory file; together they
    cover all of it. The result has an entry for each host that is to write something, in the order of
    `writes`. Raises IndexError for an address without memory, ValueError for a page without a home.
    """
    shares: dict[int, list[Write]] = {}
    for gpa, data in writes:
        at = 0
        while at < len(data):
            region = memory.region_at(gpa + at)
            offset = memory.offset_of(gpa + at)
            end, host = _home(offset // PAGE_BYTES, homes)
            size = min(len(data) - at, end * PAGE_BYTES - offset, region.end - gpa - at)
            shares.setdefault(host, []).append((gpa + at, bytes(data[at : at + size])))
            at += size
    return shares


def _home(page: int, homes: Sequence[Home]) -> tuple[int, int]:
    for first, end, host in homes:
        if first <= page < end:
            return end, host
    raise ValueError(f"page {page} of the memory has no home")
