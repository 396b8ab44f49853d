# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux kernel's symbols, to put names to what its memory does.

``System.map`` is written when a kernel is built, ``/proc/kallsyms`` by a kernel that runs; both have lines
``address type name``, the latter with ``[module]`` behind those that belong to one. Addresses are virtual.

What is known of where a kernel for x86-64 lies in physical memory is its image: the mapping at
``ffffffff80000000`` begins at physical address 0, or at ``phys_base`` for a kernel that moved itself
(Documentation/arch/x86/x86_64/mm.rst; arch/x86/kernel/head_64.S). Modules, per-CPU areas and everything
allocated lie elsewhere, and have no names here.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from coremesh.core.errors import ConfigurationError
from coremesh.core.input_file import named, read_input_file

KERNEL_MAPPING: Final = 0xFFFF_FFFF_8000_0000
"""Where the kernel's image is mapped, ``__START_KERNEL_map``."""
KERNEL_MAPPING_BYTES: Final = 1 << 30
"""KERNEL_IMAGE_SIZE with address randomisation; half of that without. Modules begin behind it."""
MOST_NAMES: Final = 4
"""A page with more names than this is told by their number."""

_LARGEST_FILE = 256 << 20
_PERCPU_TYPES = frozenset("aA")  # absolute: offsets into per-CPU areas, and constants


@dataclass(frozen=True, slots=True, order=True)
class Symbol:
    """A name and its virtual address; ``kind`` as of nm(1), upper case for global ones."""

    address: int
    name: str
    kind: str = "?"


class SymbolTable:
    """Symbols by address. Immutable; any thread may look up.

    ``phys_base`` is for a kernel that moved itself: the value of its variable of that name, which goes with
    the addresses of its own kallsyms. 0 for a kernel that stayed, as one does that coremesh unpacked or that
    was given 'nokaslr'; then System.map will do as well.
    """

    def __init__(self, symbols: Iterable[Symbol], phys_base: int = 0) -> None:
        kept = sorted({symbol for symbol in symbols if symbol.kind not in _PERCPU_TYPES})
        self._addresses = [symbol.address for symbol in kept]
        self._symbols = kept
        ends = [symbol.address for symbol in kept if symbol.name == "_end"]
        self._image_end = ends[0] if ends else KERNEL_MAPPING + KERNEL_MAPPING_BYTES
        self.phys_base: Final = phys_base

    def __len__(self) -> int:
        return len(self._symbols)

    @classmethod
    def read(cls, path: str | os.PathLike[str], phys_base: int = 0) -> SymbolTable:
        """Read a System.map or a copy of /proc/kallsyms.

        Raises :class:`ConfigurationError` for a file that cannot be read or is neither, and for a kallsyms
        whose addresses were hidden from the person who copied it. At most 256 MiB are read.
        """
        why = "Give System.map of the guest's kernel; a kernel's has some MiB."
        text = read_input_file(path, "symbols", _LARGEST_FILE, why, ConfigurationError).decode(
            errors="replace"
        )
        symbols = [symbol for line in text.splitlines() if (symbol := _parse(line)) is not None]
        if not symbols:
            raise ConfigurationError(
                f"{named(path)} has no kernel symbols. Give System.map of the guest's kernel, or the output "
                "of 'cat /proc/kallsyms' in the guest."
            )
        if all(symbol.address == 0 for symbol in symbols):
            raise ConfigurationError(
                f"the addresses in {named(path)} are hidden. Copy /proc/kallsyms as root, with "
                "'sysctl kernel.kptr_restrict=0'."
            )
        return cls(symbols, phys_base)

    def at(self, address: int) -> str:
        """``name+0xoffset`` for a virtual address, or the address itself where nothing is known."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0:
            return f"{address:#x}"
        symbol = self._symbols[index]
        offset = address - symbol.address
        return f"{symbol.name}+{offset:#x}" if offset else symbol.name

    def within(self, gpa: int, size: int, most: int = MOST_NAMES) -> list[str]:
        """Names of what lies in ``size`` bytes at guest-physical address ``gpa``, rising; '' for none.

        The first one may begin below. Of more than ``most`` names the rest is counted: ``'and 7 more'``.
        """
        start = (gpa - self.phys_base + KERNEL_MAPPING) % (1 << 64)
        if not KERNEL_MAPPING <= start < self._image_end:
            return []
        first = bisect_left(self._addresses, start)
        end = bisect_left(self._addresses, start + size)
        names = [symbol.name for symbol in self._symbols[first:end]]
        reaches_in = 0 < first < len(self._symbols) and (not names or self._addresses[first] > start)
        if reaches_in and self._addresses[first - 1] >= KERNEL_MAPPING:
            names.insert(0, self.at(start))
        rest = len(names) - most
        return names if rest <= 0 else [*names[:most], f"and {rest} more"]


def _parse(line: str) -> Symbol | None:
    words = line.split()
    if len(words) not in (3, 4) or len(words[1]) != 1:
        return None
    try:
        return Symbol(int(words[0], 16), words[2], words[1])
    except ValueError:
        return None
