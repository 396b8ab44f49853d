# SPDX-License-Identifier: GPL-2.0-or-later
"""Shared memory between hosts that another process writes, names or makes shorter."""

import os
import struct

import pytest
from coremesh.core.errors import LinkError
from coremesh.core.links.door import LinkEnd
from coremesh.core.links.shm import ShmEnds
from linked_hosts import (
    EPOCH,
    MACHINE,
    Connect,
    eventually,
)


def test_given_a_hostile_process_when_it_scribbles_over_a_ring_then_the_host_counts_it_and_goes_on(
    connect: Connect,
) -> None:
    """Every word of the ring is another process's: none may lead this one out of it."""
    inbox_header, ring_bytes, page = 4096, 4096 + (512 << 10), 4096
    heads = [1 << 63, 100_000, 40, 1 << 20, 65536, 8]
    for head, word in zip(heads, [0xFFFF_FFFF, 0x7FFF_FFFF, 0x10040, 600_000, 41, 0], strict=True):
        machine = connect(3, wire="shm")
        end = machine.ends[0]
        assert isinstance(end, ShmEnds)
        base = inbox_header + 1 * ring_bytes  # host 1's
        os.pwrite(end._memory, struct.pack("<I", word) * 16384, base + page)
        os.pwrite(end._memory, struct.pack("<Q", head), base)
        os.write(end._rope, b"!")
        assert machine.probes[2].send(0, "control", b"and I go on")
        link = machine.links[0]
        assert eventually(lambda link=link: link.counters(2)["received_frames"] == 1)  # type: ignore[misc]
        refused = sum(count for name, count in link.facts().items() if name.startswith("refused_"))
        refused += sum(count for name, count in link.counters(1).items() if name.startswith("refused_"))
        assert refused > 0 and link.counters(1)["received_frames"] == 0


def test_given_a_process_that_is_not_the_host_when_its_memory_is_opened_then_that_is_refused() -> None:
    with (
        ShmEnds(0, 2) as first,
        ShmEnds(1, 2) as second,
        pytest.raises(LinkError, match="another one by now"),
    ):
        first.connect({1: LinkEnd(second.endpoint, bytes(16), "")})
    with ShmEnds(0, 2) as first:
        for endpoint in (
            "shm://1/0/1",
            "shm://999999999/3/4",
            "shm://x",
            "tcp://127.0.0.1:1",
            "shm://-1/-1/-1",
        ):
            with pytest.raises(LinkError):
                first.connect({1: LinkEnd(endpoint, bytes(16), "")})


def test_given_a_file_that_can_shrink_when_it_is_offered_as_memory_then_it_is_refused() -> None:
    with ShmEnds(0, 2) as first, ShmEnds(1, 2) as second:
        loose = os.memfd_create(f"coremesh-{second.public_key.hex()}")
        os.ftruncate(loose, 4 << 20)
        try:
            first.connect({1: LinkEnd(f"shm://{os.getpid()}/{loose}/{second._rope}", second.public_key, "")})
            with pytest.raises(LinkError, match="sealed"):
                first.open(MACHINE, EPOCH)
        finally:
            os.close(loose)
