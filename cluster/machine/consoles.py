# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine's console: what a person writes of it, and the devices and listeners that come of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from coremesh.core.errors import ConfigurationError, shown
from coremesh.core.input_file import path_of

if TYPE_CHECKING:
    from coremesh.hw.backend.console import ConsoleLine, ConsolePort
    from coremesh.hw.virtio.model import VirtioModel

KINDS: Final = ("serial", "virtio")
MOST_PORTS: Final = 15
#: The name by which Linux knows a console of each kind; the serial port at its highest rate, since what is
#: typed arrives no faster than that.
LINUX_NAMES: Final = {"serial": "ttyS0,115200", "virtio": "hvc0"}


@dataclass(frozen=True)
class ConsoleDevice:
    """How the guest sees its console: a 'serial' port (ttyS0), or a 'virtio' console (hvc0) beside that.

    What the guest prints is appended to the file `log`; at the Unix socket `socket` programs read it, and
    type. `ports` are further ports of a virtio console, as (name, path of a Unix socket): the guest has them
    as /dev/virtio-ports/NAME.
    """

    kind: str = "serial"
    log: str | os.PathLike[str] | None = None
    socket: str | os.PathLike[str] | None = None
    ports: tuple[tuple[str, str | os.PathLike[str]], ...] = ()

    @property
    def linux_word(self) -> str:
        """The word of Linux's command line."""
        return f"console={LINUX_NAMES[self.kind]}"

    def checked(self) -> ConsoleDevice:
        """Return it with absolute paths. Raises :class:`ConfigurationError`."""
        if self.kind not in KINDS:
            raise ConfigurationError(f"no console {shown(self.kind)}; there are {', '.join(KINDS)}.")
        if not isinstance(self.ports, tuple) or not all(
            isinstance(each, tuple) and len(each) == 2 for each in self.ports
        ):
            raise ConfigurationError(
                f"a console's ports are pairs of name and path, not {shown(self.ports)}."
            )
        if self.ports and self.kind != "virtio":
            raise ConfigurationError("only a 'virtio' console has further ports: write virtio,port=...")
        names = [name for name, _ in self.ports]
        for name in names:
            if not isinstance(name, str) or not name or not name.isascii() or not name.isprintable():
                raise ConfigurationError(f"{shown(name)} is no name of a port; write port=NAME:PATH.")
            if "/" in name or len(name) > 64:
                raise ConfigurationError(
                    f"{shown(name)} is no name of a port: at most 64 characters, no '/'."
                )
        if len(set(names)) < len(names) or len(names) > MOST_PORTS:
            raise ConfigurationError(f"a console has at most {MOST_PORTS} ports, each with another name.")
        return replace(
            self,
            log=None if self.log is None else path_of("log", self.log).absolute(),
            socket=None if self.socket is None else _socket(self.socket),
            ports=tuple((name, _socket(path)) for name, path in self.ports),
        )


SERIAL_CONSOLE: Final = ConsoleDevice()


def _socket(value: Any) -> os.PathLike[str]:
    path = path_of("socket", value).absolute()
    if len(os.fsencode(path)) > 107:
        raise ConfigurationError(f"{shown(path)} is no path of a socket: at most 107 bytes.")
    return path


def parse_console(text: str) -> ConsoleDevice:
    """Return what a person wrote: ``serial`` or ``virtio``, with options.

    ``,log=FILE`` and ``,socket=PATH`` for both; ``,port=NAME:PATH``, also several times, for ``virtio``.
    Raises :class:`ConfigurationError`.
    """
    kind, *options = text.split(",")
    if kind not in KINDS:
        raise ConfigurationError(
            f"{shown(text)} is no console; write serial or virtio, with ,log=FILE or ,socket=PATH behind it."
        )
    console = ConsoleDevice(kind)
    for option in options:
        name, equals, value = option.partition("=")
        port, colon, path = value.partition(":")
        if name == "log" and value and console.log is None:
            console = replace(console, log=value)
        elif name == "socket" and value and console.socket is None:
            console = replace(console, socket=value)
        elif name == "port" and equals and colon and path:
            console = replace(console, ports=(*console.ports, (port, path)))
        else:
            raise ConfigurationError(
                f"{shown(option)} is no option of a console; there are log=FILE, socket=PATH and "
                "port=NAME:PATH."
            )
    return console


def check_console(value: Any) -> ConsoleDevice:
    """Return the console as the machine takes it, from a text or a :class:`ConsoleDevice`.

    Raises :class:`ConfigurationError`.
    """
    if isinstance(value, ConsoleDevice):
        return value.checked()
    if isinstance(value, str):
        return parse_console(value).checked()
    raise ConfigurationError(f"a console is text like 'virtio', or a ConsoleDevice, not {shown(value)}.")


@dataclass(frozen=True)
class OpenedConsole:
    """What came of it: the serial port's line, virtio devices, and how the terminal's size is told."""

    serial: ConsoleLine
    models: list[VirtioModel]
    resize: Callable[[int, int], None]


def open_console(console: ConsoleDevice, port: ConsolePort, stack: ExitStack) -> OpenedConsole:
    """Make the console's devices and listeners; `stack` closes these. Raises :class:`ConfigurationError`."""
    from coremesh.hw.backend.console import ConsolePort as Port
    from coremesh.hw.backend.console import Handover
    from coremesh.hw.backend.console_ends import ConsoleLog, ConsoleSocket

    if console.log is not None:
        stack.callback(ConsoleLog(port, console.log).close)
    if console.socket is not None:
        stack.callback(ConsoleSocket(port, console.socket).close)
    if console.kind == "serial":
        return OpenedConsole(port, [], lambda columns, rows: None)
    from coremesh.hw.virtio.console import VirtioConsole

    lines: list[ConsoleLine] = []
    for _, path in console.ports:
        further = Port()
        stack.callback(ConsoleSocket(further, path).close)
        lines.append(further)
    handover = Handover(port)
    model = VirtioConsole(
        [handover.later, *lines], name="virtio-console", names=[name for name, _ in console.ports]
    )
    handover.takes_over = lambda: model.open
    return OpenedConsole(handover.first, [model], model.resize)
