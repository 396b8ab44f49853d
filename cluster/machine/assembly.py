# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine put together: engines, devices, firmware tables, images. Reads as a list."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from coremesh.cluster.machine.consoles import open_console
from coremesh.cluster.machine.description import MachineDescription, Membership
from coremesh.cluster.machine.disks import Disk, boot_paths, ide_drives, open_disks, virtio_disks
from coremesh.cluster.machine.folders import open_folders
from coremesh.cluster.machine.homes import Write, divide
from coremesh.cluster.machine.machine_state import MachineState
from coremesh.cluster.machine.networks import open_networks, virtio_cards
from coremesh.core.errors import ConfigurationError, GuestImageError, PlatformError
from coremesh.core.memory_layout import Region
from coremesh.core.x86.linux_payload import unpack_linux
from coremesh.core.x86.memory_map import MemoryMap

if TYPE_CHECKING:
    from coremesh.core._native import Doorbells
    from coremesh.core.engine import Host
    from coremesh.core.image import BootPlan, RegisterValue
    from coremesh.core.mesh import Mesh
    from coremesh.core.topology import Topology
    from coremesh.hw.backend.block import BlockBackend
    from coremesh.hw.backend.console import ConsoleLine, ConsolePort
    from coremesh.hw.backend.network.capture import Tap
    from coremesh.hw.clock import Clock
    from coremesh.hw.isa.fw_cfg import ForFirmware
    from coremesh.hw.node import DeviceNode
    from coremesh.hw.pci.function import PciFunction
    from coremesh.hw.power import PowerEvent
    from coremesh.hw.virtio.model import VirtioModel


@dataclass(frozen=True)
class Portion:
    """What one host has to know of what was put together on the host with the devices.

    `claims` are the ranges of addresses, (space, first, last), that lead to the devices; `writes` are the
    images' bytes in pages whose home the host is. The host of the bootstrap processor, its first vCPU, has
    the `registers` that it starts with.
    """

    claims: list[tuple[int, int, int]]
    writes: list[Write] = field(repr=False)
    registers: Mapping[str, RegisterValue] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Assembly:
    """The parts that go on living: the native `host`, the device `node`, its `clock`, other hosts' portions.

    `taps` are the network cards' ends; `resize` tells the guest its terminal's columns and rows.
    `close` gives back what the devices hold of this computer, such as disk images, when none runs any more.
    """

    host: Host
    node: DeviceNode
    clock: Clock
    elsewhere: dict[int, Portion] = field(default_factory=dict, repr=False)
    taps: list[Tap] = field(default_factory=list, repr=False)
    resize: Callable[[int, int], None] = lambda columns, rows: None
    close: Callable[[], None] = lambda: None


def assemble(
    description: MachineDescription,
    port: ConsolePort,
    on_power: Callable[[PowerEvent], None],
    membership: Membership | None = None,
    state: MachineState | None = None,
) -> Assembly:
    """Build the host with the devices up to the point where its vCPUs can be started.

    The console speaks through `port`; `on_power` is called on a thread that must not wait for a vCPU.
    With a `state` the machine goes on from there, and no image is read; time passes from now on.
    Raises :class:`GuestImageError` for a kernel that cannot be loaded, :class:`StateError` for a state of
    another machine, :class:`DiskError` for a disk that cannot be opened, :class:`NetworkError` for such a
    network, :class:`PlatformError` for a host that lacks what the engine needs.
    """
    with contextlib.ExitStack() as stack:
        # The modules of what a machine does not have are not even imported: that is time before its start.
        disks = open_disks(description.disks, stack) if description.disks else []
        networks = open_networks(description.networks, stack) if description.networks else []
        console = open_console(description.console, port, stack)
        folders = description.folders
        models = [
            *(virtio_disks(disks, description.vcpus) if disks else ()),
            *(virtio_cards(networks) if networks else ()),
            *console.models,
            *(open_folders(folders, description.vcpus, stack) if folders else ()),
            *_entropy(description.rng),
        ]
        assembled = _assemble(description, console.serial, on_power, membership, disks, models, state)
        return replace(
            assembled,
            taps=[tap for _, tap in networks],
            resize=console.resize,
            close=stack.pop_all().close,
        )


def _assemble(
    description: MachineDescription,
    serial: ConsoleLine,
    on_power: Callable[[PowerEvent], None],
    membership: Membership | None,
    disks: list[tuple[Disk, BlockBackend]],
    models: list[VirtioModel],
    state: MachineState | None,
) -> Assembly:
    from coremesh.core._native import DeviceMeter, Doorbells, NativePorts
    from coremesh.hw.board.pc import build_pc
    from coremesh.hw.clock import HostClock
    from coremesh.hw.memory import GuestMemory

    memory = memory_of(description)
    topology = topology_of(description)
    apic_ids = apic_ids_of(description)
    writes: list[Write] = []
    if state is None:
        writes, registers = images(description)
        host, clock = build_host(description, membership), HostClock()
    else:
        registers = {}
        state.check()
        host = build_host(description, membership, state.tsc_hz)
        for gpa, data in rom_images(description):
            host.load(gpa, data)
        state.put_ram(host)
        clock = HostClock(state.clock_ns)
    doorbells, ports = Doorbells(), NativePorts()
    virtio = _virtio_functions(models, host, doorbells) if models else []
    node = build_pc(
        host,
        console=serial,
        on_power=on_power,
        ram_bytes=memory.ram_bytes,
        vcpus=description.vcpus,
        apic_ids=apic_ids,
        drives=ide_drives(disks) if disks else [],
        bus=host.bus_master(),
        ports=ports,
        memory=GuestMemory(host),
        functions=virtio,
        clock=clock,
        firmware=for_firmware(description),
        steer=host.steer if description.bios else None,
    )
    meter = DeviceMeter()
    node.count_with(meter)
    host.connect(node, doorbells, meter, ports)
    try:
        claims = node.claims()
        shares = {0: writes} if topology is None else divide(writes, memory.layout, topology.homes)
        boot = description.boot_host
        portions = {
            number: Portion(
                claims, shares.get(number, []), registers if state is None and number == boot else {}
            )
            for number in range(description.hosts)
        }
        lay(host, portions.pop(description.device_host))
        if state is not None:
            state.put(host, node, clock)
    except BaseException:
        host.stop()  # host and node know each other: this gives both back
        raise
    return Assembly(host, node, clock, portions)


def images(
    description: MachineDescription, *, anew: bool = False
) -> tuple[list[Write], dict[str, RegisterValue]]:
    """What is laid into memory before the start, and the bootstrap processor's registers beyond power-on's.

    With `anew` into RAM that a guest has used: also the zeros that its kernel counts on. Raises
    :class:`GuestImageError` for a kernel that cannot be loaded.
    """
    from coremesh.hw.firmware.acpi import build_firmware

    roms = rom_images(description)
    if description.bios and (not description.kernel or description.kernel_by_firmware):
        return roms, {}
    memory = memory_of(description)
    tables, rsdp = build_firmware(apic_ids_of(description), memory, topology_of(description))
    plan = _plan(description, memory, rsdp, tables, unpack=description.unpack)
    zeros = [(region.start, bytes(region.size)) for region in plan.zeros] if anew else []
    return [*roms, *zeros, *tables, *plan.writes], plan.registers


def rom_images(description: MachineDescription) -> list[Write]:
    """What the machine's ROMs hold, a firmware's among them."""
    from coremesh.hw.firmware.seabios import rom_writes

    roms = [(rom.gpa, rom.data) for rom in description.roms]
    return roms + (rom_writes(description.bios) if description.bios else [])


def for_firmware(description: MachineDescription) -> ForFirmware | None:
    """What the machine tells its own firmware; None for one that has a kernel."""
    if not description.bios:
        return None
    from coremesh.hw.board.pc import PC_WITH_FIRMWARE
    from coremesh.hw.firmware.linux_rom import LinuxImage
    from coremesh.hw.firmware.seabios import describe_machine

    linux = LinuxImage(description.kernel, description.initrd, description.cmdline)
    return describe_machine(
        apic_ids_of(description),
        memory_of(description),
        topology_of(description),
        PC_WITH_FIRMWARE,
        PC_WITH_FIRMWARE["uart"].base,
        boot=boot_paths(description.disks, description.boot),
        linux=linux if description.kernel_by_firmware else None,
        vga_bios=description.vga_bios,
    )


def _virtio_functions(models: list[VirtioModel], host: Host, doorbells: Doorbells) -> list[PciFunction]:
    """The PCI functions of the machine's virtio devices, in their order."""
    from coremesh.hw.virtio.pci import VirtioPci

    return [VirtioPci(model, host.bus_master(), doorbells).function for model in models]


def _entropy(rate: int | None) -> list[VirtioModel]:
    """The source of random bytes, if the machine has one; `rate` in bytes a second, 0 for no limit."""
    if rate is None:
        return []
    from coremesh.hw.virtio.rng import VirtioRng

    return [VirtioRng(name="virtio-rng", rate=rate)]


def build_host(
    description: MachineDescription, membership: Membership | None = None, tsc_hz: int = 0
) -> Host:
    """Build one host's vCPUs and RAM; `membership` says which of several it is. `tsc_hz` 0: the host's own.

    Raises as :func:`assemble`.
    """
    from coremesh.core.engine import Host

    memory = memory_of(description)
    topology = topology_of(description)
    if topology is None or membership is None:
        apic_ids, mesh = list(range(description.vcpus)), None
    else:
        apic_ids = list(topology.apic_ids(membership.host))
        mesh, tsc_hz = _mesh(description, topology, membership), membership.tsc_hz
    try:
        return Host(
            memory=memory.layout,
            apic_ids=apic_ids,
            total_vcpus=description.vcpus,
            protection=description.protection,
            mesh=mesh,
            tsc_hz=tsc_hz,
            restarts=description.restarts,
            neighbours=0 if membership is None else membership.neighbours,
        )
    except (OSError, MemoryError) as error:
        raise PlatformError(f"this host cannot run it: {error}. 'coremesh doctor' says more.") from error
    except ValueError as error:
        raise ConfigurationError(f"{error}.") from error


def lay(host: Host, portion: Portion) -> None:
    """Lay out what `portion` says, before the start: claims, images in RAM or ROM, the first registers."""
    for space, first, last in portion.claims:
        host.claim(space, first, last)
    for gpa, data in portion.writes:
        host.load(gpa, data)
    if portion.registers:
        host.set_registers(0, dict(portion.registers))


def check_images(description: MachineDescription) -> None:
    """Raise what :func:`assemble` would raise for the images, without an engine: early, in the driver."""
    topology_of(description)
    if description.bios:
        from coremesh.hw.firmware.seabios import check_rom

        check_rom(description.bios)
        for_firmware(description)
    else:
        _plan(description, memory_of(description), 0, (), unpack=False)


def memory_of(description: MachineDescription) -> MemoryMap:
    """Where the machine's RAM and ROM are."""
    from coremesh.hw.firmware.seabios import SHADOWS, rom_region

    roms = [Region(rom.gpa, rom.size) for rom in description.roms]
    if not description.bios_bytes:
        return MemoryMap(description.ram_bytes, roms)
    return MemoryMap(description.ram_bytes, [*roms, rom_region(description.bios_bytes)], SHADOWS)


def apic_ids_of(description: MachineDescription) -> list[int]:
    """The APIC ids of the vCPUs, the bootstrap processor's first."""
    topology = topology_of(description)
    return list(range(description.vcpus)) if topology is None else topology.all_apic_ids


def topology_of(description: MachineDescription) -> Topology | None:
    """Which vCPUs and which memory belong to which host; None for a machine of one host."""
    if description.hosts == 1:
        return None
    from coremesh.core.topology import Topology

    return Topology(memory_of(description).layout, description.shares, device_host=description.device_host)


def _mesh(description: MachineDescription, topology: Topology, membership: Membership) -> Mesh:
    from coremesh.core.mesh import Mesh

    return Mesh(
        host=membership.host,
        hosts=topology.hosts,
        homes=topology.homes,
        vcpu_hosts=topology.vcpu_hosts,
        machine_id=membership.machine_id,
        epoch=membership.epoch,
        policy=description.policy,
        device_host=description.device_host,
    )


def _plan(
    description: MachineDescription, memory: MemoryMap, rsdp: int, tables: Sequence[Write], *, unpack: bool
) -> BootPlan:
    from coremesh.core.x86.kernel import plan_boot

    kernel = description.kernel
    if unpack:
        # A kernel that is no bzImage, or is packed in a way unknown here, is started as it is.
        with contextlib.suppress(GuestImageError):
            kernel = unpack_linux(kernel)
    modules = [(module.data, module.text) for module in description.modules]
    return plan_boot(kernel, description.initrd, description.cmdline, memory, rsdp, modules, tables)
