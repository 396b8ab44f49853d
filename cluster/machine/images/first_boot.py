# SPDX-License-Identifier: GPL-2.0-or-later
"""The first boot of a new Debian disk: a machine, in this process, lets dpkg configure its packages."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

from coremesh.cluster.machine.cmdline import command_line
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.device_host import DeviceHost
from coremesh.cluster.machine.disks import Disk
from coremesh.cluster.machine.images.packages import Progress
from coremesh.core.errors import ImageFetchError

SCRIPT_PATH: Final = "usr/lib/coremesh/first-boot"
_RAM_BYTES: Final = 1 << 30
_LONGEST_SECONDS: Final = 3600.0
_SILENT_SECONDS: Final = 600.0

# Process 1 of the first boot. What dpkg writes is flushed once, at the end: a disk whose making was cut short
# is thrown away. No initramfs is made of the packages': the disk's own has what it needs to boot.
SCRIPT: Final = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true INITRD=No
if [ "$0" != /run/first-boot ]; then
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /tmp
    mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
    # From memory: this file is removed below, and a disk with an open file cannot become read-only.
    cp "$0" /run/first-boot
    exec /bin/sh /run/first-boot
fi
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
configure() { dpkg --force-unsafe-io --force-confold "$@" </dev/null 2>&1; }
echo "coremesh: begin"
# These make what the scripts of all others take for granted: users, the shell's name, the folders of /.
configure --force-depends --configure base-passwd
configure --force-depends --configure base-files
configure --force-depends --configure libc6 perl-base dpkg debconf
configure --configure --pending
configure --configure --pending
status=$?
[ -z "$(dpkg --audit)" ] || status=1
rm -f /usr/sbin/policy-rc.d
passwd -d root >/dev/null || status=1
systemctl enable systemd-networkd systemd-resolved 2>&1 || status=1
[ -e /etc/resolv.conf ] || ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
[ -e /etc/localtime ] || ln -s /usr/share/zoneinfo/Etc/UTC /etc/localtime
# The boot loader goes between the partition table and the partition. No udev runs that would lay the links by
# which GRUB's menu knows that a file system's UUID can be used: the disk is sda here, and elsewhere vda.
root=$(grub-probe --target=device /)
mkdir -p /dev/disk/by-uuid
ln -s "$root" "/dev/disk/by-uuid/$(grub-probe --target=fs_uuid /)"
grub-install --target=i386-pc --no-floppy "${root%1}" 2>&1 || status=1
update-grub 2>&1 || status=1
: >/etc/machine-id
rm -f /usr/lib/coremesh/first-boot /var/cache/apt/archives/*.deb
rmdir /usr/lib/coremesh
sync
mount -o remount,ro /
echo "coremesh: end $status"
echo o >/proc/sysrq-trigger
sleep 60
"""

_CONFIGURED: Final = re.compile(rb"^Setting up (\S+)", re.MULTILINE)
_END: Final = re.compile(rb"coremesh: end (\d+)")


def configure(disk: Path, kernel: Path, initrd: Path, cmdline: str, packages: int, report: Progress) -> None:
    """Boot `disk` and configure its `packages`. Raises :class:`ImageFetchError` with what the guest said."""
    what = "setting up the system"
    report(what, 0.0)
    image = kernel.read_bytes()
    line = command_line(image, append=f"quiet {cmdline} init=/{SCRIPT_PATH}")
    description = MachineDescription(
        vcpus=1,
        ram_bytes=_RAM_BYTES,
        kernel=image,
        initrd=initrd.read_bytes(),
        cmdline=line,
        disks=(Disk(disk).checked(),),
    )
    host = DeviceHost(description)
    host.prepare()
    host.start()
    output, cursor, over = b"", 0, False
    begin = last = time.monotonic()
    try:
        while not over:
            data, cursor, over = host.read_console(cursor, 1.0)
            now = time.monotonic()
            if data:
                output += data.replace(b"\r", b"")
                last = now
                report(what, min(0.99, len(_CONFIGURED.findall(output)) / packages))
            if now - last > _SILENT_SECONDS or now - begin > _LONGEST_SECONDS:
                break
    finally:
        host.stop()
    match = _END.search(output)
    if match is None or match[1] != b"0":
        words = [*re.findall(rb"^dpkg: error.*", output, re.MULTILINE)[:3], output[-800:]]
        tail = b"\n".join(words).decode(errors="replace")
        raise ImageFetchError(f"the new system could not be set up. The last that it said:\n{tail}")
    report(what, 1.0)
