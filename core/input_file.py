# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that a person named, read with care: its kind and its size are looked at first.

A device, a pipe or a file far larger than the guest would otherwise be read until memory ends, or for ever.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from coremesh.core.errors import ConfigurationError, CoremeshError, shown

_PIECE = 1 << 20
_LONGEST_NAMED = 255


def path_of(what: str, path: str | os.PathLike[str]) -> Path:
    """Return `path` with ``~`` resolved. Raises :class:`ConfigurationError` for what can name no file."""
    try:
        text = os.fspath(path)
    except Exception:
        text = None
    if not isinstance(text, str):
        raise ConfigurationError(f"the {what} is a path, not {shown(path)}.")
    try:
        if b"\0" in os.fsencode(text):
            raise ConfigurationError(f"the path of the {what} contains a zero byte: {shown(text)}.")
        return Path(text).expanduser()
    except (UnicodeEncodeError, RuntimeError) as error:  # a lone surrogate; a home that is not known
        raise ConfigurationError(f"{shown(text)} names no file for the {what} ({error}).") from error


def named(path: str | os.PathLike[str]) -> str:
    """Return `path` as a message names it: as it is, but for control characters and an absurd length."""
    text = os.fspath(path)
    return text if text.isprintable() and len(text) <= _LONGEST_NAMED else shown(text)


def read_input_file(
    path: str | os.PathLike[str],
    what: str,
    limit: int,
    why_limit: str,
    error_type: type[CoremeshError],
    hint: str = "",
) -> bytes:
    """Return the content of the regular file `path`, at most `limit` bytes.

    `what` ('kernel', 'symbols') and `why_limit`, a sentence that says where the limit comes from, are for
    messages; `hint` follows where there is no such file. Raises `error_type`, and :class:`ConfigurationError`
    for what can name no file.
    """
    place = path_of(what, path)
    name = named(place)
    try:
        # Opening a pipe to read would wait for a writer, and a terminal could become this process's own.
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise error_type(f"no {what} at {name}.{hint}") from error
    except OSError as error:
        raise error_type(f"cannot read the {what} {name}: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise error_type(f"the {what} {name} is {_kind(status.st_mode)}. Give a regular file.")
        # Files of /proc have a size of 0 and contents all the same: so the size alone decides nothing.
        data = bytearray()
        while status.st_size <= limit and len(data) <= limit:
            piece = os.read(descriptor, min(_PIECE, limit + 1 - len(data)))
            if not piece:
                return bytes(data)
            data += piece
    except OSError as error:
        raise error_type(f"cannot read the {what} {name}: {error.strerror}.") from error
    finally:
        os.close(descriptor)
    size = max(status.st_size, len(data))
    raise error_type(
        f"the {what} {name} is too large: {size} bytes, and at most {limit} are taken. {why_limit}"
    )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a directory",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
        stat.S_ISSOCK: "a socket",
    }
    return next((kind for test, kind in kinds.items() if test(mode)), "not a regular file")
