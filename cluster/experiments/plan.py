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

    Names that change together are one key, "vcpus, memory", and its values are lists of as many. A computer
    that becomes slower or faster while trials run does so for all combinations alike. Raises
    :class:`ConfigurationError`.
    """
    if not isinstance(parameters, Mapping):
        raise ConfigurationError(f"parameters are lists of values by name, not {shown(parameters)}.")
    together = [(_names(key), given) for key, given in parameters.items()]
    every = [name for names, _ in together for name in names]
    if len(set(every)) < len(every):
        name = next(name for name in every if every.count(name) > 1)
        raise ConfigurationError(f"the parameter {name} is there twice: leave one out.")
    values = [_values(names, given) for names, given in together]
    count = repeats
    for given in values:
        count *= len(given)
    if count > MOST_TRIALS:
        raise ConfigurationError(f"{count} trials are more than the {MOST_TRIALS} that one sweep takes.")
    combinations = [
        {name: value for part in chosen for name, value in part.items()}
        for chosen in itertools.product(*values)
    ]
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


def _names(key: Any) -> tuple[str, ...]:
    names = tuple(name.strip() for name in key.split(",")) if isinstance(key, str) else (key,)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigurationError(f"a parameter's name is like a Python name, not {shown(key)}.")
        if name in OWN_COLUMNS:
            raise ConfigurationError(
                f"{name} is a column of each result already: name the parameter otherwise."
            )
    return names


def _values(names: tuple[str, ...], given: Any) -> list[dict[str, Any]]:
    """The values of one parameter, or of several that change together, each by its name."""
    key = ", ".join(names)
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        example = f"{key}=[{shown(given)}]" if len(names) == 1 else f'"{key}": [[...], ...]'
        raise ConfigurationError(f"{key} is a list of the values to try, as {example}, not {shown(given)}.")
    values = [_plain(key, value) for value in given]
    if not values:
        raise ConfigurationError(f"{key} has no value to try.")
    if len(names) > 1:
        for value in values:
            if not isinstance(value, list) or len(value) != len(names):
                raise ConfigurationError(
                    f'a value of "{key}" is a list of {len(names)}, one for each, not {shown(value)}.'
                )
    seen = [json.dumps(value, sort_keys=True) for value in values]
    if len(set(seen)) < len(seen):
        raise ConfigurationError(f"{key} has a value twice; 'repeats' runs each combination again.")
    return [dict(zip(names, value if len(names) > 1 else [value], strict=True)) for value in values]


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
