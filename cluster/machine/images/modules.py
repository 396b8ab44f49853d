# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel modules that an initramfs needs to reach a disk, taken from the kernel's Debian package.

They become a second cpio archive, which follows the first one: Linux unpacks both (Documentation/
driver-api/early-userspace/buffer-format.rst). ``lib/modules/order`` names them in the order of loading.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from coremesh.cluster.machine.images import packages
from coremesh.cluster.machine.images.initramfs import Entry, pack

#: The drivers of a machine's disks and of what is on them; what these depend on comes with them.
WANTED = (
    "ata_piix", "sd_mod", "sr_mod", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng",
    "9pnet_virtio", "9p", "crc32c_generic", "crc32c_intel", "ext4", "isofs",
)  # fmt: skip

#: Where they are: reading all of a kernel's modules to find a dozen takes many times as long.
_FOLDERS = (
    r"arch/x86/crypto|crypto|lib|block|drivers/(ata|scsi|cdrom|block|virtio)|drivers/char(/hw_random)?"
    r"|drivers/net|net/core|net/9p|fs/(ext4|jbd2|isofs|nls|9p|netfs|fscache)?"
)
_MODULE = re.compile(rf"(usr/)?lib/modules/[^/]+/kernel/({_FOLDERS})/?[^/]+\.ko(\.xz)?")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def module_archive(kernel_package: Path) -> bytes:
    """Return the cpio archive of the wanted modules of a kernel's .deb, as far as it has them.

    Raises :class:`ImageFetchError` for a damaged package.
    """
    found: dict[str, bytes] = {}
    for path, content in packages.extract_all(kernel_package, _MODULE):
        data = lzma.decompress(content) if path.endswith(".xz") else content
        found[module_name(path)] = data
    order = load_order(found, WANTED)
    entries = [Entry.directory("lib"), Entry.directory("lib/modules")]
    entries += [Entry.file(f"lib/modules/{name}.ko", found[name]) for name in order]
    entries.append(Entry.file("lib/modules/order", "".join(f"{name}\n" for name in order).encode()))
    return pack(entries)


def module_name(path: str) -> str:
    """Return a module's name as the kernel has it: with '_' where its file may have '-'."""
    return PurePosixPath(path).name.partition(".")[0].replace("-", "_")


def load_order(modules: Mapping[str, bytes], wanted: Iterable[str]) -> list[str]:
    """Return the names of `wanted` and of all that they depend on, each after what it depends on.

    `modules` are the files by name; a name that has none there is left out: it may be built in. Pure.
    """
    order: dict[str, None] = {}

    def visit(name: str, under_way: frozenset[str]) -> None:
        if name in order or name in under_way or name not in modules:
            return
        match = _DEPENDS.search(modules[name])
        for needed in match[1].decode("ascii", "replace").split(",") if match else ():
            visit(needed.replace("-", "_"), under_way | {name})
        order[name] = None

    for name in wanted:
        visit(name, frozenset())
    return list(order)
