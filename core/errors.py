# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong for a person, as types. Every message ends with the way out.

All errors derive from :class:`CoremeshError`, so that a script can catch one name. They carry plain strings
and pickle, because they cross process borders on their way from an actor to the person.
"""

import errno
from collections.abc import Iterable

_LONGEST_SHOWN = 60


def shown(value: object) -> str:
    """Return `value` as a message shows it: one short piece of text, whatever its size and whatever it is."""
    try:
        if isinstance(value, str | bytes | bytearray) and len(value) > _LONGEST_SHOWN:
            return f"{value[:_LONGEST_SHOWN]!r}..."
        text = repr(value)
    except Exception:  # an integer of 5,000 digits; an object whose own __repr__ fails
        return f"this {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def near(name: object, known: Iterable[str]) -> str:
    """Return a sentence for a message, with the `known` names that look like a misspelt one.

    As " Did you mean vcpus?"; empty where none does.
    """
    import difflib  # only where something went wrong

    found = difflib.get_close_matches(str(name)[:_LONGEST_SHOWN], sorted(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(found)}?" if found else ""


class CoremeshError(Exception):
    """Base of every error that Coremesh raises on purpose."""


class ConfigurationError(CoremeshError):
    """A machine that cannot be built as described: vCPU count, memory size, option out of range."""


class GuestImageError(CoremeshError):
    """A kernel, initramfs or module that is missing, truncated or of no known format."""


class DiskError(CoremeshError):
    """A disk image that is missing, in use by another program, of a wrong size, or not to be opened."""


class DeviceError(CoremeshError):
    """A device written in Python that has failed the guest: it raised an exception, or answered too late."""


class NetworkError(CoremeshError):
    """A network that a machine cannot have: a library that is missing, a port or a socket that is taken."""


class ImageFetchError(CoremeshError):
    """A guest image could not be got from the distribution's package tools."""


class PlatformError(CoremeshError):
    """The host lacks what the engine needs: a kernel feature, a limit, a matching library layout."""


class _ErrorWithState(CoremeshError):
    """An error that carries what the machine said of itself, as text for a person."""

    def __init__(self, message: str, state: str = "") -> None:
        super().__init__(message, state)
        self.message = message
        self.state = state

    def __str__(self) -> str:
        return f"{self.message}\n{self.state}" if self.state else self.message


class GuestCrashError(_ErrorWithState):
    """The guest stopped as no orderly guest does (triple fault, engine error); carries the vCPU's state."""


class MachineStateError(CoremeshError):
    """An operation that the machine's present state does not allow (not started, already stopped)."""


class ConsoleTimeoutError(CoremeshError):
    """The text waited for did not appear on the console in time.

    `tail` holds the console's last bytes, `state` what the machine's vCPUs did then, where that is known.
    """

    def __init__(self, message: str, tail: bytes = b"", state: str = "") -> None:
        super().__init__(message, tail, state)
        self.message = message
        self.tail = tail
        self.state = state

    def __str__(self) -> str:
        return self.message


class HostLostError(_ErrorWithState):
    """The process or the machine that ran the vCPUs has gone.

    `state` is what a host that is still there says of itself: its vCPUs, and the last messages between hosts.
    """


class InternalError(CoremeshError):
    """A part of Coremesh failed in a way that was not foreseen; the message says which and how."""


class OutputError(CoremeshError):
    """Standard output cannot be written: a full disk, or a pipe whose reader has gone."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(number, reason)
        self.number = number
        self.reason = reason

    @property
    def no_reader(self) -> bool:
        """Whether the reader of a pipe has gone: it wants no more, which is not an error."""
        return self.number == errno.EPIPE

    def __str__(self) -> str:
        return f"standard output cannot be written: {self.reason}."


class LinkError(CoremeshError):
    """Links to other hosts that cannot be made: an address that is not of this computer, a missing key."""
