# SPDX-License-Identifier: GPL-2.0-or-later
"""Which Ray cluster `--address` joins, and with which token, as a person meets it who types what README says.

Each story runs in a computer of its own: namespaces with a network of one address, a /tmp and a home.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from coremesh.cluster.launch import joined_ray

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can make namespaces"),
]

HI = bytes.fromhex("66baf803") + b"".join(b"\xb0" + bytes([letter]) + b"\xee" for letter in b"hi\r\n")
EXIT_5 = bytes.fromhex("66baf400b805000000ef")
SPIN = b"\xeb\xfe"

NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc")
# What runs here may itself lie in /tmp: that much of it stays to be seen. /mnt is ours in this namespace.
NEEDED = " ".join(
    str(folder)
    for folder in (Path(sys.prefix), Path(joined_ray.__file__).resolve().parents[1])
    if folder.is_relative_to("/tmp")
)
PREAMBLE = f"""
mount --bind /tmp /mnt
mount -t tmpfs -o mode=1777 tmpfs /tmp
for folder in {NEEDED}; do mkdir -p $folder; mount --bind /mnt/${{folder#/tmp/}} $folder; done
ip link set lo up
ip link add v0 type veth peer name v1 && ip address add 10.9.8.7/24 dev v0
ip link set v0 up; ip link set v1 up; ip route add default via 10.9.8.1
export HOME=/tmp/home; mkdir -m 700 $HOME
unset $(env | grep -o '^RAY_[A-Za-z_]*') XDG_RUNTIME_DIR TMPDIR
boot() {{ {sys.executable} -m coremesh.cluster.cli boot --memory 16M "$@"; echo "status $?"; }}
ray() {{ {sys.executable} -m ray.scripts.scripts "$@"; }}
head() {{ ray start --head --num-cpus=1 --include-dashboard=false --object-store-memory=80000000; }}
token() {{ mkdir -p $1/.ray; echo $2$2$2$2$2$2$2$2$2$2$2$2$2$2$2$2 >$1/.ray/auth_token; }}
"""


@pytest.fixture
def kernels(tiny_guest: Callable[[bytes], bytes]) -> tuple[Path, Path]:
    """A guest that says 'hi' and ends with status 11, and one that says it and runs on; outside of /tmp."""
    folder = Path("/var/tmp")
    ends, spins = folder / f"joining-ends-{os.getpid()}", folder / f"joining-spins-{os.getpid()}"
    ends.write_bytes(tiny_guest(HI + EXIT_5 + SPIN))
    spins.write_bytes(tiny_guest(HI + SPIN))
    return ends, spins


def told(kernels: tuple[Path, Path], story: str) -> str:
    """What a shell prints that runs `story` in namespaces of its own; $ENDS and $SPINS are the kernels."""
    ends, spins = kernels
    try:
        done = subprocess.run(
            [*NAMESPACES, "bash", "-c", PREAMBLE + story],
            env={**os.environ, "ENDS": str(ends), "SPINS": str(spins)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=390,
        )
    finally:
        ends.unlink()
        spins.unlink()
    return done.stdout


def test_given_a_cluster_of_another_user_when_auto_looks_then_it_is_not_found(tmp_path: Path) -> None:
    """A process that looks as Ray's does, of this user and of `nobody`: what 'ray start' leaves tells."""

    def found(user: int, *, address_file: bool) -> bool:
        folder = tmp_path / f"{user}-{address_file}"
        folder.mkdir()
        if address_file:
            (folder / "ray_current_cluster").write_text("10.9.8.7:6379")
        raylet = subprocess.Popen(
            [
                "/ray/core/src/ray/raylet/raylet", "-c", "print(flush=True); import time; time.sleep(600)",
                f"--raylet_socket_name={folder}/session_1/sockets/raylet", "--gcs-address=10.9.8.7:6379",
            ],
            executable="/usr/bin/python3", stdout=subprocess.PIPE, user=user,
        )  # fmt: skip
        try:
            assert raylet.stdout is not None
            raylet.stdout.readline()
            return (str(folder), "10.9.8.7:6379") in set(joined_ray._started_here())
        finally:
            raylet.kill()
            raylet.wait()

    assert found(0, address_file=True)
    assert not found(0, address_file=False), "the private Ray of a program"
    assert not found(65534, address_file=True)


def test_given_a_private_ray_and_a_cluster_with_a_token_when_auto_joins_then_the_cluster(
    kernels: tuple[Path, Path],
) -> None:
    said = told(
        kernels,
        """
        token $HOME abcd
        mkfifo /tmp/said
        boot --hosts 2 --kernel $SPINS >/tmp/said 2>&1 & exec 3</tmp/said; read -u 3 line; echo "$line 0"
        boot --kernel $ENDS --address auto 2>&1 | sed 's/^/1 /'
        head >/dev/null 2>&1
        boot --kernel $ENDS --address auto --hosts 2 2>&1 | sed 's/^/2 /'
        find $HOME -type f
        """,
    )
    lines = said.splitlines()
    assert lines[0] == "hi 0", said
    assert "1 coremesh: no Ray cluster of yours runs on this machine" in said
    assert "1 status 1" in lines, said
    assert "2 hi" in lines, said
    assert "2 status 11" in lines, said
    assert lines[-1] == "/tmp/home/.ray/auth_token", said
    assert "Failed to get cluster ID" not in said


@pytest.mark.slow
def test_given_a_fresh_home_when_a_person_types_what_readme_says_then_all_of_it_works(
    kernels: tuple[Path, Path],
) -> None:
    said = told(
        kernels,
        """
        boot --kernel $ENDS 2>&1 | sed 's/^/1 /'
        head >/dev/null 2>&1
        boot --kernel $ENDS --address auto --hosts 2 2>&1 | sed 's/^/2 /'
        boot --kernel $ENDS --address 127.0.0.1:6379 2>&1 | sed 's/^/3 /'
        find $HOME -mindepth 1
        token $HOME abcd  # a cluster that asks for none is not shown one
        boot --kernel $ENDS --address auto 2>&1 | sed 's/^/4 /'
        """,
    )
    lines = said.splitlines()
    for story in "1234":
        assert f"{story} hi" in lines, said
        assert f"{story} status 11" in lines, said
    assert not [line for line in lines if line.startswith("/tmp/home")], said


@pytest.mark.slow
def test_given_a_cluster_with_a_token_when_a_wrong_one_is_shown_then_that_is_said(
    kernels: tuple[Path, Path],
) -> None:
    said = told(
        kernels,
        """
        token $HOME abcd; head >/dev/null 2>&1
        token /tmp/other 0000; mkdir /tmp/none
        HOME=/tmp/other boot --kernel $ENDS --address auto 2>&1 | sed 's/^/1 /'
        HOME=/tmp/none boot --kernel $ENDS --address 10.9.8.7:6379 2>&1 | sed 's/^/2 /'
        boot --kernel $ENDS 2>&1 | sed 's/^/3 /'
        """,
    )
    lines = said.splitlines()
    assert "1 coremesh: the Ray cluster at 10.9.8.7:6379 asks for another token than yours" in said
    assert "2 coremesh: the Ray cluster at 10.9.8.7:6379 asks for a token, and you have none" in said
    assert [line for line in lines if line[0] in "12"][1::2] == ["1 status 1", "2 status 1"], said
    assert lines[-2:] == ["3 hi", "3 status 11"], said
