# SPDX-License-Identifier: GPL-2.0-or-later
"""The initial RAM file system, read back by another reader than its writer."""

import hashlib
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from coremesh.cluster.machine.images.initramfs import Entry, busybox_initramfs, disk_initramfs, pack
from coremesh.cluster.machine.images.modules import load_order


def listing(archive: bytes, folder: Path) -> str:
    """What GNU cpio or busybox make of an archive: one line of modes, sizes and names a member."""
    for command in (["cpio", "-itv", "--quiet"], ["busybox", "cpio", "-itv"]):
        if shutil.which(command[0]):
            return subprocess.run(command, input=archive, capture_output=True, check=True).stdout.decode()
    pytest.skip("no cpio on this host")


def test_another_cpio_reads_every_kind_of_member(tmp_path: Path) -> None:
    entries = [
        Entry.directory("d"),
        Entry.file("d/program", b"#!/bin/sh\n", 0o755),
        Entry.file("odd", b"x" * 13),
        Entry.symlink("link", "d/program"),
        Entry.character_device("null", (1, 3), 0o666),
    ]
    text = listing(pack(entries), tmp_path)
    lines = {line.split()[-1] if "->" not in line else "link": line for line in text.splitlines()}
    assert lines["d"].startswith("drwxr-xr-x")
    assert lines["d/program"].startswith("-rwxr-xr-x")
    assert " 13 " in lines["odd"]
    assert lines["link"].endswith("link -> d/program")
    assert lines["null"].startswith("crw-rw-rw-")


def test_content_comes_back_whatever_its_length(tmp_path: Path) -> None:
    if shutil.which("busybox") is None:
        pytest.skip("no busybox on this host")
    contents = {f"f{size}": bytes(range(256))[:size] for size in (0, 1, 2, 3, 4, 5, 255)}
    archive = pack(Entry.file(name, data) for name, data in contents.items())
    subprocess.run(["busybox", "cpio", "-i"], input=archive, cwd=tmp_path, capture_output=True, check=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents


def test_the_same_busybox_gives_the_same_bytes() -> None:
    one, other = busybox_initramfs(b"program"), busybox_initramfs(b"program")
    assert hashlib.sha256(one).digest() == hashlib.sha256(other).digest()
    assert one != busybox_initramfs(b"another")


def test_it_is_made_of_whole_blocks_and_ends_with_the_trailer() -> None:
    archive = busybox_initramfs(b"program")
    assert len(archive) % 512 == 0
    assert b"TRAILER!!!" in archive[-512:]


def test_what_a_test_lays_in_is_there(tmp_path: Path) -> None:
    text = listing(busybox_initramfs(b"program", [Entry.file("root/load", b"x", 0o755)]), tmp_path)
    assert "root/load" in text
    assert "dev/console" in text


def test_modes_carry_their_file_types() -> None:
    assert stat.S_ISDIR(Entry.directory("d").mode)
    assert stat.S_ISCHR(Entry.character_device("c", (1, 2)).mode)
    assert stat.S_ISLNK(Entry.symlink("l", "t").mode)


def test_given_modules_that_need_others_then_each_comes_after_what_it_needs() -> None:
    """Names with '-' are those with '_'; a circle or a module that is not there stops nothing."""
    modules = {
        "disk": b"\0depends=bus-core,lib\0",
        "bus_core": b"x\0depends=lib\0",
        "lib": b"\0depends=\0",
        "one": b"\0depends=other,built_in\0",
        "other": b"\0depends=one\0",
    }
    assert load_order(modules, ["disk", "one", "nowhere"]) == ["lib", "bus_core", "disk", "other", "one"]


def test_given_modules_when_they_are_added_then_they_follow_in_an_archive_of_their_own(
    tmp_path: Path,
) -> None:
    archive = disk_initramfs(b"program", pack([Entry.file("lib/modules/order", b"disk\n")]))
    assert "init -> init.disk" in listing(archive, tmp_path)
    assert archive.count(b"TRAILER!!!") == 2
