# SPDX-License-Identifier: GPL-2.0-or-later
"""A copy-on-write overlay: the image stays as it is, and the guest sees what it wrote."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from coremesh.hw.backend.block import RawImage
from coremesh.hw.backend.formats import open_image
from coremesh.hw.backend.overlay import CLUSTER, Overlay

SIZE = 10 * CLUSTER + 3 * 512


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "base.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def overlay(image: Path) -> Iterator[Overlay]:
    backend = Overlay(RawImage(image, read_only=True))
    yield backend
    backend.close()


def read(overlay: Overlay, offset: int, length: int) -> bytes:
    data = bytearray(length)
    overlay.read(offset, [data])
    return bytes(data)


@pytest.mark.parametrize("seed", range(5))
def test_given_random_writes_when_all_is_read_then_it_is_what_was_written_over_the_image(
    image: Path, overlay: Overlay, seed: int
) -> None:
    model = bytearray(image.read_bytes())
    before = bytes(model)
    r = random.Random(seed)
    for _ in range(60):
        offset = r.randrange(SIZE // 512) * 512
        length = min(r.choice([512, 4096, CLUSTER, 3 * CLUSTER]), SIZE - offset)
        if r.random() < 0.2:
            overlay.zeroes(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            data = r.randbytes(length)
            half = length // 1024 * 512
            overlay.write(offset, [data[:half], data[half:]])
            model[offset : offset + length] = data
        at = r.randrange(SIZE // 512) * 512
        assert read(overlay, at, min(2 * CLUSTER, SIZE - at)) == model[at : at + 2 * CLUSTER]
    assert read(overlay, 0, SIZE) == model
    assert image.read_bytes() == before


def test_given_threads_that_write_parts_of_one_cluster_then_no_write_is_lost(overlay: Overlay) -> None:
    """The cluster is copied once: a copy that came late would lay the image's bytes over another's write."""

    def write(number: int) -> None:
        for cluster in range(10):
            overlay.write(cluster * CLUSTER + number * 4096, [bytes([number + 1]) * 4096])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = b"".join(bytes([number + 1]) * 4096 for number in range(16))
    for cluster in range(10):
        assert read(overlay, cluster * CLUSTER, CLUSTER) == expected


def test_given_two_machines_when_both_take_a_snapshot_then_neither_sees_the_other(image: Path) -> None:
    one, other = (open_image(image, "raw", read_only=False, snapshot=True) for _ in range(2))
    one.write(0, [b"1" * 512])
    other.write(0, [b"2" * 512])
    data = bytearray(512)
    one.read(0, [data])
    assert data == b"1" * 512
    for backend in (one, other):
        backend.flush()
        backend.close()


def test_given_an_image_that_cannot_be_read_when_a_cluster_would_be_copied_then_the_write_fails(
    image: Path, overlay: Overlay
) -> None:
    """And nothing is marked as there: the next read gets an error, not zeroes."""
    with image.open("rb+") as file:
        file.truncate(512)
    with pytest.raises(OSError, match="shorter"):
        overlay.write(CLUSTER, [bytes(512)])
    with pytest.raises(OSError, match="shorter"):
        read(overlay, CLUSTER, 512)
    overlay.write(2 * CLUSTER, [b"a" * CLUSTER])  # a whole cluster needs no copy
    assert read(overlay, 2 * CLUSTER, CLUSTER) == b"a" * CLUSTER
