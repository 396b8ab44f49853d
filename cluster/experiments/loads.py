# SPDX-License-Identifier: GPL-2.0-or-later
"""Named loads: what a guest is asked to do, so that one name always means the same work.

::

    coremesh.sweep(coremesh.loads.lock, {"vcpus": [1, 2, 4, 8], "kind": ["ticket", "mcs"]})
    coremesh.loads.table()

A load has a version: it changes when its numbers may. Each is a command for the guest's shell that prints
lines ``name=number``; rates are by the guest's own clock, and parameters are variables of the shell. Most use
``/coremesh-load``, a static program (core/guests/load.c) that a sweep lays into the initramfs;
:func:`initramfs` is for a machine without a sweep. They need a Linux guest with a shell and /proc.
"""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from coremesh.cluster.experiments.experiment import Command
from coremesh.cluster.machine.images import compiler
from coremesh.cluster.machine.images.initramfs import Entry, pack
from coremesh.core.errors import ConfigurationError, GuestImageError, near, shown

if TYPE_CHECKING:
    import pandas

PROGRAM: Final = "coremesh-load"

# The guest's monotonic clock in nanoseconds; in steps of 10 ms where the kernel does not show it finer.
_CLOCK = (
    "now() { sed -n '3s/now at \\([0-9]*\\) nsecs/\\1/p;3q' /proc/timer_list 2>/dev/null | grep . || "
    "awk '{printf \"%.0f\\n\", $1 * 1e9}' /proc/uptime; }; "
)


@dataclass(frozen=True)
class Load:
    """One load. `parameters` are those it knows, with their defaults; a sweep may vary each."""

    name: str
    version: int
    measures: str
    about: str
    command: str = field(repr=False)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    program: bool = True

    def names(self) -> frozenset[str] | None:
        """The parameters it knows."""
        return frozenset(self.parameters)

    def identity(self) -> str:
        """Name and version."""
        return f"{self.name}@{self.version}"

    def initramfs(self) -> bytes:
        """What its program needs in the guest, to follow an initramfs; nothing if it needs none."""
        return program_archive() if self.program else b""

    def __call__(self, machine: Any, parameters: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """Run it, as of :class:`~coremesh.cluster.experiments.experiment.Work`.

        What it prints of a parameter that was given, as the number of threads, is no number of its own.
        """
        chosen = {name: parameters.get(name, default) for name, default in self.parameters.items()}
        numbers = Command(self.command)(machine, chosen, timeout)
        return {name: value for name, value in numbers.items() if name not in parameters}

    def run(self, machine: Any, timeout: float = 600.0, **parameters: Any) -> Mapping[str, Any]:
        """Run it on a machine that was booted with :func:`initramfs`, and return its numbers."""
        unknown = sorted(set(parameters) - set(self.parameters))
        if unknown:
            raise ConfigurationError(
                f"{self.name} has no {', '.join(unknown)}; it has {', '.join(self.parameters)}."
            )
        return self(machine, parameters, timeout)


def _program(arguments: str) -> str:
    return f"/{PROGRAM} {arguments} threads=${{threads:-$(nproc)}} milliseconds=$milliseconds"


# Past the cache: dropped before each part; what is written is synced. awk gives the random places.
_DISK = (
    "drop() { sync; echo 3 >/proc/sys/vm/drop_caches; }; "
    '[ -b "$device" ] || { echo "no disk $device: give the machine disks"; exit 3; }; '
    "n=${threads:-$(nproc)}; pieces=$((megabytes * 1024 / block / n)); drop; a=$(now); "
    "for i in $(seq 0 $((n - 1))); do taskset -c $((i % $(nproc))) "
    "dd if=$device of=/dev/null bs=${block}k count=$pieces skip=$((i * pieces)) 2>/dev/null & done; wait; "
    "b=$(now); for i in $(seq 0 $((n - 1))); do taskset -c $((i % $(nproc))) "
    "dd if=/dev/zero of=$device bs=${block}k count=$pieces seek=$((i * pieces)) conv=notrunc,fsync "
    "2>/dev/null & done; wait; c=$(now); drop; d=$(now); "
    "for i in $(seq 0 $((n - 1))); do taskset -c $((i % $(nproc))) sh -c "
    "\"for at in \\$(awk 'BEGIN { srand($i); for (k = 0; k < $requests; k++) "
    "print int(rand() * $megabytes * 256) }'); do "
    'dd if=$device of=/dev/null bs=4k count=1 skip=\\$at 2>/dev/null; done" & done; wait; e=$(now); '
    'awk "BEGIN { size = $n * $pieces * $block / 1024 * 1e9; '
    'print \\"read_megabytes_per_second=\\" size / ($b - $a); '
    'print \\"write_megabytes_per_second=\\" size / ($c - $b); '
    'print \\"read_requests_per_second=\\" $n * $requests * 1e9 / ($e - $d) }"'
)
_NETWORK = (
    "url=http://10.0.2.2:$port; a=$(now); wget -q -O /dev/null $url/all || exit 3; b=$(now); "
    "for i in $(seq $requests); do wget -q -O /dev/null $url/one || exit 3; done; c=$(now); "
    'awk "BEGIN { print \\"megabytes_per_second=\\" $megabytes * 1e9 / ($b - $a); '
    'print \\"round_trips_per_second=\\" $requests * 1e9 / ($c - $b) }"'
)
# A program of many small functions, and the status that it has to end with; built and run again and again.
_COMPILE = r"""
t=/tmp/compile; mkdir -p $t; rm -f $t/*; awk -v n=$functions -v t=$t 'BEGIN {
  s = 1; end = "1"
  for (i = 0; i < n; i++) {
    k = i % 13 + 1; m = i % 7 + 1
    printf "static int f%d(int a)\n{\n  int c;\n", i
    printf "  for (c = 0; c < %d; c++)\n    a = (a * %d + %d + c) %% 1009;\n  return a;\n}\n", m, k, i
    for (c = 0; c < m; c++) s = (s * k + i + c) % 1009
  }
  printf "void _start(void)\n{\n  int s = 1;\n"
  for (i = 0; i < n; i++) printf "  s = f%d(s);\n", i
  printf "  asm volatile(\"syscall\" : : \"a\"(60), \"D\"(s %% 125 + 1));\n}\n"
  print s % 125 + 1 >(t "/status") }' >$t/unit.c
cat >$t/work <<'X'
for u in $(seq $units); do
  TCC -static -nostdlib -o $t/program$1 $t/unit.c 2>>$t/bad || exit
  $t/program$1; [ $? = $(cat $t/status) ] || echo "the program that was built gives another result" >>$t/bad
done
X
export t units; n=${threads:-$(nproc)}; a=$(now)
for i in $(seq 0 $((n - 1))); do taskset -c $((i % $(nproc))) sh $t/work $i & done; wait; b=$(now)
[ -s $t/bad ] && { cat $t/bad; exit 3; }
awk "BEGIN { print \"lines_per_second=\" $n * $units * $(wc -l <$t/unit.c) * 1e9 / ($b - $a) }"
""".replace("TCC", compiler.COMMAND)

_RUN: Final = {"threads": None, "milliseconds": 1000}

hashing = Load(
    "hashing",
    1,
    "megabytes_per_second",
    "SHA-256 of zeros on each core at once: compiled code that shares nothing",
    _CLOCK + "n=${threads:-$(nproc)}; a=$(now); for i in $(seq 0 $((n - 1))); do "
    "(head -c $((megabytes << 20)) /dev/zero | taskset -c $((i % $(nproc))) sha256sum >/dev/null) & done; "
    'wait; b=$(now); awk "BEGIN { print \\"megabytes_per_second=\\" $n * $megabytes * 1e9 / ($b - $a) }"',
    {"threads": None, "megabytes": 8},
    program=False,
)
shell_loop = Load(
    "shell_loop",
    1,
    "turns_per_second",
    "arithmetic of the shell on each core: an interpreter, many small blocks",
    _CLOCK + "n=${threads:-$(nproc)}; a=$(now); for c in $(seq 0 $((n - 1))); do "
    'taskset -c $((c % $(nproc))) sh -c "i=0; while [ \\$i -lt $turns ]; do i=\\$((i + 1)); done" & done; '
    'wait; b=$(now); awk "BEGIN { print \\"turns_per_second=\\" $n * $turns * 1e9 / ($b - $a) }"',
    {"threads": None, "turns": 20000},
    program=False,
)
loop = Load(
    "loop", 1, "operations_per_second",
    "multiply and add in registers on each core: the emulator's speed alone",
    _program("loop"), _RUN,
)  # fmt: skip
lock = Load(
    "lock", 1, "acquisitions_per_second",
    "one counter under one lock: kind is tas, ticket, mcs or futex; hold is turns of a loop inside",
    _program("lock kind=$kind hold=$hold patience=$patience"),
    {**_RUN, "kind": "ticket", "hold": 20, "patience": 1000},
)  # fmt: skip
lock_ladder = Load(
    "lock_ladder", 1, "acquisitions_1, acquisitions_2, acquisitions_4 ...",
    "the same lock with 1, 2, 4 ... threads up to the cores, one after another in one machine",
    f"n=1; while [ $n -le $(nproc) ]; do /{PROGRAM} lock kind=$kind hold=$hold patience=$patience threads=$n "
    'milliseconds=$milliseconds | sed -n "s/^acquisitions_per_second/acquisitions_$n/p"; n=$((n * 2)); done',
    {"milliseconds": 500, "kind": "ticket", "hold": 20, "patience": 1000},
)  # fmt: skip
share = Load(
    "share", 1, "operations_per_second",
    "page sharing: pattern is private, false (own words of one page), true (one word, locked), read, produce",
    _program("share pattern=$pattern"), {**_RUN, "pattern": "false"},
)  # fmt: skip
memory = Load(
    "memory", 1, "turns_per_second",
    "memory of one process on each core, which no other uses: kind is copy (256 KiB) or allocate (64 pages)",
    # From a shell on its core: what the kernel knows of a process lies where its parent ran.
    "n=${threads:-$(nproc)}; for c in $(seq 0 $((n - 1))); do taskset -c $((c % $(nproc))) sh -c "
    f'"/{PROGRAM} memory kind=$kind threads=1 milliseconds=$milliseconds >/tmp/memory$c; :" & done; '
    "wait; "
    "for c in $(seq 0 $((n - 1))); do cat /tmp/memory$c; done | "
    "awk -F= '$1 ~ /^(copies|allocations)_per_second$/ { all += $2; n++ } "
    f'END {{ if (!n) exit 3; print "turns_per_second=" all }}\'',
    {**_RUN, "kind": "copy"},
)  # fmt: skip
pingpong = Load(
    "pingpong", 2, "round_trips_per_second",
    "the first core wakes the last one and back: via a pipe, a futex or a semaphore",
    f"/{PROGRAM} pingpong via=$via milliseconds=$milliseconds", {"milliseconds": 1000, "via": "pipe"},
)  # fmt: skip
fork_storm = Load(
    "fork_storm", 1, "forks_per_second",
    "processes made and ended on each core at once: page tables, the scheduler, TLB shootdowns",
    _program("fork"), _RUN,
)  # fmt: skip

disk = Load(
    "disk", 1, "read_megabytes_per_second, write_megabytes_per_second, read_requests_per_second",
    "a disk past the guest's cache: pieces of block KiB in order, then 4 KiB at random, on each core",
    _CLOCK + _DISK, {"threads": None, "device": "/dev/vda", "megabytes": 16, "block": 256, "requests": 200},
    program=False,
)  # fmt: skip


class _Network(Load):
    """A load whose other end is this process: the guest reaches it by the user network's gateway."""

    def __call__(self, machine: Any, parameters: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """Serve zeros while the guest fetches them."""
        chosen = {name: parameters.get(name, default) for name, default in self.parameters.items()}
        with zeros_served(int(chosen["megabytes"]) << 20) as port:
            return Command(self.command)(machine, {**chosen, "port": port}, timeout)


class _Compile(Load):
    """A load with a compiler, whose version, as it says in the guest, is in the row."""

    def initramfs(self) -> bytes:
        """The compiler: from the cache, or fetched."""
        return compiler.fetch_compiler()

    def __call__(self, machine: Any, parameters: Mapping[str, Any], timeout: float) -> Mapping[str, Any]:
        """Compile; raise what the compiler has said if it fails."""
        numbers = super().__call__(machine, parameters, timeout)
        said = machine.run(f"{compiler.COMMAND} -v", timeout).output
        return {**numbers, "compiler": said.strip()}


compile = _Compile(
    "compile", 1, "lines_per_second, compiler",
    "C compiled on each core by Debian's tcc (0.9.27 in Debian 12, 0.9.28rc in 13), linked, and run",
    _CLOCK + _COMPILE, {"threads": None, "functions": 500, "units": 4}, program=False,
)  # fmt: skip


network = _Network(
    "network", 1, "megabytes_per_second, round_trips_per_second",
    "a card on the user network: zeros fetched by HTTP from the host, then small requests one by one",
    _CLOCK + _NETWORK, {"megabytes": 8, "requests": 50}, program=False,
)  # fmt: skip

ALL: Final = (
    hashing, shell_loop, compile, loop, lock, lock_ladder, share, memory, pingpong, fork_storm, disk, network,
)  # fmt: skip


@contextlib.contextmanager
def zeros_served(size: int) -> Iterator[int]:
    """Serve HTTP on a port of 127.0.0.1 for the length of the block: /all is `size` bytes, /one is one."""

    class Zeros(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            left = size if self.path == "/all" else 1
            self.send_response(200)
            self.send_header("Content-Length", str(left))
            self.end_headers()
            while left > 0:
                left -= self.wfile.write(bytes(min(left, 1 << 18)))

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Zeros) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="zeros", daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def table() -> pandas.DataFrame:
    """Return what loads there are: name, version, what each measures, its parameters with their defaults."""
    import pandas

    rows = [
        {
            "name": load.name,
            "version": load.version,
            "measures": load.measures,
            "parameters": ", ".join(f"{name}={value}" for name, value in load.parameters.items()),
            "about": load.about,
        }
        for load in ALL
    ]
    return pandas.DataFrame(rows).set_index("name")


def load_named(name: Any) -> Load:
    """Return the load of a name, 'lock' or with its version 'lock@1'. Raises :class:`ConfigurationError`."""
    plain, _, version = str(name).partition("@")
    for load in ALL:
        if load.name == plain:
            if version not in ("", str(load.version)):
                raise ConfigurationError(
                    f"{plain} is at version {load.version} here; what {shown(name)} measured is another work."
                )
            return load
    known = [load.name for load in ALL]
    raise ConfigurationError(f"no load {shown(name)}; there are {', '.join(known)}.{near(plain, known)}")


def program_archive() -> bytes:
    """Return an initramfs with the program alone: Linux unpacks several that follow each other.

    Raises :class:`GuestImageError` where the installation lacks it.
    """
    program = resources.files("coremesh.core") / "guests" / "load.elf"
    try:
        return pack([Entry.file(PROGRAM, program.read_bytes(), 0o755)])
    except OSError as error:
        raise GuestImageError(
            "the program of the loads is missing from this installation. Install again with 'pip install .'."
        ) from error


def initramfs(*loads: Load) -> bytes:
    """Return Debian's initramfs with the program: ``Machine(initrd=coremesh.loads.initramfs(), ...)``.

    Name `loads` that need something else, as :data:`compile`.
    """
    from coremesh.cluster.machine.images.debian_image import fetch_debian

    return fetch_debian().initramfs() + program_archive() + b"".join(load.initramfs() for load in loads)
