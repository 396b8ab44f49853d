# SPDX-License-Identifier: GPL-2.0-or-later
"""Address decoding: which device answers at which address, as a table that never changes.

A device that moves (a PCI function whose BAR is written) makes a new table, which takes the old one's place
whole: a vCPU that looks an address up needs no lock and sees one of the two.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coremesh.core.errors import ConfigurationError
from coremesh.hw.device import Device

PORT, MMIO = 0, 1
"""The address spaces, by the numbers that core/native/bus/bus.hpp gives them."""
SPACE_NAMES = {PORT: "port", MMIO: "memory"}
LAST = {PORT: 0xFFFF, MMIO: (1 << 64) - 1}
SIZES = (1, 2, 4, 8)
ONES = {size: (1 << 8 * size) - 1 for size in SIZES}


@dataclass(frozen=True)
class At:
    """``length`` addresses of ``space`` from ``base`` reach ``device`` from its ``offset`` on.

    ``widths`` narrows the access sizes that are decoded here; by default those of the device.
    """

    space: int
    base: int
    length: int
    device: Device
    offset: int = 0
    widths: tuple[int, ...] = ()

    @property
    def last(self) -> int:
        """The last address, inclusive."""
        return self.base + self.length - 1


Target = tuple[Device, threading.Lock, Callable[[int, int], int], Callable[[int, int, int], None], int, int]
"""The device, its lock, its read and write, the offset within it, and all ones of the access's size."""


class DecodeTable:
    """What is mapped where. Immutable; any thread."""

    def __init__(self, mappings: Iterable[At]) -> None:
        """Raises ConfigurationError when two mappings decode the same access."""
        self.mappings = tuple(sorted(mappings, key=lambda m: (m.space, m.base, m.offset)))
        # A port access is one look-up by (port, size) ...
        self.ports: dict[tuple[int, int], Target] = {}
        for mapping in self.mappings:
            if mapping.space == PORT:
                self._decode_ports(mapping)
        # ... a memory access a binary search among sorted, disjoint ranges.
        self._memory = [m for m in self.mappings if m.space == MMIO]
        self._bases = [m.base for m in self._memory]
        for below, above in zip(self._memory, self._memory[1:], strict=False):
            if below.last >= above.base:
                raise ConfigurationError(
                    f"{below.device.name} and {above.device.name} overlap at {above.base:#x}; separate them"
                )

    def _decode_ports(self, mapping: At) -> None:
        device = mapping.device
        for size in mapping.widths or device.widths:
            for port in range(mapping.base, mapping.last - size + 2):
                # A bus of `size` bytes takes aligned accesses only; others come as narrower ones.
                if port % size:
                    continue
                other = self.ports.get((port, size))
                if other is not None:
                    raise ConfigurationError(
                        f"{device.name} and {other[0].name} both answer at port {port:#x}; move one of them"
                    )
                offset = mapping.offset + port - mapping.base
                self.ports[port, size] = (device, device.lock, device.read, device.write, offset, ONES[size])

    def memory(self, address: int, size: int) -> Target | None:
        """What decodes an access of ``size`` bytes at guest-physical ``address``; None when nothing does."""
        index = bisect_right(self._bases, address) - 1
        if index < 0:
            return None
        mapping = self._memory[index]
        device = mapping.device
        if (
            address + size - 1 > mapping.last
            or size not in (mapping.widths or device.widths)
            or address % size
        ):
            return None
        offset = mapping.offset + address - mapping.base
        return device, device.lock, device.read, device.write, offset, ONES[size]

    def moved(self, device: Device, mappings: Iterable[At]) -> "DecodeTable":
        """A table in which ``device`` answers at ``mappings`` and nowhere else.

        Raises ConfigurationError when another device answers there; this table stays as it is.
        """
        others = [m for m in self.mappings if m.device is not device]
        return DecodeTable([*others, *mappings])

    def claims(self, windows: Iterable[tuple[int, int, int]] = ()) -> list[tuple[int, int, int]]:
        """Return ``(space, first, last)`` of every range that devices answer in, and of ``windows``.

        Inclusive, sorted, neighbours joined.
        """
        joined: list[tuple[int, int, int]] = []
        for space, first, last in sorted([*((m.space, m.base, m.last) for m in self.mappings), *windows]):
            if joined and joined[-1][0] == space and first <= joined[-1][2] + 1:
                joined[-1] = (space, joined[-1][1], max(joined[-1][2], last))
            else:
                joined.append((space, first, last))
        return joined
