# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine is to be: vCPUs, hosts, memory, images, command line; options.py makes it and checks it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coremesh.cluster.machine.consoles import SERIAL_CONSOLE, ConsoleDevice
from coremesh.cluster.machine.disks import Disk
from coremesh.cluster.machine.folders import Folder
from coremesh.cluster.machine.networks import Network
from coremesh.core.mesh import Policy

HostsWanted = int | Sequence[int | Mapping[str, int]]


@dataclass(frozen=True)
class Module:
    """A Multiboot module: its bytes and the text the kernel gets with it."""

    data: bytes = field(repr=False)
    text: str = ""


@dataclass(frozen=True)
class Rom:
    """Read-only memory: `size` bytes at guest-physical `gpa`, multiples of 4096, that begin with `data`."""

    gpa: int
    size: int
    data: bytes = field(repr=False, default=b"")


@dataclass(frozen=True)
class MachineDescription:
    """All that a host needs to lay out a machine; travels to the host's process.

    `ram_bytes` in bytes; `kernel` a bzImage, vmlinux or Multiboot image; `prompt` a regular expression for
    the console's bytes that says that a shell is ready; `protection` the engine's way to guard guest memory
    ('auto', 'userfaultfd' or 'mprotect'). With `unpack` a bzImage's kernel is unpacked by the host, several
    times as fast as by the guest; the kernel is then not moved to a random address.

    `shares` has one number a host: its vCPUs, which count through the hosts. `device_host` has the devices,
    and of several hosts it may have them alone, with 0 vCPUs. `policy` is one of
    :data:`POLICIES`; `wire` carries the messages between hosts, one of
    :data:`coremesh.core.links.WIRES`. `disks`, `networks`, `folders` and `console` are those of the host
    that has the devices. `roms` are beside the
    RAM; their pages are at home on host 0. `machine_id` is random, 64 bits.

    With a `bios`, of `bios_bytes`, the machine begins at the reset vector of this image, which tries the
    devices of `boot` first ('cdrom', 'disk', 'disk1'). With `kernel_by_firmware` it starts `kernel`, which is
    a bzImage then. `vga_bios` is the option ROM of its VGA.
    With `restarts` a guest's reset restarts the machine; without, it ends it.
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
    device_host: int = 0
    policy: Policy = "adaptive"
    curve: bool = True
    wire: str = "auto"
    disks: tuple[Disk, ...] = ()
    networks: tuple[Network, ...] = ()
    console: ConsoleDevice = SERIAL_CONSOLE
    folders: tuple[Folder, ...] = ()
    rng: int | None = None
    roms: tuple[Rom, ...] = ()
    machine_id: int = field(default_factory=lambda: secrets.randbits(64), compare=False)
    bios: bytes = field(repr=False, default=b"")
    bios_bytes: int = 0
    boot: tuple[str, ...] = ()
    kernel_by_firmware: bool = False
    vga_bios: bytes = field(repr=False, default=b"")
    restarts: bool = False

    @property
    def name(self) -> str:
        """What logs and metrics call the machine: its number in 16 hexadecimal digits."""
        return f"{self.machine_id:016x}"

    @property
    def hosts(self) -> int:
        """How many hosts the machine runs on."""
        return max(1, len(self.shares))

    def without_images(self) -> MachineDescription:
        """Return the description as a host needs it that reads no image."""
        roms = tuple(replace(rom, data=b"") for rom in self.roms)
        bare = replace(self, kernel=b"", initrd=None, modules=(), roms=roms, bios=b"", vga_bios=b"")
        return replace(bare, disks=(), networks=())

    def vcpus_of(self, host: int) -> int:
        """How many vCPUs `host` runs."""
        return self.shares[host] if self.shares else self.vcpus

    def first_vcpu(self, host: int) -> int:
        """The machine's number of the first vCPU of `host`; its others follow."""
        return sum(self.shares[:host])

    @property
    def boot_host(self) -> int:
        """The host of vCPU 0, the bootstrap processor: the first that has vCPUs."""
        return self.host_of(0)

    def host_of(self, vcpu: int) -> int:
        """The host that runs the machine's vCPU `vcpu`."""
        return next(host for host in range(self.hosts) if vcpu < self.first_vcpu(host) + self.vcpus_of(host))


@dataclass(frozen=True)
class Membership:
    """What makes a process one host of several.

    `host` counts from 0; `machine_id` (64 bits, random) and `epoch` go into every message, so that what
    belongs to another machine or to an earlier life of this one is refused. `tsc_hz` is the one rate of the
    guest's clock; the link's socket is bound on the address `interface`. `neighbours` is how many of the
    machine's vCPUs share this host's cores, its own among them.
    """

    host: int
    machine_id: int
    epoch: int
    tsc_hz: int
    interface: str
    neighbours: int
