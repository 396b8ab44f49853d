# SPDX-License-Identifier: GPL-2.0-or-later
"""Several hosts with addresses of their own on one machine: network namespaces joined by a switch or a wire.

All that is made carries this process's id in its name, and a number, so that several networks can stand at
once. Leaving the context ends every process inside and removes it; what a killed process left is swept by
the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

PREFIX = "cmnet"
SUBNET = "10.213.77"
FIRST = 11  # the last octet of host 0
NETNS = Path("/run/netns")
CLONE_NEWNET = 0x4000_0000  # sched.h; os.setns comes with Python 3.12
SOURCE = Path(__file__).with_name("relay.c")

_libc = ctypes.CDLL(None, use_errno=True)
_serials = itertools.count()


def unavailable() -> str | None:
    """Why namespaces cannot be made here; None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip (iproute2)"
    name = f"{PREFIX}{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "br0", "type", "bridge")
        finally:
            _ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"network namespaces are refused here: {error.stderr.strip()}"
    return None


class Network:
    """``hosts`` namespaces, each with ``eth0``; a context manager. Not for several threads.

    Without ``delay_us`` they hang on a bridge by veth pairs. With it, a relay passes their packets on so many
    microseconds later each way.
    """

    def __init__(self, hosts: int, delay_us: int = 0) -> None:
        self.hosts = hosts
        self.delay_us = delay_us
        self._stem = f"{PREFIX}{os.getpid()}-{next(_serials)}-"
        self._switch = self._stem + "switch"
        self._relay: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX)

    def namespace(self, host: int) -> str:
        """The name of a host's namespace, for ``ip netns``."""
        return f"{self._stem}{host}"

    def address(self, host: int) -> str:
        """A host's IPv4 address."""
        return f"{SUBNET}.{FIRST + host}"

    def command(self, host: int, *words: str) -> list[str]:
        """A command line that runs ``words`` on a host, and ends with this process."""
        return ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.namespace(host), *words]

    def processes(self, host: int) -> list[int]:
        """The ids of all processes on a host."""
        return _processes(self.namespace(host))

    @contextlib.contextmanager
    def entered(self, host: int) -> Iterator[None]:
        """This thread is on that host inside, and so are the threads and processes that it starts there."""
        with Path("/proc/thread-self/ns/net").open() as home:
            _enter(NETNS / self.namespace(host))
            try:
                yield
            finally:
                if _libc.setns(home.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "cannot leave the namespace")

    def cut_command(self, host: int) -> list[str]:
        """A command line that does what ``cut`` does, from any host; without a delay only."""
        return ["ip", "-n", self._switch, "link", "set", f"port{host}", "down"]

    def cut(self, host: int) -> None:
        """Pull the host's cable: nothing comes in or goes out, and no error says so."""
        if self._relay is None:
            subprocess.run(self.cut_command(host), check=True)
        else:
            self._tell(f"cut {host}\n")

    def mend(self, host: int) -> None:
        """Put the cable back."""
        if self._relay is None:
            _ip("-n", self._switch, "link", "set", f"port{host}", "up")
        else:
            self._tell(f"mend {host}\n")

    def _tell(self, line: str) -> None:
        assert self._relay is not None
        assert self._relay.stdin is not None
        self._relay.stdin.write(line.encode())
        self._relay.stdin.flush()

    def __enter__(self) -> Network:
        sweep()
        try:
            for host in range(self.hosts):
                _ip("netns", "add", self.namespace(host))
                _ip("-n", self.namespace(host), "link", "set", "lo", "up")
            if self.delay_us:
                self._start_relay()
            else:
                self._start_switch()
            for host in range(self.hosts):
                inside = ("-n", self.namespace(host))
                _ip(*inside, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
                _ip(*inside, "link", "set", "eth0", "up")
                # Nobody answers there. Without any default route Ray looks for its own address for seconds.
                _ip(*inside, "route", "add", "default", "dev", "eth0")
        except BaseException:
            self.close()
            raise
        return self

    def _start_switch(self) -> None:
        _ip("netns", "add", self._switch)
        inside = ("-n", self._switch)
        _ip(*inside, "link", "add", "br0", "type", "bridge")
        _ip(*inside, "link", "set", "br0", "up")
        for host in range(self.hosts):
            port = f"port{host}"
            other = ("peer", "name", "eth0", "netns", self.namespace(host))
            _ip(*inside, "link", "add", port, "type", "veth", *other)
            _ip(*inside, "link", "set", port, "master", "br0", "up")

    def _start_relay(self) -> None:
        program = Path(self._folder.name) / "relay"
        subprocess.run(["gcc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-o", program, SOURCE], check=True)
        names = [self.namespace(host) for host in range(self.hosts)]
        self._relay = subprocess.Popen(
            [program, str(self.delay_us), self.address(0), *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._relay.stdout is not None
        if self._relay.stdout.readline() != b"ready\n":
            raise RuntimeError("the relay did not start")
        for host in range(self.hosts):
            _ip("-n", self.namespace(host), "link", "set", "eth0", "mtu", "9000")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what runs on the hosts, and remove them."""
        for host in range(self.hosts):
            _remove(self.namespace(host))
        if self._relay is not None:
            assert self._relay.stdin is not None
            self._relay.stdin.close()
            self._relay.wait(10)
            self._relay = None
        _remove(self._switch)
        self._folder.cleanup()


def sweep() -> None:
    """Remove the namespaces of processes that were killed before they could do so."""
    for path in NETNS.glob(f"{PREFIX}*-*"):
        pid = path.name.removeprefix(PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            _remove(path.name)


def _remove(name: str) -> None:
    if not (NETNS / name).exists():
        return
    # Stopped processes take no other signal; a process may start another while it is looked for.
    deadline = time.monotonic() + 10
    while (left := _processes(name)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    with contextlib.suppress(subprocess.CalledProcessError):
        _ip("netns", "del", name)


def _processes(name: str) -> list[int]:
    if not (NETNS / name).exists():
        return []
    found = []
    for pid in _ip("netns", "pids", name).split():
        # Those that have ended and wait for their parents are none of ours to end.
        with contextlib.suppress(OSError):
            if Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(pid))
    return [pid for pid in found if pid != os.getpid()]


def _enter(path: Path) -> None:
    with path.open() as space:
        if _libc.setns(space.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {path.name}")


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    return done.stdout
