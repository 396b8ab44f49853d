# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the guest tests: the machines to run guests on, Debian's kernel, a disk image."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from coremesh.cluster.machine.images import cache, packages
from coremesh.cluster.machine.images.debian_image import DebianImage, fetch_debian
from coremesh.core._native import doctor
from coremesh.core.errors import ImageFetchError


@pytest.fixture(params=[1, 2, 4], ids=["1-vcpu", "2-vcpus", "4-vcpus"])
def vcpus(request: pytest.FixtureRequest) -> int:
    """Machines of one, two and four vCPUs."""
    return int(request.param)


@pytest.fixture(params=["userfaultfd", "mprotect"])
def protection(request: pytest.FixtureRequest) -> str:
    """Both ways of guarding translated code; skipped where the host refuses one."""
    way = str(request.param)
    if not doctor()[way]:
        pytest.skip(f"this host has no {way}")
    return way


@pytest.fixture(scope="session")
def bookworm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source list of Debian 12, the last release with kernels of 32 bits."""
    sources = tmp_path_factory.mktemp("sources") / "sources.list"
    sources.write_text("deb http://deb.debian.org/debian bookworm main\n")
    return sources


@pytest.fixture(scope="session")
def from_debian(bookworm: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], bytes]:
    """A function that gives the file of a package of Debian 12 whose path matches, kept in the cache."""

    def get(package: str, pattern: str) -> bytes:
        kept = cache.cache_folder() / f"test-file-{package}"
        if kept.is_file():
            return kept.read_bytes()
        root = tmp_path_factory.mktemp("apt")
        try:
            apt = packages.Apt(root, bookworm)
            apt.update(lambda what, done: None)
            _, data = packages.extract(apt.download(package, lambda what, done: None), pattern)
        except ImageFetchError as error:
            pytest.skip(f"no package {package}: {error}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(data)
        return data

    return get


@pytest.fixture(scope="module")
def debian() -> Iterator[DebianImage]:
    """Debian's kernel and busybox, from the cache or the archive. What Ray the tests started is stopped."""
    from coremesh.cluster.launch.session import shutdown

    try:
        yield fetch_debian()
    except ImageFetchError as error:
        pytest.skip(f"no Debian image: {error}")
    shutdown()
