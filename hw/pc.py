# SPDX-License-Identifier: GPL-2.0-or-later
"""The PC: which chips there are, how their interrupt lines run, and where they are mapped.

Read it as a list.
"""

from collections.abc import Sequence

from coremesh.core.memory_map import IOAPIC_BASE, LOW_RAM_LIMIT
from coremesh.hw.acpi import PM1A_EVENT_PORT, RESET_PORT, SCI_IRQ, TIMER_GSI, TIMER_IRQ
from coremesh.hw.acpi_pm import AcpiPm
from coremesh.hw.clock import Clock, HostClock
from coremesh.hw.console import ConsolePort
from coremesh.hw.debug_exit import DebugExit
from coremesh.hw.device import GuestMemory, InterruptFabric, IrqLine
from coremesh.hw.i8042 import Keyboard8042
from coremesh.hw.i8254 import Pit8254
from coremesh.hw.i8259a import Pic8259A
from coremesh.hw.ioapic import IoApic82093AA
from coremesh.hw.mc146818 import Rtc146818, cmos_configuration
from coremesh.hw.mptable import ioapic_id
from coremesh.hw.node import At, DeviceNode
from coremesh.hw.pci_host import PciHost, i440fx_host_bridge
from coremesh.hw.post import PostCode
from coremesh.hw.power import PowerSink
from coremesh.hw.request import MMIO, PORT
from coremesh.hw.reset import ResetControl, SystemControlA
from coremesh.hw.uart16550 import Uart16550A


def build_pc(
    fabric: InterruptFabric,
    memory: GuestMemory,
    *,
    console: ConsolePort,
    on_power: PowerSink,
    ram_bytes: int,
    vcpus: int,
    apic_ids: Sequence[int] | None = None,
    clock: Clock | None = None,
) -> DeviceNode:
    """The devices of one PC, their interrupts going to ``fabric``.

    ``apic_ids`` are the cores' as the firmware tells them, by default 0 to ``vcpus`` - 1. ``memory`` is for
    bus masters; ``on_power`` must not wait for a vCPU. The node is built but its threads do
    not run: call ``start``. Raises nothing for valid arguments.
    """
    clock = clock or HostClock()

    # Interrupt controllers. The 8259A pair reaches the processors through LINT0 (the MP specification's
    # virtual wire mode via the local APIC) and through pin 0 of the I/O APIC (the same via the I/O APIC).
    ioapic = IoApic82093AA(fabric, identity=ioapic_id(range(vcpus) if apic_ids is None else apic_ids))
    pic = Pic8259A(fabric.extint, ioapic.pin(0))

    def isa(irq: int, pin: int | None = None) -> IrqLine:
        """An ISA interrupt: to the 8259A input and to the I/O APIC pin of the same number, or another."""
        return IrqLine(pic.irq(irq), ioapic.pin(irq if pin is None else pin))

    # Devices and their lines.
    pit = Pit8254(clock, isa(TIMER_IRQ, pin=TIMER_GSI))
    keyboard = Keyboard8042(isa(1), on_power)
    uart = Uart16550A(clock, isa(4), console)
    rtc = Rtc146818(clock, isa(8), cmos_configuration(ram_bytes, min(ram_bytes, LOW_RAM_LIMIT), vcpus))
    acpi = AcpiPm(clock, isa(SCI_IRQ), on_power)
    port_a = SystemControlA(on_power)
    reset = ResetControl(on_power)
    pci = PciHost({(0, 0, 0): i440fx_host_bridge()})
    post = PostCode()
    debug_exit = DebugExit(on_power)

    # Addresses.
    return DeviceNode(
        [
            At(PORT, 0x0020, 2, pic),
            At(PORT, 0x0040, 4, pit),
            At(PORT, 0x0060, 1, keyboard),
            At(PORT, 0x0061, 1, pit, offset=4),
            At(PORT, 0x0064, 1, keyboard, offset=4),
            At(PORT, 0x0070, 2, rtc),
            At(PORT, 0x0080, 1, post),
            At(PORT, 0x0092, 1, port_a),
            At(PORT, 0x00A0, 2, pic, offset=2),
            At(PORT, 0x00F4, 4, debug_exit),
            At(PORT, 0x03F8, 8, uart),
            At(PORT, 0x04D0, 2, pic, offset=4),
            At(PORT, PM1A_EVENT_PORT, 12, acpi),
            At(PORT, 0x0CF8, 4, pci, widths=(4,)),
            At(PORT, RESET_PORT, 1, reset),
            At(PORT, 0x0CFC, 4, pci, offset=4),
            At(MMIO, IOAPIC_BASE, 0x1000, ioapic),
        ],
        ioapic,
        pic,
    )
