# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that qemu-nbd opens: written, read back, checked by qemu-img, and every way that goes wrong."""

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from coremesh.core.errors import DiskError
from coremesh.hw.backend.formats import open_image
from coremesh.hw.backend.nbd import PROGRAM, NbdConnection, NbdImage

SIZE = 16 << 20
needs_qemu = pytest.mark.skipif(
    shutil.which(PROGRAM) is None or shutil.which("qemu-img") is None, reason="qemu-utils is not installed"
)


def make(path: Path, image_format: str, *more: str) -> Path:
    names = {"vhd": "vpc"}
    command = ["qemu-img", "create", "-q", "-f", names.get(image_format, image_format), *more, str(path)]
    subprocess.run([*command, str(SIZE)], check=True)
    return path


@needs_qemu
@pytest.mark.parametrize("image_format", ["qcow2", "vmdk", "vhdx", "vdi", "vhd"])
def test_given_an_image_of_each_format_when_it_is_written_then_it_is_read_back_and_sound(
    tmp_path: Path, image_format: str
) -> None:
    path = make(tmp_path / f"disk.{image_format}", image_format)
    image = open_image(path, image_format, read_only=False)
    assert image.size >= SIZE
    r = random.Random(1)
    model = bytearray(SIZE)
    for _ in range(30):
        offset, length = r.randrange(SIZE // 512 - 64) * 512, r.choice([512, 4096, 32768])
        data = r.randbytes(length)
        image.write(offset, [data[:512], data[512:]])
        model[offset : offset + length] = data
    image.zeroes(1 << 20, 65536)
    model[1 << 20 : (1 << 20) + 65536] = bytes(65536)
    image.discard(2 << 20, 4096)
    image.flush()
    for at in (0, 5 << 20, SIZE - (1 << 20)):
        read = bytearray(1 << 20)
        image.read(at, [memoryview(read)[:700], memoryview(read)[700:]])
        assert read == model[at : at + (1 << 20)]
    image.close()
    if image_format in ("qcow2", "vmdk", "vhdx", "vdi"):
        subprocess.run(["qemu-img", "check", "-q", str(path)], check=True)
    again = open_image(path, image_format, read_only=True)
    read = bytearray(1 << 20)
    again.read(5 << 20, [read])
    assert read == model[5 << 20 : 6 << 20]
    with pytest.raises(OSError, match="Read-only"):
        again.write(0, [bytes(512)])
    again.close()


@needs_qemu
def test_given_a_file_of_another_format_when_it_is_opened_then_its_content_is_not_guessed(
    tmp_path: Path,
) -> None:
    raw = tmp_path / "raw.img"
    raw.write_bytes(bytes(SIZE))
    with pytest.raises(DiskError, match="cannot be opened as qcow2"):
        open_image(raw, "qcow2", read_only=False)


def test_given_no_image_then_the_error_says_how_one_is_made(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="qemu-img create"):
        NbdImage(tmp_path / "nothing.qcow2")


def test_given_no_qemu_nbd_then_the_error_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.qcow2").write_bytes(bytes(512))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DiskError, match="apt install qemu-utils"):
        NbdImage(tmp_path / "a.qcow2")


@needs_qemu
def test_given_two_that_write_one_image_then_the_second_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", "qcow2")
    first = NbdImage(path)
    with pytest.raises(DiskError, match="lock"):
        NbdImage(path)
    first.close()


@needs_qemu
def test_given_a_server_that_dies_when_it_is_used_then_that_is_an_io_error(tmp_path: Path) -> None:
    image = NbdImage(make(tmp_path / "disk.qcow2", "qcow2"))
    os.kill(image._process.pid, signal.SIGKILL)
    for _ in range(8):
        with pytest.raises(OSError):
            image.read(0, [bytearray(512)])
    image.close()


@needs_qemu
def test_given_threads_that_use_one_image_then_each_gets_its_own_data(tmp_path: Path) -> None:
    image = NbdImage(make(tmp_path / "disk.qcow2", "qcow2"))
    wrong: list[int] = []

    def use(number: int) -> None:
        base = number << 20
        for i in range(40):
            image.write(base + i * 4096, [bytes([number * 16 + i % 16]) * 4096])
            data = bytearray(4096)
            image.read(base + i * 4096, [data])
            if set(data) != {number * 16 + i % 16}:
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    image.close()
    assert not wrong


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH",
        b"NBDMAGIC" + b"IHAVEOPT" + b"\0\3" + bytes(20),
        b"NBDMAGIC"
        + b"IHAVEOPT"
        + b"\0\3"
        + struct.pack(">QIII", 0x3E889045565A9, 7, 1 << 31 | 6, 4)
        + b"none",
        b"NBDMAGIC" + b"IHAVEOPT" + b"\0\3" + struct.pack(">QIII", 0x3E889045565A9, 7, 3, 1 << 30),
    ],
)
def test_given_a_server_that_speaks_nonsense_then_that_is_an_error_and_no_hang(
    tmp_path: Path, answer: bytes
) -> None:
    address = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(1)

        def serve() -> None:
            peer, _ = listener.accept()
            peer.sendall(answer)
            peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(OSError):
            NbdConnection(address)
        thread.join()
