# SPDX-License-Identifier: GPL-2.0-or-later
"""One host's machine put together: engine, devices, firmware tables, images. Reads as a list."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coremesh.cluster.description import MachineDescription
from coremesh.core.errors import ConfigurationError, GuestImageError, PlatformError
from coremesh.core.linux_payload import unpack_linux
from coremesh.core.memory_map import MemoryMap

if TYPE_CHECKING:
    from coremesh.core.boot import BootPlan
    from coremesh.hw.console import ConsolePort
    from coremesh.hw.power import PowerEvent


@dataclass(frozen=True)
class Assembly:
    """The parts that go on living: the native `host` and the device `node`."""

    host: Any
    node: Any


def assemble(
    description: MachineDescription, port: ConsolePort, on_power: Callable[[PowerEvent], None]
) -> Assembly:
    """Build the machine up to the point where its vCPUs can be started.

    The serial port speaks through `port`; `on_power` is called on a vCPU's thread. Raises
    :class:`GuestImageError` for a kernel that cannot be loaded, :class:`PlatformError` for a host that lacks
    what the engine needs.
    """
    from coremesh.core.engine import Host
    from coremesh.hw.acpi import build_firmware
    from coremesh.hw.pc import build_pc

    memory = MemoryMap(description.ram_bytes)
    apic_ids = list(range(description.vcpus))
    tables, rsdp = build_firmware(apic_ids, memory)
    plan = _plan(description, memory, rsdp, unpack=description.unpack)

    try:
        host = Host(
            ram_bytes=memory.ram_bytes,
            low_ram_bytes=memory.low_ram_bytes,
            apic_ids=apic_ids,
            total_vcpus=description.vcpus,
            protection=description.protection,
        )
    except (OSError, MemoryError) as error:
        raise PlatformError(f"this host cannot run it: {error}. 'coremesh doctor' says more.") from error
    except ValueError as error:
        raise ConfigurationError(f"{error}.") from error
    node = build_pc(
        host, host, console=port, on_power=on_power, ram_bytes=memory.ram_bytes, vcpus=description.vcpus
    )
    host.connect(node)
    for space, first, last in node.claims():
        host.claim(space, first, last)

    for gpa, data in [*tables, *plan.writes]:
        host.ram_write(gpa, data)
    host.set_registers(0, plan.registers)
    return Assembly(host, node)


def check_images(description: MachineDescription) -> None:
    """Raise what :func:`assemble` would raise for the images, without an engine: early, in the driver."""
    _plan(description, MemoryMap(description.ram_bytes), 0, unpack=False)


def _plan(description: MachineDescription, memory: MemoryMap, rsdp: int, *, unpack: bool) -> BootPlan:
    from coremesh.core.image import plan_boot

    kernel = description.kernel
    if unpack:
        # A kernel that is no bzImage, or is packed in a way unknown here, is started as it is.
        with contextlib.suppress(GuestImageError):
            kernel = unpack_linux(kernel)
    modules = [(module.data, module.text) for module in description.modules]
    return plan_boot(kernel, description.initrd, description.cmdline, memory, rsdp, modules)
