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
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coremesh.cluster import warden
from coremesh.core.errors import CoremeshError, HostLostError, InternalError, MachineStateError, PlatformError

_FOLDER = "coremesh-"
_KNOCK_SECONDS = 5.0
_ATTEMPTS = 2
_TOO_SLOW = "timed out during startup"
_OBJECT_STORE_BYTES = 80 << 20  # Ray's minimum is 75 MiB; a kernel and an initramfs pass through it

_lock = threading.Lock()
_own_folder: str | None = None  # the temporary folder of a Ray that we started; guarded by _lock
_warden: subprocess.Popen[bytes] | None = None  # cleans up if this process is killed; guarded by _lock
_address: str | None = None  # the cluster that we attached to; guarded by _lock


def ensure(address: str | None = None) -> float:
    """Make sure that this process is connected to Ray; return the seconds that took.

    Without `address` a Ray that this process already uses will do, else a private local one is started. With
    it, attach to that cluster. Any thread.
    """
    global _own_folder, _address
    begin = time.monotonic()
    with _lock:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        if ray.is_initialized():
            if address is not None and address != _address:
                raise MachineStateError(
                    f"this process already uses {_address or 'a local Ray'}; "
                    f"call coremesh.shutdown() before attaching to {address}."
                )
            return time.monotonic() - begin
        quiet: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "ignore_reinit_error": False,
        }
        on_sigterm = signal.getsignal(signal.SIGTERM)
        if address is not None:
            _attach(ray, address, quiet)
            _address = address
        else:
            _own_folder = _start(ray, quiet)
        # Ray puts a handler of its own in place of a program's.
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
        atexit.register(shutdown)
    return time.monotonic() - begin


def is_own() -> bool:
    """Whether the Ray in use was started by this process, on this machine. Any thread."""
    with _lock:
        return _own_folder is not None


def shutdown() -> None:
    """Leave Ray, and stop it if this process started it. Harmless when there is none. Any thread."""
    global _own_folder, _address, _warden
    with _lock:
        folder, _own_folder = _own_folder, None
        attached, _address = _address, None
        if folder is None and attached is None:
            return
        import ray

        with contextlib.suppress(Exception):
            ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            _withdraw_token(folder)
        _dismiss_warden()
        atexit.unregister(shutdown)


def _attach(ray: Any, address: str, quiet: dict[str, Any]) -> None:
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except Exception as error:
        raise PlatformError(
            f"no Ray cluster answers at {address} ({_first_line(error)}). Start one with 'ray start --head', "
            "or leave the address out to run on this machine. Where the cluster asks for a token, set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH if it is not in ~/.ray/auth_token."
        ) from error


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at host:port: Ray itself would go on asking for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()


def _start(ray: Any, quiet: dict[str, Any]) -> str:
    # Unix socket paths below it must stay under 108 bytes, hence not under a long TMPDIR.
    base = tempfile.gettempdir()
    base = base if len(base) < 32 else "/tmp"
    _sweep(Path(base))
    for attempt in range(_ATTEMPTS):
        folder = tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=base)
        _provide_token(Path(folder))
        _appoint_warden(folder)
        try:
            ray.init(
                address="local",  # never the cluster that happens to run here
                num_cpus=1,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
                **quiet,
            )
            break
        except BaseException as error:  # Ctrl-C in the middle of Ray's start, too
            with contextlib.suppress(Exception):
                ray.shutdown()
            _dismiss_warden()
            warden.clean(folder)  # the processes, too, that a start had come to
            if not isinstance(error, Exception):
                raise
            _withdraw_token(folder)
            # Ray gives its own processes half a minute; on a busy host they have it easier the second time.
            if _TOO_SLOW in str(error) and attempt + 1 < _ATTEMPTS:
                continue
            raise PlatformError(
                f"Ray did not start on this machine: {_first_line(error)}. 'coremesh doctor' says what it "
                "lacks."
            ) from error
    return folder


def _appoint_warden(folder: str) -> None:
    global _warden
    command = [sys.executable, "-I", "-S", str(warden.__file__), str(os.getpid()), folder]
    _warden = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is not for it
    )


def _dismiss_warden() -> None:
    global _warden
    if _warden is not None:
        _warden.terminate()
        _warden.wait()
        _warden = None


def _provide_token(folder: Path) -> None:
    """Give Ray a secret of its own to guard its ports with where it cannot keep one in the user's home."""
    if os.access(Path.home(), os.W_OK) or any(name.startswith("RAY_AUTH_") for name in os.environ):
        return
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def _withdraw_token(folder: str) -> None:
    """Forget a token that went with its folder."""
    if os.environ.get("RAY_AUTH_TOKEN_PATH", "").startswith(f"{folder}/"):
        del os.environ["RAY_AUTH_TOKEN_PATH"]


def _sweep(base: Path) -> None:
    """Remove the folders of processes that were killed before they could do so."""
    for folder in base.glob(f"{_FOLDER}*-*"):
        pid = folder.name.removeprefix(_FOLDER).split("-")[0]
        if pid.isdigit() and folder.stat().st_uid == os.getuid() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


class Call:
    """A call of an actor that is under way."""

    def __init__(self, reference: Any, what: str) -> None:
        self.reference = reference
        self._what = what

    def result(self) -> Any:
        """Wait for the result. Errors arrive as what they are: ours as raised there, or HostLostError."""
        import ray

        try:
            return ray.get(self.reference)
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, CoremeshError):
                raise cause from None
            if _is_missing_package(error):
                raise PlatformError(
                    f"coremesh cannot be imported for {self._what}. Install the same wheel on every node."
                ) from error
            if isinstance(cause, OSError | MemoryError):
                raise PlatformError(
                    f"{self._what} could not go on: {_first_line(cause)}. 'coremesh doctor' says what "
                    "this host offers."
                ) from error
            raise InternalError(
                f"{self._what} failed ({type(cause or error).__name__}: {_first_line(cause or error)}). "
                "This is an error in Coremesh: please report it with what led to it."
            ) from error
        except (ray.exceptions.RayActorError, ray.exceptions.RaySystemError) as error:
            raise HostLostError(
                f"{self._what} has gone ({_first_line(error)}). Start the machine again; "
                "if it was killed for want of memory, give a smaller --memory or fewer --vcpus."
            ) from error


def first_done(calls: Mapping[int, Call], timeout: float) -> int | None:
    """Return the key of a call that has come to an end, or None after `timeout` seconds."""
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

    def call(self, method: str, *arguments: Any) -> Any:
        """Call `method` of the actor and return its result, as :meth:`Call.result`. Any thread; blocks."""
        return self.begin(method, *arguments).result()

    def kill(self) -> None:
        """End the actor's process. Harmless when it has gone already."""
        import ray

        with contextlib.suppress(Exception):
            ray.kill(self._handle, no_restart=True)
