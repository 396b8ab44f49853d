# SPDX-License-Identifier: GPL-2.0-or-later
"""The container image, built to its end and run, and the two hosts of the compose file as containers.

Its base is a bare Debian made here: no registry of images is needed. The person's own images are not touched.
"""

import os
import re
import resource
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from debian_root import DebianRoot, unavailable
from first_hour import source_files

yaml = pytest.importorskip("yaml")

REPOSITORY = Path(__file__).parents[2]
CONTAINER = REPOSITORY / "deploy/container"
DASHBOARD = "http://127.0.0.1:8265"
BASE = re.findall(r"^FROM (\S+)", (CONTAINER / "Containerfile").read_text(), re.M)
TOOLS = ("buildah", "podman", "runc", "iptables")
missing = [tool for tool in TOOLS if shutil.which(tool) is None]
reason = unavailable() or (
    f"needs {', '.join(missing)}: apt-get install them and netavark" if missing else ""
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.linux,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(reason), reason=reason),
]

# What a machine says of itself in a container.
PROGRAM = """
import os
from coremesh import Machine
with Machine(vcpus=2, hosts=2, memory="256M", append="quiet") as machine:
    cores = machine.run("nproc", 120).output.strip()
    print("said", os.getuid(), machine.facts["protection"], cores)
"""


class Store:
    """Images and containers in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where = ["--root", str(folder / "images"), "--runroot", str(folder / "run")]
        most = {name: resource.getrlimit(number)[1] for name, number in (
            ("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC),
        )}  # fmt: skip
        limits = [f'"{name}={min(20000, one)}:{min(20000, one)}"' for name, one in most.items() if one > 0]
        settings = folder / "containers.conf"
        settings.write_text(
            f'[containers]\ndefault_ulimits = [{", ".join(limits)}]\n[engine]\nruntime = "runc"\n'
        )
        self.environment = {**os.environ, "CONTAINERS_CONF": str(settings)}
        self.podman = folder / "podman"  # as compose calls it
        self.podman.write_text(f'#!/bin/sh\nexec podman {" ".join(self._where)} "$@"\n')
        self.podman.chmod(0o755)

    def run(self, tool: str, *words: str, seconds: float = 600, **options: Any) -> str:
        done = subprocess.run(
            [tool, *self._where, *words], env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=seconds, **options,
        )  # fmt: skip
        assert done.returncode == 0, f"{tool} {words[0]}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return str(done.stdout)

    def remove(self) -> None:
        for tool, words in (("podman", ["rm", "--all", "--force"]), ("buildah", ["rm", "--all"])):
            self.run(tool, *words)
        subprocess.run(["umount", self.folder / "images/overlay"], capture_output=True)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The image `coremesh`, built as the Containerfile says, with this computer's package sources."""
    folder = Path(f"/var/tmp/coremesh-image-{os.getpid()}")
    folder.mkdir()
    store = Store(folder)
    try:
        root = DebianRoot(folder / "debian", "bookworm")
        root.make(folder / "debootstrap.log")
        archive = folder / "debian.tar"
        left_out = [f"--exclude=./{name}/*" for name in ("dev", "proc", "sys", "var/cache/apt/archives")]
        subprocess.run(["tar", "-C", root.folder, *left_out, "-cf", archive, "."], check=True)
        root.remove()
        base = store.run("buildah", "from", "scratch").strip()
        store.run("buildah", "add", base, str(archive), "/")
        store.run("buildah", "commit", "--rm", base, BASE[0])
        archive.unlink()
        sources = folder / "sources"
        for file in source_files():
            copy = sources / file.relative_to(REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)
        poison = sources / "core" / "stale.so"  # as a build of this computer, which must not go in
        poison.write_text("stale")
        where = [
            "--isolation",
            "chroot",
            "--pull=never",
            "--file",
            str(sources / "deploy/container/Containerfile"),
        ]
        store.run("buildah", "bud", *where, "--tag", "coremesh", str(sources), seconds=2400)
        yield store
    finally:
        store.remove()


def contained(store: Store, *command: str, profile: Path | None) -> str:
    """What a command printed in a container without network or any privilege."""
    words = [
        "run",
        "--rm",
        "--network=none",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--shm-size=1g",
    ]
    words += [] if profile is None else [f"--security-opt=seccomp={profile}"]
    return store.run("podman", *words, "coremesh", *command)


def test_given_the_image_when_it_runs_with_the_profile_then_userfaultfd_guards_and_a_guest_boots(
    store: Store,
) -> None:
    profile = CONTAINER / "seccomp.json"
    assert contained(store, "coremesh", "boot", "--vcpus", "2", "--run", "nproc", profile=profile) == "2\n"
    assert "said 1000 userfaultfd 2" in contained(store, "python3", "-c", PROGRAM, profile=profile)
    assert contained(store, "sh", "-c", "find / -name stale.so 2>/dev/null || true", profile=profile) == ""
    looked = "grep ^Seccomp: /proc/self/status; grep CapEff /proc/self/status"
    assert contained(store, "sh", "-c", looked, profile=profile).split() == [
        "Seccomp:", "2", "CapEff:", "0" * 16,
    ]  # fmt: skip


def test_given_the_image_when_its_profile_is_left_out_then_mprotect_guards_and_the_same_guest_boots(
    store: Store,
) -> None:
    """The default profile of podman refuses userfaultfd: slower between hosts, nothing else."""
    assert "said 1000 mprotect 2" in contained(store, "python3", "-c", PROGRAM, profile=None)


@pytest.mark.skipif(shutil.which("podman-compose") is None, reason="apt-get install podman-compose")
def test_given_the_compose_file_when_it_is_up_then_a_machine_is_on_both_hosts_and_a_job_is_taken(
    store: Store,
) -> None:
    deploy = store.folder / "deploy"
    shutil.copytree(REPOSITORY / "deploy", deploy)
    file = deploy / "compose/compose.yaml"
    token = deploy / "compose/token"
    token.write_text(secrets.token_hex(32))
    compose = ["podman-compose", "--podman-path", str(store.podman), "--file", str(file)]

    def composed(*words: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*compose, *words], env=store.environment, cwd=deploy.parent, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip

    def typed(*words: str) -> str:
        """What a command in the head printed, after podman-compose's own words; it tells the status last."""
        done = composed("exec", "-T", "head", *words)
        output, _, status = done.stdout.rpartition("exit code: ")
        return output if status.strip() == "0" else f"failed: {output}{done.stderr}"

    services = yaml.safe_load(file.read_text())["services"]
    alive = services["head"]["healthcheck"]["test"][1:]
    try:
        up = composed("up", "--detach", "--no-build")
        assert up.returncode == 0, up.stderr
        deadline = time.monotonic() + 600
        while typed(*alive).startswith("failed"):
            assert time.monotonic() < deadline, composed("logs").stdout
            time.sleep(1)
        nodes = (
            "import ray; ray.init(log_to_driver=False); print('alive', sum(n['Alive'] for n in ray.nodes()))"
        )
        while "alive 2" not in typed("python3", "-c", nodes):
            assert time.monotonic() < deadline, composed("logs").stdout
            time.sleep(1)
        # The command that the file's head prints, typed in the container.
        printed = re.search(r"exec head (.*)", file.read_text())
        assert printed is not None
        assert typed(*printed[1].split()).splitlines()[-1:] == ["2"]
        where = "import coremesh; m = coremesh.Machine(hosts=2, address='auto'); print(m.facts['hosts'])"
        hosts = typed("python3", "-c", where)
        assert len(set(re.findall(r"'node': '([\d.]+)'", hosts))) == 2, hosts
        wrong = store.folder / "token"
        wrong.write_text(secrets.token_hex(32))
        for key, taken in ((wrong, False), (token, True)):
            submitted = subprocess.run(
                [Path(sys.executable).with_name("ray"), "job", "submit", "--address", DASHBOARD, "--",
                 "coremesh", "boot", "--address", "auto", "--run", "nproc"],
                env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(key)},
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert ("succeeded" in submitted.stdout) is taken, submitted.stdout + submitted.stderr
    finally:
        composed("down")
