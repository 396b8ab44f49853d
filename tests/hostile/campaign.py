# SPDX-License-Identifier: GPL-2.0-or-later
"""Many hostile machines, in child processes: a process that dies or hangs is a finding, told with its seed.

As a program it shows how far it is, and shrinks what it finds to the blocks that matter::

    python tests/hostile/campaign.py --blocks 1000000 --protection mprotect
    python tests/hostile/campaign.py --seed 1122 --machines 1 --shrink
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import hostile_machine

RUNNER = Path(__file__).with_name("hostile_run.py")
HANG_SECONDS = 60.0
"""A machine that has not ended after this long has hung its process: its own limits are seconds."""
SHRINK_TRIES = 3


@dataclass(frozen=True)
class Finding:
    """A machine that hurt its host: what happened, and how to see it again."""

    seed: int
    what: str
    command: str
    blocks: tuple[int, ...] = ()

    def __str__(self) -> str:
        kept = f"; of its blocks {','.join(map(str, self.blocks))} are enough" if self.blocks else ""
        return f"seed {self.seed}: {self.what}{kept}\n  {self.command}"


@dataclass
class Report:
    """What a campaign ran and found. ``opcodes`` are numbers as ``coverage`` explains them."""

    machines: int = 0
    blocks: int = 0
    seconds: float = 0.0
    resident_mib: int = 0
    longest_stop: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    opcodes: set[int] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {name}" for name, count in self.ended.most_common())
        rate = self.blocks / self.seconds if self.seconds else 0.0
        return (
            f"{self.blocks} blocks on {self.machines} machines in {self.seconds:.0f} s ({rate:.0f} a second)"
            f": {ends}; at most {self.resident_mib} MiB resident and {self.longest_stop:.2f} s to stop; "
            f"{len(self.findings)} findings"
        )


def command(seed: int, protection: str, hosts: int, *more: str) -> list[str]:
    """The child that runs machines from ``seed`` on."""
    return [
        sys.executable,
        str(RUNNER),
        "--seed",
        str(seed),
        "--protection",
        protection,
        "--hosts",
        str(hosts),
        *more,
    ]


def _lines(stream: IO[str]) -> Iterator[str]:
    """The lines of a child's output; ends at its end, raises TimeoutError when none comes for a long time."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=HANG_SECONDS)
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            return
        yield line


def _run_child(
    words: Sequence[str], report: Report, environment: dict[str, str] | None
) -> tuple[int | None, str]:
    """Run one child to its end: the seed of the machine that ended it, or None, and what happened."""
    child = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    )
    assert child.stdout is not None
    assert child.stderr is not None
    errors: list[str] = []
    drain = threading.Thread(
        target=lambda stream: errors.append(stream.read()), args=(child.stderr,), daemon=True
    )
    drain.start()
    under_way: int | None = None
    what = ""
    try:
        for line in _lines(child.stdout):
            row = json.loads(line)
            if "opcodes" in row:
                report.opcodes.update(row["opcodes"])
                continue
            under_way = row["seed"]
            if "ended" not in row:
                continue
            under_way = None
            report.machines += 1
            report.blocks += row["blocks"]
            report.ended[row["ended"]] += 1
            report.resident_mib = max(report.resident_mib, row["resident_mib"])
            report.longest_stop = max(report.longest_stop, row["stop_seconds"])
            for complaint in row["complaints"]:
                report.findings.append(Finding(row["seed"], complaint, " ".join(words)))
    except TimeoutError:
        what = f"hangs: no end after {HANG_SECONDS:.0f} s"
    finally:
        if child.poll() is None and what:
            child.kill()
        code = child.wait()
        drain.join(1.0)
    if not what and code < 0:
        what = f"ends the process with {signal.Signals(-code).name}"
    elif not what and code > 1:
        what = f"ends the process with status {code}"
    if what and errors and errors[0].strip():
        what += "\n" + errors[0].strip()[-4000:]
    return (under_way if what else None), what


def run(
    *,
    seed: int,
    protection: str,
    hosts: int = 1,
    blocks: int = 0,
    machines: int = 0,
    seconds: float = 0.0,
    shrinks: bool = False,
    coverage: bool = False,
    environment: dict[str, str] | None = None,
    progress: bool = False,
) -> Report:
    """Run machines of rising seeds until there were enough ``blocks``, ``machines`` or ``seconds``.

    A child whose process ends is followed by another one, from the next seed on. ``environment`` replaces the
    children's, ``coverage`` has them tell which kinds of instructions ran, ``progress`` prints a line every
    ten
    seconds.
    """
    report = Report()
    began = time.monotonic()
    following = seed
    shown = began
    while True:
        report.seconds = time.monotonic() - began
        limits = []
        for left, word in (
            (blocks - report.blocks if blocks else None, "--blocks"),
            (machines - (following - seed) if machines else None, "--machines"),
            (seconds - report.seconds if seconds else None, "--seconds"),
        ):
            if left is not None and left <= 0:
                return report
            if left is not None:
                limits += [word, str(left)]
        # A child of its own every few hundred machines: what one leaves behind does not add up.
        before = report.machines
        if not machines:
            limits += ["--machines", "200"]
        if coverage:
            limits.append("--coverage")
        ended_by, what = _run_child(command(following, protection, hosts, *limits), report, environment)
        following += report.machines - before
        if what:
            culprit = following if ended_by is None else ended_by
            found = Finding(culprit, what, " ".join(command(culprit, protection, hosts)))
            report.findings.append(shrink(found, protection, hosts, environment) if shrinks else found)
            following = culprit + 1
        if progress and time.monotonic() - shown > 10:
            shown = time.monotonic()
            report.seconds = shown - began
            print(report, flush=True)


def kinds_of_instructions(protection: str) -> tuple[set[int], str]:
    """All kinds of instructions that translate (numbers as in tcg/x86/coverage.h), and what went wrong."""
    report = Report()
    words = [sys.executable, str(RUNNER), "--sweep", "--coverage", "--protection", protection]
    _, what = _run_child(words, report, None)
    return report.opcodes, what


def shrink(found: Finding, protection: str, hosts: int, environment: dict[str, str] | None = None) -> Finding:
    """The fewest blocks of a machine that still end the process; each attempt is made a few times."""
    plan = hostile_machine.draw(found.seed, protection, hosts)

    def hurts(kept: Sequence[int]) -> bool:
        words = command(found.seed, protection, hosts, "--only", ",".join(map(str, kept)))
        return any(_run_child(words, Report(), environment)[1] for _ in range(SHRINK_TRIES))

    kept = list(range(plan.blocks))
    if not hurts(kept):
        return found
    parts = 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if rest and hurts(rest):
                kept, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(kept))
    words = command(found.seed, protection, hosts, "--only", ",".join(map(str, kept)))
    return replace(found, blocks=tuple(kept), command=" ".join(words))


def main() -> int:
    """The command line; 1 when anything was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of the first machine; the next ones follow")
    parser.add_argument("--blocks", type=int, default=0)
    parser.add_argument("--machines", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--protection", default="auto", help="userfaultfd, mprotect or auto")
    parser.add_argument("--hosts", type=int, choices=(1, 2), default=1)
    parser.add_argument("--coverage", action="store_true", help="tell the share of all instructions that ran")
    parser.add_argument("--shrink", action="store_true", help="find the blocks that matter; takes minutes")
    asked = parser.parse_args()
    if not (asked.blocks or asked.machines or asked.seconds):
        parser.error("say how long: --blocks, --machines or --seconds")
    try:
        report = run(
            seed=asked.seed,
            protection=asked.protection,
            hosts=asked.hosts,
            blocks=asked.blocks,
            machines=asked.machines,
            seconds=asked.seconds,
            shrinks=asked.shrink,
            coverage=asked.coverage,
            environment=dict(os.environ),
            progress=True,
        )
    except KeyboardInterrupt:
        return 130
    print(report)
    if asked.coverage:
        known, _ = kinds_of_instructions(asked.protection)
        print(f"{len(report.opcodes & known)} of {len(known)} kinds of instructions translated")
    for finding in report.findings:
        print(finding)
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())
