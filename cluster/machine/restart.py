# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's reset: the machine begins anew, on all of its hosts, with its devices reset and its RAM kept.

The order is that of a board's reset line: every vCPU of every host stands still; devices, then vCPUs, take
their power-on state; without a firmware of its own the guest's kernel is laid anew; all go on. Disks,
networks and the console stay open. What a guest wrote to RAM stays there, but for where the kernel and its
tables lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from coremesh.cluster.machine import assembly
from coremesh.cluster.machine.ending import MachineEnd

if TYPE_CHECKING:
    from coremesh.cluster.machine.description import MachineDescription
    from coremesh.core.engine import Host
    from coremesh.hw.node import DeviceNode

#: A guest that faults as often as this, each time sooner than this after its start, will do nothing else.
FAULTS_IN_A_ROW: Final = 3
SOON_SECONDS: Final = 1.0

_RESTARTS: Final = frozenset({"reset", "triple-fault"})


class Restarts:
    """Which resets restart the machine, and how many have. Used by one thread, read by any."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._since = 0.0  # seconds of the machine at its last start
        self._faults = 0  # in a row, soon after a start
        self.count = 0

    def wants(self, reason: MachineEnd) -> bool:
        """Whether `reason` restarts the machine instead of ending it."""
        if not self._wanted or reason.kind not in _RESTARTS:
            return False
        soon = reason.kind == "triple-fault" and reason.seconds - self._since < SOON_SECONDS
        self._faults = self._faults + 1 if soon else 0
        return self._faults < FAULTS_IN_A_ROW

    def done(self, seconds: float) -> None:
        """The machine begins anew, `seconds` after its first start."""
        self._since = seconds
        self.count += 1

    @staticmethod
    def is_restart(reason: MachineEnd) -> bool:
        """Whether the machine may go on after `reason`: with others it ends in any case."""
        return reason.kind in _RESTARTS


def restart(
    description: MachineDescription, host: Host, node: DeviceNode, halted: Callable[[], None]
) -> bool:
    """Begin anew; on the host whose devices are `node`. False when the machine is being stopped.

    `halted` is called when no vCPU runs. Returns when all vCPUs may run. Not on the thread of a vCPU or a
    device.
    """
    from coremesh.hw.board.pc import reset_pc

    alive = bool(host.begin_restart())
    halted()
    node.stop()
    reset_pc(node, firmware=bool(description.bios))
    alive = bool(host.reset_vcpus()) and alive
    if description.kernel:
        writes, registers = assembly.images(description, anew=True)
        for gpa, data in writes:
            # ROM is what it was.
            if assembly.memory_of(description).is_ram(gpa, len(data)):
                host.ram_write(gpa, data)
        if description.boot_host == description.device_host:  # else it is set there, as at the start
            host.set_registers(0, registers)
    node.start()
    return bool(host.end_restart()) and alive
