# SPDX-License-Identifier: GPL-2.0-or-later
"""One host's place in a machine of several hosts: what each host must be told to be part of it."""

from dataclasses import dataclass
from typing import Literal

from coremesh.core.errors import ConfigurationError

Policy = Literal["never", "always", "adaptive"]
POLICIES: tuple[Policy, ...] = ("never", "always", "adaptive")
MAX_HOSTS = 64


@dataclass(frozen=True)
class Mesh:
    """Host ``host`` of ``hosts``; the same everywhere but for ``host``.

    ``homes`` are ranges ``(first_page, end_page, host)`` of RAM pages (RAM offset / 4096, end exclusive) that
    cover all of RAM: the host keeps the directory of these pages and holds them at the start. ``vcpu_hosts``
    tells for each APIC id the host of its vCPU. ``machine_id`` (64 bits, random) and ``epoch`` (32 bits) are
    in every message; others are refused. ``policy`` says when a locked operation goes to the page instead of
    the page to the operation: 'never', 'always', or 'adaptive' where several hosts want the page.

    Raises :class:`ConfigurationError` for what no machine can be.
    """

    host: int
    hosts: int
    homes: list[tuple[int, int, int]]
    vcpu_hosts: dict[int, int]
    machine_id: int
    epoch: int = 1
    policy: Policy = "adaptive"
    hold_us: int = 50
    """How long a page that has just come stays at least, in microseconds after the waiting vCPU goes on."""
    prefetch: int = 8
    """How many pages a sequential reader is sent ahead at most."""
    first_touch: int = 16
    """How many pages that were never used a sequential writer is given ahead at most; 0: none."""
    pass_on: bool = True
    """Whether a reader that wrote the page after it had last read it is given the right to write at once."""
    device_host: int = 0
    """Which host has the devices."""

    def __post_init__(self) -> None:
        if not 2 <= self.hosts <= MAX_HOSTS:
            raise ConfigurationError(f"{self.hosts} hosts: a machine has 1 to {MAX_HOSTS}.")
        if not 0 <= self.host < self.hosts:
            raise ConfigurationError(f"host {self.host} of {self.hosts}: hosts count from 0.")
        if not 0 <= self.device_host < self.hosts:
            raise ConfigurationError(f"host {self.device_host} of {self.hosts} cannot have the devices.")
        if self.policy not in POLICIES:
            raise ConfigurationError(f"the policy {self.policy!r}: give one of {', '.join(POLICIES)}.")
        page = 0
        for first, end, host in sorted(self.homes):
            if first != page or end <= first or not 0 <= host < self.hosts:
                raise ConfigurationError(f"the homes {self.homes} do not cover RAM once by hosts that exist.")
            page = end
        if not all(0 <= host < self.hosts for host in self.vcpu_hosts.values()):
            raise ConfigurationError("a vCPU is on a host that does not exist.")

    @property
    def package_cores(self) -> int:
        """Cores of a processor package, for CPUID leaf 0Bh: each host is one where its APIC ids allow it.

        Then no cache seems to be shared between NUMA nodes. Otherwise all vCPUs are one package.
        """
        hosts = list(self.vcpu_hosts.values())
        largest = max(map(hosts.count, set(hosts)), default=1)
        stride = 1 << (largest - 1).bit_length()
        apart = all(apic_id // stride == host for apic_id, host in self.vcpu_hosts.items())
        return largest if apart else len(hosts)
