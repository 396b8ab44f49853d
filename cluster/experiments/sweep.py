# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep: trials as Ray tasks, as many at once as cores and memory carry, their rows on disk as they come.

The driver keeps the account of cores and memory: a trial claims those of its guest, and waits until they are
free. On a cluster Ray hears of the claim too and finds the node. A trial that fails or is lost is a row with
its error and loses no other one.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coremesh.cluster.experiments.columns import COLLECTED, require_collect
from coremesh.cluster.experiments.engines import MACHINE_OPTIONS, require_engine
from coremesh.cluster.experiments.experiment import Experiment, run_trial, work_of
from coremesh.cluster.experiments.journal import Journal, Row, journal_of, read, require_same
from coremesh.cluster.experiments.plan import Trial, plan
from coremesh.cluster.experiments.progress import Progress, shown_progress
from coremesh.cluster.experiments.result import SweepResult, require_format, rows_by_trial
from coremesh.cluster.launch import metrics, nursery
from coremesh.cluster.launch.tasks import TaskLostError, Tasks, portable, restored
from coremesh.cluster.machine import log
from coremesh.cluster.machine.build import own_build
from coremesh.cluster.machine.describe import load_image
from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.cluster.machine.networks import network_of
from coremesh.cluster.machine.options import check, share_vcpus
from coremesh.core.errors import ConfigurationError, near, shown

_LOOK_SECONDS = 0.2  # between looks at running trials; Ctrl-C is noticed in between
_GRACE_SECONDS = 600.0  # beyond its own deadline, for a trial to start its machine and to end it
_LARGEST_IMAGE = 1 << 40  # each machine compares it with its own memory


def sweep(
    trial: Any,
    parameters: Mapping[str, Iterable[Any]] | None = None,
    *,
    repeats: int = 1,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    retries: int = 0,
    timeout: float = 600.0,
    at_once: int | None = None,
    seed: int = 0,
    numbers: Mapping[str, str] | None = None,
    collect: Sequence[str] = COLLECTED,
    shell: bool = True,
    address: str | None = None,
    progress: bool = True,
    **machine: Any,
) -> SweepResult:
    """Run `trial` on a machine of each combination of `parameters`, `repeats` times; return all numbers.

    ::

        def hashing(machine, megabytes=16):
            seconds = ...machine.run(...)
            return {"throughput": megabytes / seconds}

        result = coremesh.sweep(hashing, {"vcpus": [1, 2, 4], "hosts": [1, 2]}, repeats=3, out="run.parquet")
        result.table

    `trial` is a function, called with the machine when its shell is ready, that returns numbers by name; or a
    command for the guest's shell, whose numbers are lines ``name=number``, or what the regular expressions in
    `numbers` find; or one of :mod:`coremesh.loads`. Parameters named as an option of :class:`Machine` set it;
    'engine' chooses 'coremesh' or 'qemu'; others, and 'seed', go to the function if it has such a parameter,
    to a command as variables of the shell. Parameters that change together are one name, as
    ``"vcpus, memory": [(1, "256M"), (64, "1G")]``. `machine` are options that are the same for all. Each
    trial's seed is made from `seed`, a whole number, and its parameters: the same again in every sweep.

    `out` is a file .parquet or .csv; beside it, in ``out.rows``, each row is on disk as soon as its trial is
    done. With `resume` trials that succeeded there are not run again. A trial that fails is tried again up to
    `retries` times. `timeout` is in seconds, from the start of emulation to the end of the work. `at_once`
    limits how many run at the same time beyond what cores and memory do: 1 gives each the whole computer.
    `collect` says which counters to add, as 'stats', 'mesh_stats.page_bytes', 'device_stats' (over all
    devices) or 'device_stats.uart.accesses'; 'marks' adds what each number of a command took, from the line
    before to its own, as 'marks.NAME.host_seconds' and, of one host, 'marks.NAME.cpu_seconds'. `address`
    names a Ray cluster, as for a machine.

    Ctrl-C stops the running machines, leaves on disk what is done, and raises KeyboardInterrupt. Raises
    :class:`ConfigurationError` before anything runs. Call it from one thread.
    """
    prepared = prepare(
        trial, parameters or {}, repeats=repeats, out=out, retries=retries, timeout=timeout, at_once=at_once,
        seed=seed, numbers=numbers, collect=collect, shell=shell, address=address, machine=machine,
    )  # fmt: skip
    return prepared.run(resume=resume, progress=progress)


_OPTIONS = MACHINE_OPTIONS | set(inspect.signature(sweep).parameters) - {"machine"}


class SweepStoppedError(Exception):
    """Another thread wants a running sweep to end; what is done is on disk."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that was found right and has not run."""

    experiment: Experiment
    trials: tuple[Trial, ...]
    names: tuple[str, ...]
    out: Path | None
    retries: int
    at_once: int | None
    address: str | None

    def identity(self) -> dict[str, Any]:
        """Return what its rows belong to."""
        return {**self.experiment.identity(), "parameters": list(self.names)}

    def run(
        self, *, resume: bool = False, progress: bool = True, stop: threading.Event | None = None
    ) -> SweepResult:
        """Run it; see :func:`sweep`. Another thread may set `stop`: then :class:`SweepStoppedError`."""
        _flag("resume", resume)
        _flag("progress", progress)
        with contextlib.ExitStack() as stack:
            journal: Journal | None = None
            if self.out is not None:
                place = journal_of(self.out)
                journal = stack.enter_context(Journal(place, self.identity(), resume=resume))
            return _Run(self, journal).run(progress=progress, stop=stop or threading.Event())


def prepare(
    trial: Any,
    parameters: Mapping[str, Iterable[Any]],
    *,
    repeats: int = 1,
    out: str | os.PathLike[str] | None = None,
    retries: int = 0,
    timeout: float = 600.0,
    at_once: int | None = None,
    seed: int = 0,
    numbers: Mapping[str, str] | None = None,
    collect: Sequence[str] = COLLECTED,
    shell: bool = True,
    address: str | None = None,
    machine: Mapping[str, Any] | None = None,
) -> Sweep:
    """Check all that can be known before a trial runs; see :func:`sweep`. Raises ConfigurationError."""
    machine = dict(machine or {})
    for name in machine:
        if name not in MACHINE_OPTIONS:
            raise ConfigurationError(
                f"{name} is no option of a sweep or of a machine.{near(name, _OPTIONS)} "
                f"Of a machine there are {', '.join(sorted(MACHINE_OPTIONS))}."
            )
        check(name, machine[name])
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigurationError(f"seed is a whole number, not {shown(seed)}.")
    planned = plan(parameters, _whole("repeats", repeats, 1), seed)
    names = tuple(planned[0].parameters)
    for name, value in {
        (name, json.dumps(value)): (name, value) for one in planned for name, value in one.parameters.items()
    }.values():
        if name in MACHINE_OPTIONS:
            check(name, value)
    timeout = 600.0 if timeout is None else check("timeout", timeout)
    if timeout == 0:
        raise ConfigurationError("timeout is more than 0 seconds: a trial takes some.")
    experiment = Experiment(
        work_of(trial, numbers), machine, require_collect(collect), timeout, _flag("shell", shell)
    )
    experiment.require(names, MACHINE_OPTIONS)
    for one in planned:
        require_engine(experiment.engine(one), experiment.options(one))
        _shares(experiment, one)
    return Sweep(
        experiment,
        tuple(planned),
        names,
        None if out is None else require_format(Path(out)),
        _whole("retries", retries, 0),
        None if at_once is None else _whole("at_once", at_once, 1),
        check("address", address),
    )


@dataclass(frozen=True)
class Claim:
    """What a trial takes while it runs: cores, and bytes of memory; of one computer if it is `single`."""

    cores: float
    memory: float
    single: bool = True


def claim_of(experiment: Experiment, trial: Trial) -> Claim:
    """Return what a trial claims: the cores and the memory of its guest."""
    shares = _shares(experiment, trial)
    memory = check("memory", _option(experiment, trial, "memory", "1G"))
    return Claim(float(sum(shares)), float(memory), single=len(shares) == 1)


def _shares(experiment: Experiment, trial: Trial) -> tuple[int, ...]:
    return share_vcpus(
        _option(experiment, trial, "hosts", 1),
        _option(experiment, trial, "vcpus", None),
        _option(experiment, trial, "device_host", 0),
    )


def _option(experiment: Experiment, trial: Trial, name: str, default: Any) -> Any:
    return trial.parameters.get(name, experiment.machine.get(name, default))


@dataclass
class _Running:
    trial: Trial
    attempt: int
    claim: Claim
    since: float


class _Run:
    """One run of a sweep: what waits, what runs, what is done."""

    def __init__(self, sweep: Sweep, journal: Journal | None) -> None:
        self._sweep = sweep
        self._journal = journal
        self._rows: list[Row] = list(journal.rows) if journal is not None else []
        self._running: dict[Any, _Running] = {}
        self._shared: tuple[Any, dict[str, Any]] = (None, {})  # the experiment, and images by their keys
        last = rows_by_trial(self._rows)
        self._waiting: deque[tuple[Trial, int]] = deque(
            (trial, 1)
            for trial in sweep.trials
            if trial.key not in last or last[trial.key]["error"] is not None
        )

    def run(self, *, progress: bool, stop: threading.Event) -> SweepResult:
        done = len(self._sweep.trials) - len(self._waiting)
        if not self._waiting:
            return self._result()
        self._warn_of_other_builds()
        images = self._images()
        experiment = portable(
            self._sweep.experiment, [getattr(self._sweep.experiment.work, "function", None)]
        )
        log.begin()
        tasks = Tasks(self._sweep.address)
        self._shared = tasks.share(experiment), {name: tasks.share(data) for name, data in images.items()}
        with shown_progress(len(self._sweep.trials), done, enabled=progress) as bar:
            try:
                while self._waiting or self._running:
                    if stop.is_set():
                        raise SweepStoppedError
                    while self._admit(tasks):
                        bar.running(len(self._running))
                    self._collect(tasks, bar)
            except BaseException:
                try:
                    tasks.end_all()
                finally:
                    with contextlib.suppress(Exception):
                        self._result()
                raise
        return self._result()

    # --- one step of the loop ----------------------------------------------------------------------------

    def _admit(self, tasks: Tasks) -> bool:
        """Start the first waiting trial for which there is room; one is let in whenever none runs."""
        if self._sweep.at_once is not None and len(self._running) >= self._sweep.at_once:
            return False
        cores, memory = tasks.capacity.cores, tasks.capacity.memory
        used_cores = sum(min(cores, one.claim.cores) for one in self._running.values())
        used_memory = sum(one.claim.memory for one in self._running.values())
        for index, (trial, attempt) in enumerate(self._waiting):
            claim = claim_of(self._sweep.experiment, trial)
            fits = used_cores + min(cores, claim.cores) <= cores and used_memory + claim.memory <= memory
            if fits or not self._running:
                del self._waiting[index]
                self._start(tasks, trial, attempt, claim)
                return True
        return False

    def _start(self, tasks: Tasks, trial: Trial, attempt: int, claim: Claim) -> None:
        experiment, images = self._shared
        task = tasks.submit(
            _run_portable,
            experiment,
            trial,
            images[_kernel_key(self._sweep.experiment, trial)],
            images[_initrd_key(self._sweep.experiment, trial)],
            {name: os.environ.get(name, "") for name in (log.VARIABLE, metrics.VARIABLE)},
            cores=claim.cores if claim.single else 0.0,  # of several hosts, each finds its own place
            memory=claim.memory,
        )
        self._running[task] = _Running(trial, attempt, claim, time.monotonic())
        log.event("info", "trial-started", key=trial.key, trial=str(trial), attempt=attempt)

    def _collect(self, tasks: Tasks, bar: Progress) -> None:
        for task in tasks.wait(_LOOK_SECONDS):
            one = self._running.pop(task)
            row = self._row(tasks, task, one)
            self._add(row)
            again = row["error"] is not None and one.attempt <= self._sweep.retries
            if again:
                self._waiting.append((one.trial, one.attempt + 1))
            bar.ended(one.trial, row, again=again)
        bar.running(len(self._running))
        for task, one in self._running.items():
            if time.monotonic() - one.since > self._sweep.experiment.timeout + _GRACE_SECONDS:
                tasks.end(task)

    def _row(self, tasks: Tasks, task: Any, one: _Running) -> Row:
        row: Row
        try:
            row, told = tasks.result(task)
            log.replay(told)
        except TaskLostError as error:
            row = {
                "key": one.trial.key,
                "parameters": dict(one.trial.parameters),
                "repeat": one.trial.repeat,
                "seed": one.trial.seed,
                "metrics": {},
                "error": f"TrialLostError: {error}",
                "wall_seconds": time.monotonic() - one.since,
            }
        failed = row["error"] is not None
        fields = {"error": row["error"]} if failed else {}
        log.event("warning" if failed else "info", "trial-ended", key=one.trial.key, **fields)
        return {**row, "attempt": one.attempt}

    def _add(self, row: Row) -> None:
        self._rows.append(row)
        if self._journal is not None:
            self._journal.add(row)

    def _initrd(self, trial: Trial, initrd: Any, *, of_debian: bool) -> bytes | None:
        """Debian's initramfs has drivers for what the machine has, as `Machine` by itself gives them."""
        if initrd is not None:
            return load_image(check("initrd", initrd), "initrd", _LARGEST_IMAGE)
        if not of_debian:
            return None
        disks, cards = _devices(self._sweep.experiment, trial)
        return fetch_debian().initramfs(disks=disks, network=cards)

    # --- before and after --------------------------------------------------------------------------------

    def _result(self) -> SweepResult:
        # In the order of the plan, whichever was done first; of a trial's attempts the last stays the last.
        place = {trial.key: number for number, trial in enumerate(self._sweep.trials)}
        rows = sorted(self._rows, key=lambda row: place.get(row["key"], len(place)))
        result = SweepResult(rows, self._sweep.names)
        if self._sweep.out is not None:
            result.save(self._sweep.out)
        return result

    def _warn_of_other_builds(self) -> None:
        builds = {row["build"] for row in self._rows if row.get("build")} - {str(own_build())}
        if builds:
            warnings.warn(
                f"rows of another build of coremesh are kept ({'; '.join(sorted(builds))}); the column "
                "'build' tells them apart.",
                stacklevel=4,
            )

    def _images(self) -> dict[str, bytes | None]:
        """Read each image once, here: nodes of a cluster need not have the files."""
        found: dict[str, bytes | None] = {}
        experiment = self._sweep.experiment
        for trial, _ in self._waiting:
            kernel, initrd = (
                _option(experiment, trial, "kernel", None),
                _option(experiment, trial, "initrd", None),
            )
            kernel_key, initrd_key = _kernel_key(experiment, trial), _initrd_key(experiment, trial)
            if kernel_key not in found:
                found[kernel_key] = _kernel(kernel)
            if initrd_key not in found:
                data = self._initrd(trial, initrd, of_debian=kernel is None)
                more = getattr(experiment.work, "initramfs", bytes)()
                found[initrd_key] = data + more if data is not None else None
        return found


def _kernel(kernel: Any) -> bytes:
    if kernel is None:
        return fetch_debian().kernel.read_bytes()
    return load_image(check("kernel", kernel), "kernel", _LARGEST_IMAGE)


def _kernel_key(experiment: Experiment, trial: Trial) -> str:
    return f"kernel {_name(_option(experiment, trial, 'kernel', None))}"


def _initrd_key(experiment: Experiment, trial: Trial) -> str:
    kernel, initrd = _option(experiment, trial, "kernel", None), _option(experiment, trial, "initrd", None)
    if initrd is not None:
        return f"initrd {_name(initrd)}"
    return f"initrd of {_name(kernel)} for {_devices(experiment, trial)}"


def _devices(experiment: Experiment, trial: Trial) -> tuple[bool, Any]:
    """Whether the machine has disks, and what drivers its network cards want."""
    disks = check("disks", _option(experiment, trial, "disks", ()))
    cards = network_of(check("net", _option(experiment, trial, "net", ())))
    virtio = check("console", _option(experiment, trial, "console", "serial")).kind != "serial"
    return bool(disks or virtio or _option(experiment, trial, "cdrom", None)), cards


def _name(image: Any) -> str:
    return f"{len(image)} bytes" if isinstance(image, bytes) else str(image)


def _run_portable(
    experiment: bytes, trial: Trial, kernel: bytes, initrd: bytes | None, environment: Mapping[str, str]
) -> tuple[Row, list[dict[str, Any]]]:
    """Run a trial in a process of Ray's; return its row, and the events where the driver wants a log."""
    os.environ.update(environment)
    nursery.keep()  # this process runs more trials
    asked = log.wanted() if environment[log.VARIABLE] else None
    if asked is None:
        return run_trial(restored(experiment), trial, kernel, initrd), []
    log.bind(process="trial")
    keeper = log.keep(asked, aloud=True)
    try:
        return run_trial(restored(experiment), trial, kernel, initrd), keeper.take(0.0)
    finally:
        log.silence()


def _whole(what: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{what} is a whole number from {least}, not {shown(value)}.")
    return value


def _flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{what} is True or False, not {shown(value)}.")
    return value


def dry_run(sweep: Sweep, *, resume: bool = False) -> Iterator[str]:
    """Yield a line for each trial that :meth:`Sweep.run` would run; nothing is started or written.

    Raises :class:`ConfigurationError` where the run would, for the rows that are there.
    """
    last: dict[str, Row] = {}
    if sweep.out is not None and journal_of(sweep.out).exists():
        begun, rows = read(journal_of(sweep.out))
        if begun is not None:
            require_same(begun, sweep.identity(), journal_of(sweep.out), resume=resume)
        last = rows_by_trial(rows)
    for trial in sweep.trials:
        done = trial.key in last and last[trial.key]["error"] is None
        if not done:
            yield str(trial)
