# SPDX-License-Identifier: GPL-2.0-or-later
"""What the cluster's stories start from: a Debian image, guests of a few bytes, a family of processes."""

import os
import signal
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from coremesh.cluster.launch.session import shutdown
from coremesh.cluster.machine.images.debian_image import DebianImage, fetch_debian
from coremesh.core.errors import ImageFetchError

TEXT = 0x10_0000

# A shell without job control starts what runs in the background with Ctrl-C ignored, and children inherit
# that: the stories that interrupt a program would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def debian() -> DebianImage:
    """Debian's kernel and busybox, from the cache or the archive."""
    try:
        return fetch_debian()
    except ImageFetchError as error:
        pytest.skip(f"no Debian image: {error}")


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """Ray is started by the first machine, shared, and stopped after the last test."""
    yield
    shutdown()


@pytest.fixture(scope="session")
def address(one_ray: None) -> Iterator[str]:
    """A Ray cluster to attach to: the one of this process, so that few commands start their own."""
    pytest.importorskip("coremesh.core._native", reason="the engine is not built")
    import ray
    from coremesh.cluster.launch import session

    session.ensure()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in session.own_environment().items():
            patch.setenv(name, value)
        yield str(ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="session")
def tiny_guest() -> Callable[[bytes], bytes]:
    """Make a Multiboot kernel of 32-bit protected-mode code, entered behind its header."""

    def make(code: bytes) -> bytes:
        magic, flags = 0x1BADB002, 1 << 16  # the addresses below are valid (Multiboot 0.6.96, 3.1.3)
        size = 32 + len(code)
        return (
            struct.pack(
                "<8I",
                magic,
                flags,
                -(magic + flags) & 0xFFFF_FFFF,
                TEXT,
                TEXT,
                TEXT + size,
                TEXT + size,
                TEXT + 32,
            )
            + code
        )

    return make


class Family:
    """Processes that carry a mark in their environment, as all descendants of a marked process do."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.environment = {**os.environ, "COREMESH_TEST_FAMILY": self.mark}

    def members(self) -> dict[int, str]:
        """Living members: pid and command line."""
        wanted = f"COREMESH_TEST_FAMILY={self.mark}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it ended, or is another user's
        return found

    def wait_gone(self, seconds: float) -> dict[int, str]:
        """Those who are left after so many seconds at most."""
        deadline = time.monotonic() + seconds
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


@pytest.fixture(scope="module")
def module_family() -> Family:
    """As `family`, for a module whose stories share one machine."""
    return Family()


@pytest.fixture
def family() -> Family:
    """A mark to start processes with, and to find what is left of them."""
    return Family()
