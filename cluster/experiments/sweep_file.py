# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep as a file, for ``coremesh sweep FILE.toml``.

::

    out = "hashing.csv"                 # beside this file; .parquet with the extra 'sweep'
    repeats = 3

    [trial]                             # one of command, load, function
    command = "head -c 16M /dev/zero | (time sha256sum) 2>&1"
    numbers = { seconds = 'real.*m ([0-9.]+)s' }

    [parameters]
    vcpus = [1, 2, 4]

    [machine]                           # the same for all
    memory = "512M"

Names on the top level are the arguments of :func:`coremesh.sweep`.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from coremesh.cluster.experiments.sweep import Sweep, prepare
from coremesh.core.errors import ConfigurationError, near, shown

_TOP: Final = frozenset({
    "out", "repeats", "retries", "timeout", "at_once", "seed", "collect", "shell", "address",
    "trial", "parameters", "machine",
})  # fmt: skip
_TRIAL: Final = frozenset({"command", "numbers", "load", "function"})


def read_sweep(path: Path, **changes: Any) -> Sweep:
    """Return the sweep that a file describes; `changes` that are not None replace what it says.

    Raises :class:`ConfigurationError` with the name that is wrong.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}.") from None
    _known(content, _TOP, str(path))
    trial = _table(content, "trial")
    parameters, machine = _table(content, "parameters"), _table(content, "machine")
    options = {
        name: value for name, value in content.items() if name not in ("trial", "parameters", "machine")
    }
    options |= {name: value for name, value in changes.items() if value is not None}
    if "out" in options and "out" not in {name for name, value in changes.items() if value is not None}:
        options["out"] = path.parent / str(options["out"])
    _known(trial, _TRIAL, f"{path}, [trial]")
    kinds = [name for name in ("command", "load", "function") if name in trial]
    if len(kinds) != 1:
        raise ConfigurationError(
            f"{path}: [trial] has one of command, load and function, not {shown(kinds)}."
        )
    work = _work(kinds[0], trial[kinds[0]], path)
    return prepare(work, parameters, numbers=trial.get("numbers"), machine=machine, **options)


def _work(kind: str, named: Any, path: Path) -> Any:
    if kind == "command":
        return named
    if kind == "load":
        from coremesh.cluster.experiments.loads import load_named

        return load_named(named)
    module, _, name = str(named).partition(":")
    if not name:
        raise ConfigurationError(f"{path}: function is 'module:function', not {shown(named)}.")
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a person's module does wrong
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if last.filename.startswith("<") else f", {last.filename}, line {last.lineno}"
        raise ConfigurationError(
            f"{path}: there is no function {shown(named)} ({type(error).__name__}: {error}{where})."
        ) from error
    finally:
        sys.path.pop(0)


def _table(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name, {})
    if not isinstance(value, dict):
        raise ConfigurationError(f"{name} is a table, [{name}], not {shown(value)}.")
    return value


def _known(content: Mapping[str, Any], names: frozenset[str], where: str) -> None:
    for name in content:
        if name not in names:
            raise ConfigurationError(
                f"{where}: no {shown(name)}; there are {', '.join(sorted(names))}.{near(name, names)}"
            )
