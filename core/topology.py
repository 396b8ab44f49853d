# SPDX-License-Identifier: GPL-2.0-or-later
"""Which vCPUs and which memory belong to which host: one NUMA node for each.

Host 0 has the first vCPUs and the lowest memory, the others follow. Host and node have the same number.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_layout import MIB, PAGE_BYTES, MemoryLayout, Region

MAX_HOSTS: Final = 64
"""A host is a bit of a 64-bit word in the page directory."""
LARGEST_COMMON_APIC_ID: Final = 0xFE
"""Up to here an APIC id works in both modes of the local APIC, without interrupt remapping."""
HOME_ALIGNMENT: Final = 2 * MIB
"""A huge page of the guest should have one home."""


@dataclass(frozen=True, slots=True)
class Node:
    """One host's share, as a guest sees it."""

    host: int
    apic_ids: tuple[int, ...]
    first_page: int
    """By offset into RAM, in pages of 4 KiB: ``[first_page, end_page)`` is at home here."""
    end_page: int
    regions: tuple[Region, ...]
    """The same memory by guest-physical addresses, rising."""


class Topology:
    """How a machine with the RAM of ``memory`` divides into hosts. Immutable.

    ``hosts`` has the number of vCPUs of each host, 1 at least, but that ``device_host`` may have none: it
    has the devices then and nothing else, no memory of the guest is at home there, and it is no node of the
    guest.
    ``weights`` is how the memory divides, any positive numbers, by default as the vCPUs do. Borders between
    homes are multiples of 2 MiB where there is enough memory for that, of a smaller power of two otherwise;
    every host with vCPUs is home of one page at least. ROM is at home on host 0, and in no node.

    APIC ids begin at a power of two on each host, so that each host is a processor package of its own and no
    cache seems to be shared between nodes; where ids would then pass 254 they are given without gaps.

    Raises :class:`ConfigurationError` for numbers that make no machine.
    """

    def __init__(
        self,
        memory: MemoryLayout,
        hosts: Sequence[int],
        weights: Sequence[float] | None = None,
        device_host: int = 0,
    ) -> None:
        _check(memory, hosts, weights, device_host)
        self.device_host: Final = device_host
        self.hosts: Final = len(hosts)
        self.total_vcpus: Final = sum(hosts)
        largest = max(hosts)
        stride = 1 << (largest - 1).bit_length()
        packages = sum(count > 0 for count in hosts)
        packaged = packages > 1 and (packages - 1) * stride + hosts[-1] - 1 <= LARGEST_COMMON_APIC_ID
        self.package_cores: Final = largest if packaged else self.total_vcpus
        """Cores of a package, for CPUID leaf 0Bh; the field for them is a power of two wide."""
        ids: list[tuple[int, ...]] = []
        following = 0
        for host, count in enumerate(hosts):
            # The bootstrap processor has id 0, on whichever host it is.
            package = sum(earlier > 0 for earlier in hosts[:host])
            first = package * stride if packaged and count else following
            ids.append(tuple(range(first, first + count)))
            following = first + count
        shares = list(weights or hosts)
        pages = memory.ram_bytes // PAGE_BYTES
        with_vcpus = [share for share, count in zip(shares, hosts, strict=True) if count]
        borders = _borders(pages, with_vcpus)
        if not hosts[device_host]:
            borders.insert(device_host, borders[device_host])
        self.nodes: Final = tuple(
            Node(host, ids[host], first, end, memory.addresses(first * PAGE_BYTES, end * PAGE_BYTES))
            for host, (first, end) in enumerate(itertools.pairwise(borders))
        )
        self._rom: Final = (borders[-1], memory.total_bytes // PAGE_BYTES)

    def apic_ids(self, host: int) -> tuple[int, ...]:
        """The APIC ids of one host's vCPUs, rising."""
        return self.nodes[host].apic_ids

    @property
    def all_apic_ids(self) -> list[int]:
        """The APIC ids of the machine, the bootstrap processor's (0) first."""
        return [apic_id for node in self.nodes for apic_id in node.apic_ids]

    @property
    def vcpu_hosts(self) -> dict[int, int]:
        """The host of each APIC id."""
        return {apic_id: node.host for node in self.nodes for apic_id in node.apic_ids}

    @property
    def homes(self) -> list[tuple[int, int, int]]:
        """``(first page, end page, host)``, rising and without gaps; pages by offset into the memory file."""
        homes = [
            (node.first_page, node.end_page, node.host)
            for node in self.nodes
            if node.first_page < node.end_page
        ]
        first, end = self._rom
        return homes if first == end else [*homes, (first, end, 0)]

    def home_of(self, page: int) -> int:
        """The home of a page, by its number in the memory file. IndexError for a page that there is not."""
        for first, end, host in self.homes:
            if first <= page < end:
                return host
        raise IndexError(f"page {page} is not in this machine's memory")


def _check(
    memory: MemoryLayout, hosts: Sequence[int], weights: Sequence[float] | None, device_host: int
) -> None:
    if not 1 <= len(hosts) <= MAX_HOSTS:
        raise ConfigurationError(f"{len(hosts)} hosts make no machine; give 1 to {MAX_HOSTS}")
    if not 0 <= device_host < len(hosts):
        raise ConfigurationError(f"host {device_host} cannot have the devices; hosts count from 0")
    for host, count in enumerate(hosts):
        least = 0 if host == device_host and len(hosts) > 1 else 1
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ConfigurationError(f"host {host} with {count!r} vCPUs has nothing to do; give at least one")
    if weights is None:
        return
    if len(weights) != len(hosts):
        raise ConfigurationError(
            f"{len(weights)} weights do not fit {len(hosts)} hosts; give one for each, or none"
        )
    for host, weight in enumerate(weights):
        if not 0 < weight < float("inf"):
            raise ConfigurationError(
                f"host {host} cannot have a share of {weight} of the memory; give a positive number"
            )


def _borders(pages: int, weights: Sequence[float]) -> list[int]:
    """Where homes begin and end, in pages: ``len(weights) + 1`` rising numbers from 0 to ``pages``."""
    unit = HOME_ALIGNMENT // PAGE_BYTES
    # Rounding takes up to a unit from either side: a share should be large against that.
    least = pages * min(weights) / sum(weights)
    while unit > 1 and least < 4 * unit:
        unit //= 2
    borders = [0]
    for host in range(1, len(weights)):
        exact = pages * sum(weights[:host]) / sum(weights)
        rounded = round(exact / unit) * unit
        # However uneven the weights: one page at least before this border, and for each host behind it.
        borders.append(min(max(rounded, borders[-1] + 1), pages - (len(weights) - host)))
    return [*borders, pages]
