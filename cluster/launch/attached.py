# SPDX-License-Identifier: GPL-2.0-or-later
"""A device that a person writes in Python, attached to a running machine: the end where its code runs.

The object stays in this process, so that what it prints is seen and its attributes can be changed while the
guest uses it. A thread of its own fetches the guest's accesses from the host with the devices
(machine/attachments.py) and calls the object's methods, one access after the other.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from coremesh.cluster.machine.attachments import Wanted
from coremesh.cluster.machine.options import check
from coremesh.core.errors import ConfigurationError, CoremeshError, DeviceError, MachineStateError
from coremesh.hw.attached import READ, WRITE, Answer, Request

if TYPE_CHECKING:
    from coremesh.cluster.launch.hosts import Hosts

Place = int | tuple[int, int] | range

_FETCH_SECONDS = 1.0  # a call that waits for the guest's next access
_LEAVE_SECONDS = 5.0


class PythonDevice:
    """Base of devices that are written in Python and attached to a running machine: :meth:`Machine.attach`.

    >>> import coremesh
    >>> class Adder(coremesh.PythonDevice):
    ...     total = 0
    ...
    ...     def read(self, offset, size):
    ...         return self.total
    ...
    ...     def write(self, offset, size, value):
    ...         self.total += value

    Override what the device needs. The methods are called on a thread of the device in this process, one at a
    time and in the order of the guest's accesses. A guest that reads waits for the answer; a write has passed
    when `write` is called. Offsets and sizes are in bytes; sizes are 1, 2, 4 or 8, aligned.

    The other methods drive the device's interrupt line and reach guest memory; they may be called by any
    thread while the device is attached, and raise :class:`MachineStateError` otherwise.
    """

    _attachment: Attachment | None = None

    def read(self, offset: int, size: int) -> int:
        """Return what the guest reads at `offset`, `size` bytes; by default all ones, as of an empty bus.

        An exception that it raises is a :class:`DeviceError` of the attachment; the guest reads all ones.
        """
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Take `value`, `size` bytes that the guest writes at `offset`; by default it is lost.

        An exception that it raises is a :class:`DeviceError` of the attachment.
        """

    def reset(self) -> None:
        """The guest's computer is reset: all registers take their first values. By default nothing."""

    def set_irq(self, level: bool) -> None:
        """Drive the interrupt line high (True) or low. Returns when the interrupt controllers know it.

        Change what the guest will look at before: its handler may run at once. Raises
        :class:`ConfigurationError` for a device that has no line.
        """
        self._attached().set_irq(level)

    def pulse_irq(self) -> None:
        """Give a rising edge on the interrupt line, which stays high. Raises as :meth:`set_irq`."""
        self._attached().pulse_irq()

    def dma_read(self, gpa: int, length: int) -> bytes:
        """Return `length` bytes of guest RAM at guest-physical address `gpa`, as a bus master reads them.

        Raises :class:`ConfigurationError` where not all of that is RAM of one region.
        """
        return self._attached().dma_read(gpa, length)

    def dma_write(self, gpa: int, data: bytes) -> None:
        """Write `data` into guest RAM at guest-physical address `gpa`, as a bus master does.

        Raises :class:`ConfigurationError` where not all of that is RAM of one region.
        """
        self._attached().dma_write(gpa, data)

    def _attached(self) -> Attachment:
        if self._attachment is None:
            raise MachineStateError("the device is not attached; machine.attach(device, mmio=...) does it.")
        return self._attachment


class Attachment:
    """A device on a machine, from :meth:`Machine.attach` to :meth:`detach` or the machine's end.

    In a ``with`` block it is detached at the block's end. Any thread may call.

    Attributes, set once: `name`, the row of :meth:`Machine.device_stats`, and `device`.
    """

    def __init__(self, hosts: Hosts, device: Any, wanted: Wanted) -> None:
        """Attach; :meth:`Machine.attach` says how, and what it raises."""
        self.device = device
        self._hosts = hosts
        self._timeout = wanted.timeout
        self._lock = threading.Lock()
        self._error: DeviceError | None = None  # guarded by _lock, as is what follows
        self._detached = False
        self._reading_since: float | None = None  # a guest's read that the device has not answered yet
        self.name: str = hosts.call("attach_device", wanted)
        try:
            # No vCPU finds the device before its own host knows the addresses.
            hosts.all("claim", wanted.ranges)
            if isinstance(device, PythonDevice):
                device._attachment = self
        except BaseException:
            hosts.call("detach_device", self.name)
            raise
        # What a thread refers to lives as long as the thread: the machine must not, so it has the hosts only.
        self._thread = threading.Thread(target=self._serve, name=f"device {self.name}", daemon=True)
        self._thread.start()

    @property
    def error(self) -> DeviceError | None:
        """What the device has failed in last, None if in nothing; ``device_stats`` counts how often.

        The traceback of an exception that it raised is its ``__cause__``.
        """
        with self._lock:
            since = self._reading_since
            # Its thread tells of a time-out when the method has returned, which may be never.
            if since is not None and time.monotonic() - since > self._timeout:
                return self._late("has not answered the guest")
            return self._error

    def detach(self) -> None:
        """Take the device off the machine: its addresses read as all ones, its interrupt line is low.

        Returns when its methods are no longer called, or after five seconds in which one does not end. To
        call it again, or after the machine's end, does nothing.
        """
        with self._lock:
            if self._detached:
                return
            self._detached = True
        with contextlib.suppress(CoremeshError):  # the machine has gone, and the device with it
            self._hosts.call("detach_device", self.name)
        if threading.current_thread() is not self._thread:
            self._thread.join(_LEAVE_SECONDS)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = "detached" if not self._thread.is_alive() else "attached"
        return f"<Attachment: {self.name}, {state}>"

    # --- what the device does to the machine -------------------------------------------------------------

    def set_irq(self, level: bool) -> None:
        """Drive the interrupt line high (True) or low; as :meth:`PythonDevice.set_irq`."""
        self._hosts.call("set_device_irq", self.name, check("level", level))

    def pulse_irq(self) -> None:
        """Give a rising edge on the interrupt line; as :meth:`PythonDevice.pulse_irq`."""
        self._hosts.call("set_device_irq", self.name, None)

    def dma_read(self, gpa: int, length: int) -> bytes:
        """Return `length` bytes of guest RAM at guest-physical `gpa`; as :meth:`PythonDevice.dma_read`.

        Raises :class:`ConfigurationError` where not all of that is RAM of one region.
        """
        data: bytes = self._hosts.call("dma_read", check("gpa", gpa), check("length", length))
        return data

    def dma_write(self, gpa: int, data: bytes) -> None:
        """Write `data` into guest RAM at guest-physical `gpa`; as :meth:`PythonDevice.dma_write`.

        Raises :class:`ConfigurationError` where not all of that is RAM of one region.
        """
        self._hosts.call("dma_write", check("gpa", gpa), check("data", data))

    # --- the device's thread -----------------------------------------------------------------------------

    def _serve(self) -> None:
        answers: list[Answer] = []
        while True:
            try:
                # Not through Hosts.call: Machine.wait() reports the machine's end, this thread does not.
                host = self._hosts[self._hosts.device_host]
                call = host.begin("exchange_device", self.name, answers, _FETCH_SECONDS)
                fetched = call.result()
            except Exception:  # the machine has gone, or Ray with it
                break
            if fetched is None:
                break
            requests, timeouts = fetched
            if timeouts:
                self._note(self._late("did not answer the guest", f", {timeouts} times"))
            answers = [self._do(request) for request in requests]
        with self._lock:
            self._detached = True
        if isinstance(self.device, PythonDevice):
            self.device._attachment = None

    def _late(self, what: str, often: str = "") -> DeviceError:
        return DeviceError(
            f"{self.name} {what} within {self._timeout:g} s{often}: it read all ones. Let read() return "
            "sooner, or attach it with a longer timeout=."
        )

    def _do(self, request: Request) -> Answer:
        try:
            if request.kind == READ:
                with self._lock:
                    self._reading_since = time.monotonic()
                value = operator.index(self.device.read(request.offset, request.size))
                return Answer(request.number, value & ((1 << 8 * request.size) - 1))
            if request.kind == WRITE:
                self.device.write(request.offset, request.size, request.value)
            elif (reset := getattr(self.device, "reset", None)) is not None:
                reset()
        except BaseException as error:  # SystemExit, too: it would end this thread, and nothing else
            effect = "the guest reads all ones" if request.kind == READ else "the guest goes on"
            failure = DeviceError(
                f"{self.name}.{request.kind} failed at offset {request.offset:#x}, {request.size} bytes "
                f"({type(error).__name__}: {error}); {effect}. Mend the method."
            )
            failure.__cause__ = error
            self._note(failure)
            return Answer(request.number, failed=True)
        finally:
            with self._lock:
                self._reading_since = None
        return Answer(request.number)

    def _note(self, error: DeviceError) -> None:
        """Keep the error; show the first one, as a notebook shows that of a cell."""
        with self._lock:
            first, self._error = self._error is None, error
        if first:
            print(f"{error}", file=sys.stderr)
            if error.__cause__ is not None:
                traceback.print_exception(error.__cause__, file=sys.stderr)


def wanted_of(
    device: Any, mmio: Place | None, ports: Place | None, irq: int | None, name: str | None, timeout: float
) -> Wanted:
    """What is to be attached, of what a person asked for. Raises :class:`ConfigurationError`."""
    check("device", device)
    if isinstance(device, PythonDevice) and device._attachment is not None:
        raise ConfigurationError("the device is attached already; detach it, or attach another object.")
    ranges = [place for place in (check("mmio", mmio), check("ports", ports)) if place is not None]
    if not ranges:
        raise ConfigurationError("say where the device answers: mmio=0xFED00000, or ports=(0x240, 8).")
    exact = name is not None
    return Wanted(
        check("name", name if exact else type(device).__name__),
        tuple(ranges),
        check("irq", irq),
        check("answer", timeout),
        exact,
    )
