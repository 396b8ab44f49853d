# SPDX-License-Identifier: GPL-2.0-or-later
"""Which trials an experiment has: each combination of its parameters, as often as asked. Pure."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from coremesh.core.errors import ConfigurationError, shown

#: Columns of a result that are not a parameter's and not a trial's own number.
OWN_COLUMNS: Final = (
    "repeat", "boot_seconds", "boot_cpu_seconds", "host_seconds", "guest_seconds", "cpu_seconds",
    "start_seconds", "wall_seconds", "seed", "build", "image", "nodes", "attempts", "error",
)  # fmt: skip
MOST_TRIALS: Final = 100_000


@dataclass(frozen=True)
class Trial:
    """One run of one machine. `seed` is 32 bits and the same whenever the same trial is planned."""

    parameters: Mapping[str, Any]
    repeat: int
    seed: int

    @property
    def key(self) -> str:
        """What tells this trial from all others of its experiment, in any process and on any day."""
        return key_of(self.parameters, self.repeat)

    def __str__(self) -> str:
        words = [f"{name}={text_of(value)}" for name, value in self.parameters.items()]
        return ", ".join([*words, f"repeat {self.repeat}"])


def plan(parameters: Mapping[str, Iterable[Any]], repeats: int, seed: int) -> list[Trial]:
    """Return the trials: all combinations once, then all again, `repeats` times in all.

    A computer that becomes slower or faster while they run does so for all combinations alike. Raises
    :class:`ConfigurationError`.
    """
    values = {name: _values(name, given) for name, given in parameters.items()}
    count = repeats
    for given in values.values():
        count *= len(given)
    if count > MOST_TRIALS:
        raise ConfigurationError(f"{count} trials are more than the {MOST_TRIALS} that one sweep takes.")
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    return [
        Trial(chosen, repeat, _seed(seed, key_of(chosen, repeat)))
        for repeat in range(repeats)
        for chosen in combinations
    ]


def key_of(parameters: Mapping[str, Any], repeat: int) -> str:
    """Return the key of the trial with these parameters."""
    return json.dumps([dict(sorted(parameters.items())), repeat], sort_keys=True, separators=(",", ":"))


def text_of(value: Any) -> Any:
    """Return a parameter's value as a table and a guest's shell have it: a list becomes '6,2'."""
    if isinstance(value, list | tuple):
        return ",".join(str(text_of(part)) for part in value)
    if isinstance(value, Mapping):
        return ",".join(str(text_of(part)) for part in value.values())
    return value


def _values(name: str, given: Any) -> list[Any]:
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigurationError(f"a parameter's name is like a Python name, not {shown(name)}.")
    if name in OWN_COLUMNS:
        raise ConfigurationError(f"{name} is a column of each result already: name the parameter otherwise.")
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise ConfigurationError(
            f"{name} is a list of the values to try, as {name}=[{shown(given)}], not {shown(given)}."
        )
    values = [_plain(name, value) for value in given]
    if not values:
        raise ConfigurationError(f"{name} has no value to try.")
    seen = [json.dumps(value, sort_keys=True) for value in values]
    if len(set(seen)) < len(seen):
        raise ConfigurationError(f"{name} has a value twice; 'repeats' runs each combination again.")
    return values


def _plain(name: str, value: Any) -> Any:
    """A value that JSON brings back as it was: rows on disk are compared with it."""
    if hasattr(value, "item") and not isinstance(value, Sequence):  # a number of numpy's
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(name, part) for part in value]
    if isinstance(value, Mapping):
        return {str(inner): _plain(name, part) for inner, part in value.items()}
    raise ConfigurationError(
        f"a value of {name} is a number, text, or a list of these, not {shown(value)}. Give files as paths."
    )


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:4], "little")
