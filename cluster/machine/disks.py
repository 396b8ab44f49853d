# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine's disks: what a person writes of them, and the images opened where the devices are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coremesh.core.errors import ConfigurationError, DiskError, shown
from coremesh.core.input_file import path_of

if TYPE_CHECKING:
    from coremesh.hw.ata.drive import Drive
    from coremesh.hw.backend.block import BlockBackend
    from coremesh.hw.virtio.model import VirtioModel

INTERFACES: Final = ("ide", "virtio")
FORMATS: Final = ("raw", "qcow2", "vmdk", "vhdx", "vdi", "vhd")
#: The format of an image whose file's name ends so. Of all others it is raw, unless a person says otherwise:
#: what is in the image does not count, since the guest writes that.
FORMATS_BY_SUFFIX: Final = {f".{name}": name for name in FORMATS}
#: In the place of a file's name: the disk that ``coremesh fetch debian --disk`` made.
FETCHED: Final = "debian"
IDE_DRIVES: Final = 4
_FIRST_CD: Final = 2  # device 0 of the second channel, where installers look first
_BOOT_DEVICE: Final = re.compile(r"cdrom|disk[0-9]{0,3}")


@dataclass(frozen=True)
class Disk:
    """One disk of a machine, or with `cdrom` a drive with that disc.

    `path` is the image, or a block device, on the host that has the devices. `interface` is how the guest
    sees it: 'ide' or 'virtio'. `image_format` is one of :data:`FORMATS`; None takes it from the name's
    ending. With `read_only` a write is an error to the guest; with `snapshot` its writes go to a temporary
    file and are lost with the machine.
    """

    path: str | os.PathLike[str]
    interface: str = "ide"
    image_format: str | None = None
    read_only: bool = False
    snapshot: bool = False
    cdrom: bool = False

    @property
    def is_fetched(self) -> bool:
        """Whether the name is that of the Debian disk of ``coremesh fetch``, and of no file."""
        return os.fspath(self.path) == FETCHED and not Path(FETCHED).exists()

    def checked(self) -> Disk:
        """Return it with an absolute path and a known format. Raises :class:`ConfigurationError`."""
        path = path_of("disk", self.path)
        path = path if self.is_fetched else path.absolute()
        if self.interface not in INTERFACES:
            raise ConfigurationError(
                f"no disk interface {shown(self.interface)}; there are {', '.join(INTERFACES)}."
            )
        image_format = self.image_format
        if image_format is None:
            image_format = FORMATS_BY_SUFFIX.get(path.suffix.lower(), "raw")
        if image_format not in FORMATS:
            raise ConfigurationError(f"no disk format {shown(image_format)}; there are {', '.join(FORMATS)}.")
        for name in ("read_only", "snapshot", "cdrom"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(
                    f"a disk's {name} is True or False, not {shown(getattr(self, name))}."
                )
        if self.snapshot and self.read_only:
            raise ConfigurationError("a disk is 'readonly' or a 'snapshot': leave one of the two out.")
        return Disk(
            path, self.interface, image_format, self.read_only or self.cdrom, self.snapshot, self.cdrom
        )


def parse_disk(text: str) -> Disk:
    """Return the disk that a person wrote as ``FILE[,if=ide|virtio][,format=F][,readonly][,snapshot]``.

    A comma in the file's name is written twice. Raises :class:`ConfigurationError`.
    """
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    if "\0" in text or not parts[0]:
        raise ConfigurationError(f"{shown(text)} names no disk; write FILE, or FILE,snapshot.")
    values: dict[str, Any] = {}
    for part in parts[1:]:
        name, equals, value = part.partition("=")
        known = _OPTIONS.get(name)
        if known is None or bool(equals) is not known[1]:
            raise ConfigurationError(
                f"{shown(part)} is no option of a disk; there are if=ide, format=F, readonly and snapshot. "
                "A comma in the file's name is written twice."
            )
        if known[0] in values:
            raise ConfigurationError(f"a disk's option {shown(name)} is given twice; leave one out.")
        values[known[0]] = value if equals else True
    return Disk(parts[0], **values)


#: By what a person writes: the field, and whether a value follows.
_OPTIONS: Final = {
    "if": ("interface", True),
    "format": ("image_format", True),
    "readonly": ("read_only", False),
    "snapshot": ("snapshot", False),
}


def check_disks(value: Any) -> tuple[Disk, ...]:
    """Return disks as the machine takes them: a list of :class:`Disk`, paths, or texts for parse_disk.

    Raises :class:`ConfigurationError`.
    """
    if not isinstance(value, list | tuple):
        raise ConfigurationError(f"disks is a list of paths or of Disk(...), not {shown(value)}.")
    return tuple(_disk(each).checked() for each in value)


def check_cdrom(value: Any) -> Disk | None:
    """Return the disc for the CD-ROM drive; None for no drive. Raises :class:`ConfigurationError`."""
    return None if value is None else Disk(path_of("CD image", value), cdrom=True).checked()


def _disk(value: Any) -> Disk:
    if isinstance(value, Disk):
        return value
    if isinstance(value, str):
        return parse_disk(value)
    return Disk(path_of("disk", value))


def check_places(disks: Sequence[Disk]) -> None:
    """Raise :class:`ConfigurationError` for more IDE drives than there are places, or one image twice."""
    drives = [disk for disk in disks if disk.interface == "ide"]
    if len(drives) > IDE_DRIVES:
        raise ConfigurationError(
            f"an IDE controller has {IDE_DRIVES} drives, CD-ROM drives included, not {len(drives)}."
        )
    written: dict[Path, bool] = {}
    for disk in disks:
        path = Path(disk.path)
        writes = not disk.read_only and not disk.snapshot
        # One that writes lets no other open the image, whichever comes first.
        if path in written and (writes or written[path]):
            raise ConfigurationError(f"the disk {path} is given twice; add ',snapshot' to each.")
        written[path] = writes


def open_disks(disks: Iterable[Disk], stack: ExitStack) -> list[tuple[Disk, BlockBackend]]:
    """Open the images; `stack` closes them. Raises :class:`~coremesh.core.errors.DiskError`."""
    from coremesh.hw.backend.formats import open_image

    opened = []
    for disk in disks:
        assert disk.image_format is not None  # checked() chose one
        image = open_image(disk.path, disk.image_format, read_only=disk.read_only, snapshot=disk.snapshot)
        stack.callback(image.close)
        opened.append((disk, image))
    return opened


def virtio_disks(opened: Iterable[tuple[Disk, BlockBackend]], vcpus: int) -> list[VirtioModel]:
    """Return the virtio devices of a machine's disks, in their order, with a queue for each vCPU up to 8."""
    from coremesh.hw.virtio.block import MOST_QUEUES, VirtioBlock

    mine = [image for disk, image in opened if disk.interface == "virtio"]
    return [
        VirtioBlock(
            image, name=f"virtio-blk{number}", queues=min(vcpus, MOST_QUEUES), serial=f"CM{number + 1:05d}"
        )
        for number, image in enumerate(mine)
    ]


def ide_places(disks: Iterable[Disk]) -> dict[int, Disk]:
    """Which disk has which place of an IDE controller: 0 and 1 on its first channel, 2 and 3 on its second.

    Disks come in their order; a CD-ROM drive is device 0 of the second channel if that is free.
    """
    places: dict[int, Disk] = {}
    for disk in sorted((disk for disk in disks if disk.interface == "ide"), key=lambda disk: disk.cdrom):
        free = [place for place in range(IDE_DRIVES) if place not in places]
        places[_FIRST_CD if disk.cdrom and _FIRST_CD in free else free[0]] = disk
    return places


def check_boot(value: Any) -> tuple[str, ...]:
    """Return what firmware is to boot from, as :func:`boot_paths` takes it.

    `value` is a text such as 'cdrom,disk', or a list of its words; None is no order. Raises
    :class:`ConfigurationError`.
    """
    if value is None:
        return ()
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise ConfigurationError(f"boot is a list of devices, as 'cdrom,disk', not {shown(value)}.")
    for word in words:
        if not _BOOT_DEVICE.fullmatch(word):
            raise ConfigurationError(
                f"no device {shown(word)} to boot from; there are cdrom, disk, and disk0, disk1 and so on in "
                "the order of --disk."
            )
    return tuple(words)


def boot_paths(disks: Sequence[Disk], boot: Sequence[str]) -> list[str]:
    """Return what firmware's boot order calls the devices of `boot`, each once; 'disk' are all disks.

    Raises :class:`ConfigurationError` for a device that the machine does not have.
    """
    from coremesh.hw.firmware.boot_order import ide_path, virtio_disk_path
    from coremesh.hw.pci.host import FIRST_FREE_SLOT

    paths: dict[int, str] = {}  # by the disk's identity: two may be equal
    for place, disk in ide_places(disks).items():
        paths[id(disk)] = ide_path(place)
    virtio = [disk for disk in disks if disk.interface == "virtio"]
    for slot, disk in enumerate(virtio, FIRST_FREE_SLOT):  # they are the first functions on the bus
        paths[id(disk)] = virtio_disk_path(slot)
    discs = [disk for disk in disks if disk.cdrom]
    others = [disk for disk in disks if not disk.cdrom]
    found: dict[str, None] = {}
    for word in boot:
        number = word.removeprefix("disk")
        wanted = discs if word == "cdrom" else others if not number else others[int(number) :][:1]
        if not wanted:
            raise ConfigurationError(
                f"the machine has no {word} to boot from; give it one, or leave it out of --boot."
            )
        found |= dict.fromkeys(paths[id(disk)] for disk in wanted)
    return list(found)


#: By whether it is a CD-ROM drive: what addresses of 32 bits for blocks of 2048 bytes, or of 48 bits for
#: sectors, reach.
_LARGEST: Final = {
    True: ("a CD-ROM drive", ((1 << 32) - 1) * 2048),
    False: ("an IDE disk", (1 << 48) * 512),
}


def ide_drives(opened: Iterable[tuple[Disk, BlockBackend]]) -> list[Drive | None]:
    """Return the drives of an IDE controller at their places, None at a free one.

    Raises :class:`~coremesh.core.errors.DiskError` for an image that is larger than its drive can be.
    """
    from coremesh.hw.ata.cdrom import Cdrom
    from coremesh.hw.ata.disk import Disk as AtaDisk

    pairs = list(opened)
    images = {id(disk): image for disk, image in pairs}
    places: list[Drive | None] = [None] * IDE_DRIVES
    taken = ide_places(disk for disk, _ in pairs)
    for place, disk in taken.items():
        image, serial = images[id(disk)], f"CM{place + 1:05d}"
        drive, largest = _LARGEST[disk.cdrom]
        if image.size > largest:
            raise DiskError(
                f"{disk.path} has {image.size} bytes, and {drive} can address {largest}: give it as a disk "
                "with if=virtio."
            )
        places[place] = Cdrom(image, serial) if disk.cdrom else AtaDisk(image, serial)
    return places if taken else []
