# SPDX-License-Identifier: GPL-2.0-or-later
"""A Ray cluster with a node on each host of a network, started as a person would and seen by its head."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from driver import Driver
from network import Network

PORT = 6379
DASHBOARD_PORT = 8265
METRICS_PORT = 9091
PREFIX = "cmray"
OBJECT_STORE = 80 << 20  # Ray's minimum is 75 MiB


class RayNodes:
    """One Ray node for each host of ``network``, host 0 the head; a context manager.

    A node that is cut off is taken for dead by the head after some seconds only, as on a real cluster: hosts
    of a machine must notice by themselves, and sooner.
    """

    def __init__(self, network: Network, cpus: int = 4, *, dashboard: bool = False) -> None:
        """With `dashboard` the head takes jobs and each node exports metrics: needs the extra 'cluster'."""
        self.network = network
        self.cpus = cpus
        self.dashboard = f"http://{network.address(0)}:{DASHBOARD_PORT}" if dashboard else ""
        self.address = f"{network.address(0)}:{PORT}"
        # Unix socket paths below it must stay under 108 bytes; nodes that share one kill each other.
        _sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp"))
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._driver: Driver | None = None
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_enable_worker_prestart": "0",
            # As deploy's files have it: at Ray's niceness of 15 a busy computer's guests stand still.
            "RAY_worker_niceness": "0",
            "RAY_raylet_start_wait_time_s": "180",
            "RAY_metrics_report_interval_ms": "1000",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def __enter__(self) -> RayNodes:
        try:
            self._start(0, "--head", f"--port={PORT}", *self._dashboard_options())
            self._wait_head()
            self._driver = Driver(self.network, 0, self.environment)
            self.wait_alive(1)
            # One after the other: on a busy computer nodes that start together give each other up.
            for host in range(1, self.network.hosts):
                self._start(host, f"--address={self.address}")
                self.wait_alive(host + 1)
        except BaseException:
            self.close()
            raise
        return self

    def _dashboard_options(self) -> tuple[str, ...]:
        if not self.dashboard:
            return ("--include-dashboard=false",)
        address = self.network.address(0)
        return (
            "--include-dashboard=true",
            f"--dashboard-host={address}",
            f"--dashboard-port={DASHBOARD_PORT}",
        )

    def _start(self, host: int, *role: str) -> None:
        folder = self._folder / str(host)
        folder.mkdir()
        ray = Path(sys.executable).with_name("ray")
        command = self.network.command(
            host,
            str(ray),
            "start",
            "--block",
            f"--node-ip-address={self.network.address(host)}",
            f"--temp-dir={folder}",
            f"--num-cpus={self.cpus}",
            f"--object-store-memory={OBJECT_STORE}",
            "--disable-usage-stats",
            *((f"--metrics-export-port={METRICS_PORT}",) if self.dashboard else ()),
            *role,
        )
        with (folder / "log").open("wb") as log:
            self._nodes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.environment,
                    start_new_session=True,
                )
            )

    def _wait_head(self, seconds: float = 180.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check()
            with contextlib.suppress(OSError), self.network.entered(0):
                socket.create_connection((self.network.address(0), PORT), 1).close()
                return
            time.sleep(0.05)
        raise RuntimeError(f"no answer from Ray's head after {seconds:g} s:\n{self.log(0)}")

    def _check(self) -> None:
        for host, node in enumerate(self._nodes):
            if node.poll() is not None:
                raise RuntimeError(f"Ray's node on host {host} ended:\n{self.log(host)}")

    def wait_alive(self, count: int, seconds: float = 180.0) -> None:
        """Wait until the head knows ``count`` living nodes. Raises RuntimeError with what Ray said."""
        deadline = time.monotonic() + seconds
        alive = 0
        while time.monotonic() < deadline:
            self._check()
            alive = self.driver.run(seconds, living_nodes, self.address)
            if alive == count:
                return
            time.sleep(0.1)
        logs = "".join(self.log(host) for host in range(len(self._nodes)))
        raise RuntimeError(f"{alive} of {count} Ray nodes after {seconds:g} s:\n{logs}")

    @property
    def driver(self) -> Driver:
        """A process on the head's host for what a test wants to do with Ray."""
        assert self._driver is not None
        return self._driver

    def log(self, host: int) -> str:
        """What the node of a host has printed last."""
        return (self._folder / str(host) / "log").read_text(errors="replace")[-3000:]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the nodes, the head last; then whatever is left on the hosts."""
        if self._driver is not None:
            self._driver.close()
        for node in reversed(self._nodes):
            if node.poll() is None:
                node.send_signal(signal.SIGTERM)
        for node in reversed(self._nodes):
            try:
                node.wait(15)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
        self._nodes.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


def _sweep() -> None:
    """Remove the folders of tests that were killed, and what processes wrote while theirs was removed."""
    for folder in Path("/tmp").glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).split("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def living_nodes(address: str) -> int:
    """How many nodes the head takes for living; this process becomes a driver of the cluster."""
    import ray
    from coremesh.cluster.launch.session import ensure

    ensure(address)
    return sum(node["Alive"] for node in ray.nodes())
