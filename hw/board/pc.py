# SPDX-License-Identifier: GPL-2.0-or-later
"""The PC: which chips there are, how their interrupt lines run, and where they are mapped.

Read it as a list.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from coremesh.core.x86.memory_map import (
    ECAM,
    IOAPIC_BASE,
    LOW_RAM_LIMIT,
    PCI_WINDOW_BASE,
    PCI_WINDOW_END,
)
from coremesh.hw.ata.drive import Drive
from coremesh.hw.ata.piix3_ide import PLACES, Piix3Ide
from coremesh.hw.backend.console import ConsoleLine
from coremesh.hw.board.board import AcpiName, Board, Chip, memory, ports
from coremesh.hw.clock import Clock, HostClock
from coremesh.hw.device import Device
from coremesh.hw.firmware.pci_setup import PciSetup
from coremesh.hw.irq import InterruptFabric, IrqLine
from coremesh.hw.isa.acpi_pm import AcpiPm
from coremesh.hw.isa.debug_console import DebugConsole
from coremesh.hw.isa.debug_exit import DebugExit
from coremesh.hw.isa.fw_cfg import ForFirmware, FwCfg
from coremesh.hw.isa.i8042 import Keyboard8042
from coremesh.hw.isa.i8254 import Pit8254
from coremesh.hw.isa.i8259a import Pic8259A
from coremesh.hw.isa.ioapic import IoApic82093AA
from coremesh.hw.isa.mc146818 import Rtc146818, cmos_configuration
from coremesh.hw.isa.post import PostCode
from coremesh.hw.isa.reset import ResetControl, SystemControlA
from coremesh.hw.isa.uart16550 import Uart16550A
from coremesh.hw.isa.vga import Vga
from coremesh.hw.memory import GuestMemory
from coremesh.hw.node import DeviceNode
from coremesh.hw.pci.ecam import Ecam
from coremesh.hw.pci.function import PciFunction
from coremesh.hw.pci.host import HostBridge440Fx, PciHost, Steer
from coremesh.hw.pci.piix3 import Piix3IsaBridge
from coremesh.hw.power import PowerSink

if TYPE_CHECKING:
    from coremesh.core._native import BusMaster, NativePorts

# The timer's interrupt is wired to pin 2, where the cascade of the 8259A pair would be; the SCI is a level.
PC: Final = Board(
    chips=(
        Chip(
            "pic",
            (ports(0x20, 2), ports(0xA0, 2, 2), ports(0x4D0, 2, 4)),
            2,
            AcpiName("PIC", "PNP0000"),
            (ports(0x20, 2), ports(0xA0, 2)),
        ),
        Chip("pit", (ports(0x40, 4), ports(0x61, 1, 4)), 0, AcpiName("PIT", "PNP0100"), (ports(0x40, 4),)),
        Chip("i8042", (ports(0x60, 1), ports(0x64, 1, 4)), 1, AcpiName("KBD", "PNP0303")),
        Chip("rtc", (ports(0x70, 2),), 8, AcpiName("RTC", "PNP0B00")),
        Chip("post", (ports(0x80, 1),)),
        Chip("port92", (ports(0x92, 1),)),
        Chip("debug-exit", (ports(0xF4, 4),)),
        # The CRT controller at one of two places, chosen by a register; what lies between them is fixed.
        Chip(
            "vga",
            (
                ports(0x3B4, 2, 0x04),
                ports(0x3BA, 1, 0x0A),
                ports(0x3C0, 16, 0x10),
                ports(0x3D4, 2, 0x24),
                ports(0x3DA, 1, 0x2A),
            ),
        ),
        Chip("uart", (ports(0x3F8, 8),), 4, AcpiName("COM1", "PNP0501", uid=1)),
        Chip("acpi-pm", (ports(0x600, 12),), 9),
        Chip("pci", (ports(0xCF8, 4, widths=(4,)), ports(0xCFC, 4, 4))),
        Chip("ecam", (memory(ECAM.start, ECAM.size),)),
        Chip("reset", (ports(0xCF9, 1),)),
        Chip("ioapic", (memory(IOAPIC_BASE, 0x1000),)),
    ),
    pins={0: 2},
    levels=frozenset({9}),
    pirq_pins=(16, 17, 18, 19),
    pirq_irqs=(11, 10, 11, 10),
    # The last KiB below is left to ISA, as SeaBIOS does; what lies above is free on a PC.
    pci_ports=(0x1000, 0xFFFF),
    pci_memory=(PCI_WINDOW_BASE, PCI_WINDOW_END - 1),
)

PC_WITH_FIRMWARE: Final = replace(
    PC,
    chips=(
        *PC.chips,
        Chip("debug-console", (ports(0x402, 1),)),
        Chip("fw-cfg", (ports(0x510, 2, widths=(1, 2)), ports(0x514, 8, 4, widths=(4, 8)))),
    ),
)
"""A PC that begins with its own firmware has what such firmware looks for."""


def reset_pc(node: DeviceNode, *, firmware: bool) -> None:
    """The board's reset line, while no vCPU runs and the devices' threads are stopped.

    ``firmware``: the machine has its own; otherwise the PCI bus is left as firmware would leave it.
    """
    node.reset()
    if not firmware:
        PciSetup(node, PC).run()


_IOAPIC_IDS: Final = 16
ISA_IRQS: Final = 16


def ioapic_id(apic_ids: Iterable[int]) -> int:
    """An id that no core has, if the I/O APIC's four bits leave one (82093AA, IOAPICID); else 0.

    Equal ids do no harm: the bus that cores and I/O APICs once shared is gone.
    """
    taken = set(apic_ids)
    return next((identity for identity in range(_IOAPIC_IDS) if identity not in taken), 0)


def spare_irqs(node: DeviceNode) -> list[int]:
    """The ISA interrupts that no chip of this PC drives, and to which none of the PCI bus is steered."""
    used = {chip.irq for chip in PC.chips} | set(PC.pins) | set(PC.pins.values()) | set(PC.pirq_irqs)
    if any(name.startswith("ide") for name in node.devices):
        used |= {irq for *_, irq in PLACES}
    return [irq for irq in range(ISA_IRQS) if irq not in used]


def spare_line(node: DeviceNode, irq: int) -> IrqLine:
    """The wire of interrupt ``irq``, one of :func:`spare_irqs`, to both interrupt controllers."""
    return node.line(irq, PC.pin(irq))


def build_pc(
    fabric: InterruptFabric,
    *,
    console: ConsoleLine,
    on_power: PowerSink,
    ram_bytes: int,
    vcpus: int,
    apic_ids: Sequence[int] | None = None,
    clock: Clock | None = None,
    functions: Iterable[PciFunction] = (),
    drives: Sequence[Drive | None] = (),
    bus: "BusMaster | None" = None,
    ports: "NativePorts | None" = None,
    memory: GuestMemory | None = None,
    firmware: ForFirmware | None = None,
    steer: Steer | None = None,
) -> DeviceNode:
    """The devices of one PC, their interrupts going to ``fabric``; ``functions`` are put on its PCI bus.

    ``drives`` are those on its IDE channels: device 0 and 1 of the first, of the second. They reach RAM
    through ``bus``, and vCPUs reach them through ``ports``. Without drives there is no IDE controller, which
    a guest would look at for nothing. Other devices reach RAM through ``memory``.

    With ``firmware`` the machine begins in its ROM, which finds the bus as after a reset, and ``steer`` is
    called when it moves itself to RAM. Without, the PCI bus is set up as firmware would leave it.

    ``apic_ids`` are the cores' as the firmware tells them, by default 0 to ``vcpus`` - 1. ``on_power`` must
    not wait for a vCPU. The node is built but its threads do not run: call ``start``. Raises nothing for
    valid arguments.
    """
    clock = clock or HostClock()
    board = PC if firmware is None else PC_WITH_FIRMWARE

    # Interrupt controllers. The 8259A pair reaches the processors through LINT0 (the MP specification's
    # virtual wire mode via the local APIC) and through pin 0 of the I/O APIC (the same via the I/O APIC).
    ioapic = IoApic82093AA(fabric, identity=ioapic_id(range(vcpus) if apic_ids is None else apic_ids))
    pic = Pic8259A(fabric.extint, ioapic.pin(0))

    def isa(name: str) -> IrqLine:
        """The ISA interrupt of a chip: to its 8259A input and to the I/O APIC pin that it is wired to."""
        return isa_irq(PC.irq(name))

    def isa_irq(irq: int) -> IrqLine:
        return IrqLine(pic.irq(irq), ioapic.pin(PC.pin(irq)))

    # The PCI bus: two bridges, then what the machine was asked to have.
    south = Piix3IsaBridge([ioapic.pin(pin) for pin in PC.pirq_pins], [pic.irq(irq) for irq in range(16)])
    pci = PciHost(south.lines)
    pci.attach(HostBridge440Fx(steer, virtual=firmware is not None), 0)
    pci.attach(south, 1)
    if drives and bus is not None:
        pci.attach(Piix3Ide([isa_irq(irq) for *_, irq in PLACES], bus, drives, ports), 1, 1)
    for function in functions:
        pci.attach(function)

    cells = cmos_configuration(ram_bytes, min(ram_bytes, LOW_RAM_LIMIT), vcpus)
    devices: list[Device] = [
        pic,
        ioapic,
        Pit8254(clock, isa("pit")),
        Keyboard8042(isa("i8042"), on_power),
        Vga(clock),
        Uart16550A(clock, isa("uart"), console),
        Rtc146818(clock, isa("rtc"), cells if firmware is None else {**cells, **firmware.cells}),
        AcpiPm(clock, isa("acpi-pm"), on_power),
        SystemControlA(on_power),
        ResetControl(on_power),
        pci,
        Ecam(pci),
        PostCode(),
        DebugExit(on_power),
    ]
    if firmware is not None and memory is not None:
        devices += [DebugConsole(), FwCfg(memory, firmware.items, firmware.files)]
    # A function's old ports answer when software has enabled them: firmware finds them disabled.
    windows = [*board.windows(), *((at.space, at.base, at.last) for at in pci.fixed())]
    node = DeviceNode(board.mappings(devices), ioapic, pic, movable=pci.devices(), windows=windows)
    pci.connect(node)
    if firmware is None:
        PciSetup(node, board).run()
    return node
