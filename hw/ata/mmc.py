# SPDX-License-Identifier: GPL-2.0-or-later
"""What a CD-ROM drive answers to the packets of MMC-3 (T10/1363D) and SPC-2 (T10/1236D).

Packet in, answer out: no task file, no medium. An answer is data, or the blocks to read, or a sense code.
"""

from collections.abc import Callable
from dataclasses import dataclass

from coremesh.hw.state import Stateful

BLOCK = 2048
"""Bytes of a CD's block."""
_CD_BLOCKS = 450_000  # 99 minutes: what has more is a DVD
_SECOND = 75  # blocks
_PREGAP = 150  # blocks before the first; times count from there
_LEAD_OUT = 0xAA


class Sense(Stateful):
    """Why the last packet failed: key, additional code and qualifier (SPC-2, section 7.20)."""

    STATE = ("key", "code", "qualifier")
    NOT_READY, MEDIUM_ERROR, ILLEGAL_REQUEST, UNIT_ATTENTION = 2, 3, 5, 6

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """No sense: nothing to tell."""
        self.key = self.code = self.qualifier = 0

    def put(self, key: int, code: int, qualifier: int = 0) -> "Sense":
        """What to tell next."""
        self.key, self.code, self.qualifier = key, code, qualifier
        return self

    def unreadable(self) -> "Sense":
        """Unrecovered read error."""
        return self.put(self.MEDIUM_ERROR, 0x11)

    def invalid_command(self) -> "Sense":
        """Invalid command operation code."""
        return self.put(self.ILLEGAL_REQUEST, 0x20)

    def out_of_range(self) -> "Sense":
        """Logical block address out of range."""
        return self.put(self.ILLEGAL_REQUEST, 0x21)

    def invalid_field(self) -> "Sense":
        """Invalid field in the packet."""
        return self.put(self.ILLEGAL_REQUEST, 0x24)


@dataclass(frozen=True)
class Answer:
    """``data``, or ``blocks`` of the medium from ``lba``; neither, and the packet is done without data."""

    data: bytes = b""
    lba: int = 0
    blocks: int = 0

    def __bool__(self) -> bool:
        """Whether data follows."""
        return bool(self.data or self.blocks)


DONE = Answer()


class Player(Stateful):
    """The drive as the packets see it: tray, lock, sense data, and the ``blocks`` of the medium in it."""

    STATE = ("sense", "tray_open", "locked", "_event")

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self.sense = Sense()
        self._with_medium: dict[int, Callable[[bytes], Answer | Sense]] = {
            0x00: self._done,  # TEST UNIT READY
            0x25: self._read_capacity,
            0x28: self._read_10,
            0x2B: self._seek,
            0x2F: self._seek,  # VERIFY(10): the same fields, and nothing to be seen
            0x43: self._read_toc,
            0x51: self._read_disc_information,
            0xA8: self._read_12,
        }
        self._without: dict[int, Callable[[bytes], Answer | Sense]] = {
            0x03: self._request_sense,
            0x12: self._inquiry,
            0x1B: self._start_stop,
            0x1E: self._prevent,
            0x46: self._get_configuration,
            0x4A: self._get_event_status,
            0x5A: self._mode_sense,
            0xBB: self._done,  # SET CD SPEED
            0xBD: self._mechanism_status,
        }
        self.reset()

    def reset(self) -> None:
        """Tray closed and unlocked."""
        self.sense.clear()
        self.tray_open = False
        self.locked = False
        self._event = 0

    @property
    def present(self) -> bool:
        """Whether there is a medium that could be read."""
        return bool(self._blocks) and not self.tray_open

    def packet(self, packet: bytes) -> Answer | Sense:
        """Execute a packet of 12 bytes, whatever is in it."""
        operation = packet[0]
        if operation != 0x03:
            self.sense.clear()
        if operation in self._with_medium:
            if not self.present:
                return self.sense.put(Sense.NOT_READY, 0x3A, 2 if self.tray_open else 1)
            return self._with_medium[operation](packet)
        if operation in self._without:
            return self._without[operation](packet)
        return self.sense.invalid_command()

    def _done(self, packet: bytes) -> Answer:
        return DONE

    # --- reading

    def _read_10(self, packet: bytes) -> Answer | Sense:
        return self._read(_be(packet, 2, 4), _be(packet, 7, 2))

    def _read_12(self, packet: bytes) -> Answer | Sense:
        return self._read(_be(packet, 2, 4), _be(packet, 6, 4))

    def _read(self, lba: int, blocks: int) -> Answer | Sense:
        if lba + blocks > self._blocks:
            return self.sense.out_of_range()
        return Answer(lba=lba, blocks=blocks)

    def _seek(self, packet: bytes) -> Answer | Sense:
        return DONE if _be(packet, 2, 4) < self._blocks else self.sense.out_of_range()

    def _read_capacity(self, packet: bytes) -> Answer:
        return Answer((self._blocks - 1).to_bytes(4, "big") + BLOCK.to_bytes(4, "big"))

    # --- what is in the tray

    def _read_toc(self, packet: bytes) -> Answer | Sense:
        """One session with one data track (MMC-3, section 6.25)."""
        in_time = bool(packet[1] & 0x02)
        # Drivers of SFF-8020i put the format into the last byte's upper bits.
        kind = packet[2] & 0x0F or packet[9] >> 6
        track = packet[6]
        first = bytes([0, 0x14, 1, 0]) + _address(0, in_time=in_time)
        if kind == 0:
            if track > 1 and track != _LEAD_OUT:
                return self.sense.invalid_field()
            entries = first if track <= 1 else b""
            entries += bytes([0, 0x14, _LEAD_OUT, 0]) + _address(self._blocks, in_time=in_time)
        elif kind == 1:
            entries = first
        else:
            return self.sense.invalid_field()
        return _cut((len(entries) + 2).to_bytes(2, "big") + bytes([1, 1]) + entries, _be(packet, 7, 2))

    def _read_disc_information(self, packet: bytes) -> Answer | Sense:
        """A finished disc of one session (MMC-3, section 6.22)."""
        if packet[1] & 0x07:
            return self.sense.invalid_field()
        data = bytearray(34)
        data[0:2] = (32).to_bytes(2, "big")
        data[2:7] = bytes([0x0E, 1, 1, 1, 1])
        data[7] = 0x20  # unrestricted use
        data[16:24] = b"\xff" * 8  # no lead-in, no further session
        return _cut(bytes(data), _be(packet, 7, 2))

    def _get_configuration(self, packet: bytes) -> Answer | Sense:
        """Profiles, core, removable medium (MMC-3, section 6.6)."""
        wanted, first = packet[1] & 0x03, _be(packet, 2, 2)
        if wanted == 3:
            return self.sense.invalid_field()
        current = 0
        if self.present:
            current = 0x10 if self._blocks > _CD_BLOCKS else 0x08
        profiles = b"".join(
            profile.to_bytes(2, "big") + bytes([profile == current, 0]) for profile in (0x10, 0x08)
        )
        features = [
            (0x0000, 0x03, profiles),
            (0x0001, 0x0B, (7).to_bytes(4, "big")),  # ATAPI
            (0x0003, 0x03, bytes([0x29, 0, 0, 0])),  # a tray that can be locked and opened
        ]
        described = [
            number.to_bytes(2, "big") + bytes([flags, len(data)]) + data
            for number, flags, data in features
            if (number == first if wanted == 2 else number >= first)
        ]
        body = b"".join(described)
        header = (len(body) + 4).to_bytes(4, "big") + bytes(2) + current.to_bytes(2, "big")
        return _cut(header + body, _be(packet, 7, 2))

    def _get_event_status(self, packet: bytes) -> Answer | Sense:
        """Polled only: the medium's class (MMC-3, section 6.7)."""
        if not packet[1] & 0x01:
            return self.sense.invalid_field()
        medium = 0x10
        if not packet[4] & medium:
            return _cut(bytes([0, 2, 0x80, medium]), _be(packet, 7, 2))
        present = (0x02 if self.present else 0) | (0x01 if self.tray_open else 0)
        data = bytes([0, 6, 0x04, medium, self._event, present, 0, 0])
        self._event = 0
        return _cut(data, _be(packet, 7, 2))

    def _mechanism_status(self, packet: bytes) -> Answer:
        return _cut(bytes([0, 0x10 if self.tray_open else 0, 0, 0, 0, 0, 0, 0]), _be(packet, 8, 2))

    def _start_stop(self, packet: bytes) -> Answer | Sense:
        eject, start = packet[4] & 0x02, packet[4] & 0x01
        if eject:
            if self.locked and not start and not self.tray_open:
                return self.sense.put(Sense.ILLEGAL_REQUEST, 0x53, 2)  # removal prevented
            if self.tray_open == bool(start):
                self._event = 0x02 if start and self._blocks else 0x03
            self.tray_open = not start
        return DONE

    def _prevent(self, packet: bytes) -> Answer:
        self.locked = bool(packet[4] & 0x01)
        return DONE

    # --- what the drive is

    def _request_sense(self, packet: bytes) -> Answer:
        sense = self.sense
        data = bytes([0x70, 0, sense.key, 0, 0, 0, 0, 10, 0, 0, 0, 0, sense.code, sense.qualifier])
        sense.clear()
        return _cut(data.ljust(18, b"\0"), packet[4])

    def _inquiry(self, packet: bytes) -> Answer | Sense:
        if packet[1] & 0x01 or packet[2]:
            return self.sense.invalid_field()
        data = bytes([0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0])
        return _cut(data + b"COREMESH" + b"CD-ROM".ljust(16) + b"1.0 ", packet[4])

    def _mode_sense(self, packet: bytes) -> Answer | Sense:
        """Error recovery and capabilities (SFF-8020i, section 10.8.6)."""
        page, control = packet[2] & 0x3F, packet[2] >> 6
        if control == 3:
            return self.sense.put(Sense.ILLEGAL_REQUEST, 0x39)  # no saved values
        recovery = bytes([0x01, 6, 0, 5, 0, 0, 0, 0])
        capabilities = bytearray(20)
        capabilities[0:4] = bytes([0x2A, 18, 0x3B, 0])
        capabilities[6] = 0x29 | (0x02 if self.locked else 0)
        for at, value in ((8, 706), (10, 2), (12, 512), (14, 706)):
            capabilities[at : at + 2] = value.to_bytes(2, "big")
        pages = {0x01: recovery, 0x2A: bytes(capabilities)}
        pages[0x3F] = recovery + bytes(capabilities)
        if page not in pages:
            return self.sense.invalid_field()
        medium = 0x70 if not self.present else 0x01
        body = bytes([medium, 0, 0, 0, 0, 0]) + pages[page]
        return _cut(len(body).to_bytes(2, "big") + body, _be(packet, 7, 2))


def _be(packet: bytes, at: int, length: int) -> int:
    return int.from_bytes(packet[at : at + length], "big")


def _cut(data: bytes, allocated: int) -> Answer:
    """The answer in the room that the packet gives it."""
    return Answer(data[:allocated])


def _address(lba: int, *, in_time: bool) -> bytes:
    if not in_time:
        return lba.to_bytes(4, "big")
    lba += _PREGAP
    return bytes([0, min(lba // (60 * _SECOND), 255), lba // _SECOND % 60, lba % _SECOND])
