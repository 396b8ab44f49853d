# SPDX-License-Identifier: GPL-2.0-or-later
"""A tap interface of this computer: the guest's card is at the host's own network, bridged or routed there.

Source: Linux, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import os
import select
import struct
import threading
from pathlib import Path
from typing import Final

from coremesh.core.errors import ConfigurationError, NetworkError, shown
from coremesh.hw.backend.network.port import LONGEST_FRAME, Frames, Receive

_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_NAME_BYTES: Final = 15
_MOST_AT_ONCE: Final = 64


def check_name(name: str) -> str:
    """Return ``name`` if an interface can have it. Raises :class:`ConfigurationError`."""
    if (
        not 1 <= len(name.encode(errors="replace")) <= _NAME_BYTES
        or not name.isascii()
        or not name.isprintable()
        or any(character in name for character in "/% :")
        or name in (".", "..")
    ):
        raise ConfigurationError(f"{shown(name)} is no name of a network interface; write tap=tap0.")
    return name


class TapPort:
    """A :class:`~coremesh.hw.backend.network.port.NetworkPort` at the interface ``name``."""

    def __init__(self, name: str) -> None:
        """The interface is there, or this user may make one. Raises :class:`NetworkError`."""
        self.name = check_name(name)
        try:
            self._file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NetworkError(
                f"no tap interface ({error.strerror}: /dev/net/tun): root loads its driver: 'modprobe tun'; "
                "a container gets the device by '--device /dev/net/tun'. --net user needs neither."
            ) from None
        try:
            fcntl.ioctl(self._file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        except OSError as error:
            os.close(self._file)
            raise NetworkError(_way_out(name, error)) from None
        self._wakes, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._receive: Receive = lambda frames: None
        self._thread: threading.Thread | None = None
        self._stopping = self._closed = False
        self._dropped = 0

    def start(self, receive: Receive) -> None:
        """See :class:`NetworkPort`."""
        if self._thread is None:
            self._receive, self._stopping = receive, False
            self._thread = threading.Thread(target=self._run, name=f"tap {self.name}", daemon=True)
            self._thread.start()

    def send(self, frames: Frames) -> None:
        """See :class:`NetworkPort`. An interface that is down takes nothing."""
        for frame in frames:
            try:
                if len(frame) > LONGEST_FRAME:
                    self._dropped += 1
                else:
                    os.write(self._file, frame)
            except OSError:  # no room, too long for the interface, or it is down
                self._dropped += 1

    def stop(self) -> None:
        """See :class:`NetworkPort`."""
        if self._thread is not None:
            self._stopping = True
            with contextlib.suppress(OSError):
                os.write(self._wake_end, b"\0")
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """See :class:`NetworkPort`."""
        self.stop()
        if not self._closed:
            self._closed = True
            for descriptor in (self._file, self._wakes, self._wake_end):
                os.close(descriptor)

    def counts(self) -> dict[str, int]:
        """See :class:`NetworkPort`."""
        return {"frames_dropped": self._dropped}

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        poll.register(self._wakes, select.POLLIN)
        while not self._stopping:
            ready = dict(poll.poll())
            if self._wakes in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakes, 4096)
            frames = self._read() if self._file in ready else []
            if frames:
                self._receive(frames)

    def _read(self) -> list[bytes]:
        frames: list[bytes] = []
        while len(frames) < _MOST_AT_ONCE:
            try:
                frames.append(os.read(self._file, LONGEST_FRAME))
            except BlockingIOError:
                break
            except OSError as error:
                # The interface is down, or was removed: wait for it, without running in a circle.
                if error.errno not in (errno.EIO, errno.EBADFD):
                    raise
                threading.Event().wait(0.1)
                break
        return frames


def _way_out(name: str, error: OSError) -> str:
    what = f"the tap interface {name} cannot be used ({error.strerror})"
    if error.errno == errno.EBUSY:
        return f"{what}: another program has it; give each machine one of its own."
    if error.errno != errno.EPERM:
        return f"{what}: 'ip link show {name}' tells what it is."
    if Path("/sys/class/net", name).exists():
        return (
            f"{what}: it is another user's; root makes one by 'ip tuntap add dev tap0 mode tap user {_me()}'."
        )
    return (
        f"{what}: root makes it by 'ip tuntap add dev {name} mode tap user {_me()}' and 'ip link set {name} "
        "up'. --net user needs no permission."
    )


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
