# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that flushes a log to its disk, and what must be on the image when its machine was killed."""

import hashlib
import re
import subprocess
from pathlib import Path

# A log whose lines tell their number and carry a checksum; each is on the disk before it is announced.
SYNCED_LOG = r"""
cat >/log.sh <<'END'
n=0
while :; do
    n=$((n + 1))
    line="$n $(echo "record $n" | sha256sum | cut -c 1-64)"
    echo "$line" | dd of=/disk/log.$1 oflag=append conv=notrunc,fsync 2>/dev/null || break
    echo "synced $1 $n" >/dev/console
done
END
mkdir -p /disk; mount -t ext4 /dev/sda /disk
for cpu in $(seq 0 $(($(nproc) - 1))); do taskset -c $cpu sh /log.sh $cpu & done
"""
LOGS = 2
SYNCED = re.compile(rb"synced (\d) (\d+)\r")


def check(image: Path, *options: str) -> None:
    done = subprocess.run(["e2fsck", *options, image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def check_synced(image: Path, output: bytes) -> None:
    """What the guest has announced in `output` is on the `image`, whose file system is sound."""
    synced = {str(log): 0 for log in range(LOGS)}
    for log, number in SYNCED.findall(output):
        synced[log.decode()] = max(synced[log.decode()], int(number))
    assert any(synced.values())
    subprocess.run(["e2fsck", "-fp", image], capture_output=True, check=False)  # replays the journal
    check(image, "-fn")
    for log, last in synced.items():
        command: list[str | Path] = ["debugfs", "-R", f"cat /log.{log}", image]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        lines = text.splitlines()
        assert len(lines) >= last, f"log {log}: {last} records were flushed, and {len(lines)} are there"
        for number, line in enumerate(lines[:last], 1):
            digest = hashlib.sha256(f"record {number}\n".encode()).hexdigest()
            assert line == f"{number} {digest}", f"log {log}, record {number}"
