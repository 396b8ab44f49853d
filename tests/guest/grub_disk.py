# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk that GRUB boots, written without root: boot sector, core image behind it, one ext4 partition.

Source: GRUB's manual, section "Embedding": the boot sector loads the sector behind it, which loads the rest.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
from coremesh.cluster.machine.images.ext4 import PARTITION_OFFSET, partition_table, tool

MODULES = Path("/usr/lib/grub/i386-pc")
_WANTED = ("biosdisk", "part_msdos", "ext2", "serial", "terminal", "echo", "linux", "multiboot", "boot")
_CODE_BYTES = 440  # of a boot sector; behind it are the disk's signature and the partition table
_SECTOR = 512


def needs_grub() -> None:
    """Skip the test where GRUB's tools and modules are not installed."""
    if shutil.which("grub-mkimage") is None or not MODULES.is_dir():
        pytest.skip("GRUB's tools are not installed: apt install grub-common grub-pc-bin")


_SERIAL = "serial --unit=0 --speed=115200\nterminal_output serial\n"
_MENU = ("normal", "sleep")


def make_disk(disk: Path, size: int, tree: Path, commands: str, *, menu: bool = False) -> None:
    """Write ``disk``; ``tree`` becomes its file system, and GRUB runs ``commands`` on its serial console.

    With ``menu`` it shows that of the tree's ``boot/grub/grub.cfg`` on the screen afterwards.
    """
    configuration = disk.with_suffix(".cfg")
    configuration.write_text(commands if menu else _SERIAL + commands)
    core = disk.with_suffix(".core")
    command: list[str | Path] = [
        "grub-mkimage", "-O", "i386-pc", "-d", MODULES, "-o", core, "-c", configuration,
        "-p", "(hd0,msdos1)/boot/grub", *_WANTED, *(_MENU if menu else ()),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    image = core.read_bytes()
    assert len(image) <= PARTITION_OFFSET - _SECTOR
    with disk.open("wb") as file:
        file.truncate(size)
        table = partition_table(size, 0x1234_5678)
        file.write((MODULES / "boot.img").read_bytes()[:_CODE_BYTES] + table[_CODE_BYTES:] + image)
    blocks = (size - PARTITION_OFFSET) // 4096
    subprocess.run(
        [
            tool("mke2fs"), "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^metadata_csum_seed",
            "-E", f"offset={PARTITION_OFFSET}", "-d", tree, disk, str(blocks),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
