# SPDX-License-Identifier: GPL-2.0-or-later
"""An initial RAM file system made in memory: busybox, a few directories, and a shell on the console.

The archive is the "newc" form of cpio (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). It
is a pure function of its input: no clock, no user ids, no inode numbers of this host, so that the same
busybox gives the same bytes everywhere and a benchmark can name its initramfs by a hash.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

# Process 1 is busybox's init (the link /init names the applet): it reaps orphans and answers poweroff, reboot
# and halt. The archive's files are small, so that its lines below are all there is to know about the guest.
INITTAB = """\
::sysinit:/etc/rc
::once:/etc/console
"""

RC = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
hostname coremesh
"""

# With modules the initramfs has this as its process 1: it loads them, and goes on in the root file system
# that the kernel's command line names. Without root= the shell above is the machine.
DISK_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
# Linux starts this without files where the console's driver is one of the modules below.
blind=
[ -e /proc/self/fd/2 ] || blind=yes
[ -z "$blind" ] || exec </dev/null >/dev/null 2>&1
while read -r module; do
    case $module in
    # Large, and for shared folders only: virtio's devices of type 9, found by what was loaded before.
    9p* | netfs | fscache) grep -qsx 0x0009 /sys/bus/virtio/devices/*/device || continue ;;
    # By itself it probes all disks at once, and sda is the one that happens to be first.
    sd_mod) echo 0 >/sys/bus/scsi/drivers_autoprobe ;;
    esac
    insmod "/lib/modules/$module.ko"
    if [ "$module" = sd_mod ]; then
        # One after the other, by their places on the controller; this driver refuses the CD drive.
        for disk in /sys/bus/scsi/devices/[0-9]*; do
            echo "${disk##*/}" >/sys/bus/scsi/drivers/sd/bind
        done 2>/dev/null
        echo 1 >/sys/bus/scsi/drivers_autoprobe
    fi
done </lib/modules/order
[ -z "$blind" ] || exec </dev/console >/dev/console 2>&1
root= options=ro type=auto init=/sbin/init
for word in $(cat /proc/cmdline); do
    case $word in
    root=*) root=${word#root=} ;;
    rootfstype=*) type=${word#rootfstype=} ;;
    rootflags=*) options=$options,${word#rootflags=} ;;
    rw | ro) options=$word${options#r[ow]} ;;
    init=*) init=${word#init=} ;;
    esac
done
if [ -z "$root" ]; then
    umount -l /dev /sys /proc
    exec /bin/busybox init
fi
tries=0
case $root in
UUID=* | LABEL=*) device() { findfs "$root"; } ;;
*) device() { [ -b "$root" ] && echo "$root"; } ;;
esac
until found=$(device 2>/dev/null); do
    tries=$((tries + 1))
    if [ $tries -gt 300 ]; then
        echo "no disk $root after 30 seconds; what there is: $(cd /sys/class/block 2>/dev/null && echo *)"
        umount -l /dev /sys /proc
        exec /bin/busybox init
    fi
    sleep 0.1
done
mkdir -p /root.disk
# An absolute link there cannot be followed from here, so it is taken for a program.
if mount -t "$type" -o "$options" "$found" /root.disk &&
    { [ -L "/root.disk$init" ] || [ -x "/root.disk$init" ]; }; then
    mount -o move /dev /root.disk/dev
    umount /sys /proc
    exec switch_root /root.disk "$init"
fi
echo "no $init on $root: here is a shell"
umount -l /dev /sys /proc
exec /bin/busybox init
"""

# Appended to the above where the machine has network cards.
_NETWORK_RC = {
    "manual": "ip link set lo up\n",
    "dhcp": """\
ip link set lo up
for card in /sys/class/net/eth*; do
    udhcpc -q -n -t 4 -T 1 -i "${card##*/}" -s /etc/dhcp >/dev/null 2>&1
done
""",
}

DHCP = """\
#!/bin/busybox sh
case $1 in
deconfig) ip link set "$interface" up ;;
bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do ip route add default via "$gateway" dev "$interface"; done
    for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
    ;;
esac
"""

# A session of its own with the console as controlling terminal gives the shell job control; when it ends, the
# machine is switched off.
CONSOLE = """\
#!/bin/busybox sh
export PATH=/bin HOME=/root SHELL=/bin/sh
cd /root
tty=$(tail -n 1 /sys/class/tty/console/active)
tty=/dev/${tty##* }
setsid cttyhack sh <"$tty" >"$tty" 2>&1
poweroff -f
"""

# The hardware ids of the character devices the kernel's console code needs before devtmpfs is mounted
# (Linux, Documentation/admin-guide/devices.txt).
_DEV_CONSOLE = (5, 1)
_DEV_NULL = (1, 3)

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One archive member: `path` without a leading slash, `mode` with the file-type bits of stat(2)."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def directory(cls, path: str, mode: int = 0o755) -> Entry:
        """Return a directory."""
        return cls(path, stat.S_IFDIR | mode)

    @classmethod
    def file(cls, path: str, data: bytes, mode: int = 0o644) -> Entry:
        """Return a regular file holding `data`."""
        return cls(path, stat.S_IFREG | mode, data)

    @classmethod
    def symlink(cls, path: str, target: str) -> Entry:
        """Return a symbolic link to `target`."""
        return cls(path, stat.S_IFLNK | 0o777, target.encode())

    @classmethod
    def character_device(cls, path: str, device: tuple[int, int], mode: int = 0o600) -> Entry:
        """Return a character device node of (major, minor) `device`."""
        return cls(path, stat.S_IFCHR | mode, b"", device)


def pack(entries: Iterable[Entry]) -> bytes:
    """Return the newc archive of `entries`, in their order, padded to 512 bytes.

    Every member belongs to root, has modification time 0 and one link; inode numbers count from 1.
    """
    archive = bytearray()
    for inode, entry in enumerate(entries, start=1):
        _append(archive, inode, entry)
    _append(archive, 0, Entry(_TRAILER, 0))
    archive += bytes(-len(archive) % 512)
    return bytes(archive)


def _append(archive: bytearray, inode: int, entry: Entry) -> None:
    name = entry.path.encode() + b"\0"
    fields = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        2 if stat.S_ISDIR(entry.mode) else 1,
        0,  # mtime
        len(entry.data),
        0,  # major and minor of the device that holds the file
        0,
        *entry.device,
        len(name),
        0,  # checksum: only the "crc" form has one
    )
    archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    archive += bytes(-len(archive) % 4)
    archive += entry.data
    archive += bytes(-len(archive) % 4)


def busybox_initramfs(busybox: bytes, extra: Iterable[Entry] = ()) -> bytes:
    """Return an initramfs whose console shell is the statically linked `busybox`.

    `extra` entries follow the fixed ones: a test or a notebook lays its own programs into the guest with
    them.
    """
    entries = [
        Entry.directory("bin"),
        Entry.directory("dev"),
        Entry.directory("etc"),
        Entry.directory("mnt"),
        Entry.directory("proc"),
        Entry.directory("root", 0o700),
        Entry.directory("run"),
        Entry.directory("sys"),
        Entry.directory("tmp", 0o1777),
        Entry.character_device("dev/console", _DEV_CONSOLE),
        Entry.character_device("dev/null", _DEV_NULL, 0o666),
        Entry.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        Entry.file("etc/group", b"root:x:0:\n"),
        Entry.file("bin/busybox", busybox, 0o755),
        Entry.symlink("bin/sh", "busybox"),
        Entry.symlink("init", "bin/busybox"),
        Entry.file("etc/inittab", INITTAB.encode()),
        Entry.file("etc/rc", RC.encode(), 0o755),
        Entry.file("etc/console", CONSOLE.encode(), 0o755),
    ]
    return pack([*entries, *extra])


def disk_initramfs(busybox: bytes, modules: bytes, extra: Iterable[Entry] = ()) -> bytes:
    """Return an initramfs that loads kernel modules and then starts the root file system, or a shell.

    `modules` is the archive of :func:`coremesh.cluster.machine.images.modules.module_archive`; the rest as
    of :func:`busybox_initramfs`.
    """
    start = Entry.file("init.disk", DISK_INIT.encode(), 0o755)
    # A later member takes an earlier one's place.
    return busybox_initramfs(busybox, [start, Entry.symlink("init", "init.disk"), *extra]) + modules


def network_entries(network: str) -> list[Entry]:
    """Return what an initramfs has more for network cards: 'dhcp', 'manual', or '' for none."""
    if not network:
        return []
    rc = RC + _NETWORK_RC[network]
    return [Entry.file("etc/rc", rc.encode(), 0o755), Entry.file("etc/dhcp", DHCP.encode(), 0o755)]
