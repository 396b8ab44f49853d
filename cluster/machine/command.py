# SPDX-License-Identifier: GPL-2.0-or-later
"""A shell command run to its end over a console: the dialogue's clock, its patience and its last resort."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from coremesh.cluster.machine.console import Console
from coremesh.cluster.machine.shell import (
    INTERRUPT,
    QUIT,
    RESCUE,
    SUSPEND,
    CommandResult,
    Dialogue,
    State,
)
from coremesh.core.errors import ConsoleTimeoutError, MachineStateError

# For the shell to start the receiver, on a guest with many more vCPUs than its hosts have cores: the
# seconds that it may be silent, and that it may take in all.
_ANSWER_SECONDS = 60.0
_LONGEST_ANSWER_SECONDS = 300.0
_SETTLE_SECONDS = (
    2.0  # for the prompt after the command; without it the next command waits for its own answer
)
_GRACE_SECONDS = 3.0  # for a command to die of Ctrl-C, then of Ctrl-\


def run_command(
    console: Console, command: str, timeout: float | None, on_output: Callable[[bytes], None] | None = None
) -> CommandResult:
    """Run `command` in the shell on `console`, whose place must be at the end of what was printed.

    `on_output` is given the output piece by piece as it comes. Raises :class:`ConsoleTimeoutError` (after
    interrupting the command) when it takes longer than `timeout` seconds, :class:`MachineStateError` or
    :class:`GuestCrashError` when the machine ends before the command.
    """
    dialogue = Dialogue(command)
    output = bytearray()
    begin = heard = time.monotonic()
    deadline = None if timeout is None else begin + timeout

    def advance(limit: float | None) -> bool:
        """Feed the dialogue until its state changes or the clock reaches `limit`; False at the limit."""
        nonlocal heard
        state = dialogue.state
        while (
            dialogue.state is state is not State.DONE
        ):  # the prompt may have come in one piece with the status
            left = 1.0 if limit is None else min(1.0, limit - time.monotonic())
            if left <= 0:
                return False
            data = console.next(left)
            if data:
                heard = time.monotonic()
            step = dialogue.on_bytes(data)
            if console.lost:
                raise MachineStateError(
                    "the command printed faster than it was read; send its output to a file."
                )
            if step.send:
                console.write(step.send)
            if step.output:
                output.extend(step.output)
                if on_output is not None:
                    on_output(step.output)
        return True

    def patience() -> float:
        """When the wait for the shell's answer is over, as of now."""
        return min(heard + _ANSWER_SECONDS, begin + _LONGEST_ANSWER_SECONDS, deadline or math.inf)

    console.write(dialogue.start())
    while dialogue.state in (State.CALLING, State.SENDING):
        if not advance(patience()) and patience() <= time.monotonic():
            raise ConsoleTimeoutError(
                f"no shell answered on the console in {time.monotonic() - begin:.0f} s. If a program runs "
                f"there, end it first; the console's last bytes: {console.tail[-200:]!r}",
                console.tail,
            )
    try:
        while dialogue.state is State.RUNNING:
            if not advance(deadline):
                printed = bytes(output)
                _interrupt(console, advance)
                raise ConsoleTimeoutError(f"the command took longer than {timeout:g} s.", printed)
    except KeyboardInterrupt:  # a notebook's kernel was interrupted: the shell is to be usable afterwards
        _interrupt(console, advance)
        raise
    advance(time.monotonic() + _SETTLE_SECONDS)
    assert dialogue.status is not None  # set by the step that left RUNNING
    return CommandResult(bytes(output).decode(errors="replace"), dialogue.status, bytes(output))


def _interrupt(console: Console, advance: Callable[[float | None], bool]) -> None:
    for key in (INTERRUPT, QUIT):
        console.write(key)
        if advance(time.monotonic() + _GRACE_SECONDS):
            advance(time.monotonic() + _SETTLE_SECONDS)
            return
    console.write(SUSPEND)
    advance(time.monotonic() + _SETTLE_SECONDS)  # the time in which the shell takes its terminal back
    console.write(RESCUE)
    advance(time.monotonic() + _SETTLE_SECONDS)
