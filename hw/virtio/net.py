# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio network device: one pair of queues, an Ethernet address, and a port of some network behind it.

Source: VIRTIO 1.2, section 5.1. No offload is offered: what the guest sends are whole frames with checksums,
which every network takes. Frames move by hw/native/frames.cpp, many in one call.
"""

import threading
from collections import deque
from typing import Final

from coremesh.core._native import deliver_frames, take_frames
from coremesh.hw.backend.network.port import Frames, NetworkPort
from coremesh.hw.virtio.model import VirtioModel

MAC = 1 << 5
STATUS = 1 << 16
LINK_UP = 1

QUEUE_SIZE: Final = 256
RECEIVE, TRANSMIT = 0, 1
_MOST_WAITING: Final = 2048  # frames that the driver has no buffer for yet
_MOST_AT_ONCE: Final = 128


class VirtioNet(VirtioModel):
    """A network card with the Ethernet address ``mac`` (6 bytes) at ``network``."""

    DEVICE_ID = 1
    PCI_CLASS = 0x020000

    def __init__(self, network: NetworkPort, *, name: str, mac: bytes) -> None:
        super().__init__(
            name,
            features=MAC | STATUS,
            queue_sizes=[QUEUE_SIZE, QUEUE_SIZE],
            config=mac + LINK_UP.to_bytes(2, "little") + bytes(4),
        )
        self.network = network
        self._stopping = False
        self._threads: list[threading.Thread] = []
        # Frames for the guest that wait for buffers; whoever holds the lock hands them over, in order.
        self._waiting: deque[bytes] = deque()
        self._handing = threading.Lock()
        self._counts = dict.fromkeys(
            ("frames_sent", "bytes_sent", "frames_received", "bytes_received", "frames_lost"), 0
        )

    def start(self) -> None:
        """See :class:`VirtioModel`."""
        if self._threads:
            return
        self._stopping = False
        for work, name in ((self._transmit, "tx"), (self._replenish, "rx")):
            thread = threading.Thread(target=work, name=f"{self.name} {name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self.network.start(self._receive)

    def stop(self) -> None:
        """See :class:`VirtioModel`."""
        self.network.stop()
        self._stopping = True
        for queue in self.queues:
            queue.wake()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def deactivate(self) -> None:
        """See :class:`VirtioModel`. What came for the last driver is not for the next one."""
        super().deactivate()
        self._waiting.clear()

    def counts(self) -> dict[str, int]:
        """See :class:`VirtioModel`. 'frames_lost' found no buffer of the guest, or did not fit one."""
        return {**super().counts(), **self._counts, **self.network.counts()}

    # --- the guest sends ---------------------------------------------------------------------------------

    def _transmit(self) -> None:
        queue = self.queues[TRANSMIT]
        queue.wake()
        while True:
            queue.wait(-1)
            if self._stopping:
                return
            more = True
            while more and not self._stopping:
                frames, refused, broken, more = take_frames(queue, _MOST_AT_ONCE)
                self._counts["frames_sent"] += len(frames)
                self._counts["bytes_sent"] += sum(map(len, frames))
                self._counts["frames_lost"] += refused
                if frames:
                    self.network.send(frames)
                if broken:
                    self.port.needs_reset("a frame that no driver sends")

    # --- the guest receives ------------------------------------------------------------------------------

    def _receive(self, frames: Frames) -> None:
        """The network's thread."""
        if not self.queues[RECEIVE].enabled:
            return  # no driver: as on a wire without an end
        room = _MOST_WAITING - len(self._waiting)
        self._waiting.extend(frames[:room])
        self._counts["frames_lost"] += max(0, len(frames) - room)
        self._hand_over()

    def _replenish(self) -> None:
        """The driver has given new buffers: frames may be waiting for them."""
        queue = self.queues[RECEIVE]
        while True:
            queue.wait(-1)
            if self._stopping:
                return
            if self._waiting:
                self._hand_over()

    def _hand_over(self) -> None:
        broken = False
        with self._handing:
            while self._waiting and not broken:
                batch = [self._waiting[i] for i in range(min(_MOST_AT_ONCE, len(self._waiting)))]
                done, refused, broken = deliver_frames(self.queues[RECEIVE], batch)
                for frame in batch[:done]:
                    self._counts["bytes_received"] += len(frame)
                    if self._waiting:
                        self._waiting.popleft()
                self._counts["frames_received"] += done - refused
                self._counts["frames_lost"] += refused
                if done < len(batch):
                    break
        if broken:
            self.port.needs_reset("a buffer for frames that is not RAM")
