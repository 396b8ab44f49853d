# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest speed at one vCPU beside QEMU: how many times as fast Coremesh runs the same work.

    python tests/bench/speed.py [--rounds N] [--works alu_ns gzip_ms ...]

A sweep over the two engines, one trial at a time, a load for each. The guest times it several times
and reports the least; of each figure the best round counts for either engine. The guest's clock is checked
against the host's in every trial.
"""

import sys

from figures import engines, options, reported, trials
from guest_image import initramfs_with

PROGRAMS = {
    "sha256sum_ms": "i=0; while [ $i -lt 8 ]; do cat /tmp/mixed; i=$((i+1)); done >/tmp/long; "
    "load time sha256sum /bin/sha256sum /tmp/long",
    "gzip_ms": "load time gzip /bin/gzip -c /tmp/mixed",
    "shell_loop_ms": "load time shell_loop /bin/sh -c 'i=0; while [ $i -lt 40000 ]; do i=$((i+1)); done'",
}
LOADS = (
    "alu_ns", "load_store_ns", "getppid_ns", "fork_exec_us", "sse_mul_add_sd_ns", "sse_div_sd_ns",
    "sse_sqrt_sd_ns", "sse_mul_add_pd_ns", "sse_mul_add_ps_ns", "sse_convert_ns", "sse_compare_ns",
)  # fmt: skip
CASES = " ".join(f"{work}) {command};;" for work, command in PROGRAMS.items())
COMMAND = f"cat /bin/busybox /bin/load >/tmp/mixed; case $work in {CASES} *) load one $work;; esac"
APPLICATION, ALU, SSE = "ratio >= 1.1", "ratio >= 1.0", "ratio >= 1.4"
CLOCK_ERROR, LATE = 0.05, 0.4  # a fraction, and seconds: what reading the clocks late can explain


def target(work: str) -> str:
    """What is asked of a load."""
    return ALU if work == "alu_ns" else SSE if work.startswith("sse_") else APPLICATION


def main() -> None:
    """Sweep the loads over the engines that there are, and print ratios."""
    works = [*PROGRAMS, *LOADS]
    parser = options(__doc__, rounds=3)
    parser.add_argument("--works", nargs="+", choices=works, default=works, metavar="WORK")
    arguments = parser.parse_args()
    with reported("Guest speed, 1 vCPU", arguments) as figures:
        for row in trials(
            COMMAND, {"work": arguments.works, "engine": engines()}, arguments.rounds,
            vcpus=1, memory="512M", append="quiet", initrd=initramfs_with("load"),
        ):  # fmt: skip
            guest, host = row["guest_seconds"], row["host_seconds"]
            if abs(guest - host) > CLOCK_ERROR * host + LATE:
                sys.exit(f"{row['engine']}: the guest counts {guest:.2f} s in {host:.2f} s")
            load, _, unit = row["work"].rpartition("_")
            figures.add(
                row["engine"], load, row[row["work"]], unit, target(row["work"]), cpu=row["cpu_seconds"]
            )


if __name__ == "__main__":
    main()
