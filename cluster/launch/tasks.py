# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions run once each as Ray tasks, in processes of their own; a lost one is told, not repeated.

The account of cores and memory is the caller's: on our own Ray nothing is reserved. On a cluster Ray hears
of them too, and finds a node that has them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coremesh.cluster.launch import session
from coremesh.cluster.launch.placement import working_nodes
from coremesh.core.cores import usable_cores
from coremesh.core.errors import ConfigurationError

_ORDERLY_SECONDS = 5.0
_FORCED_SECONDS = 1.0


@dataclass(frozen=True)
class Capacity:
    """What Ray's nodes have in all: cores, bytes of free memory, and the cores of the largest node."""

    cores: float
    memory: float
    largest: float


class Tasks:
    """Tasks on the Ray that this process uses; started, or joined, by the constructor. For one thread."""

    def __init__(self, address: str | None = None) -> None:
        session.ensure(address)
        self._own = session.is_own()
        self.capacity = _own_capacity() if self._own else _cluster_capacity()
        self._running: list[Any] = []

    def share(self, value: Any) -> Any:
        """Put `value` where all tasks find it; what is returned is an argument of :meth:`submit`."""
        import ray

        return ray.put(value)

    def submit(self, function: Callable[..., Any], *arguments: Any, cores: float, memory: float) -> Any:
        """Start a task and return its name. An argument may be what :meth:`share` has returned.

        `function` is one of this package's. With `cores` of 0 the task takes its place without asking.
        """
        import ray

        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0}
        if cores and not self._own:
            options |= {"num_cpus": min(cores, self.capacity.largest), "memory": memory}
        remote: Any = ray.remote(function)
        reference = remote.options(**options).remote(*arguments)
        self._running.append(reference)
        return reference

    def wait(self, timeout: float) -> list[Any]:
        """Return tasks that have ended; none after `timeout` seconds. Raises HostLostError without Ray."""
        import ray

        done, _ = ray.wait(self._running, num_returns=1, timeout=timeout)
        session.require_ray()
        for reference in done:
            self._running.remove(reference)
        return list(done)

    def result(self, task: Any) -> Any:
        """Return what the task returned, or raise what it raised; TaskLostError if its process has gone."""
        import ray

        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise TaskLostError(str(error).strip().splitlines()[-1]) from error
        except ray.exceptions.RayError as error:
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise TaskLostError(f"its process has gone ({text[0].rstrip('.')}).") from error

    def end(self, task: Any) -> None:
        """End the process of a task that does not end by itself."""
        import ray

        ray.cancel(task, force=True)

    def end_all(self) -> None:
        """End all tasks: by KeyboardInterrupt, so that they can clean up, then by force. Never raises.

        A Ctrl-C meanwhile, of a person who waits, goes on to force at once.
        """
        import ray

        for force, seconds in ((False, _ORDERLY_SECONDS), (True, _FORCED_SECONDS)):
            with contextlib.suppress(KeyboardInterrupt):
                for reference in self._running:
                    with contextlib.suppress(Exception):
                        ray.cancel(reference, force=force)
                deadline = time.monotonic() + seconds
                with contextlib.suppress(Exception):
                    while self._running and time.monotonic() < deadline:
                        self.wait(0.2)


class TaskLostError(Exception):
    """A task has ended without a result."""


def portable(value: Any, functions: Iterable[Any] = ()) -> bytes:
    """Return `value` as bytes for :func:`restored` in another process, on any node.

    The modules of `functions` travel with it, unless they are installed packages. Raises
    :class:`ConfigurationError` for what cannot be sent.
    """
    import ray.cloudpickle

    pickler: Any = ray.cloudpickle
    modules = [module for function in functions if (module := _module_of_a_person(function)) is not None]
    try:
        for module in modules:
            pickler.register_pickle_by_value(module)
        data: bytes = pickler.dumps(value)
    except Exception as error:
        raise ConfigurationError(
            f"the trial cannot be sent to another process ({type(error).__name__}: {error}). Let its "
            "function make what it needs, instead of using what was made before."
        ) from error
    finally:
        for module in modules:
            pickler.unregister_pickle_by_value(module)
    return data


def restored(data: bytes) -> Any:
    """Return what :func:`portable` has packed."""
    import ray.cloudpickle

    return ray.cloudpickle.loads(data)


def _module_of_a_person(function: Any) -> Any:
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or module.__name__ in ("__main__", "builtins"):
        return None
    file = getattr(module, "__file__", None) or ""
    installed = module.__name__.startswith("coremesh.") or "site-packages" in file
    return None if installed else module


def _own_capacity() -> Capacity:
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        available = int(line.split()[1]) << 10
    cores = float(usable_cores())
    return Capacity(cores, float(available), cores)


def _cluster_capacity() -> Capacity:
    import ray

    nodes: Any = ray.nodes  # without annotations of its own
    resources = [node["Resources"] for node in working_nodes(nodes())]
    cores = [float(one.get("CPU", 0)) for one in resources] or [1.0]
    return Capacity(sum(cores), sum(float(one.get("memory", 0)) for one in resources), max(cores))
