# SPDX-License-Identifier: GPL-2.0-or-later
"""Accesses a second of one device by 1, 2, 64 and 255 vCPUs at once, on bare metal, beside QEMU.

    python tests/bench/accesses.py [--vcpus 1 2 64 255] [--loads post ioapic doorbell disk] [--rounds N]

    post      a port written, of a device in Python (the POST code's, 80H)
    ioapic    memory read, of a device in Python (the I/O APIC)
    disk      a port read, of the IDE controller (alternate status)
    doorbell  memory written, of a native device (a virtio disk's notifications)

All cores of the machine do the same for a second (guest/accesses.c). Figures are nanoseconds for one access
of all of them together: with more vCPUs they should not grow. Below the table, of each run of Coremesh: how
often the device was locked already, how long a vCPU then waited, and the least and most accesses of one.
"""

import sys
import tempfile
from pathlib import Path

from coremesh.cluster.experiments import qemu
from figures import engines, options, reported

sys.path.append(str(Path(__file__).resolve().parents[1] / "guest"))
from baremetal_machine import PASSED, BaremetalMachine, RunResult, build_guest, run_on_qemu

DEVICES = {"post": "post", "ioapic": "ioapic", "disk": "ide0", "doorbell": "virtio-blk0"}
QEMU_OPTIONS = ["-device", "virtio-rng-pci,disable-legacy=on"]
LONGEST = 300.0  # seconds


def on_coremesh(guest: Path, load: str, vcpus: int, disk: Path) -> tuple[RunResult, str]:
    """The run, and what the device's lock had to do."""
    disks = [f"{disk},snapshot", f"{disk},if=virtio,snapshot"]
    with BaremetalMachine(guest, vcpus=vcpus, cmdline=load, disks=disks) as machine:
        machine.start()
        result = machine.finish(LONGEST)
        counts = machine.node.counters()[DEVICES[load]]
    waited = counts["waited_ns"] / max(1, counts["contended"]) / 1000
    share = 100 * counts["contended"] / max(1, counts["accesses"])
    return result, f"lock taken already in {share:.2f} % of accesses, {waited:.1f} us waited each"


def main() -> None:
    """Run the engines in turn and print nanoseconds."""
    parser = options(__doc__, rounds=2)
    parser.add_argument("--vcpus", type=int, nargs="+", default=[1, 2, 64, 255])
    parser.add_argument("--loads", nargs="+", choices=list(DEVICES), default=list(DEVICES))
    arguments = parser.parse_args()
    notes: list[str] = []
    with (
        tempfile.TemporaryDirectory() as name,
        reported("One access of all vCPUs together", arguments) as figures,
    ):
        folder = Path(name)
        guest = build_guest("accesses", folder, Path(__file__).parent / "guest")
        disk = folder / "disk.img"
        disk.write_bytes(bytes(1 << 20))
        for turn in range(arguments.rounds):
            for load in arguments.loads:
                for vcpus in arguments.vcpus:
                    for engine in engines():
                        note = ""
                        if engine == "coremesh":
                            result, note = on_coremesh(guest, load, vcpus, disk)
                        else:
                            result = run_on_qemu(
                                guest, vcpus=vcpus, cmdline=load, program=qemu.program(),
                                options=QEMU_OPTIONS, timeout=LONGEST,
                            )  # fmt: skip
                        if result.status != PASSED:
                            raise RuntimeError(result.story())
                        values = result.values()
                        what = f"{load}, {vcpus} vCPU{'s' * (vcpus > 1)}"
                        if values["a_second"]:  # 0: no core ran in its second, on a crowded computer
                            figures.add(engine, what, 1e9 / values["a_second"], "ns")
                        fair = f"{values['least']:.0f} to {values['most']:.0f} of one vCPU"
                        print(
                            f"round {turn + 1}: {what}: {engine} {values['a_second']:,.0f}/s", file=sys.stderr
                        )
                        if note:
                            notes.append(f"{what}: {note}; {fair}")
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
