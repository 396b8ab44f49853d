# SPDX-License-Identifier: GPL-2.0-or-later
"""Saved state: plain, versioned data that JSON holds, and that is refused where it does not fit.

A state is dictionaries of numbers, strings, lists and further dictionaries; bytes are ``{"hex": "..."}``. It
binds neither a version of Python nor the layout of the code that made it. Each part has a version, which is
raised when the meaning of a field changes.
"""

from collections.abc import Mapping
from typing import Any

from coremesh.core.errors import CoremeshError

State = dict[str, Any]


class StateError(CoremeshError):
    """A saved state that does not fit this machine: of another version, another part, or damaged."""


def check_keys(state: Mapping[str, Any], expected: set[str], owner: str) -> None:
    """Raise :class:`StateError` unless ``state`` has the ``expected`` fields and no other; it names them."""
    if not isinstance(state, Mapping):
        raise StateError(
            f"the saved state of {owner} is damaged ({type(state).__name__}, not fields); load another copy "
            "of it"
        )
    if set(state) == expected:
        return
    missing, unknown = sorted(expected - set(state)), sorted(map(str, set(state) - expected))
    odd = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has also {', '.join(unknown)}"] * bool(unknown)
    raise StateError(
        f"the saved state of {owner} {' and '.join(odd)}; it was saved by another version of Coremesh, or by "
        "another machine: load it with the version that saved it"
    )


def check_version(state: Mapping[str, Any], version: int, owner: str) -> None:
    """Raise :class:`StateError` unless ``state`` was saved in ``version``."""
    if not isinstance(state, Mapping) or "version" not in state:
        check_keys(state, {"version"}, owner)
    if state["version"] != version:
        raise StateError(
            f"the state of {owner} was saved in version {state['version']}, this is version {version}: load "
            "it with the Coremesh that saved it"
        )


def check_shape(state: Any, pattern: Any, owner: str) -> None:
    """Raise :class:`StateError` unless ``state`` is built as ``pattern``, a state of the same machine.

    The same fields, lists of the same length, the same types; numbers are not compared.
    """
    if isinstance(pattern, dict):
        check_keys(state, set(pattern), owner)
        for name, part in pattern.items():
            check_shape(state[name], part, f"{owner}.{name}")
    elif type(state) is not type(pattern):
        raise StateError(
            f"the saved state of {owner} is damaged ({type(state).__name__}, not {type(pattern).__name__}); "
            "load another copy of it"
        )
    elif isinstance(pattern, list):
        if len(state) != len(pattern):
            raise StateError(
                f"the saved state of {owner} has {len(state)} entries, not {len(pattern)}: it is that of "
                "another machine"
            )
        for index, (part, other) in enumerate(zip(state, pattern, strict=True)):
            check_shape(part, other, f"{owner}[{index}]")
