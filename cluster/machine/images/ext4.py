# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk with one ext4 file system, written from a folder without privileges.

``mke2fs -d`` fills it; the owner of a file and its mode, which only root can give a file in a folder, are
written into the inodes by ``debugfs``. Both are of e2fsprogs, which every Debian system has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Final

from coremesh.cluster.machine.images.root_tree import Attributes, RootTree, every_file
from coremesh.core.errors import ImageFetchError

PARTITION_OFFSET: Final = 1 << 20
"""Bytes before the file system: the partition table, and room for a boot loader."""
TOOLS: Final = ("mke2fs", "debugfs", "e2fsck")
_LINUX: Final = 0x83
_SECTOR: Final = 512


def tool(name: str) -> str:
    """Return the path of a tool of e2fsprogs. Raises :class:`ImageFetchError` where there is none."""
    # Users do not have the system's folders of tools in their path.
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if found is None:
        raise ImageFetchError(f"{name} is missing, which makes file systems: 'apt install e2fsprogs'.")
    return found


def write_disk(image: Path, size: int, tree: RootTree, scratch: Path) -> str:
    """Write a disk of `size` bytes whose one partition holds `tree`; return the file system's UUID.

    `scratch` is a folder for what passes between the tools. Raises :class:`ImageFetchError`.
    """
    identity = str(uuid.uuid4())
    blocks = (size - PARTITION_OFFSET) // 4096
    with image.open("wb") as file:
        file.truncate(size)
        file.write(partition_table(size, int.from_bytes(os.urandom(4), "little")))
    _run(
        [
            tool("mke2fs"), "-q", "-F", "-t", "ext4", "-b", "4096", "-U", identity, "-L", "root",
            "-O", "^metadata_csum_seed",  # GRUB 2.06 does not read what has it
            "-E", f"offset={PARTITION_OFFSET},root_owner=0:0,lazy_itable_init=1,nodiscard",
            "-d", str(tree.folder), str(image), str(blocks),
        ],
        "the file system could not be made",
    )  # fmt: skip
    script = scratch / "attributes"
    lines: list[str] = []

    def visit(path: str, attributes: Attributes) -> None:
        if '"' in path or "\n" in path:
            raise ImageFetchError(f"a package has a file of an odd name: {path!r}.")
        for field, value in (
            ("uid", attributes.uid),
            ("gid", attributes.gid),
            ("mode", f"0{attributes.mode:o}"),
        ):
            lines.append(f'set_inode_field "/{path}" {field} {value}\n')

    every_file(tree, visit)
    script.write_text("".join(lines))
    _run(
        [tool("debugfs"), "-w", "-f", str(script), f"{image}?offset={PARTITION_OFFSET}"],
        "the files' owners could not be written",
    )
    return identity


def check(image: Path) -> None:
    """Raise :class:`ImageFetchError` unless the file system of a disk is clean."""
    command = [tool("e2fsck"), "-fn", f"{image}?offset={PARTITION_OFFSET}"]
    _run(command, "the file system is not clean")


def partition_table(size: int, signature: int) -> bytes:
    """Return a master boot record with one bootable Linux partition from 1 MiB to the end. Pure."""
    first = PARTITION_OFFSET // _SECTOR
    sectors = (size - PARTITION_OFFSET) // _SECTOR
    # Cylinder, head and sector are those that say "look at the numbers".
    entry = b"\x80\xfe\xff\xff" + bytes([_LINUX]) + b"\xfe\xff\xff"
    entry += first.to_bytes(4, "little") + sectors.to_bytes(4, "little")
    return bytes(440) + signature.to_bytes(4, "little") + bytes(2) + entry + bytes(48) + b"\x55\xaa"


def _run(command: list[str], what: str) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBUGFS_PAGER": "cat", "E2FSPROGS_FAKE_TIME": ""}
    environment.pop("E2FSPROGS_FAKE_TIME")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        env=environment,
    )  # fmt: skip
    complaint = next((line for line in done.stderr.splitlines() if "error" in line.lower()), "")
    if done.returncode != 0 or (complaint and "debugfs" in command[0]):
        reason = complaint or (done.stderr or done.stdout).strip()[-300:]
        raise ImageFetchError(f"{what}: {reason} ({Path(command[0]).name}).")
