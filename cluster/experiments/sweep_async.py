# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep for an event loop, as a notebook's: the loop goes on, and cancelling it stops the trials."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from coremesh.cluster.experiments.result import SweepResult
from coremesh.cluster.experiments.sweep import SweepStoppedError, prepare

_OF_THE_SWEEP = frozenset(inspect.signature(prepare).parameters) - {"trial", "parameters", "machine"}


async def sweep_async(
    trial: Any,
    parameters: Mapping[str, Iterable[Any]] | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> SweepResult:
    """As :func:`sweep`, with the same options, for an event loop as a notebook's.

    ::

        running = asyncio.create_task(coremesh.sweep_async(trial, {"vcpus": [1, 2, 4]}, out="run.csv"))
        ...
        SweepResult.read("run.csv")     # the rows until now
        running.cancel()                # and sweep(..., resume=True) goes on from there

    Cancelling the task stops the running machines, leaves on disk what is done, and only then raises
    CancelledError; so does Ctrl-C under :func:`asyncio.run`. `progress` is shown as by :func:`sweep`. One
    sweep at a time. Raises :class:`ConfigurationError` before anything runs.
    """
    of_the_sweep = {name: value for name, value in options.items() if name in _OF_THE_SWEEP}
    machine = {name: value for name, value in options.items() if name not in _OF_THE_SWEEP}
    prepared = prepare(trial, parameters or {}, machine=machine, **of_the_sweep)
    stop = threading.Event()
    running = asyncio.ensure_future(
        asyncio.to_thread(prepared.run, resume=resume, progress=progress, stop=stop)
    )
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        # The machines end within seconds. A caller that cancels again waits for them all the same: what it
        # starts next needs their cores.
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        with contextlib.suppress(SweepStoppedError):
            running.result()  # an error of the sweep's own says more than that it was cancelled
        raise
