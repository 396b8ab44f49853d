# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw disk images: positional, sparse, locked as QEMU locks them, and honest about what the host refuses."""

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from coremesh.core.errors import DiskError
from coremesh.hw.backend.block import RawImage
from coremesh.hw.backend.formats import open_image
from hypothesis import given, settings
from hypothesis import strategies as st

SIZE = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "disk.img"
    place.write_bytes(bytes(SIZE))
    return place


def read(image: RawImage, offset: int, length: int) -> bytes:
    data = bytearray(length)
    image.read(offset, [data])
    return bytes(data)


def test_what_was_written_is_read_back_by_position(path: Path) -> None:
    """When pieces are written at once, then they lie behind each other, in the file too after a flush."""
    image = RawImage(path)
    image.write(4096, [b"ab" * 256, memoryview(b"cd" * 256)])
    image.flush()
    first, second = bytearray(512), bytearray(512)
    image.read(4096, [first, second])
    assert first == b"ab" * 256
    assert second == b"cd" * 256
    image.close()
    assert path.read_bytes()[4096:5120] == b"ab" * 256 + b"cd" * 256


def test_many_pieces_are_more_than_one_call_of_the_kernel(path: Path) -> None:
    """Given more buffers than the kernel takes in one call, then all are moved."""
    image = RawImage(path)
    pieces = [bytes([i % 251]) * 8 for i in range(3000)]
    image.write(512, pieces)
    assert read(image, 512, 24000) == b"".join(pieces)


def test_discard_gives_the_space_back_and_reads_zero(path: Path) -> None:
    """Given a full file, when a part is discarded, then the file has a hole there and keeps its size."""
    path.write_bytes(b"\xff" * SIZE)
    image = RawImage(path)
    if not image.can_discard:
        pytest.skip("the file system of the temporary folder makes no holes")
    before = path.stat().st_blocks
    image.discard(0, SIZE // 2)
    assert path.stat().st_blocks <= before - SIZE // 2 // 512
    assert path.stat().st_size == SIZE
    assert read(image, 0, 4096) == bytes(4096) and read(image, SIZE // 2, 8) == b"\xff" * 8


@pytest.mark.parametrize("unmap", [True, False])
@pytest.mark.parametrize("refuse", [False, True])
def test_zeroes_are_zeroes_whatever_the_file_system_can(
    path: Path, monkeypatch: pytest.MonkeyPatch, unmap: bool, refuse: bool
) -> None:
    """When a range is zeroed, then it reads so, also where the file system knows no such call."""
    path.write_bytes(b"\xff" * SIZE)
    image = RawImage(path)
    if refuse:

        def no(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "")

        monkeypatch.setattr("coremesh.hw.backend.block._fallocate", no)
    image.zeroes(512, 8192, unmap=unmap)
    assert read(image, 0, 9216) == b"\xff" * 512 + bytes(8192) + b"\xff" * 512


def test_what_lies_beyond_the_end_is_refused(path: Path) -> None:
    """When an access leaves the disk, then it is an error, and the file does not grow."""
    image = RawImage(path)
    calls: tuple[Callable[[], None], ...] = (
        lambda: image.write(SIZE - 512, [bytes(1024)]),
        lambda: image.read(SIZE, [bytearray(512)]),
        lambda: image.discard(-512, 512),
        lambda: image.zeroes(SIZE, 512),
    )
    for call in calls:
        with pytest.raises(OSError, match="beyond"):
            call()
    assert path.stat().st_size == SIZE


def test_an_image_that_was_cut_is_an_error_of_the_host(path: Path) -> None:
    """Given a file that somebody truncated meanwhile, when it is read, then that is an I/O error, no hang."""
    image = RawImage(path)
    os.truncate(path, 512)
    with pytest.raises(OSError, match="shorter"):
        read(image, 0, 4096)


def test_a_read_only_image_is_not_changed(path: Path) -> None:
    """Given a read-only image, when it is written, then EROFS, and reading and flushing work."""
    image = open_image(path, "raw", read_only=True)
    calls: tuple[Callable[[], None], ...] = (
        lambda: image.write(0, [bytes(512)]),
        lambda: image.zeroes(0, 512),
    )
    for call in calls:
        with pytest.raises(OSError) as refused:
            call()
        assert refused.value.errno == errno.EROFS
    image.flush()
    assert not image.can_discard


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("wzd"), st.integers(0, 63), st.integers(1, 64), st.integers(1, 255)))
)
def test_any_sequence_leaves_what_a_list_of_bytes_would(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, int]]
) -> None:
    """Given writes, zeroes and discards of sectors, then the image holds what a plain buffer holds."""
    path = tmp_path_factory.mktemp("raw") / "disk"
    path.write_bytes(bytes(64 * 512))
    image, model = RawImage(path), bytearray(64 * 512)
    for kind, first, count, value in steps:
        start, length = first * 512, min(count, 64 - first) * 512
        if kind == "w":
            image.write(start, [bytes([value]) * length])
            model[start : start + length] = bytes([value]) * length
        else:
            (image.zeroes if kind == "z" else image.discard)(start, length)
            if kind == "z" or image.can_discard:
                model[start : start + length] = bytes(length)
    assert read(image, 0, len(model)) == model
    image.close()


# --- who may open it ---------------------------------------------------------------------------------------


def test_two_writers_exclude_each_other(path: Path) -> None:
    """Given an open image, then no second one is opened beside it, until it is closed; two readers share."""
    first = RawImage(path)
    for read_only in (False, True):
        with pytest.raises(DiskError, match="in use"):
            RawImage(path, read_only=read_only)
    first.close()
    readers = [RawImage(path, read_only=True), RawImage(path, read_only=True)]
    with pytest.raises(DiskError, match="in use"):
        RawImage(path)
    for reader in readers:
        reader.close()
    RawImage(path).close()


def test_of_many_that_open_it_at_once_one_at_most_gets_it(path: Path) -> None:
    """Given ten threads that open an image at one moment, then never two of them have it."""
    for _ in range(20):
        barrier = threading.Barrier(10)
        got: list[RawImage] = []

        def take(barrier: threading.Barrier = barrier, got: list[RawImage] = got) -> None:
            barrier.wait()
            try:
                got.append(RawImage(path))
            except DiskError:
                return

        threads = [threading.Thread(target=take) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) <= 1
        for image in got:
            image.close()


def test_qemu_and_we_exclude_each_other(path: Path) -> None:
    """Given an image that QEMU has, then we refuse it; one that we have, QEMU refuses."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("no qemu-system-x86_64 on this computer")
    command = [qemu, "-display", "none", "-S", "-nodefaults", "-drive", f"file={path},format=raw,if=virtio"]
    monitor = [*command, "-monitor", "stdio"]
    with subprocess.Popen(monitor, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"info block\n")
        process.stdin.flush()
        while path.name.encode() not in process.stdout.readline():
            assert process.poll() is None
        with pytest.raises(DiskError, match="in use"):
            RawImage(path)
        process.communicate(b"quit\n", timeout=60)
    image = RawImage(path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0 and "lock" in done.stderr
    image.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "truncate -s"),
        (lambda p: p.mkdir(), "neither a file"),
        (lambda p: p.write_bytes(b""), "0 bytes"),
        (lambda p: p.write_bytes(bytes(1000)), "rounds it up"),
    ],
)
def test_what_is_no_disk_is_refused_with_the_way_out(tmp_path: Path, make: object, words: str) -> None:
    """When a path names no disk, then the error says what to do."""
    place = tmp_path / "odd"
    make(place)  # type: ignore[operator]
    with pytest.raises(DiskError, match=words):
        RawImage(place)


def test_an_unknown_format_is_refused(path: Path) -> None:
    """When a format is unknown, then the error lists those that there are."""
    with pytest.raises(DiskError, match="raw"):
        open_image(path, "floppy", read_only=False)
