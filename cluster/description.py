# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine is to be, checked before anything starts: vCPUs, memory, images, command line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_map import MemoryMap

#: xAPIC identifiers are 8 bits wide and 255 is the broadcast address (Intel SDM vol. 3A, section 11.6.1).
MAX_VCPUS = 255

#: Serial console at the port's highest rate, since what is typed arrives no faster than that; reset at once
#: after a panic, so that a panic ends the machine instead of hanging it.
DEFAULT_CMDLINE = "console=ttyS0,115200 panic=-1"

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?", re.IGNORECASE)


def parse_memory(size: int | str) -> int:
    """Return a memory size in bytes, from bytes or from text such as '512M', '1G', '1.5GiB'.

    Units are powers of 1024. Raises :class:`ConfigurationError` for what is no size, or no size for a PC's
    RAM.
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size.strip())
        if match is None:
            raise ConfigurationError(f"{size!r} is no memory size; write it like 512M, 1G or 1.5G.")
        count = int(float(match[1]) * _UNITS[match[2].upper()])
    else:
        count = size
    return MemoryMap(count).ram_bytes


def check_vcpus(vcpus: int) -> int:
    """Return `vcpus` if a machine can have that many, else raise :class:`ConfigurationError`."""
    if isinstance(vcpus, bool) or not isinstance(vcpus, int) or not 1 <= vcpus <= MAX_VCPUS:
        raise ConfigurationError(f"a machine has 1 to {MAX_VCPUS} vCPUs, not {vcpus!r}.")
    return vcpus


def default_cmdline(kernel: bytes) -> str:
    """Return the command line a kernel gets unless a person gives another: Linux has one, Multiboot none."""
    # The header's magic at an aligned offset in the first 8 KiB (Multiboot 0.6.96, section 3.1).
    head = kernel[:8192]
    multiboot = any(head[i : i + 4] == b"\x02\xb0\xad\x1b" for i in range(0, len(head), 4))
    linux = head[0x202:0x206] == b"HdrS" or not multiboot
    return DEFAULT_CMDLINE if linux else ""


@dataclass(frozen=True)
class Module:
    """A Multiboot module: its bytes and the text the kernel gets with it."""

    data: bytes = field(repr=False)
    text: str = ""


@dataclass(frozen=True)
class MachineDescription:
    """All that a host needs to lay out a machine; travels to the host's process.

    `ram_bytes` in bytes; `kernel` a bzImage, vmlinux or Multiboot image; `prompt` a regular expression for
    the console's bytes that says that a shell is ready; `protection` the engine's way to guard guest memory
    ('auto', 'userfaultfd' or 'mprotect'). With `unpack` a bzImage's kernel is unpacked by the host, several
    times as fast as by the guest; the kernel is then not moved to a random address.
    """

    vcpus: int
    ram_bytes: int
    kernel: bytes = field(repr=False)
    initrd: bytes | None = field(repr=False, default=None)
    cmdline: str = ""
    modules: tuple[Module, ...] = ()
    prompt: bytes = rb"[#$%>] ?$"
    protection: str = "auto"
    unpack: bool = True
