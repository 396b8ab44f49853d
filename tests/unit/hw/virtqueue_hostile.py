# SPDX-License-Identifier: GPL-2.0-or-later
"""What no driver does: chains and rings that the specification forbids, each laid by a function."""

from collections.abc import Callable

import virtio_driver as vd


def hostile_loop(ring: vd.Ring, page: int) -> None:
    ring.describe(0, page, 16, vd.NEXT, 1)
    ring.describe(1, page, 16, vd.NEXT, 0)
    ring.offer(0)


def hostile_order(ring: vd.Ring, page: int) -> None:
    ring.offer(ring.chain([(page, 16, True), (page, 16, False)]))


def hostile_nested(ring: vd.Ring, page: int) -> None:
    table = page + 1024
    ring.driver.ram.ram_write(table, page.to_bytes(8, "little") + b"\x10\0\0\0" + b"\4\0" + b"\0\0")
    ring.describe(0, table, 16, vd.INDIRECT)
    ring.offer(0)


def hostile_inner_loop(ring: vd.Ring, page: int) -> None:
    table = page + 1024
    for i in range(2):
        entry = page.to_bytes(8, "little") + b"\x10\0\0\0" + b"\1\0" + (1 - i).to_bytes(2, "little")
        ring.driver.ram.ram_write(table + 16 * i, entry)
    ring.describe(0, table, 32, vd.INDIRECT)
    ring.offer(0)


def hostile_ahead(ring: vd.Ring, page: int) -> None:
    ring.driver.ram.ram_write(ring.available + 2, (ring.size + 1).to_bytes(2, "little"))


def one(gpa: int, length: int, flags: int = 0, following: int = 0) -> Callable[[vd.Ring, int], None]:
    def lay(ring: vd.Ring, page: int) -> None:
        ring.describe(0, gpa or page, length, flags, following)
        ring.offer(0)

    return lay


HOSTILE = {
    "a chain that is a loop": hostile_loop,
    "a buffer to read behind one to write": hostile_order,
    "an indirect table in another": hostile_nested,
    "a loop in an indirect table": hostile_inner_loop,
    "more available than the ring has": hostile_ahead,
    "a head beyond the queue": lambda ring, page: ring.offer(ring.size),
    "a following number beyond the queue": one(0, 16, vd.NEXT, 999),
    "a buffer of no bytes": one(0, 0),
    "an indirect table of no entries": one(0, 0, vd.INDIRECT),
    "an indirect table of half an entry": one(0, 24, vd.INDIRECT),
    "an indirect table that is not RAM": one(0xFEE0_0000, 32, vd.INDIRECT),
    "an indirect table of a million entries": one(0, 16 << 20, vd.INDIRECT),
    "an indirect table with a successor": one(0, 32, vd.INDIRECT | vd.NEXT, 1),
    "a header that is not RAM": one(0xFEE0_0000, 16, 0),
    "a header at the end of the address space": one((1 << 64) - 8, 16, 0),
    "a request without a place for the status": one(0, 16, 0),
    "a request without a header": one(0, 16, vd.WRITE),
}
