# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine's process itself needs of the host's memory, beside the RAM that it gives to its guest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

COREMESH_RAM = "/memfd:coremesh-ram"

_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)$")


def own_memory_mib(pid: int, ram_mib: int) -> float:
    """Resident private memory in MiB, without guest RAM: code caches, translators, stacks, devices, Python.

    Guest RAM is recognised by its file (Coremesh: both views of one memfd) or, where it is anonymous memory
    (QEMU), by its size: the mapping that is exactly ``ram_mib`` long.
    """
    total = 0
    for name, size, private in mappings(Path(f"/proc/{pid}/smaps").read_text()):
        if not name.startswith(COREMESH_RAM) and not (name == "" and size == ram_mib << 20):
            total += private
    return total / (1 << 20)


def mappings(smaps: str) -> Iterator[tuple[str, int, int]]:
    """Each mapping of a smaps text (proc_pid_smaps(5)): its name, its size and its private resident bytes."""
    name, size, private = "", 0, 0
    for line in smaps.splitlines():
        head = _HEAD.match(line)
        if head:
            if size:
                yield name, size, private
            name, size, private = head[3], int(head[2], 16) - int(head[1], 16), 0
        elif line.startswith(("Private_Clean:", "Private_Dirty:")):
            private += int(line.split()[1]) << 10
    if size:
        yield name, size, private
