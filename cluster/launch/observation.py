# SPDX-License-Identifier: GPL-2.0-or-later
"""What the driver does to observe a machine's hosts: it asks them for their events, where a log is wanted.

A thread for each host, none where nothing is wanted.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

from coremesh.cluster.launch import session
from coremesh.cluster.launch.child import Child
from coremesh.cluster.machine import log
from coremesh.cluster.machine.bring_up import EPOCH

_ASK_SECONDS = 5.0  # how long a question waits for an answer at the host
_LAST_SECONDS = 1.0  # for the last events, when the machine is to be closed


class Observation:
    """The events of one machine's hosts, written among the driver's. Any thread may call."""

    def __init__(self, remotes: Sequence[session.Remote | Child]) -> None:
        self._remotes = remotes
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        asked = log.begin()
        if asked is None:
            return
        for host, remote in enumerate(remotes):
            remote.begin("observe", host, EPOCH, asked, isinstance(remote, session.Remote))
            thread = threading.Thread(target=self._ask, args=(remote,), name="host events", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _ask(self, remote: session.Remote | Child) -> None:
        with contextlib.suppress(Exception):  # it has gone, and the watch tells of that
            while not self._closing.is_set():
                log.replay(remote.begin("take_events", _ASK_SECONDS).result())

    def close(self) -> None:
        """Write what the hosts have not told yet, as far as they answer at once."""
        if not self._threads or self._closing.is_set():
            return
        self._closing.set()
        last: list[Any] = []
        with contextlib.suppress(Exception):
            last = [remote.begin("take_events", 0.0) for remote in self._remotes]
        for call in last:
            with contextlib.suppress(Exception):
                log.replay(call.result(_LAST_SECONDS))
