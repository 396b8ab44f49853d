# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio console device: port 0 is the guest's console (hvc0), further ports are named pipes to the host.

Source: VIRTIO 1.2, section 5.3. What the guest sends is taken by hw/native/bytes.cpp; here are input, the
control queues, and the terminal's size.
"""

import struct
import threading
from collections.abc import Sequence
from typing import ClassVar, Final

from coremesh.core._native import VirtQueue, take_text
from coremesh.hw.backend.console import ConsoleLine
from coremesh.hw.virtio.model import VirtioModel

SIZE = 1 << 0
MULTIPORT = 1 << 1
EMERG_WRITE = 1 << 2

# Events of the control queues (5.3.6.2).
DEVICE_READY, DEVICE_ADD, DEVICE_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, OPEN, PORT_NAME = range(8)
_CONTROL: Final = struct.Struct("<IHH")
_SIZE: Final = struct.Struct("<HH")
_EMERGENCY_AT: Final = 8

QUEUE_SIZE: Final = 64
"""So a queue is one page of guest memory, which is all that moves between hosts for a line of text."""
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
MOST_PORTS: Final = 16
_MOST_AT_ONCE: Final = 64 << 10  # bytes that a port gives on in one piece
_LINGER_SECONDS: Final = 0.002  # how long it collects them
_MOST_WAITING: Final = 1024  # control messages that the driver has no buffer for yet


class VirtioConsole(VirtioModel):
    """A console at ``lines[0]``; each further line is a port of that name for programs of the guest.

    With one line alone the control queues are not offered: the driver then reads the terminal's size from the
    configuration. Older Linux kernels take rows and columns of the control message for each other.
    """

    DEVICE_ID = 3
    PCI_CLASS = 0x078000
    STATE: ClassVar[tuple[str, ...]] = ("_opened", "_messages")

    def __init__(self, lines: Sequence[ConsoleLine], *, name: str, names: Sequence[str] = ()) -> None:
        """``names`` are those of the lines behind the first."""
        several = len(lines) > 1
        super().__init__(
            name,
            features=SIZE | EMERG_WRITE | (MULTIPORT if several else 0),
            queue_sizes=[QUEUE_SIZE] * (2 * len(lines) + 2 if several else 2),
            config=struct.pack("<HHII", 80, 25, len(lines), 0),
        )
        self.lines = tuple(lines)
        self.names = ("", *names)
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._control_lock = threading.Lock()  # of the next two
        self._messages: list[str] = []  # for the driver, in hexadecimal digits; they wait for buffers
        self._opened = [False] * len(lines)  # by the guest's programs
        self._bytes = {"bytes_sent": 0, "bytes_received": 0}

    @property
    def open(self) -> bool:
        """Whether a driver serves the console. Any thread."""
        return bool(self.queues) and self.queues[0].enabled

    # --- the transport -----------------------------------------------------------------------------------

    def deactivate(self) -> None:
        """See :class:`VirtioModel`."""
        super().deactivate()
        with self._control_lock:
            self._messages.clear()
        self._opened[:] = [False] * len(self.lines)

    def write_config(self, at: int, data: bytes) -> None:
        """A character for the console, from a driver that has no queue yet or no more (5.3.4)."""
        if at == _EMERGENCY_AT:
            self.lines[0].transmit(data[:1])

    def start(self) -> None:
        """See :class:`VirtioModel`."""
        if self._threads:
            return
        self._stopping = False
        for number in range(len(self.lines)):
            self._begin(self._transmit, number)
            self._begin(self._receive, number)
            self.lines[number].attach(self._receive_queue(number).wake)
        if self.features & MULTIPORT:
            self._begin(self._listen, 0)
            self._begin(self._tell, 0)

    def _begin(self, work: object, number: int) -> None:
        thread = threading.Thread(
            target=work,  # type: ignore[arg-type]
            args=(number,),
            name=f"{self.name}.{number} {getattr(work, '__name__', '').strip('_')}",
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """See :class:`VirtioModel`."""
        self._stopping = True
        for queue in self.queues:
            queue.wake()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def counts(self) -> dict[str, int]:
        """See :class:`VirtioModel`. Bytes that the guest has sent and received on all ports."""
        return {**super().counts(), **self._bytes}

    # --- the ports ---------------------------------------------------------------------------------------

    def _receive_queue(self, port: int) -> VirtQueue:
        """5.3.2: the control queues lie between those of port 0 and of port 1."""
        return self.queues[2 * port + (2 if port else 0)]

    def _transmit_queue(self, port: int) -> VirtQueue:
        return self.queues[2 * port + (3 if port else 1)]

    def _transmit(self, port: int) -> None:
        """The guest sends."""
        queue, line = self._transmit_queue(port), self.lines[port]
        queue.wake()
        while not self._stopping:
            data, broken = take_text(queue, _MOST_AT_ONCE, _LINGER_SECONDS)
            if data:
                self._bytes["bytes_sent"] += len(data)
                line.transmit(data)
            if broken:
                self.port.needs_reset("console output that no driver sends")

    def _receive(self, port: int) -> None:
        """The person has typed, or the driver has given buffers."""
        queue, line = self._receive_queue(port), self.lines[port]
        queue.wake()
        while not self._stopping:
            queue.wait(-1)
            given = False
            while line.input_left and not self._stopping:
                request = queue.take()
                if request is None:
                    if queue.allow_notifications():
                        continue
                    break
                data = line.take(request.writable)
                if not queue.complete(request, data):
                    break
                self._bytes["bytes_received"] += len(data)
                given = True
            if given:
                queue.notify()
            self._check(queue)

    def _check(self, queue: VirtQueue) -> None:
        if queue.broken:
            self.port.needs_reset("buffers for a console that no driver gives")

    # --- the control queues ------------------------------------------------------------------------------

    def _listen(self, _: int) -> None:
        """What the driver says of its ports."""
        queue = self.queues[CONTROL_TRANSMIT]
        queue.wake()
        while not self._stopping:
            queue.wait(-1)
            while not self._stopping:
                request = queue.take()
                if request is None:
                    if queue.allow_notifications():
                        continue
                    break
                message = queue.data(request, _CONTROL.size)
                # Handled first: Linux spins until the buffer comes back, and then counts on the effect.
                if message is not None and len(message) == _CONTROL.size:
                    self._handle(*_CONTROL.unpack(message))
                if not queue.complete(request, b""):
                    break
                queue.notify()
            self._check(queue)

    def _handle(self, port: int, event: int, value: int) -> None:
        if event == DEVICE_READY and value == 1:
            with self._control_lock:
                self._messages.clear()  # what was meant for an earlier driver
            for number in range(len(self.lines)):
                self._say(number, DEVICE_ADD)
        elif event == PORT_READY and value == 1 and port < len(self.lines):
            if port == 0:
                self._say(port, CONSOLE_PORT, 1)
                self._say(port, RESIZE, 0, bytes(self.config[:4]))
            elif self.names[port]:
                self._say(port, PORT_NAME, 1, self.names[port].encode())
            self._say(port, OPEN, 1)
        elif event == OPEN and port < len(self.lines):
            self._opened[port] = bool(value)

    def _say(self, port: int, event: int, value: int = 0, more: bytes = b"") -> None:
        """Any thread."""
        with self._control_lock:
            if len(self._messages) < _MOST_WAITING:
                self._messages.append((_CONTROL.pack(port, event, value) + more).hex())
        self.queues[CONTROL_RECEIVE].wake()

    def _tell(self, _: int) -> None:
        """Give the driver what waits for it."""
        queue = self.queues[CONTROL_RECEIVE]
        queue.wake()
        while not self._stopping:
            queue.wait(-1)
            given = False
            while self._messages and not self._stopping:
                request = queue.take()
                if request is None:
                    if queue.allow_notifications():
                        continue
                    break
                with self._control_lock:
                    message = bytes.fromhex(self._messages.pop(0)) if self._messages else b""
                if not queue.complete(request, message):
                    break
                given = True
            if given:
                queue.notify()
            self._check(queue)

    # --- the person --------------------------------------------------------------------------------------

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now, 1 to 65,535 each. Any thread."""
        size = _SIZE.pack(columns, rows)
        if size == self.config[:4]:
            return
        self.config[:4] = size
        self.port.configuration_changed()
        if self.negotiated & MULTIPORT:
            self._say(0, RESIZE, 0, size)
