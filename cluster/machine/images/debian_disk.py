# SPDX-License-Identifier: GPL-2.0-or-later
"""A bootable Debian root disk from Debian's own packages, made without root.

Three steps, none of which needs a privilege, a name space or a tool beyond apt, dpkg and e2fsprogs:

1. apt resolves, downloads and verifies the packages, on a private state (:mod:`packages`);
2. their files go into an ext4 file system, as ``dpkg --unpack`` leaves them (:mod:`root_tree`, :mod:`ext4`);
3. a machine of ours boots that disk, and ``dpkg --configure -a`` runs the packages' scripts where they
   belong: as root of the system that they set up. User name spaces could do that on the host, but containers
   and many computers forbid them, and a script of a package is then one that runs on the host.

The disk boots by itself, too: in step 3 GRUB is installed from the packages on the disk, by its own tools,
for a machine that begins with a PC's firmware.

The result stands in the cache with its kernel and initramfs. No machine writes to it: :func:`own_disk` gives
a copy that is the user's, and that keeps what the guest writes.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import platformdirs
from coremesh.cluster.machine.disks import Disk
from coremesh.cluster.machine.images import cache, ext4, packages
from coremesh.cluster.machine.images.debian_image import check_flavour, fetch_debian
from coremesh.cluster.machine.images.first_boot import SCRIPT, SCRIPT_PATH, configure
from coremesh.cluster.machine.images.initramfs import disk_initramfs
from coremesh.cluster.machine.images.modules import module_archive
from coremesh.cluster.machine.images.root_tree import RootTree
from coremesh.core.errors import ConfigurationError, ImageFetchError, shown

#: Beside what every Debian has: a way to boot, to get an address, and to look around.
PACKAGES: Final = (
    "apt", "init", "usr-is-merged", "udev", "dbus", "libpam-systemd", "systemd-resolved", "iproute2",
    "iputils-ping", "netbase", "procps", "less", "nano", "wget", "ca-certificates",
    "grub-pc-bin", "grub2-common",
)  # fmt: skip
DISK_FLAVOURS: Final = ("amd64", "cloud-amd64")
SSH_PACKAGES: Final = ("openssh-server",)
LEAST_BYTES: Final = 1 << 30
MOST_BYTES: Final = 2 << 40

DISK, KERNEL, INITRD = "disk.img", "vmlinuz", "initrd.img"
#: What a fetch of today makes. 2: GRUB is on the disk; a disk without a number has none. 3: logins may use
#: all cores, whatever cores the system keeps to.
LAYOUT: Final = 3
#: systemd's own word on the kernel's command line (systemd(1)); later ones replace earlier ones.
AFFINITY_WORD: Final = "systemd.cpu_affinity="
_MANIFEST: Final = "manifest.json"
_FILES: Final = (DISK, KERNEL, INITRD)
_SPACE_NEEDED: Final = 2500 << 20
_PIECE: Final = 64 << 10
_NETWORK: Final = """\
[Match]
Name=en* eth*

[Network]
DHCP=yes
"""
# The words of GRUB's menu. Not the kernel's whole list: what our own command line adds is for machines of
# several hosts, and firmware does not know of hosts.
_GRUB: Final = """\
GRUB_DEFAULT=0
GRUB_TIMEOUT=1
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200 panic=-1"
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
"""
# networkd asks whether there are wireless cards, whereupon Linux loads their driver's frame. It has 761 calls
# that are patched one by one, and for each patch all cores are interrupted three times.
_NO_WIRELESS: Final = "blacklist cfg80211\n"
# What begins a person's programs; more cores may be named than there are.
_LOGINS: Final = ("getty@", "serial-getty@", "console-getty", "ssh", "ssh@", "user@")
_ALL_CORES: Final = """\
[Service]
CPUAffinity=0-8191
"""
_HOSTS: Final = """\
127.0.0.1 localhost
127.0.1.1 debian
::1 localhost ip6-localhost ip6-loopback
"""

Options = dict[str, object]


@dataclass(frozen=True)
class DebianDisk:
    """A Debian disk with the kernel and the initramfs that boot it. `cmdline` is what that kernel is told.

    With a `boot_loader` firmware can boot it too. With `free_logins` what a person starts may use all cores
    also where the system itself keeps to some.
    """

    folder: Path
    release: str
    cmdline: str
    boot_loader: bool = False
    free_logins: bool = False

    def words(self, shares: Sequence[int], append: str = "") -> str:
        """Return what its kernel is told on hosts that have `shares` vCPUs, beside a person's `append`. Pure.

        systemd, and all services that it starts, keep to the cores of the first host: they share the kernel's
        data with each other and work for the devices, and over two hosts they would spend a boot on passing
        its pages to and fro. Logins use all cores, so a disk whose logins do not is told nothing.
        """
        first = next(cores for cores in shares if cores)
        if not self.free_logins or first == sum(shares) or AFFINITY_WORD in append:
            return self.cmdline
        return f"{self.cmdline} {AFFINITY_WORD}0-{first - 1}"

    @property
    def disk(self) -> Path:
        """The raw image: a partition table and one ext4 file system."""
        return self.folder / DISK

    @property
    def kernel(self) -> Path:
        """The bzImage, as in the disk's /boot."""
        return self.folder / KERNEL

    @property
    def initrd(self) -> Path:
        """An initramfs that loads the drivers of disks and starts the root file system."""
        return self.folder / INITRD

    def require_boot_loader(self) -> None:
        """Raise :class:`ImageFetchError` for a disk of an earlier version, which firmware cannot boot."""
        if not self.boot_loader:
            raise ImageFetchError(
                f"the Debian disk in {self.folder} was made before it had a boot loader, which --bios needs. "
                f"Remove that folder (what the guest has written is in it) and run 'coremesh fetch debian "
                "--disk 4G', or leave --bios out."
            )


def cached_debian_disk(
    size: int | None = None, flavour: str = "amd64", *, ssh: bool = False
) -> DebianDisk | None:
    """Return the disk in the cache, after checking its hashes; None without one of these options.

    `size` None takes whatever size there is.
    """
    check_flavour(flavour, DISK_FLAVOURS)
    return _load(
        _place(flavour),
        {"flavour": flavour, "ssh": ssh, "layout": LAYOUT, **({} if size is None else {"size": size})},
    )


def fetch_debian_disk(
    size: int,
    flavour: str = "amd64",
    *,
    ssh: bool = False,
    refresh: bool = False,
    progress: packages.Progress | None = None,
    source_list: Path | None = None,
) -> DebianDisk:
    """Return a Debian disk of `size` bytes, from the cache if it has one of these options.

    `ssh` installs an SSH server, which lets in the keys of this user (``~/.ssh/*.pub``) as root. `refresh`
    makes a new one. Raises :class:`ConfigurationError` and :class:`ImageFetchError`. Any thread or process.
    """
    check_flavour(flavour, DISK_FLAVOURS)
    if not LEAST_BYTES <= size <= MOST_BYTES or size % 4096:
        raise ConfigurationError(
            f"a Debian disk has {LEAST_BYTES >> 30} GiB to {MOST_BYTES >> 40} TiB, not {shown(size)} bytes."
        )
    report = progress or (lambda what, done: None)
    options: Options = {"flavour": flavour, "size": size, "ssh": ssh, "layout": LAYOUT}
    place = _place(flavour)
    folder = place.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with cache.locked(folder / f"{place.name}.lock"):
            if not refresh and (found := _load(place, options)) is not None:
                return found
            cache.sweep(folder, f"make-{place.name}-")
            cache.check_space(folder, _SPACE_NEEDED)
            with tempfile.TemporaryDirectory(prefix=f"make-{place.name}-", dir=folder) as work:
                _make(Path(work), options, report, source_list)
                cache.exchange(Path(work) / "image", place)
    except OSError as error:
        raise cache.fetch_error(error, folder) from error
    made = _load(place, options)
    if made is None:
        raise ImageFetchError(f"the disk just written to {place} does not read back. Check that disk.")
    return made


def own_disk(flavour: str = "amd64", name: str = "debian") -> DebianDisk:
    """Return the user's own copy of the cached disk, made at first use: it keeps what the guest writes.

    It lives in the user's data folder (or ``$COREMESH_DISKS``); removing its folder lets the next use copy
    anew. Raises :class:`ImageFetchError` where there is neither.
    """
    place = disks_folder() / name
    if (own := _load(place, {}, verify=False)) is not None:
        return own
    pristine = _load(_place(flavour), {})
    if pristine is None:
        raise ImageFetchError("there is no Debian disk yet: 'coremesh fetch debian --disk 4G' makes one.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with cache.locked(place.parent / f"{name}.lock"):
            if (own := _load(place, {}, verify=False)) is not None:
                return own
            with tempfile.TemporaryDirectory(prefix=f"copy-{name}-", dir=place.parent) as work:
                fresh = Path(work) / "image"
                fresh.mkdir()
                for part in (*_FILES, _MANIFEST):
                    copy_sparse(pristine.folder / part, fresh / part)
                cache.exchange(fresh, place)
    except OSError as error:
        raise ImageFetchError(
            f"no copy of the Debian disk can be made in {place.parent} ({error.strerror}). Set "
            "COREMESH_DISKS to a folder on another disk, or use 'debian,snapshot'."
        ) from error
    own = _load(place, {}, verify=False)
    if own is None:
        raise ImageFetchError(f"the disk just copied to {place} does not read back. Check that disk.")
    return own


def pristine_disk(flavour: str = "amd64") -> DebianDisk:
    """Return the cached disk, which no machine may write to. Raises :class:`ImageFetchError` without one."""
    found = _load(_place(flavour), {})
    if found is None:
        raise ImageFetchError("there is no Debian disk yet: 'coremesh fetch debian --disk 4G' makes one.")
    return found


def disks_folder() -> Path:
    """Return the folder of the user's own disks; it need not exist."""
    chosen = os.environ.get("COREMESH_DISKS")
    return Path(chosen) if chosen else Path(platformdirs.user_data_dir("coremesh")) / "disks"


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, and its holes as holes."""
    with source.open("rb") as reading, target.open("wb") as writing:
        writing.truncate(os.fstat(reading.fileno()).st_size)
        for start, end in _data(reading.fileno()):
            while start < end:
                start += os.copy_file_range(reading.fileno(), writing.fileno(), end - start, start, start)


def _place(flavour: str) -> Path:
    return cache.cache_folder() / f"debian-disk-{flavour}"


def _load(folder: Path, options: Options, *, verify: bool = True) -> DebianDisk | None:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if any(manifest["options"].get(name) != value for name, value in options.items()):
            return None
        for name in _FILES:
            if not (folder / name).is_file() or (verify and _hash(folder / name) != manifest["sha256"][name]):
                return None
        layout = manifest["options"].get("layout", 1)
        return DebianDisk(folder, manifest["release"], manifest["cmdline"], layout >= 2, layout >= 3)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(path: Path) -> str:
    """Return a SHA-256 of the pieces that are not all zeroes and of their places: holes cost no time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(os.fstat(file.fileno()).st_size.to_bytes(8, "little"))
        done = 0  # an extent may begin in the piece in which the one before it ended
        for start, end in _data(file.fileno()):
            for at in range(max(start - start % _PIECE, done), end, _PIECE):
                done = at + _PIECE
                piece = os.pread(file.fileno(), _PIECE, at)
                if piece.count(0) != len(piece):
                    digest.update(at.to_bytes(8, "little") + piece)
    return digest.hexdigest()


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """The extents of a file that are no holes."""
    at, size = 0, os.fstat(fd).st_size
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def _make(work: Path, options: Options, report: packages.Progress, source_list: Path | None) -> None:
    for name in ext4.TOOLS:
        ext4.tool(name)  # said before anything is downloaded
    flavour, size = str(options["flavour"]), options["size"]
    assert isinstance(size, int)
    busybox = fetch_debian(flavour, progress=report, source_list=source_list).busybox.read_bytes()
    apt_root, tree_root, image = work / "apt", work / "tree", work / "image"
    for folder in (apt_root, tree_root, image):
        folder.mkdir(mode=0o700)
    apt = packages.Apt(apt_root, source_list)
    apt.update(report)
    kernel = apt.dependency(f"linux-image-{flavour}", rf"linux-image-\d.*-{flavour}")
    wanted = [*apt.required(), *PACKAGES, *(SSH_PACKAGES if options["ssh"] else ()), f"linux-image-{flavour}"]
    archives = apt.download_all(wanted, "the system's packages", report)

    tree = RootTree(tree_root)
    for number, archive in enumerate(archives):
        report("unpacking the system", number / len(archives))
        tree.unpack(archive)
    report("unpacking the system", 1.0)
    _furnish(tree, apt.sources(), ssh=bool(options["ssh"]))
    release = kernel.removeprefix("linux-image-")
    modules = module_archive(next(path for path in archives if path.name.startswith(f"{kernel}_")))
    initrd = disk_initramfs(busybox, modules)
    # Firmware reads a disk slowly, so there it is packed.
    tree.file(f"boot/initrd.img-{release}", gzip.compress(initrd, mtime=0))
    tree.finish()
    if tree.size() * 1.2 + (200 << 20) > size:
        raise ImageFetchError(f"the system has {tree.size() >> 20} MiB: make the disk larger, as --disk 4G.")

    report("writing the disk", 0.0)
    identity = ext4.write_disk(image / DISK, size, tree, work)
    report("writing the disk", 1.0)
    shutil.copyfile(tree_root / "boot" / f"vmlinuz-{release}", image / KERNEL)
    (image / INITRD).write_bytes(initrd)
    shutil.rmtree(tree_root)
    cmdline = f"root=UUID={identity} rw"
    configure(image / DISK, image / KERNEL, image / INITRD, cmdline, len(tree.packages), report)
    ext4.check(image / DISK)

    report("checking", 0.0)
    manifest = {
        "options": options,
        "release": release,
        "cmdline": cmdline,
        "packages": len(tree.packages),
        "sha256": {name: _hash(image / name) for name in _FILES},
    }
    (image / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for name in (*_FILES, _MANIFEST):
        cache.sync(image / name)
    (image / DISK).chmod(0o444)
    report("checking", 1.0)


def _furnish(tree: RootTree, sources: list[str], *, ssh: bool) -> None:
    """Lay what an administrator would: names, file systems, network, package sources, keys."""
    lay: Callable[[str, str], None] = lambda path, text: tree.file(path, text.encode())  # noqa: E731
    lay("etc/hostname", "debian\n")
    lay("etc/hosts", _HOSTS)
    lay("etc/fstab", "LABEL=root / ext4 errors=remount-ro 0 1\n")
    lay("etc/apt/sources.list", "".join(f"{line}\n" for line in sources))
    lay("etc/systemd/network/80-dhcp.network", _NETWORK)
    lay("etc/default/grub", _GRUB)
    lay("etc/modprobe.d/no-wireless.conf", _NO_WIRELESS)
    for unit in _LOGINS:
        lay(f"etc/systemd/system/{unit}.service.d/all-cores.conf", _ALL_CORES)
    for path, mode in (("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("run", 0o755), ("tmp", 0o1777)):
        tree.directory(path, mode)
    tree.file(SCRIPT_PATH, SCRIPT.encode(), 0o755)
    if ssh:
        tree.directory("root/.ssh", 0o700)
        keys = [path.read_text() for path in sorted(Path("~/.ssh").expanduser().glob("*.pub"))]
        tree.file("root/.ssh/authorized_keys", "".join(keys).encode(), 0o600)


def resolve(disks: Sequence[Disk]) -> tuple[tuple[Disk, ...], DebianDisk | None]:
    """Put the file of the Debian disk where a person named it; return it, too, if it is among `disks`.

    Without 'snapshot' or 'readonly' it is the user's own copy, which keeps what the guest writes.
    Raises :class:`ImageFetchError` where none was fetched.
    """
    found: DebianDisk | None = None
    resolved = []
    for disk in disks:
        if disk.is_fetched:
            found = pristine_disk() if disk.snapshot or disk.read_only else own_disk()
            disk = replace(disk, path=found.disk)
        resolved.append(disk)
    return tuple(resolved), found
