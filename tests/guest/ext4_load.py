# SPDX-License-Identifier: GPL-2.0-or-later
"""A load of all vCPUs on an ext4 file system, as a script for the guest's shell."""

# Each vCPU writes files of its own and deletes one; then all are read from the disk again, not from memory.
_LOAD = """
cd /; mkdir -p /disk; mount -t ext4 /dev/{disk} /disk
cat >/load <<'END'
mkdir /disk/$1; for n in 1 2 3 4; do seq $((n * 4000)) >/disk/$1/$n; done; sync; rm /disk/$1/2
END
for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu sh /load $cpu & done
wait
umount /disk; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 -o ro /dev/{disk} /disk
for cpu in $(seq 0 $(($(nproc) - 1))); do cat /disk/$cpu/* | sha256sum; done
umount /disk
"""
ONE_VCPUS_SUM = "{ seq 4000; seq 12000; seq 16000; } | sha256sum"
"""Prints the sum that the load prints for each vCPU."""


def on(disk: str) -> str:
    """The load on the guest's `disk`, as "sda": it prints a sum a vCPU."""
    return _LOAD.replace("{disk}", disk)
