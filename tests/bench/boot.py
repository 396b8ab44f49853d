# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot to a shell, from the start of emulation to the prompt, and the memory that each vCPU takes then.

    python tests/bench/boot.py [--vcpus 1 2 8] [--rounds N]    beside QEMU
    python tests/bench/boot.py --many [--slow]                 64 vCPUs, with --slow 255 too: Coremesh alone

Each of three forms gives both peers the same kernel, initramfs and command line:

    default   the bzImage. QEMU's guest unpacks it; Coremesh unpacks it on the host, and that time counts
    bzImage   the bzImage, unpacked by the guest in both
    vmlinux   the ELF file that is in it, unpacked beforehand for both (QEMU starts it by PVH)
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import peers
from figures import Figures, options, reported

MANY = {64: (15.0, 1024), 255: (80.0, 2048)}  # seconds allowed, guest memory in MiB
MEMORY_MIB = 1024
MEMORY_PER_VCPU = "<= 18"
FORMS = ("default", "bzImage", "vmlinux")


def main() -> None:
    """Run the peers in turn and print seconds and ratios."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--vcpus", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--forms", nargs="+", choices=FORMS)
    parser.add_argument("--many", action="store_true", help="64 vCPUs instead")
    parser.add_argument("--slow", action="store_true", help="with --many: 255 vCPUs too")
    parser.add_argument("--beside", action="store_true", help="with --many: QEMU too")
    arguments = parser.parse_args()
    forms = arguments.forms or (FORMS[:1] if arguments.many else FORMS)
    title = "Boot to shell on many vCPUs" if arguments.many else "Boot to shell"
    with (
        reported(title, arguments) as figures,
        tempfile.TemporaryDirectory() as folder,
        peers.guest() as guest,
    ):
        guests = {"default": guest, "bzImage": replace(guest, unpack=False)}
        guests["vmlinux"] = guest.vmlinux(Path(folder))
        for _ in range(arguments.rounds):
            for form in forms:
                if arguments.many:
                    many(
                        figures, guests[form], form, (64, 255) if arguments.slow else (64,), arguments.beside
                    )
                else:
                    few(figures, guests[form], form, arguments.vcpus)


def few(figures: Figures, guest: peers.Guest, form: str, counts: list[int]) -> None:
    """One round of all sizes on both peers."""
    for vcpus in counts:
        for name, peer in peers.PEERS.items():
            run = peer(guest, vcpus, MEMORY_MIB, (peers.SHELL,), 120)
            what = f"boot, {vcpus} vCPU{'s' * (vcpus > 1)}, {form}"
            figures.add(name, what, run.marks[peers.SHELL], "s", "share <= 0.8", cpu=run.cpu[peers.SHELL])
            _progress(what, name, run)


def many(figures: Figures, guest: peers.Guest, form: str, counts: tuple[int, ...], beside: bool) -> None:
    """One round of the large machines."""
    for vcpus in counts:
        seconds, memory_mib = MANY[vcpus]
        for name, peer in peers.PEERS.items():
            if name != "coremesh" and not beside:
                continue
            run = peer(guest, vcpus, memory_mib, (peers.SHELL,), 10 * seconds)
            what = f"boot, {vcpus} vCPUs, {form}"
            figures.add(name, what, run.marks[peers.SHELL], "s", f"<= {seconds:g}", cpu=run.cpu[peers.SHELL])
            figures.add(
                name,
                f"memory per vCPU at the shell, {vcpus} vCPUs, {form}",
                run.own_mib / vcpus,
                "MiB",
                MEMORY_PER_VCPU,
            )
            _progress(what, name, run)


def _progress(what: str, name: str, run: peers.Run) -> None:
    print(
        f"{what}: {name} {run.marks[peers.SHELL]:.2f} s, {run.cpu[peers.SHELL]:.2f} s of processor time, "
        f"{run.own_mib:.0f} MiB",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
