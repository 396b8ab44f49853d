# SPDX-License-Identifier: GPL-2.0-or-later
"""One trial: a machine with its parameters, the work on it, and the numbers. Runs in a process of Ray's.

Nothing here knows of other trials. Whatever the work or the machine does wrong becomes the row's error.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import platform
import re
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from coremesh.cluster.experiments.columns import COLLECTED, MARKS, TABLES
from coremesh.cluster.experiments.engines import ENGINES, MACHINE_OPTIONS, Subject, open_machine
from coremesh.cluster.experiments.marks import NAMED_NUMBER, Marks
from coremesh.cluster.experiments.plan import OWN_COLUMNS, Trial, text_of
from coremesh.cluster.machine.build import own_build
from coremesh.cluster.machine.options import share_vcpus
from coremesh.core.errors import ConfigurationError, CoremeshError, near, shown

_MOST_OUTPUT = 400  # characters of a command's output in an error

Numbers = Mapping[str, Any]


class TrialFailedError(CoremeshError):
    """A trial's work has not given what it was asked for."""


class Work(Protocol):
    """What is done on the machine of each trial."""

    def names(self) -> frozenset[str] | None:
        """The parameters it takes beside the machine; None for any."""

    def identity(self) -> str:
        """Text that differs where the work differs."""

    def __call__(self, machine: Any, parameters: Mapping[str, Any], timeout: float) -> Numbers:
        """Do it, with those parameters it takes; raise what went wrong."""


@dataclass(frozen=True)
class Function:
    """A function of the machine, and of those parameters that its signature names."""

    function: Callable[..., Any]

    def names(self) -> frozenset[str] | None:
        """As the signature says; None if it takes any keyword."""
        kinds = inspect.Parameter
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        if any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters):
            return None
        return frozenset(
            parameter.name
            for parameter in parameters
            if parameter.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        )

    def identity(self) -> str:
        """Its source where that can be had, else its name."""
        with contextlib.suppress(OSError, TypeError):
            return inspect.getsource(self.function)
        return getattr(self.function, "__qualname__", repr(type(self.function)))

    def __call__(self, machine: Any, parameters: Mapping[str, Any], timeout: float) -> Numbers:
        """Call it; a number alone is named 'value', and None says that only the time counts."""
        known = self.names()
        chosen = {name: value for name, value in parameters.items() if known is None or name in known}
        given = self.function(machine, **chosen)
        if given is None:
            return {}
        return given if isinstance(given, Mapping) else {"value": given}


@dataclass(frozen=True)
class Command:
    """A command for the guest's shell, and where its numbers are in what it prints.

    `numbers` has a regular expression for each, whose first group is the number. Without it each line
    ``name=number`` or ``name: number`` is one. Parameters that are no option of the machine are variables of
    the shell, as ``$size``, and so are ``$seed`` and ``$vcpus``.
    """

    command: str
    numbers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises :class:`ConfigurationError`."""
        if not isinstance(self.command, str) or not self.command.strip():
            raise ConfigurationError(
                f"a trial's command is text for the guest's shell, not {shown(self.command)}."
            )
        for name, pattern in self.numbers.items():
            try:
                groups = re.compile(pattern, re.M).groups
            except (re.error, TypeError) as error:
                raise ConfigurationError(f"numbers: {name} is no regular expression ({error}).") from None
            if groups < 1:
                raise ConfigurationError(
                    f"numbers: {name} needs a group around the number, as '([0-9.]+) MB/s': "
                    f"{shown(pattern)} has none."
                )

    def names(self) -> frozenset[str] | None:
        """The words in it: a variable of another name would change nothing."""
        return frozenset(re.findall(r"[A-Za-z_]\w*", self.command))

    def identity(self) -> str:
        """All of it."""
        return repr((self.command, sorted(self.numbers.items())))

    def __call__(
        self,
        machine: Any,
        parameters: Mapping[str, Any],
        timeout: float,
        on_output: Callable[[bytes], None] | None = None,
    ) -> Numbers:
        """Run it; raise :class:`TrialFailedError` if it fails, or prints no number."""
        words = "".join(
            f"{name}={shlex.quote('' if value is None else str(text_of(value)))}; "
            for name, value in parameters.items()
            if name not in ("kernel", "initrd", "modules", "cmdline", "append")
        )
        result = machine.run(words + self.command, timeout, on_output)
        if result.status != 0:
            raise TrialFailedError(f"the command has left with status {result.status}: {_end(result.output)}")
        return self.read(result.output)

    def read(self, output: str) -> dict[str, float]:
        """Return the numbers in a command's output; raise :class:`TrialFailedError` if one is missing."""
        if not self.numbers:
            found = {name: _number(text) for name, text in NAMED_NUMBER.findall(output)}
            if not found:
                raise TrialFailedError(
                    "the command has printed no line 'name=number', and no 'numbers' were given: "
                    f"{_end(output)}"
                )
            return found
        values = {}
        for name, pattern in self.numbers.items():
            match = re.search(pattern, output, re.M)
            if match is None:
                raise TrialFailedError(
                    f"{pattern!r}, {name}, is not in what the command printed: {_end(output)}"
                )
            try:
                values[name] = _number(match[1])
            except ValueError:
                raise TrialFailedError(f"{name} is no number: {match[1]!r}") from None
        return values


@dataclass(frozen=True)
class Experiment:
    """What is common to all trials. `machine` are options that no parameter varies.

    `collect` names tables of counters, 'stats', 'mesh_stats' or 'device_stats', or single columns of them as
    'stats.interrupts' and 'device_stats.uart.accesses'; what each grew by while the work ran, summed over
    vCPUs, hosts or devices, is in the row. 'marks' is what each number of a command took: see :class:`Marks`.
    `timeout` in seconds of the host, from the start of emulation to the end of the work. With `shell` a Linux
    guest's shell is waited for before the work begins.
    """

    work: Work
    machine: Mapping[str, Any]
    collect: tuple[str, ...] = COLLECTED
    timeout: float = 600.0
    shell: bool = True

    def identity(self) -> dict[str, str]:
        """What must be the same for rows to belong to one result."""
        return {
            "trial": _digest(self.work.identity()),
            "machine": _digest(repr(sorted(self.machine.items()))),
        }

    def engine(self, trial: Trial) -> Any:
        """Return the name of the engine that a trial's machine runs on."""
        return trial.parameters.get("engine", ENGINES[0])

    def options(self, trial: Trial) -> dict[str, Any]:
        """Return the options of a trial's machine: those of all machines, and those that it varies."""
        varied = {name: value for name, value in trial.parameters.items() if name in MACHINE_OPTIONS}
        return {**self.machine, **varied}

    def taken(self, trial: Trial) -> dict[str, Any]:
        """Return what a trial's work may take: parameters, the vCPUs of all hosts together, the seed."""
        options = self.options(trial)
        shares = share_vcpus(options.get("hosts", 1), options.get("vcpus"), options.get("device_host", 0))
        return {**trial.parameters, "vcpus": sum(shares), "seed": trial.seed}

    def require(self, parameters: Sequence[str], options: frozenset[str]) -> None:
        """Raise :class:`ConfigurationError` for a parameter that means nothing here."""
        known = self.work.names()
        if MARKS in self.collect and not isinstance(self.work, Command):
            raise ConfigurationError(
                "collect: 'marks' are of the lines that a command prints: leave it out beside a function or "
                "a load, which measure by themselves."
            )
        for name in getattr(self.work, "numbers", ()):
            if name in OWN_COLUMNS or name in parameters:
                raise ConfigurationError(
                    f"numbers: {shown(name)} is another column of the result already: name it otherwise."
                )
        for name in parameters:
            if name in self.machine:
                raise ConfigurationError(f"{name} is both a parameter and fixed for all machines.")
            if known is not None and name not in known | options | {"engine"}:
                raise ConfigurationError(
                    f"{name} is no option of a machine, and the trial does not take it."
                    f"{near(name, known | options | {'engine'})} Give the function a parameter of that name, "
                    f"use ${name} in the command, or choose one of {', '.join(sorted(options))}."
                )


def run_trial(
    experiment: Experiment, trial: Trial, kernel: bytes, initrd: bytes | None = None
) -> dict[str, Any]:
    """Run one trial in this process and return its row; only an interruption from outside is raised."""
    row: dict[str, Any] = {
        "key": trial.key,
        "parameters": dict(trial.parameters),
        "repeat": trial.repeat,
        "seed": trial.seed,
        "metrics": {},
        "nodes": platform.node(),
        "error": None,
    }
    begin = time.monotonic()
    try:
        row["build"] = str(own_build())
        _run(experiment, trial, {"kernel": kernel, "initrd": initrd}, row, begin)
    except _DeadlineError:
        row["error"] = f"TrialTimeout: not done in {experiment.timeout:g} s; 'timeout' gives it longer."
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}".strip()
        row["traceback"] = traceback.format_exc()
    row["wall_seconds"] = time.monotonic() - begin
    return row


def _run(
    experiment: Experiment, trial: Trial, images: Mapping[str, Any], row: dict[str, Any], begin: float
) -> None:
    options = experiment.options(trial) | dict(images)
    with open_machine(experiment.engine(trial), options) as machine:
        row["start_seconds"] = time.monotonic() - begin
        row["image"] = machine.image
        row["nodes"] = ", ".join(dict.fromkeys(machine.nodes))
        with _deadline(experiment.timeout):  # not over the machine's end, which has to be whole
            _counters(machine, experiment.collect)  # before the boot, for a device that this machine lacks
            _work(experiment, trial, machine, row)


def _work(experiment: Experiment, trial: Trial, machine: Subject, row: dict[str, Any]) -> None:
    taken = experiment.taken(trial)
    cpu_from = machine.cpu_seconds()
    if experiment.shell and machine.linux:
        row["boot_seconds"] = machine.wait_shell(experiment.timeout)
        row["boot_cpu_seconds"] = _since(cpu_from, machine.cpu_seconds())
    _guest_clock(experiment, machine)  # the first command of a guest is slow: its code is not translated yet
    guest_from = _guest_clock(experiment, machine)
    before = _counters(machine, experiment.collect)
    host_from, cpu_from = time.monotonic(), machine.cpu_seconds()
    marks: Marks | None = None
    if MARKS in experiment.collect and isinstance(experiment.work, Command):
        marks = Marks(machine.cpu_seconds, experiment.work.numbers)
        numbers = experiment.work(machine.handle, taken, experiment.timeout, marks.on_output)
    else:
        numbers = experiment.work(machine.handle, taken, experiment.timeout)
    row["host_seconds"] = time.monotonic() - host_from
    row["cpu_seconds"] = _since(cpu_from, machine.cpu_seconds())
    after = _counters(machine, experiment.collect)
    guest_to = _guest_clock(experiment, machine)
    if guest_from is not None and guest_to is not None:
        row["guest_seconds"] = guest_to - guest_from
    row["metrics"] = _checked(numbers, trial)
    row["counters"] = {name: after[name] - before.get(name, 0) for name in after}
    if marks is not None:
        row["counters"] |= marks.columns()


def _since(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else now - before


def _guest_clock(experiment: Experiment, machine: Subject) -> float | None:
    """Seconds on the guest's own clock; None where there is no shell to ask."""
    return machine.guest_clock() if experiment.shell and machine.linux else None


def _counters(machine: Subject, collect: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for table in TABLES:
        wanted = [name.partition(".")[2] for name in collect if name.partition(".")[0] == table]
        if not wanted:
            continue
        counters = machine.counters(table)
        for name in wanted:
            if name and counters and name not in counters:
                raise ConfigurationError(
                    f"collect: this machine has no {table}.{name}.{near(name, counters)} There are "
                    f"{', '.join(sorted(counters))}."
                )
        for name, value in counters.items():
            if name in wanted or ("" in wanted and "." not in name):  # single devices only by name
                found[f"{table}.{name}"] = value
    return found


def _checked(numbers: Numbers, trial: Trial) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in numbers.items():
        if not isinstance(name, str) or name in OWN_COLUMNS or name in trial.parameters:
            raise TrialFailedError(
                f"the trial has returned {name!r}, which names another column of the result."
            )
        if hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, bool | int | float | str):
            raise TrialFailedError(
                f"the trial has returned a {type(value).__name__} as {name}, not a number."
            )
        checked[name] = value
    return checked


class _DeadlineError(BaseException):
    """Raised in the work, whatever it catches."""


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise :class:`_DeadlineError` in the block after `seconds`; in the main thread only."""
    if threading.current_thread() is not threading.main_thread() or not math.isfinite(seconds):
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise _DeadlineError

    kept = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


def work_of(trial: Any, numbers: Mapping[str, str] | None) -> Work:
    """Return the work that a person named: a function, a command, or one of :mod:`loads`."""
    if numbers is not None and not isinstance(numbers, Mapping):
        raise ConfigurationError(f"numbers are regular expressions by name, not {shown(numbers)}.")
    if isinstance(trial, str):
        return Command(trial, dict(numbers or {}))
    if numbers:
        raise ConfigurationError("numbers are read from a command's output; a function returns its own.")
    if all(hasattr(trial, name) for name in ("names", "identity")):
        work: Work = trial
        return work
    if not callable(trial):
        raise ConfigurationError(
            f"a trial is a function of a machine, or a command for the guest's shell, not {shown(trial)}."
        )
    try:
        parameters = list(inspect.signature(trial).parameters)
    except ValueError as error:
        raise ConfigurationError(
            f"the trial's function has no signature ({error}): wrap it in one of yours."
        ) from None
    if not parameters:
        raise ConfigurationError("the trial's function takes no machine: give it a first parameter.")
    return Function(trial)


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _end(output: str) -> str:
    text = output.strip()
    return repr(text if len(text) <= _MOST_OUTPUT else "..." + text[-_MOST_OUTPUT:])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
