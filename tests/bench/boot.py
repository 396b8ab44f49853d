# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot to a shell, from the start of emulation to the prompt, and the memory that each vCPU takes then.

    python tests/bench/boot.py [--vcpus 1 2 8] [--rounds N]    beside QEMU
    python tests/bench/boot.py --many [--slow]                 64 vCPUs, with --slow 255 too: Coremesh alone

A sweep over the two engines, one trial at a time. Each of three forms gives both the same kernel, initramfs
and command line:

    default   the bzImage. QEMU's guest unpacks it; Coremesh unpacks it on the host, and that time counts
    bzImage   the bzImage, unpacked by the guest in both
    vmlinux   the ELF file that is in it, unpacked beforehand for both (QEMU starts it by PVH)
"""

import tempfile
from pathlib import Path
from typing import Any

from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.cluster.machine.options import parse_memory
from coremesh.core.x86.linux_payload import unpack_linux
from figures import charged, engines, options, reported, trials
from guest_image import CMDLINE, unpacking
from resident import own_memory_mib

MANY = {64: (15.0, "1G"), 255: (80.0, "2G")}  # seconds allowed, guest memory
MEMORY = "1G"
MEMORY_PER_VCPU = "<= 18"
FORMS = ("default", "bzImage", "vmlinux")
LONGEST = 120.0  # seconds


def to_shell(machine: Any, form: str, engine: str, memory: str, longest: float) -> dict[str, float]:
    """Seconds of emulation to the prompt, of unpacking before it, and the process's own memory then."""
    found = {"shell_seconds": machine.wait_shell(longest)}
    found["own_mib"] = own_memory_mib(machine.facts["pid"], parse_memory(memory) >> 20)
    if engine == "coremesh" and form == "default":
        found |= unpacking(fetch_debian().kernel)
    return found


def main() -> None:
    """Sweep forms and sizes over the engines, and print seconds and ratios."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--vcpus", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--forms", nargs="+", choices=FORMS)
    parser.add_argument("--many", action="store_true", help="64 vCPUs instead")
    parser.add_argument("--slow", action="store_true", help="with --many: 255 vCPUs too")
    parser.add_argument("--beside", action="store_true", help="with --many: QEMU too")
    arguments = parser.parse_args()
    forms = arguments.forms or (FORMS[:1] if arguments.many else FORMS)
    sizes, longest = [(vcpus, MEMORY) for vcpus in arguments.vcpus], LONGEST
    chosen = engines()
    if arguments.many:
        counts = (64, 255) if arguments.slow else (64,)
        sizes, longest = [(vcpus, MANY[vcpus][1]) for vcpus in counts], 10 * MANY[counts[-1]][0]
        chosen = chosen if arguments.beside else chosen[:1]
    image = fetch_debian()
    title = "Boot to shell on many vCPUs" if arguments.many else "Boot to shell"
    with reported(title, arguments) as figures, tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / "vmlinux"
        unpacked.write_bytes(unpack_linux(image.kernel.read_bytes()))
        kernels = {"default": (image.kernel, True), "bzImage": (image.kernel, False)}
        kernels["vmlinux"] = (unpacked, False)
        parameters = {
            "form, kernel, unpack": [(form, *kernels[form]) for form in forms],
            "vcpus, memory": sizes,
            "engine": chosen,
            "longest": [longest],
        }
        for row in trials(
            to_shell, parameters, arguments.rounds, shell=False, timeout=longest + 10, cmdline=CMDLINE,
            initrd=image.initramfs(),
        ):  # fmt: skip
            vcpus, form = row["vcpus"], row["form"]
            figures.add(
                row["engine"],
                f"boot, {vcpus} vCPU{'s' * (vcpus > 1)}, {form}",
                row["shell_seconds"] + charged(row, "unpack_seconds"),
                "s",
                f"<= {MANY[vcpus][0]:g}" if arguments.many else "share <= 0.8",
                cpu=row["cpu_seconds"] + charged(row, "unpack_cpu_seconds"),
            )
            if arguments.many:
                figures.add(
                    row["engine"],
                    f"memory per vCPU at the shell, {vcpus} vCPUs, {form}",
                    row["own_mib"] / vcpus,
                    "MiB",
                    MEMORY_PER_VCPU,
                )


if __name__ == "__main__":
    main()
