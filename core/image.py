# SPDX-License-Identifier: GPL-2.0-or-later
"""What a loader decides: the bytes to lay in RAM and the registers the first vCPU starts with."""

from dataclasses import dataclass, field

from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_layout import MemoryLayout, Region

RegisterValue = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BootPlan:
    """What starts a guest: ``writes`` are (guest-physical address, bytes), ``registers`` the first vCPU's.

    Registers have the architecture's names and values (:mod:`coremesh.core.x86.boot`). RAM that no write
    covers must read as zero; in RAM that a guest has used before, ``zeros`` are the ranges where that
    matters. ``entry_name`` says for a person what was recognised.
    """

    writes: list[tuple[int, bytes]]
    registers: dict[str, RegisterValue] = field(default_factory=dict)
    entry_name: str = ""
    zeros: list[Region] = field(default_factory=list)

    def check(self, memory: MemoryLayout) -> None:
        """Raise :class:`ConfigurationError` if a write would leave RAM."""
        for gpa, data in self.writes:
            if not memory.is_ram(gpa, len(data)):
                raise ConfigurationError(
                    f"{len(data)} bytes at guest address {gpa:#x} lie outside the machine's memory; "
                    "give it more memory"
                )


def encode_command_line(cmdline: str, longest: int) -> bytes:
    """The command line as the guest reads it: bytes with a closing zero, which ``longest`` does not count."""
    data = cmdline.encode("utf-8", errors="surrogateescape")
    if b"\0" in data:
        raise ConfigurationError("the kernel's command line contains a zero byte; remove it")
    if len(data) > longest:
        raise ConfigurationError(
            f"the kernel's command line has {len(data)} bytes, and this kernel takes at most {longest}; "
            "shorten it"
        )
    return data + b"\0"
