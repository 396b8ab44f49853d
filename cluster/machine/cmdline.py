# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line that a Linux kernel gets unless a person gives another: which words, and why each.

A person's own words come last. A default word is left out where they have one of the same name, so that the
line says each thing once. `Machine(cmdline=...)` and ``--cmdline`` replace all of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from coremesh.core.x86.kernel import KernelKind, kernel_kind

#: Reset at once after a panic, so that a panic ends the machine instead of hanging it.
ALWAYS = ("panic=-1",)
SERIAL = "console=ttyS0,115200"
#: Any of these from a person decides how much the kernel prints: 'quiet' is then not added.
_LOG_WORDS = frozenset({"quiet", "debug", "loglevel", "ignore_loglevel"})
#: Each names the cores without a tick. Linux refuses two of them that do not name the same cores.
_TICKLESS_WORDS = frozenset({"isolcpus", "nohz_full"})
#: Linux prints to every console that is named: a person's adds one.
_ADDING = frozenset({"console"})


def several_hosts(shares: Sequence[int]) -> tuple[str, ...]:
    """Return the words for a machine whose hosts have `shares` vCPUs; none for one host. Pure.

    What a core does for the sake of others costs round trips between hosts, so these make it do less of that
    (Documentation/admin-guide/kernel-parameters.txt):

    tsc=reliable: Linux trusts the TSC of a few NUMA nodes only; where it does not, it compares it with the
    count of its ticks, of which a busy host loses some, and from then on asks the PM timer's port for the
    time, thousands of times a second, on another host.

    quiet: each register of the 8250 is a round trip to the host with the devices, and the kernel prints under
    a lock that all cores take.

    rcu_nocbs=all: callbacks of RCU are run by threads, not by each core's tick. rcutree.rcu_nocb_gp_stride:
    that many cores in a row share a queue, here never cores of two hosts. Each return to user mode
    looks at the queue, and the default, the root of the number of cores, may end in the middle of a host.

    rcutree.jiffies_till_first_fqs, jiffies_till_next_fqs: how long a grace period of RCU waits before core 0
    looks at the other cores' counts, which lie on other hosts. A program that maps and unmaps memory always
    has a callback that waits, so that one grace period follows the other: to look after eight ticks instead
    of one halves its transactions. A wait for a grace period takes up to 64 ms longer, at 250 ticks a second.

    skew_tick=1: ticks of the cores do not come at the same time, so they do not meet at the same locks.

    nohz_full=1-N: a core that runs one task has no tick, the first core keeps the time for all, and the
    own threads, timers and work queues of the kernel stay there. Without it each core that ticks writes its
    time in turn, and those pages go from host to host. N is the last core.

    sysctl.vm.compaction_proactiveness=0: each node has a thread that otherwise looks twice a second whether
    to compact memory for huge pages. The first core's timer wakes it, some 40 transactions each time; with it
    asleep a host without work has none at all. Memory is still compacted when an allocation asks for it, and
    /proc/sys/vm turns it on again.

    sysctl.kernel.watchdog_cpumask: the first core of each host. Each 4 s the watchdog wakes it, and a core
    that goes back to sleep looks for work: so a crowded host gives some away although nothing else runs on
    the others. The thread above did that unasked. It costs some 15 transactions a second.

    Not here: relax_domain_level=1, which keeps a core that becomes idle from looking for work on other hosts.
    It saves nothing beside nohz_full, which leaves the balancing on behalf of idle cores to the first core
    alone: where that is busy, a core that looks for work itself is what takes it from a crowded host.
    """
    if len(shares) < 2:
        return ()
    return (
        "tsc=reliable",
        "quiet",
        "rcu_nocbs=all",
        f"rcutree.rcu_nocb_gp_stride={math.gcd(*shares)}",
        "rcutree.jiffies_till_first_fqs=8",
        "rcutree.jiffies_till_next_fqs=8",
        "skew_tick=1",
        "sysctl.vm.compaction_proactiveness=0",
        f"sysctl.kernel.watchdog_cpumask={_first_cores(shares)}",
        "nohz_full=1-N",
    )


def _first_cores(shares: Sequence[int]) -> str:
    """Return the numbers of the hosts' first cores, as Linux lists them."""
    starts = itertools.accumulate(shares, initial=0)
    return ",".join(str(start) for start, cores in zip(starts, shares, strict=False) if cores)


def command_line(
    kernel: bytes,
    *,
    shares: Sequence[int] = (1,),
    append: str = "",
    quiet: bool = False,
    console: str = SERIAL,
) -> str:
    """Return the command line of `kernel` on hosts of `shares` vCPUs each, `append` included.

    `console` is the word for its console.
    With `quiet` the kernel prints errors only, unless `append` says how much it is to print. A Multiboot
    kernel gets `append` alone. Pure.
    """
    words = default_words(kernel, shares=shares, append=append, quiet=quiet, console=console)
    return " ".join([*words, append]).strip()


def default_words(
    kernel: bytes,
    *,
    shares: Sequence[int] = (1,),
    append: str = "",
    quiet: bool = False,
    console: str = SERIAL,
) -> list[str]:
    """Return the default words that are left in :func:`command_line` beside those of `append`."""
    if not is_linux(kernel):
        return []
    words = [console, *ALWAYS, *several_hosts(shares)]
    if quiet and "quiet" not in words:
        words.append("quiet")
    given = _names(append.split())
    return [word for word in words if not _is_replaced(word, given)]


def is_linux(kernel: bytes) -> bool:
    """Tell whether `kernel` takes Linux's words: it is not one of Multiboot or PVH."""
    return kernel_kind(kernel) in (KernelKind.LINUX, KernelKind.UNKNOWN)


def _is_replaced(word: str, given: frozenset[str]) -> bool:
    (name,) = _names([word])
    if name in _ADDING:
        return False
    for words in (_LOG_WORDS, _TICKLESS_WORDS):
        if name in words:
            return bool(given & words)
    return name in given


def _names(words: Iterable[str]) -> frozenset[str]:
    # Linux takes '-' and '_' in names for the same (kernel/params.c).
    return frozenset(word.partition("=")[0].replace("-", "_") for word in words)
