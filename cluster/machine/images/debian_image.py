# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest images: a Debian kernel and busybox, fetched once, kept in the user's cache and verified at each use.

The cache lives in ``$COREMESH_CACHE``, else in the platform's user cache directory. One image is one folder
with a manifest of SHA-256 sums. A folder appears by one rename, so a fetch that is killed leaves either the
old image or none; a file lock lets any number of processes ask for the same image at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from coremesh.cluster.machine.images import cache, packages
from coremesh.cluster.machine.images.initramfs import (
    Entry,
    busybox_initramfs,
    disk_initramfs,
    network_entries,
)
from coremesh.cluster.machine.images.modules import module_archive
from coremesh.cluster.machine.options import check
from coremesh.core.errors import ConfigurationError, GuestImageError, ImageFetchError, shown
from coremesh.core.input_file import named, read_input_file

#: Debian's kernel flavours for amd64, the standard one, and the smaller one for virtual machines; and those
#: of 32 bits, with PAE and without.
FLAVOURS = ("amd64", "cloud-amd64", "686-pae", "686")

_MANIFEST = "manifest.json"
_KERNEL = "vmlinuz"
_BUSYBOX = "busybox"
_MODULES = "modules.cpio"
_FILES = (_KERNEL, _BUSYBOX, _MODULES)
_SPACE_NEEDED = 250 << 20  # package lists, the packages and what is taken from them, in bytes


@dataclass(frozen=True)
class DebianImage:
    """A fetched kernel and the busybox that goes with it. `release` is the kernel's, as in ``uname -r``."""

    flavour: str
    folder: Path
    release: str
    kernel_version: str
    busybox_version: str

    @property
    def kernel(self) -> Path:
        """The bzImage."""
        return self.folder / _KERNEL

    @property
    def busybox(self) -> Path:
        """The statically linked busybox."""
        return self.folder / _BUSYBOX

    def initramfs(self, *, disks: bool = False, network: str = "", extra: Iterable[Entry] = ()) -> bytes:
        """Return the initramfs that `coremesh boot` uses with this kernel.

        With `disks` or a `network` it loads the drivers of disks and file systems first, and goes on in the
        root file system that the kernel's word ``root=`` names, if there is one. A `network` 'dhcp' is
        configured before the shell starts, 'manual' is left to it. `extra` files follow the others.
        """
        if not disks and not network:
            return busybox_initramfs(self.busybox.read_bytes(), extra)
        modules = (self.folder / _MODULES).read_bytes()
        return disk_initramfs(self.busybox.read_bytes(), modules, [*network_entries(network), *extra])

    def has_module(self, name: str) -> bool:
        """Whether the initramfs can have this module of the kernel: images of older versions have fewer."""
        return f"lib/modules/{name}.ko\0".encode() in (self.folder / _MODULES).read_bytes()


def cached_debian(flavour: str = "amd64") -> DebianImage | None:
    """Return the cached image after checking its hashes, or None if there is none or it is damaged."""
    check_flavour(flavour)
    folder = cache.cache_folder() / f"debian-{flavour}"
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        for name in _FILES:
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"][name]:
                    return None
        return DebianImage(
            flavour=flavour,
            folder=folder,
            release=manifest["release"],
            kernel_version=manifest["kernel_version"],
            busybox_version=manifest["busybox_version"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fetch_debian(
    flavour: str = "amd64",
    *,
    refresh: bool = False,
    progress: packages.Progress | None = None,
    source_list: Path | None = None,
) -> DebianImage:
    """Return Debian's current stable kernel of `flavour` and busybox, from the cache if it has them.

    `refresh` fetches even so, and keeps the old image if that fails. `source_list` stands in for the system's
    apt sources. May be called from any thread or process at once. Raises :class:`ImageFetchError`.
    """
    check_flavour(flavour)
    refresh, progress = check("refresh", refresh), check("progress", progress)
    source_list = check("source_list", source_list)
    report = progress or (lambda what, done: None)
    folder = cache.cache_folder()
    # Before the lock: a cache that this user may only read can hold a valid image all the same. A folder that
    # is exchanged in this moment does not pass the check of its hashes, and is then looked at under the lock.
    if not refresh and (image := cached_debian(flavour)) is not None:
        return image
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with cache.locked(folder / f"debian-{flavour}.lock"):
            if not refresh and (image := cached_debian(flavour)) is not None:
                return image
            cache.sweep(folder, f"fetch-{flavour}-")
            cache.check_space(folder, _SPACE_NEEDED)
            with tempfile.TemporaryDirectory(prefix=f"fetch-{flavour}-", dir=folder) as work:
                _fill(Path(work), flavour, report, source_list)
                cache.exchange(Path(work) / "image", folder / f"debian-{flavour}")
    except OSError as error:
        raise cache.fetch_error(error, folder) from error
    image = cached_debian(flavour)
    if image is None:
        raise ImageFetchError(f"the image just written to {folder} does not read back. Check that disk.")
    return image


def fetch_debian_with(
    module: str, flavour: str = "amd64", progress: packages.Progress | None = None
) -> DebianImage:
    """As :func:`fetch_debian`; an image that lacks the kernel's `module` ('' for none) is fetched anew."""
    image = fetch_debian(flavour, progress=progress)
    if module and not image.has_module(module):
        image = fetch_debian(flavour, refresh=True, progress=progress)
    return image


def drop_debian(flavour: str = "amd64") -> None:
    """Remove a cached image, if there is one."""
    check_flavour(flavour)
    shutil.rmtree(cache.cache_folder() / f"debian-{flavour}", ignore_errors=True)


def read_image(path: str | os.PathLike[str], what: str, limit: int, why_limit: str) -> bytes:
    """Return the content of a person's own `what` ('kernel', 'initrd', 'module') or raise GuestImageError.

    It must be a regular file of at most `limit` bytes; `why_limit` says in a sentence where that comes from.
    """
    hint = " 'coremesh fetch' gets a Debian kernel." if what == "kernel" else ""
    data = read_input_file(path, what, limit, why_limit, GuestImageError, hint)
    if not data:
        raise GuestImageError(f"the {what} {named(path)} is empty.")
    return data


def _fill(work: Path, flavour: str, report: packages.Progress, source_list: Path | None) -> None:
    apt_root = work / "apt"
    apt_root.mkdir()
    apt = packages.Apt(apt_root, source_list, architecture(flavour))
    apt.update(report)
    package = apt.dependency(f"linux-image-{flavour}", rf"linux-image-\d.*-{flavour}")
    kernel_archive = apt.download(package, report)
    busybox_archive = apt.download("busybox-static", report)

    report("unpacking", 0.0)
    path, kernel = packages.extract(kernel_archive, r"boot/vmlinuz-.*")
    report("unpacking", 0.2)
    modules = module_archive(kernel_archive)
    report("unpacking", 0.8)
    _, busybox = packages.extract(busybox_archive, r"(usr/)?bin/busybox")
    image = work / "image"
    image.mkdir()
    manifest = {
        "release": re.sub(r"^boot/vmlinuz-", "", path),
        "kernel_version": packages.version(kernel_archive),
        "busybox_version": packages.version(busybox_archive),
        "sha256": {
            name: cache.write(image / name, data)
            for name, data in zip(_FILES, (kernel, busybox, modules), strict=True)
        },
    }
    cache.write(image / _MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    report("unpacking", 1.0)


def architecture(flavour: str) -> str:
    """Return Debian's name of the architecture that a kernel flavour is for."""
    return "amd64" if flavour.endswith("amd64") else "i386"


def check_flavour(flavour: str, among: tuple[str, ...] = FLAVOURS) -> None:
    """Raise :class:`ConfigurationError` for a kernel flavour that Debian has not, or that is not `among`."""
    if not isinstance(flavour, str) or flavour not in among:
        raise ConfigurationError(f"no kernel flavour {shown(flavour)} here; there are {', '.join(among)}.")
