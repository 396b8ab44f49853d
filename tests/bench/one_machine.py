# SPDX-License-Identifier: GPL-2.0-or-later
"""One Coremesh machine in this process, without Ray, its console on stdout: what the benchmarks compare.

    python one_machine.py VCPUS MEMORY_MIB KERNEL INITRAMFS CMDLINE as-is|unpack|apart [DISK..] [net=NETWORK]

With "unpack" the host unpacks the kernel, as ``coremesh boot`` has it, and that time counts: "EMULATION
STARTS" is said before it. With "as-is" a bzImage unpacks itself in the guest. With "apart" the devices are on
a host of their own, and both are processes of Ray.
"""

import sys
import threading
from pathlib import Path
from typing import BinaryIO

from coremesh.cluster.machine.assembly import assemble
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.disks import check_disks
from coremesh.cluster.machine.networks import check_networks
from coremesh.hw.backend.console import ConsolePort


def begin(out: BinaryIO) -> None:
    """Tell the one who watches that time counts from here."""
    out.write(b"EMULATION STARTS\n")
    out.flush()


def devices_apart(
    vcpus: int, memory_mib: int, kernel: Path, initramfs: Path, cmdline: str, disks: list[str]
) -> None:
    """The vCPUs on the second of two hosts, until the guest ends."""
    from coremesh import Machine

    out = sys.stdout.buffer
    with Machine(
        hosts=[0, vcpus],
        memory=memory_mib << 20,
        kernel=kernel,
        initrd=initramfs,
        append=cmdline,
        disks=disks,
    ) as machine:
        begin(out)
        over = False
        while not over:
            data, over = machine.console.take(1.0)
            out.write(data)
            out.flush()


def main() -> None:
    """Boot, copy the console to stdout, end with the guest."""
    vcpus, memory_mib, kernel, initramfs, cmdline, form = sys.argv[1:7]
    if form == "apart":
        devices_apart(int(vcpus), int(memory_mib), Path(kernel), Path(initramfs), cmdline, sys.argv[7:])
        return
    description = MachineDescription(
        vcpus=int(vcpus),
        ram_bytes=int(memory_mib) << 20,
        kernel=Path(kernel).read_bytes(),
        initrd=Path(initramfs).read_bytes(),
        cmdline=cmdline,
        unpack=form == "unpack",
        disks=check_disks([each for each in sys.argv[7:] if not each.startswith("net=")]),
        networks=check_networks([each[4:] for each in sys.argv[7:] if each.startswith("net=")]),
    )
    port = ConsolePort()
    ended = threading.Event()
    out = sys.stdout.buffer
    if description.unpack:
        begin(out)
    machine = assemble(description, port, lambda _event: ended.set())
    if not description.unpack:
        begin(out)
    machine.node.start()
    machine.host.start()
    cursor = 0
    while True:
        over = ended.is_set()
        data, cursor = port.read(cursor, 0.0 if over else 0.05)[:2]
        out.write(data)
        out.flush()
        if over and not data:
            break
        if (end := machine.host.wait(0.0)) is not None:
            out.write(f"\nENDED {end}\n".encode())
            break
    machine.host.stop()
    machine.node.stop()


if __name__ == "__main__":
    main()
