# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine is to be, checked before anything starts: vCPUs, hosts, memory, images, command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_map import MemoryMap
from coremesh.core.mesh import MAX_HOSTS, POLICIES, Policy

#: xAPIC identifiers are 8 bits wide and 255 is the broadcast address (Intel SDM vol. 3A, section 11.6.1).
MAX_VCPUS = 255

HostsWanted = int | Sequence[int | Mapping[str, int]]

#: Serial console at the port's highest rate, since what is typed arrives no faster than that; reset at once
#: after a panic, so that a panic ends the machine instead of hanging it.
DEFAULT_CMDLINE = "console=ttyS0,115200 panic=-1"
#: On several hosts besides. Linux trusts the TSC of a few NUMA nodes only; where it does not, it compares it
#: with the count of its ticks, of which a busy host loses some, and from then on asks the PM timer's port
#: for the time, thousands of times a second, on another host.
SEVERAL_HOSTS_CMDLINE = "tsc=reliable"

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


def share_vcpus(hosts: HostsWanted, vcpus: int | None) -> tuple[int, ...]:
    """Return how many vCPUs each host gets: a tuple of one number a host.

    `hosts` is a number of hosts, over which `vcpus` (by default one each) are spread evenly, or a list that
    gives each host's own, as ``[6, 2]`` or ``[{"vcpus": 6}, {"vcpus": 2}]``. Raises
    :class:`ConfigurationError`.
    """
    if isinstance(hosts, bool) or not isinstance(hosts, int | Sequence) or isinstance(hosts, str | bytes):
        raise ConfigurationError(f"{hosts!r} is no number of hosts and no list of them, as [6, 2].")
    if isinstance(hosts, int):
        _check_host_count(hosts)
        total = hosts if vcpus is None else check_vcpus(vcpus)
        if total < hosts:
            raise ConfigurationError(
                f"{total} vCPUs cannot be spread over {hosts} hosts: each runs at least one. Give more vCPUs "
                "or fewer hosts."
            )
        return tuple(total // hosts + (number < total % hosts) for number in range(hosts))
    _check_host_count(len(hosts))
    shares = tuple(_share(host) for host in hosts)
    check_vcpus(sum(shares))
    if vcpus is not None and vcpus != sum(shares):
        raise ConfigurationError(
            f"the hosts have {sum(shares)} vCPUs in all, and the machine was to have {vcpus}. "
            "Leave one of the two out."
        )
    return shares


def parse_hosts(text: str) -> HostsWanted:
    """Return what a person wrote for `hosts`: a number, or the vCPUs of each as '6,2'."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is no number of hosts; write 2, or the vCPUs of each as 6,2."
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def check_policy(policy: str) -> Policy:
    """Return `policy` if there is one of that name, else raise :class:`ConfigurationError`."""
    for known in POLICIES:
        if policy == known:
            return known
    raise ConfigurationError(f"no policy {policy!r}; there are {', '.join(POLICIES)}.")


def _check_host_count(hosts: int) -> None:
    if not 1 <= hosts <= MAX_HOSTS:
        raise ConfigurationError(f"a machine runs on 1 to {MAX_HOSTS} hosts, not {hosts}.")


def _share(host: int | Mapping[str, int]) -> int:
    if isinstance(host, Mapping):
        unknown = set(host) - {"vcpus"}
        if unknown or "vcpus" not in host:
            raise ConfigurationError(f'{dict(host)!r} describes no host; write {{"vcpus": 4}}.')
        return check_vcpus(host["vcpus"])
    return check_vcpus(host)


def default_cmdline(kernel: bytes, *, several_hosts: bool = False) -> str:
    """Return the command line a kernel gets unless a person gives another: Linux has one, Multiboot none."""
    # The header's magic at an aligned offset in the first 8 KiB (Multiboot 0.6.96, section 3.1).
    head = kernel[:8192]
    multiboot = any(head[i : i + 4] == b"\x02\xb0\xad\x1b" for i in range(0, len(head), 4))
    linux = head[0x202:0x206] == b"HdrS" or not multiboot
    if not linux:
        return ""
    return f"{DEFAULT_CMDLINE} {SEVERAL_HOSTS_CMDLINE}" if several_hosts else DEFAULT_CMDLINE


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

    `shares` has one number a host: its vCPUs. Host 0 has the devices and the first vCPUs. `policy` is one of
    :data:`POLICIES`.
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
    shares: tuple[int, ...] = ()
    policy: Policy = "adaptive"
    curve: bool = True

    @property
    def hosts(self) -> int:
        """How many hosts the machine runs on."""
        return max(1, len(self.shares))

    def without_images(self) -> MachineDescription:
        """Return the description as a host needs it that reads no image."""
        return replace(self, kernel=b"", initrd=None, modules=())

    def vcpus_of(self, host: int) -> int:
        """How many vCPUs `host` runs."""
        return self.shares[host] if self.shares else self.vcpus

    def first_vcpu(self, host: int) -> int:
        """The machine's number of the first vCPU of `host`; its others follow."""
        return sum(self.shares[:host])

    def host_of(self, vcpu: int) -> int:
        """The host that runs the machine's vCPU `vcpu`."""
        return next(host for host in range(self.hosts) if vcpu < self.first_vcpu(host) + self.vcpus_of(host))


@dataclass(frozen=True)
class Membership:
    """What makes a process one host of several.

    `host` counts from 0; `machine_id` (64 bits, random) and `epoch` go into every message, so that what
    belongs to another machine or to an earlier life of this one is refused. `tsc_hz` is the one rate of the
    guest's clock; the link's socket is bound on the address `interface`.
    """

    host: int
    machine_id: int
    epoch: int
    tsc_hz: int
    interface: str
