# SPDX-License-Identifier: GPL-2.0-or-later
"""A device's state as plain data (:mod:`coremesh.core.state`).

A part declares the attributes that are its state; the rest of it is wiring, made anew by the code that builds
the machine. Byte strings become ``{"hex": "..."}``, tuples and queues become lists.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

from coremesh.core.state import State, StateError, check_keys


class Stateful:
    """A part of a device with state of its own, listed by attribute in ``STATE``. No lock: the device's."""

    STATE: ClassVar[tuple[str, ...]] = ()

    def save_fields(self) -> State:
        """The attributes of ``STATE`` as plain data, without the underscores of their names."""
        return {name.lstrip("_"): plain(getattr(self, name)) for name in self.STATE}

    def load_fields(self, state: Mapping[str, Any], owner: str) -> None:
        """The reverse. Raises :class:`StateError` unless ``state`` has exactly these fields."""
        check_keys(state, {name.lstrip("_") for name in self.STATE}, owner)
        for name in self.STATE:
            key = name.lstrip("_")
            setattr(self, name, restored(getattr(self, name), state[key], f"{owner}.{key}"))


def plain(value: Any) -> Any:
    """``value`` in terms of JSON. TypeError for what has no such form: that is a mistake in a device."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)  # a Bit is an int with a name
    if isinstance(value, bytes | bytearray):
        return {"hex": value.hex()}
    if isinstance(value, Stateful):
        return value.save_fields()
    if isinstance(value, list | tuple | deque):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} is not state")


def restored(present: Any, saved: Any, owner: str) -> Any:
    """What an attribute that now holds ``present`` takes for ``saved``. Parts are loaded in place."""
    try:
        if isinstance(present, Stateful):
            present.load_fields(saved, owner)
            return present
        if isinstance(present, bytearray):
            data = bytearray.fromhex(saved["hex"])
            if len(data) != len(present):
                raise ValueError(f"{len(data)} bytes, not {len(present)}")
            return data
        if isinstance(present, bytes):
            return bytes.fromhex(saved["hex"])
        if isinstance(present, deque):
            return deque((_immutable(item) for item in saved), maxlen=present.maxlen)
        if isinstance(present, list) and present and isinstance(present[0], Stateful):
            return [restored(part, item, owner) for part, item in zip(present, saved, strict=True)]
        if isinstance(present, bool):
            return _of_type(saved, bool)
        if isinstance(present, int):
            return _of_type(saved, int)
        if isinstance(present, list):
            return list(saved)
        return _immutable(saved)
    except (ValueError, TypeError, KeyError) as error:
        raise StateError(
            f"the saved state of {owner} is damaged ({error}); load another copy of it"
        ) from error


def _of_type(saved: Any, kind: type) -> Any:
    if type(saved) is not kind:
        raise TypeError(f"{type(saved).__name__}, not {kind.__name__}")
    return saved


def _immutable(saved: Any) -> Any:
    return tuple(_immutable(item) for item in saved) if isinstance(saved, list) else saved
