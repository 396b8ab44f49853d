# SPDX-License-Identifier: GPL-2.0-or-later
"""A Ray for this process alone: no other user reaches it, and it ends with the process, whatever ends that.

Its files, its token and its sockets lie in a private folder: Ray makes the folders that it is given writable
for every user, so it gets one inside. It listens on the loopback interface only, where the token keeps other
users of this computer out. ``deploy/SECURITY.md`` has what that protects from.

Ray is started and stopped by a *keeper* thread that lives as long as Ray does: the kernel ends Ray's daemons
when the thread that started them ends (PR_SET_PDEATHSIG, prctl(2)), and Ray's calls may block for half a
minute, in which the thread that waits for the keeper can still be interrupted.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coremesh.cluster.launch import preflight, private_folder, ray_settings, warden
from coremesh.core.errors import PlatformError

FOLDER = "coremesh-"
_RAY_FOLDER = "r"  # short: the paths of Unix sockets below it hold 107 bytes (unix(7))
_TOKEN = "token"
_ATTEMPTS = 2
_TOO_SLOW = "timed out during startup"
_OBJECT_STORE_BYTES = 80 << 20  # Ray's minimum is 75 MiB; a kernel and an initramfs pass through it
_ORDERLY_END_SECONDS = 1.5  # takes 1.0 s on a computer with nothing else to do
_LINGER_SECONDS = 90.0
_SLICE_SECONDS = 0.02

QUIET: dict[str, Any] = {
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    "ignore_reinit_error": False,
}


class PrivateRay:
    """A Ray that runs when the constructor returns. Not thread-safe; see session.py."""

    def __init__(self) -> None:
        """Raises :class:`PlatformError` if it does not start; whatever is raised, nothing is left of it."""
        base = base_folder()
        sweep(base)
        for attempt in range(_ATTEMPTS):
            self._stop = threading.Event()
            self._started = threading.Event()
            self._ended = threading.Event()
            self._error: BaseException | None = None
            self._abandoned = False
            self._folder = private_folder.PrivateFolder(base, f"{FOLDER}{os.getpid()}-")
            self._warden = warden.appoint(str(self._folder.path))
            try:
                self.token = self._folder.write(_TOKEN, secrets.token_hex(32))
                threading.Thread(target=self._keep, name="ray keeper", daemon=True).start()
                with _signal_handlers_kept() as keep:
                    while not self._started.wait(_SLICE_SECONDS):
                        keep()
            except BaseException:  # Ctrl-C or a signal in the middle of Ray's start
                self._abandon()
                raise
            if self._error is None:
                return
            self._clean()
            # Ray gives its own processes half a minute; on a busy host they have it easier the second time.
            if _TOO_SLOW in str(self._error) and attempt + 1 < _ATTEMPTS:
                continue
            raise PlatformError(
                f"Ray did not start on this machine: {first_line(self._error)}. 'coremesh doctor' says what "
                "it lacks."
            ) from self._error

    @property
    def environment(self) -> dict[str, str]:
        """What another process of this user needs in its environment to join this Ray."""
        return {ray_settings.MODE: "token", ray_settings.TOKEN_PATH: str(self.token)}

    def lives(self) -> bool:
        """Whether all its daemons run: with one dead, Ray's calls may wait for a minute. Any thread."""
        from ray._private import worker

        module: Any = worker
        node = module._global_node
        try:
            return node is not None and not node.dead_processes()
        except Exception:  # it is being stopped
            return False

    def stop(self) -> None:
        """End it, in order if its daemons still live, and remove its folder. Harmless when that was done."""
        self._stop.set()
        if self.lives():
            self._ended.wait(_ORDERLY_END_SECONDS)
        if not self._ended.is_set():
            self._linger()
        self._clean()

    # --- the keeper's thread -----------------------------------------------------------------------------

    def _keep(self) -> None:
        import ray

        try:
            self._start(ray)
            self._started.set()
            self._stop.wait()
        except BaseException as error:
            self._error = error
        with contextlib.suppress(Exception):
            ray.shutdown()
        if self._abandoned:
            self._clean()
        self._ended.set()
        self._started.set()

    def _start(self, ray: Any) -> None:
        inside = self._folder.path / _RAY_FOLDER
        inside.mkdir(mode=0o700)
        ray_settings.quieten()
        with (
            ray_settings.token_mode("token", self.token),
            ray_settings.loopback_only(),
            ray_settings.process_group_of_its_own(),
            ray_settings.without_web_servers(),
        ):
            ray.init(
                address="local",  # never the cluster that happens to run here
                num_cpus=1,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address=preflight.LOOPBACK,
                _temp_dir=str(inside),
                **QUIET,
            )

    # --- the end -----------------------------------------------------------------------------------------

    def _abandon(self) -> None:
        """Leave a start that is under way to the keeper, which ends Ray as soon as it can.

        To kill the daemons here would end this process too, with status 1: Ray does that to a process that
        cannot register with its raylet.
        """
        self._abandoned = True
        self._stop.set()
        self._linger()

    def _linger(self) -> None:
        from ray._private import worker

        module: Any = worker
        atexit.unregister(module.shutdown)  # would wait for a call of the keeper that takes very long
        if not _lingering:
            atexit.register(_end_lingering)
        _lingering.append(self)

    def _clean(self) -> None:
        warden.clean(str(self._folder.path), quiet_rounds=1, pause=0.02)
        self._folder.remove()
        warden.dismiss(self._warden)


#: Those whose keeper has not come back from a call of Ray.
_lingering: list[PrivateRay] = []


def await_lingering(seconds: float = _LINGER_SECONDS) -> None:
    """Wait until no Ray of this process is on its way out. Raises :class:`PlatformError` after `seconds`."""
    while _lingering:
        if not _lingering[0]._ended.wait(seconds):
            raise PlatformError(
                f"the last Ray of this process has not ended in {seconds:.0f} s. Start the program again."
            )
        _lingering.pop(0)


def _end_lingering() -> None:
    """At the exit of a program other than the command line."""
    for ray in _lingering:
        if not ray._ended.wait(_ORDERLY_END_SECONDS):
            ray._clean()


def leave(status: int) -> None:
    """End this process with `status` at once if a Ray of it is still on its way out; else return.

    Ray's threads cannot be ended, and would keep the process for up to half a minute or give it a status of
    their own. So this process becomes another program, without those threads, that cleans up in its place.
    """
    folders = [str(ray._folder.path) for ray in _lingering if not ray._ended.is_set()]
    if not folders:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.execv(sys.executable, [sys.executable, "-I", "-S", warden.__file__, "--leave", str(status), *folders])


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[Callable[[], None]]:
    """Give a function that sets this program's handlers for signals again, and call it at the end.

    Ray's native code puts one of its own in place of the program's, which writes a stack trace.
    """
    kept = {}
    if threading.current_thread() is threading.main_thread():
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def keep() -> None:
        for number, handler in kept.items():
            if handler is not None:  # None: not set by Python
                signal.signal(number, handler)

    try:
        yield keep
    finally:
        keep()


def sweep(base: Path) -> None:
    """Remove the folders of processes that were killed with their wardens."""
    for folder in private_folder.abandoned(base, FOLDER):
        pid = folder.name.removeprefix(FOLDER).split("-")[0]
        # One without a token is not held yet, if its process lives.
        if (folder / _TOKEN).exists() or (pid.isdigit() and not Path("/proc", pid).exists()):
            warden.clean(str(folder), quiet_rounds=1, pause=0.02)


def first_line(error: BaseException | None) -> str:
    """The first line of an error's text, without its full stop, or the error's type."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def base_folder() -> Path:
    """Return where sessions have their folders. Raises :class:`PlatformError` if there is no such place."""
    session = f"session_2026-01-01_00-00-00_000000_{os.getpid()}"
    below = f"/{FOLDER}{os.getpid()}-12345678/{_RAY_FOLDER}/{session}/sockets/plasma_store"
    return private_folder.base_folder(107 - len(below))
