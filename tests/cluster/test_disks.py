# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person writes of a machine's disks, and where they end up on the IDE controller."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from coremesh.cluster.machine.describe import describe
from coremesh.cluster.machine.disks import (
    Disk,
    check_cdrom,
    check_disks,
    check_places,
    ide_drives,
    open_disks,
    parse_disk,
)
from coremesh.core.errors import ConfigurationError, DiskError
from coremesh.hw.ata.cdrom import Cdrom
from coremesh.hw.ata.disk import Disk as AtaDisk


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("a.img", Disk("a.img")),
        ("a.img,if=ide,readonly", Disk("a.img", read_only=True)),
        ("a.bin,format=raw,snapshot", Disk("a.bin", image_format="raw", snapshot=True)),
        ("with,,comma.img,snapshot", Disk("with,comma.img", snapshot=True)),
    ],
)
def test_given_a_disk_as_text_when_it_is_parsed_then_its_options_are_there(text: str, disk: Disk) -> None:
    assert parse_disk(text) == disk


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "names no disk"),
        (",snapshot", "names no disk"),
        ("a.img,colour=red", "no option of a disk"),
        ("a.img,readonly=yes", "no option of a disk"),
        ("a.img,if", "no option of a disk"),
        ("a.img,snapshot,snapshot", "given twice"),
        ("a.img,if=floppy", "no disk interface"),
        ("a.img,format=zip", "no disk format"),
        ("a.img,readonly,snapshot", "leave one of the two out"),
    ],
)
def test_given_a_wrong_disk_then_the_error_says_what_would_be_right(text: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint):
        check_disks([text])


def test_given_more_drives_than_places_or_an_image_twice_then_no_machine_is_made(tmp_path: Path) -> None:
    kernel = b"x"
    with pytest.raises(ConfigurationError, match="has 4 drives"):
        describe(kernel=kernel, disks=["a", "b", "c", "d"], cdrom="e")
    with pytest.raises(ConfigurationError, match="given twice"):
        describe(kernel=kernel, disks=["a", "a"])
    for one, other in (("a", "a,snapshot"), ("a,snapshot", "a"), ("a", "a,readonly")):
        with pytest.raises(ConfigurationError, match="given twice"):
            describe(kernel=kernel, disks=[one, other])
    check_places(check_disks(["a,snapshot", "a,snapshot", "a,readonly"]))


@pytest.mark.parametrize(
    ("disk", "largest"), [(Disk("a", cdrom=True), ((1 << 32) - 1) * 2048), (Disk("a"), 512 << 48)]
)
def test_given_an_image_beyond_a_drives_addresses_then_the_error_says_which_disk_takes_it(
    disk: Disk, largest: int
) -> None:
    def image(size: int) -> Any:
        return SimpleNamespace(size=size, read_only=True, can_discard=False)

    assert ide_drives([(disk, image(largest))])
    with pytest.raises(DiskError, match="if=virtio"):
        ide_drives([(disk, image(largest + 2048))])


def test_given_disks_and_a_disc_when_they_are_opened_then_each_has_its_place(tmp_path: Path) -> None:
    for name in ("a.img", "b.img", "c.iso"):
        (tmp_path / name).write_bytes(bytes(4096))
    disks = check_disks([tmp_path / "a.img", str(tmp_path / "b.img")])
    disc = check_cdrom(tmp_path / "c.iso")
    assert disc is not None
    with ExitStack() as stack:
        drives = ide_drives(open_disks([*disks, disc], stack))
        assert [type(drive) for drive in drives] == [AtaDisk, AtaDisk, Cdrom, type(None)]
        with pytest.raises(DiskError, match="in use"):
            open_disks(disks, stack)
    with ExitStack() as stack:
        open_disks(disks, stack)  # closed, and so unlocked


def test_given_no_such_image_then_the_error_names_it(tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(DiskError, match=r"nothing\.img"):
        open_disks(check_disks([tmp_path / "nothing.img"]), stack)


@pytest.mark.parametrize("name", ["nothing.img", "nothing.qcow2"])
def test_given_no_such_image_when_it_is_only_read_then_nobody_is_told_to_make_an_empty_one(
    tmp_path: Path, name: str
) -> None:
    disc = check_cdrom(tmp_path / name)
    assert disc is not None
    with ExitStack() as stack, pytest.raises(DiskError, match=rf"^no disk image .*{name}\.$"):
        open_disks([disc], stack)
