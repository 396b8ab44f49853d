# SPDX-License-Identifier: GPL-2.0-or-later
"""What Ray needs and does not have: said at once, with the way out, instead of half a minute of silence."""

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from coremesh.cluster.launch import preflight, session
from coremesh.core.errors import PlatformError

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.getuid() != 0, reason="only root can make a computer that lacks something"),
]

COMMAND = [sys.executable, "-m", "coremesh.cluster.cli"]
NOBODY = 65534


@pytest.fixture
def kernel(tiny_guest: Callable[[bytes], bytes], tmp_path: Path) -> Path:
    file = tmp_path / "kernel"
    file.write_bytes(tiny_guest(b"\xeb\xfe"))
    return file


@pytest.mark.parametrize(
    ("namespace", "damage", "subject", "words"),
    [
        ("--mount", "mount -t tmpfs -o ro tmpfs /dev/shm", "/dev/shm", ["/dev/shm", "mount -t tmpfs"]),
        ("--net", "true", "loopback", ["127.0.0.1", "ip link set lo up"]),
    ],
)
def test_given_a_computer_that_lacks_something_when_a_machine_is_to_boot_then_it_is_said_at_once(
    kernel: Path, namespace: str, damage: str, subject: str, words: list[str]
) -> None:
    pytest.importorskip("coremesh.core._native", reason="the engine is not built")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = f'{damage} && exec "$@"'
        return subprocess.run(
            ["unshare", namespace, "bash", "-c", script, "bash", *COMMAND, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
        )  # fmt: skip

    begin = time.monotonic()
    told = run("boot", "--hosts", "2", "--kernel", str(kernel), "--memory", "16M")
    assert time.monotonic() - begin < 25  # 3 on a computer with nothing else to do; 30 to 65 where Ray waits
    assert told.returncode == 1
    assert told.stderr.startswith("coremesh: ")
    assert all(word in told.stderr for word in words), told.stderr
    assert told.stderr.count("\n") == 1, told.stderr
    alone = run("boot", "--timeout", "1", "--kernel", str(kernel), "--memory", "16M")
    assert alone.returncode == 124, "one host here needs neither"
    found = {finding["subject"]: finding for finding in json.loads(run("doctor", "--json").stdout)}
    assert found[subject]["level"] == "bad"
    assert words[-1] in found[subject]["meaning"]


def told_as_nobody(limit: int, work: Callable[[], object]) -> str:
    """Do `work` as the user `nobody` with 'ulimit -u' of `limit`; return the PlatformError's text, or ''."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
            os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                work()
            except PlatformError as error:
                os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return said


def test_given_few_threads_for_a_user_when_ray_and_vcpus_need_more_then_it_is_said() -> None:
    said = told_as_nobody(100, lambda: preflight.require_threads(200))
    assert "may start 99 more threads" in said
    assert "ulimit -u 4096" in said
    assert told_as_nobody(500, lambda: preflight.require_threads(200)) == ""


def test_given_few_threads_when_a_session_is_to_begin_then_it_does_not_start_ray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever Ray earlier tests have left here
    begin = time.monotonic()
    said = told_as_nobody(300, lambda: session.ensure(vcpus=64))
    assert "about 388" in said
    assert "fewer --vcpus" in said
    assert time.monotonic() - begin < 10
