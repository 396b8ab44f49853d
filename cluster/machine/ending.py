# SPDX-License-Identifier: GPL-2.0-or-later
"""How a machine ended, and the exit status a process should leave with for it."""

from __future__ import annotations

from dataclasses import dataclass

from coremesh.core.errors import CoremeshError, GuestCrashError, HostLostError

#: Exit status when the guest crashed: triple fault, kernel panic, engine error (EX_SOFTWARE of sysexits.h).
CRASH_STATUS = 70
#: Exit status when the host process or machine under the vCPUs was lost (EX_UNAVAILABLE of sysexits.h).
LOST_STATUS = 69
#: Exit status when the time given by --timeout ran out, as timeout(1) has it.
TIMEOUT_STATUS = 124

CRASHES = frozenset({"triple-fault", "internal-error", "panic"})
LOSSES = frozenset({"host-lost", "fenced"})

_WORDS = {
    "power-off": "the guest switched itself off",
    "reset": "the guest asked for a reset",
    "debug-exit": "the guest wrote to the debug-exit port",
    "triple-fault": "the guest triple-faulted",
    "internal-error": "the engine could not go on",
    "panic": "the guest's kernel panicked",
    "stopped": "the machine was stopped",
    "host-lost": "a host was lost",
    "fenced": "a host was cut off and stopped its vCPUs",
}


@dataclass(frozen=True)
class MachineEnd:
    """Why a machine no longer runs.

    `kind` is one of 'power-off', 'reset', 'debug-exit' (the guest's own doing), 'triple-fault', 'panic',
    'internal-error' (crashes) and 'stopped' (:meth:`Machine.stop`). `value` is what the guest wrote to the
    register behind it. `vcpu` and `state` (registers as text) are given for crashes; `seconds` counts from
    the start of emulation. Between hosts there are also 'host-lost' (`host` no longer answers) and 'fenced'
    (`host` itself heard nothing for the length of its lease); a person gets :class:`HostLostError` for them.
    """

    kind: str
    value: int = 0
    vcpu: int | None = None
    detail: str = ""
    state: str = ""
    seconds: float = 0.0
    host: int | None = None

    @property
    def crashed(self) -> bool:
        """Whether no orderly guest ends this way."""
        return self.kind in CRASHES

    @property
    def lost(self) -> bool:
        """Whether a host was lost, or cut off from the others."""
        return self.kind in LOSSES

    @property
    def exit_status(self) -> int:
        """A process's status that stands for the guest: 0, ``(value << 1) | 1`` for debug-exit, or 70."""
        if self.kind == "debug-exit":
            return ((self.value << 1) | 1) & 0xFF
        if self.lost:
            return LOST_STATUS
        return CRASH_STATUS if self.crashed else 0

    def __str__(self) -> str:
        words = _WORDS.get(self.kind, self.kind)
        where = f" on vCPU {self.vcpu}" if self.vcpu is not None else ""
        where += f" (host {self.host})" if self.host is not None else ""
        value = f" ({self.value:#x})" if self.kind == "debug-exit" else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"{words}{value}{where}{detail}"

    def error(self) -> CoremeshError:
        """Return the crash or the loss as an error to raise."""
        if self.lost:
            return HostLostError(f"{self}.", self.state)
        return GuestCrashError(f"{self}.", self.state)
