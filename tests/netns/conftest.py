# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts in network namespaces, and a Ray cluster over them that the tests of a session share."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "guest")]

from coremesh.cluster.machine.images.debian_image import cached_debian
from driver import Driver
from network import Network, unavailable
from ray_nodes import RayNodes

HOSTS = 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root: marked, and skipped with the reason where it cannot run."""
    own = [item for item in items if Path(item.fspath).parent == Path(__file__).parent]
    reason = unavailable() if own else None
    for item in own:
        item.add_marker(pytest.mark.netns)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """Four hosts on one switch."""
    with Network(HOSTS) as network:
        yield network


@pytest.fixture(scope="session")
def ray_nodes(network: Network) -> Iterator[RayNodes]:
    """A Ray node on each of them."""
    with RayNodes(network) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayNodes]:
    """Two nodes of their own, whose head takes jobs, and which export metrics."""
    with Network(2) as network, RayNodes(network, cpus=2, dashboard=True) as nodes:
        yield nodes


@pytest.fixture
def driver(ray_nodes: RayNodes) -> Iterator[Driver]:
    """A process of a person on host 0, new for each test: what it leaves behind would be seen."""
    with Driver(ray_nodes.network, 0, ray_nodes.environment) as driver:
        yield driver


@pytest.fixture(scope="session")
def debian() -> None:
    """Skips where Debian's kernel is not in the cache: no host of these networks reaches the internet."""
    if cached_debian() is None:
        pytest.skip("no Debian image in the cache; 'coremesh fetch' gets one")


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """A function that gives the built guest of a theme."""
    from baremetal_machine import build_guest

    folder = tmp_path_factory.mktemp("guests")
    return lambda theme: build_guest(theme, folder).read_bytes()
