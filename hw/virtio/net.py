# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio network device: pairs of queues, an Ethernet address, and a port of some network behind it.

Source: VIRTIO 1.2, section 5.1. No offload is offered: what the guest sends are whole frames with checksums,
which every network takes. Frames move by hw/native/frames.cpp, many in one call. A device of several pairs
has a control queue, by which the driver says how many it uses; a frame then goes to the pair on which its
conversation last sent (hw/native/flows.cpp).
"""

import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from coremesh.core._native import FlowTable, Request, VirtQueue, deliver_frames, take_frames
from coremesh.hw.backend.network.port import Frames, NetworkPort
from coremesh.hw.virtio.model import VirtioModel
from coremesh.hw.virtio.workers import QueueWorkers

MAC = 1 << 5
STATUS = 1 << 16
CTRL_VQ = 1 << 17
MQ = 1 << 22
LINK_UP = 1

QUEUE_SIZE: Final = 256
CONTROL_SIZE: Final = 64
MOST_PAIRS: Final = 8
RECEIVE, TRANSMIT = 0, 1
CTRL_MQ, CTRL_MQ_PAIRS_SET = 4, 0
OK, ERROR = b"\0", b"\1"
_MOST_WAITING: Final = 2048  # frames that the driver has no buffer for yet
_MOST_AT_ONCE: Final = 128
_CONTROL: Final = struct.Struct("<BBH")
_LONGEST_CONTROL: Final = 4096


class VirtioNet(VirtioModel):
    """A network card with the Ethernet address ``mac`` (6 bytes) at ``network``."""

    DEVICE_ID = 1
    PCI_CLASS = 0x020000
    STATE: ClassVar[tuple[str, ...]] = ("_used_pairs",)

    def __init__(self, network: NetworkPort, *, name: str, mac: bytes, pairs: int = 1) -> None:
        several = pairs > 1
        super().__init__(
            name,
            features=MAC | STATUS | (CTRL_VQ | MQ if several else 0),
            queue_sizes=[QUEUE_SIZE] * 2 * pairs + ([CONTROL_SIZE] if several else []),
            config=mac + LINK_UP.to_bytes(2, "little") + pairs.to_bytes(2, "little") + bytes(2),
        )
        self.network = network
        self.pairs = pairs
        self._used_pairs = 1
        self._flows = FlowTable()
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._receivers = [_Receiver(self) for _ in range(pairs)]
        self._control = QueueWorkers(self, self._command, count=1, why="a command that no driver gives")
        self._counts = dict.fromkeys(
            ("frames_sent", "bytes_sent", "frames_received", "bytes_received", "frames_lost"), 0
        )

    def _control_queue(self) -> int:
        """5.1.2: behind the pairs, of which there is one for a driver that does not know of more."""
        return 2 * self.pairs if self.negotiated & MQ else 2

    def start(self) -> None:
        """See :class:`VirtioModel`."""
        if self._threads:
            return
        self._stopping = False
        for pair, receiver in enumerate(self._receivers):
            receiver.queue = self.queues[2 * pair + RECEIVE]
            self._begin(self._transmit, pair, "tx")
            self._begin(self._replenish, pair, "rx")
        if self.pairs > 1:
            self._control.start(self.queues[2 * self.pairs])
        self.network.start(self._receive)

    def _begin(self, work: Callable[[int], None], pair: int, what: str) -> None:
        thread = threading.Thread(target=work, args=(pair,), name=f"{self.name} {what}{pair}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """See :class:`VirtioModel`."""
        self.network.stop()
        self._stopping = True
        self._control.stop()
        for queue in self.queues:
            queue.wake()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def deactivate(self) -> None:
        """See :class:`VirtioModel`. What came for the last driver is not for the next one."""
        super().deactivate()
        self._used_pairs = 1
        self._flows.forget()
        for receiver in self._receivers:
            receiver.waiting.clear()

    def counts(self) -> dict[str, int]:
        """See :class:`VirtioModel`. 'frames_lost' found no buffer of the guest, or did not fit one."""
        return {**super().counts(), **self._counts, "pairs_used": self._used_pairs, **self.network.counts()}

    # --- the guest sends ---------------------------------------------------------------------------------

    def _transmit(self, pair: int) -> None:
        queue = self.queues[2 * pair + TRANSMIT]
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
                    if self._used_pairs > 1:
                        self._flows.sent(frames, pair)
                    self.network.send(frames)
                if broken:
                    self.port.needs_reset("a frame that no driver sends")

    # --- the guest receives ------------------------------------------------------------------------------

    def _receive(self, frames: Frames) -> None:
        """The network's thread."""
        if not self.queues[RECEIVE].enabled:
            return  # no driver: as on a wire without an end
        used = self._used_pairs
        if used == 1:
            self._receivers[0].take(frames)
            return
        for pair, part in enumerate(self._flows.split(list(frames), used)):
            if part:
                self._receivers[pair].take(part)

    def _replenish(self, pair: int) -> None:
        """The driver has given new buffers: frames may be waiting for them."""
        queue, receiver = self.queues[2 * pair + RECEIVE], self._receivers[pair]
        while True:
            queue.wait(-1)
            if self._stopping:
                return
            if pair == 1 and not self.negotiated & MQ:
                self._control.serve(queue)  # the control queue of a driver that knows of one pair alone
            elif receiver.waiting:
                receiver.hand_over()

    def received(self, done: Sequence[bytes], refused: int) -> None:
        """A receiver has handed over ``done``, of which ``refused`` did not fit a buffer."""
        self._counts["bytes_received"] += sum(map(len, done))
        self._counts["frames_received"] += len(done) - refused
        self._counts["frames_lost"] += refused

    def lost(self, frames: int) -> None:
        """A receiver had no room for this number of frames."""
        self._counts["frames_lost"] += frames

    # --- control -----------------------------------------------------------------------------------------

    def _command(self, queue: VirtQueue, request: Request) -> bytes | None:
        """5.1.6.5: a class, a command and its data to read, and a byte for the answer."""
        if request.writable < 1 or request.readable < 2:
            return None
        data = queue.data(request, _LONGEST_CONTROL)
        if data is None or len(data) != _CONTROL.size:
            return ERROR
        kind, command, pairs = _CONTROL.unpack(data)
        # 5.1.6.5.6.2: the device refuses a number of pairs that it has not.
        if (kind, command) != (CTRL_MQ, CTRL_MQ_PAIRS_SET) or not self.negotiated & MQ:
            return ERROR
        if not 1 <= pairs <= self.pairs:
            return ERROR
        self._used_pairs = pairs
        return OK


class _Receiver:
    """The receive queue of one pair, and the frames that wait for its buffers."""

    def __init__(self, device: VirtioNet) -> None:
        self._device = device
        self.queue: VirtQueue
        # The holder of the lock hands frames over, in order.
        self.waiting: deque[bytes] = deque()
        self._handing = threading.Lock()

    def take(self, frames: Sequence[bytes]) -> None:
        """The network's thread."""
        room = _MOST_WAITING - len(self.waiting)
        self.waiting.extend(frames[:room])
        self._device.lost(max(0, len(frames) - room))
        self.hand_over()

    def hand_over(self) -> None:
        """Any thread."""
        broken = False
        with self._handing:
            while self.waiting and not broken:
                batch = list(self.waiting)[:_MOST_AT_ONCE]  # one step: a reset may empty it meanwhile
                done, refused, broken = deliver_frames(self.queue, batch)
                for _ in range(done):
                    if self.waiting:
                        self.waiting.popleft()
                self._device.received(batch[:done], refused)
                if done < len(batch):
                    break
        if broken:
            self._device.port.needs_reset("a buffer for frames that is not RAM")
