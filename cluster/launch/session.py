# SPDX-License-Identifier: GPL-2.0-or-later
"""Ray, started quietly when needed and shared by all machines of this process; stopped when the process ends.

Ray takes seconds to start and half a gigabyte, so it is started once a process. What we started we stop: at
exit, at SIGTERM (see the CLI), and, when this process is killed, by the kernel and a warden (warden.py).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from coremesh.cluster.launch import joined_ray, preflight, private_ray
from coremesh.cluster.launch.private_ray import PrivateRay, first_line
from coremesh.cluster.machine import log
from coremesh.cluster.machine.bring_up import unanswered
from coremesh.core.errors import CoremeshError, HostLostError, InternalError, MachineStateError, PlatformError

_SLICE_SECONDS = 0.2  # of a wait for Ray
_ATTEMPT_SECONDS = 1.0
_MISSING_PACKAGE = "coremesh cannot be imported for {}. Install the same wheel on every node of the cluster."

_lock = threading.Lock()
_own: PrivateRay | None = None  # the Ray that we started; guarded by _lock
_address: str | None = None  # the cluster that we joined; guarded by _lock


def ensure(address: str | None = None, vcpus: int = 1, hosts: int = 1) -> float:
    """Make sure that this process is connected to Ray; return the seconds that took.

    Without `address` a Ray that this process already uses will do, else a private local one is started, when
    this computer has what it needs for it and for `vcpus` on `hosts`. With it, join that cluster. Any thread.
    """
    global _own, _address
    begin = time.monotonic()
    log.begin()
    with _lock:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray lets its workers run at niceness 15: guests would wait for whatever else this computer does.
        os.environ.setdefault("RAY_worker_niceness", "0")
        import ray

        private_ray.await_lingering()
        logging.getLogger("ray").setLevel(logging.ERROR)
        if ray.is_initialized():
            if address is not None and address != _address:
                raise MachineStateError(
                    f"this process already uses {_address or 'a local Ray'}; "
                    f"call coremesh.shutdown() before attaching to {address}."
                )
            if _own is not None:
                preflight.require_threads(preflight.threads_of(vcpus, hosts))
            return time.monotonic() - begin
        on_sigterm = signal.getsignal(signal.SIGTERM)
        if address is not None:
            joined_ray.join(address)
            _address = address
            # Ray puts a handler of its own in place of a program's.
            if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)
        else:
            preflight.require_all(preflight.RAY_THREADS + preflight.threads_of(vcpus, hosts))
            _own = PrivateRay()
        atexit.register(shutdown)
    log.event("info", "ray-joined", address=address or "own", seconds=round(time.monotonic() - begin, 3))
    return time.monotonic() - begin


def is_own() -> bool:
    """Whether the Ray in use was started by this process, on this machine. Any thread."""
    with _lock:
        return _own is not None


def own_environment() -> dict[str, str]:
    """What another process of this user needs in its environment to join the Ray that we started."""
    with _lock:
        return {} if _own is None else _own.environment


def shutdown() -> None:
    """Leave Ray, and stop it if this process started it. Harmless when there is none. Any thread."""
    global _own, _address
    with _lock:
        own, _own = _own, None
        attached, _address = _address, None
        if own is None and attached is None:
            return
        if own is not None:
            own.stop()
        else:
            import ray

            with contextlib.suppress(Exception):
                ray.shutdown()
        atexit.unregister(shutdown)


class Call:
    """A call of an actor that is under way."""

    def __init__(self, reference: Any, what: str) -> None:
        self.reference = reference
        self._what = what

    def result(self, seconds: float | None = None, step: str = "") -> Any:
        """Wait for the result. Errors arrive as what they are: ours as raised there, or HostLostError.

        That is also raised after `seconds`, with `step` as what the actor was about to do, and when the Ray
        that we started has lost one of its own processes, which then answers nothing any more.
        """
        import ray

        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = _SLICE_SECONDS if deadline is None else deadline - time.monotonic()
            try:
                # In slices, for a signal is noticed between them only.
                return ray.get(self.reference, timeout=max(0.0, min(_SLICE_SECONDS, left)))
            except ray.exceptions.GetTimeoutError:
                if seconds is not None and left <= 0:
                    raise unanswered(self._what, seconds, step) from None
                require_ray()
            except ray.exceptions.RayTaskError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, CoremeshError):
                    raise cause from None
                if _is_missing_package(error):
                    raise PlatformError(_MISSING_PACKAGE.format(self._what)) from error
                raise own_error(cause or error, self._what) from error
            except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
                if _is_missing_package(error):
                    raise PlatformError(_MISSING_PACKAGE.format(self._what)) from error
                raise HostLostError(
                    f"{self._what} has gone ({first_line(error)}). Start the machine again; "
                    "if it was killed for want of memory, give a smaller --memory or fewer --vcpus."
                ) from error


def own_error(error: BaseException, what: str) -> CoremeshError:
    """Return the error of ours that stands for one that a host's method has raised; ours stay as they are."""
    if isinstance(error, CoremeshError):
        return error
    if isinstance(error, OSError | MemoryError):
        return PlatformError(
            f"{what} could not go on: {first_line(error)}. 'coremesh doctor' says what this host offers."
        )
    return InternalError(
        f"{what} failed ({type(error).__name__}: {first_line(error)}). This is an error in Coremesh: please "
        "report it with what led to it."
    )


def require_ray() -> None:
    """Raise HostLostError when the Ray that this process started can no longer answer. Any thread."""
    own = _own
    if own is not None and not own.lives():
        raise HostLostError(
            "a process of the Ray that ran the machine has ended. Start the machine again; 'coremesh doctor' "
            "says what this computer lacks."
        )


def attempt(work: Callable[[], Any]) -> None:
    """Do `work` with Ray where it may help and must not keep us: without errors, for a second at most."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            require_ray()
            work()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(_ATTEMPT_SECONDS)


def first_done(calls: Mapping[int, Any], timeout: float) -> int | None:
    """Return the key of a :class:`Call` that has come to an end, or None after `timeout` seconds."""
    import ray

    done, _ = ray.wait([call.reference for call in calls.values()], timeout=max(0.0, timeout))
    return next((key for key, call in calls.items() if call.reference in done), None)


def _is_missing_package(error: BaseException) -> bool:
    text = str(error)
    return "No module named 'coremesh" in text or "failed to import on the worker" in text


class Remote:
    """An actor. `what` names it in messages."""

    def __init__(
        self, handle: Any, groups: dict[str, str], what: str = "the process that ran the vCPUs"
    ) -> None:
        self._handle = handle
        self._groups = groups
        self._what = what

    def begin(self, method: str, *arguments: Any) -> Call:
        """Call `method` of the actor without waiting; an argument may be the call whose result it is."""
        bound = getattr(self._handle, method)
        if method in self._groups:
            bound = bound.options(concurrency_group=self._groups[method])
        own = [argument.reference if isinstance(argument, Call) else argument for argument in arguments]
        return Call(bound.remote(*own), self._what)

    def kill(self) -> None:
        """End the actor's process. Harmless when it has gone already."""
        import ray

        ray.kill(self._handle, no_restart=True)
