# SPDX-License-Identifier: GPL-2.0-or-later
"""Message signalled interrupts of a PCI function: up to 32 messages, each with a mask and a pending bit.

Source: PCI Local Bus Specification 3.0, section 6.8.1. For a device that a person writes; virtio devices have
MSI-X, which is native (hw/native/interrupts.hpp).
"""

import threading
from collections.abc import Callable
from typing import Final

from coremesh.hw.pci.config_space import COMMAND
from coremesh.hw.pci.function import PciFunction
from coremesh.hw.registers import Bit, Bits, Register

CAPABILITY: Final = 0x05
MOST_MESSAGES: Final = 32
_ADDRESS, _UPPER, _DATA, _MASK, _PENDING = 4, 8, 12, 16, 20
_BODY_BYTES: Final = 22


class MESSAGE_CONTROL(Register):
    """Message control of the capability."""

    offset = 2
    ENABLE = Bit(0)
    CAPABLE = Bits(3, 1)  # messages that the function wants, as a power of two
    ENABLED = Bits(6, 4)  # and that it was given
    WIDE = Bit(7)
    MASKABLE = Bit(8)


class Msi:
    """The capability of ``function``, with ``messages`` of its own (a power of two up to 32).

    ``send`` takes (address, data), as :meth:`~coremesh.hw.irq.InterruptFabric.msi` does. The function's owner
    calls :meth:`signal`, and :meth:`written` from the function's method of that name. All state is in the
    function's configuration space, and saved with it.
    """

    def __init__(self, function: PciFunction, send: Callable[[int, int], None], messages: int = 1) -> None:
        if not 1 <= messages <= MOST_MESSAGES or messages & (messages - 1):
            raise ValueError(f"{messages} messages: a function has 1, 2, 4, 8, 16 or 32")
        self._config = function.config
        self._send = send
        self._messages = messages
        self._lock = threading.Lock()  # of the pending bits; the fabric is called with it held
        control = (messages.bit_length() - 1) << 1 | MESSAGE_CONTROL.WIDE | MESSAGE_CONTROL.MASKABLE
        writable = bytearray(_BODY_BYTES)
        writable[0] = MESSAGE_CONTROL.ENABLE | MESSAGE_CONTROL.ENABLED.mask
        writable[2:12] = b"\xfc" + b"\xff" * 9  # the address is one of a word
        writable[14:18] = ((1 << messages) - 1).to_bytes(4, "little")
        writable[12:14] = b"\0\0"
        body = bytearray(_BODY_BYTES)
        body[:2] = control.to_bytes(2, "little")
        self.at = self._config.add_capability(CAPABILITY, bytes(body), bytes(writable))

    def _register(self, offset: int, size: int = 4) -> int:
        return self._config.read(self.at + offset, size)

    @property
    def enabled(self) -> bool:
        """Whether the guest has chosen messages; without them a function uses its pin. Any thread."""
        return bool(self._register(MESSAGE_CONTROL.offset, 2) & MESSAGE_CONTROL.ENABLE)

    def signal(self, message: int = 0) -> bool:
        """Send a message, or keep it pending while it is masked. False: the guest has not enabled them.

        Of fewer messages than the function has, the last stands for the others. Any thread.
        """
        if not self.enabled:
            return False
        with self._lock:
            given = 1 << min(
                MESSAGE_CONTROL.ENABLED.of(self._register(MESSAGE_CONTROL.offset, 2)),
                self._messages.bit_length() - 1,
            )
            bit = 1 << min(message, given - 1)
            self._config.put(self.at + _PENDING, 4, self._register(_PENDING) | bit)
            self._release()
        return True

    def written(self, at: int, size: int) -> None:
        """The guest has written configuration space: what was held back may go out now."""
        ours = at < self.at + _PENDING and at + size > self.at
        if ours or at <= COMMAND.offset < at + size:
            with self._lock:
                self._release()

    def _release(self) -> None:
        """Send what is pending and may be sent: a message is a write on the bus."""
        if not self.enabled or not self._config.read(COMMAND.offset, 2) & COMMAND.BUS_MASTER:
            return
        ready = self._register(_PENDING) & ~self._register(_MASK)
        self._config.put(self.at + _PENDING, 4, self._register(_PENDING) & ~ready)
        address = self._register(_ADDRESS) | self._register(_UPPER) << 32
        data = self._register(_DATA, 2)
        given = 1 << MESSAGE_CONTROL.ENABLED.of(self._register(MESSAGE_CONTROL.offset, 2))
        for message in range(MOST_MESSAGES):
            if ready >> message & 1:
                # Of several messages the low bits of the data tell which.
                self._send(address, data & ~(min(given, self._messages) - 1) | message)
