# SPDX-License-Identifier: GPL-2.0-or-later
"""The Slurm script in a job of a real Slurm: controller and two nodes, each in a namespace of its own.

Where Debian's packages slurmctld, slurmd, slurm-client and munge are installed; nothing of them has to run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.experiments.journal import SUFFIX
from coremesh.cluster.machine.images.cache import cache_folder
from network import Network

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "munged")
SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "sweep.sbatch"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.linux,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("debian"),
    pytest.mark.skipif(
        not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in PROGRAMS),
        reason="Slurm is not installed (slurmctld, slurmd, slurm-client, munge)",
    ),
]

CONFIGURATION = """
ClusterName=coremesh
SlurmctldHost=node1({head})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A controller on host 0, and a node on each host; a context manager."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self._processes: list[subprocess.Popen[bytes]] = []
        names = range(1, network.hosts + 1)
        cores, memory = os.cpu_count() or 1, 4000  # MB
        nodes = "\n".join(
            f"NodeName=node{name} NodeAddr={network.address(name - 1)} CPUs={cores} RealMemory={memory}"
            for name in names
        )
        (folder / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{network.address(name - 1)} node{name}\n" for name in names)
        )
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(folder=folder, nodes=nodes, head=network.address(0))
        )
        # Autodetection wants cgroups mounted in the namespace; nothing here uses them.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "SLURM_CONF": str(self.configuration),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }

    def on(self, host: int, *words: str) -> list[str]:
        """A command line that runs `words` on a host that has a name, and knows the others'."""
        script = f'mount --bind {self.folder}/hosts /etc/hosts && hostname node{host + 1} && exec "$@"'
        return self.network.command(host, "unshare", "--mount", "--uts", "sh", "-c", script, "sh", *words)

    def _start(self, *command: str) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            )

    def __enter__(self) -> Slurm:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        for name in ("state", *(f"node{host + 1}" for host in range(self.network.hosts))):
            (self.folder / name).mkdir()
        files = (f"--{what}-file={self.folder}/munge.{what}" for what in ("key", "pid", "seed", "log"))
        self._start("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
        self._start(*self.on(0, "slurmctld", "-D"))
        for host in range(self.network.hosts):
            self._start(*self.on(host, "slurmd", "-D", "-N", f"node{host + 1}"))
        deadline = time.monotonic() + 120
        while self.typed("sinfo", "--noheader", "--format=%T %D") != f"idle {self.network.hosts}\n":
            assert time.monotonic() < deadline, self.words()
            time.sleep(0.5)
        return self

    def typed(self, *words: str) -> str:
        """What a command printed that a person on the first node typed."""
        done = subprocess.run(
            self.on(0, *words), env=self.environment, capture_output=True, text=True, timeout=600
        )
        return done.stdout

    def words(self) -> str:
        """What the daemons have said last."""
        return "\n".join(file.read_text()[-2000:] for file in sorted(self.folder.glob("*.log")))

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="cmslurm-", dir="/var/tmp"))  # short: sockets lie below it
    folder.chmod(0o755)
    try:
        with Network(2) as network, Slurm(network, folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_given_a_slurm_of_two_nodes_when_the_script_is_queued_then_its_sweep_is_done_on_both(
    slurm: Slurm,
) -> None:
    home = slurm.folder / "home"
    home.mkdir()
    (home / "sweep.toml").write_text(
        'out = "out.csv"\n[trial]\ncommand = "echo cores=$(nproc)"\n[parameters]\nhosts = [1, 2]\n'
        '[machine]\nvcpus = 2\nmemory = "256M"\nappend = "quiet"\n'
    )
    slurm.environment |= {
        "HOME": str(home),
        "TMPDIR": str(slurm.folder),
        "COREMESH": str(Path(sys.executable).parent),
        "COREMESH_CACHE": str(cache_folder()),
    }
    said = slurm.typed(
        "sbatch",
        "--wait",
        "--nodes=2",
        f"--chdir={home}",
        f"--output={home}/job.out",
        str(SCRIPT),
        "sweep.toml",
    )
    told = (home / "job.out").read_text() if (home / "job.out").exists() else slurm.words()
    assert "Submitted batch job" in said, told
    assert len((home / f"out.csv{SUFFIX}").read_text().splitlines()) == 3, told
    table = (home / "out.csv").read_text().splitlines()
    for host in range(2):
        assert slurm.network.address(host) in table[-1], told
    assert "TrialLost" not in told
    job = slurm.typed("scontrol", "show", "job", said.split()[-1])
    assert "JobState=COMPLETED" in job and "ExitCode=0:0" in job
    assert list(home.glob(".coremesh-token-*")) == [], "the token is gone with the job"
