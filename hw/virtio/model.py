# SPDX-License-Identifier: GPL-2.0-or-later
"""What a virtio device is, beneath the transport that brings it to the guest.

Source: VIRTIO 1.2, chapters 2 and 5.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from coremesh.core._native import VirtQueue
from coremesh.hw.state import Stateful

# Feature bits that every device may have (chapter 6).
INDIRECT_DESC = 1 << 28
EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32


class Port(Protocol):
    """What a device asks of its transport. Any thread that does not hold the device's lock."""

    def needs_reset(self, why: str) -> None:
        """The driver has done what no driver does: the device stands still until it is reset (2.1.2)."""

    def configuration_changed(self) -> None:
        """Fields of the device's configuration have new values: the driver is told (2.5)."""


class VirtioModel(Stateful):
    """One virtio device. The transport calls, with its lock held unless it says otherwise.

    ``DEVICE_ID`` and ``PCI_CLASS`` say what it is; ``queue_sizes`` has the largest size of each queue.
    ``STATE`` names what is saved beside the configuration and the queues.
    """

    DEVICE_ID: ClassVar[int]
    PCI_CLASS: ClassVar[int]

    def __init__(self, name: str, *, features: int, queue_sizes: Sequence[int], config: bytes = b"") -> None:
        self.name = name
        self.features = features | INDIRECT_DESC | EVENT_IDX | VERSION_1
        self.queue_sizes = tuple(queue_sizes)
        self.config = bytearray(config)
        self.negotiated = 0
        self.queues: list[VirtQueue] = []
        self.port: Port

    def bind(self, port: Port, queues: Sequence[VirtQueue]) -> None:
        """The transport has made the queues. Once, while the machine is put together; without the lock."""
        self.port = port
        self.queues = list(queues)

    def activate(self, negotiated: int) -> None:
        """DRIVER_OK: requests of the enabled queues may be served from now on."""
        self.negotiated = negotiated

    def deactivate(self) -> None:
        """Reset: nothing of the guest is touched any more, and all state is as at the start."""
        self.negotiated = 0

    def write_config(self, at: int, data: bytes) -> None:
        """The driver writes its device configuration; by default nothing there is writable."""

    def start(self) -> None:
        """Let the workers run. Without the lock."""

    def stop(self) -> None:
        """Returns when no worker runs any more. Without the lock."""

    def counts(self) -> dict[str, int]:
        """What the device has done, for :meth:`coremesh.hw.node.DeviceNode.counters`. Any thread."""
        found: dict[str, int] = {}
        for queue in self.queues:
            add_counters(found, queue.counters())
        return found


def add_counters(total: dict[str, int], more: dict[str, int]) -> None:
    """Add the counters of one part to those of the device; 'deepest' is a maximum."""
    for name, value in more.items():
        total[name] = max(total.get(name, 0), value) if name == "deepest" else total.get(name, 0) + value
