# SPDX-License-Identifier: GPL-2.0-or-later
"""What drives tell of themselves: IDENTIFY DEVICE and IDENTIFY PACKET DEVICE (ATA/ATAPI-6, 8.15 and 8.16)."""

from coremesh.hw.ata.registers import SECTOR

FIRMWARE = "1.0"
_SIGNATURE = 0xA5


def identify_disk(
    sectors: int,
    serial: str,
    can_trim: bool,
    multiple: int,
    per_track: int,
    heads: int,
    transfer_mode: int,
    write_cache: bool,
) -> bytes:
    """The 512 bytes of IDENTIFY DEVICE; the last five arguments are what software has set."""
    words = [0] * 256
    cylinders = min(sectors // (heads * per_track), 16383)
    words[0] = 0x0040  # fixed
    words[1], words[3], words[6] = cylinders, 16, 63
    _text(words, 10, 10, serial)
    _text(words, 23, 4, FIRMWARE)
    _text(words, 27, 20, "COREMESH HARDDISK")
    words[47] = 0x8010  # READ MULTIPLE: up to 16 sectors
    words[48] = 0x0001  # the data port takes 32 bits
    words[49] = 0x0B00  # LBA, DMA, IORDY
    words[50] = 0x4000
    words[51] = 0x0200
    words[53] = 0x0007  # words 54-58, 64-70 and 88 are valid
    words[54], words[55], words[56] = cylinders, heads, per_track
    _put(words, 57, min(cylinders * heads * per_track, sectors), 2)
    words[59] = 0x0100 | multiple if multiple else 0
    _put(words, 60, min(sectors, (1 << 28) - 1), 2)
    _modes(words, transfer_mode)
    words[65:69] = [120] * 4  # ns of a cycle
    words[80] = 0x0070  # ATA/ATAPI-4 to 6
    words[82] = 0x4028  # NOP, write cache, power management
    words[83] = 0x7400  # FLUSH CACHE EXT, FLUSH CACHE, 48-bit addresses
    words[84] = 0x4040  # WRITE ... FUA EXT
    words[85] = 0x4008 | (0x0020 if write_cache else 0)
    words[86] = 0x3400
    words[87] = 0x4040
    words[93] = 0x6001  # the reset found device 0, and a cable of 80 wires
    _put(words, 100, sectors, 4)
    words[106] = 0x4000  # a physical sector is a logical one
    if can_trim:
        words[105] = 1  # blocks of ranges of DATA SET MANAGEMENT
        words[169] = 0x0001
    words[217] = 1  # does not rotate
    return _sealed(words)


def identify_packet_device(
    serial: str, multiple: int, per_track: int, heads: int, transfer_mode: int, write_cache: bool
) -> bytes:
    """The 512 bytes of IDENTIFY PACKET DEVICE of a CD-ROM drive; of what was set it tells the mode alone."""
    words = [0] * 256
    words[0] = 0x85C0  # ATAPI, CD-ROM, removable, DRQ within 50 us, packets of 12 bytes
    _text(words, 10, 10, serial)
    _text(words, 23, 4, FIRMWARE)
    _text(words, 27, 20, "COREMESH CD-ROM")
    words[49] = 0x0B00
    words[50] = 0x4000
    words[51] = 0x0200
    words[53] = 0x0006
    _modes(words, transfer_mode)
    words[65:69] = [120] * 4
    words[80] = 0x0070
    words[82] = 0x4218  # NOP, DEVICE RESET, PACKET, power management
    words[83] = words[84] = 0x4000
    words[85] = 0x4218
    words[87] = 0x4000
    words[93] = 0x6001
    return _sealed(words)


def _modes(words: list[int], chosen: int) -> None:
    """The transfer modes that there are, and the one that SET FEATURES chose."""
    words[63] = 0x0007 | (0x0100 << (chosen & 7) if chosen & 0xF8 == 0x20 else 0)
    words[64] = 0x0003  # PIO 3 and 4
    words[88] = 0x003F | (0x0100 << (chosen & 7) if chosen & 0xF8 == 0x40 else 0)


def _put(words: list[int], at: int, value: int, count: int) -> None:
    for i in range(count):
        words[at + i] = value >> 16 * i & 0xFFFF


def _text(words: list[int], at: int, count: int, text: str) -> None:
    # The first character of a pair is in the upper half of its word.
    data = text.encode("ascii", "replace")[: 2 * count].ljust(2 * count)
    for i in range(count):
        words[at + i] = data[2 * i] << 8 | data[2 * i + 1]


def _sealed(words: list[int]) -> bytes:
    data = bytearray(b"".join(word.to_bytes(2, "little") for word in words))
    data[510] = _SIGNATURE
    data[511] = -sum(data) & 0xFF
    assert len(data) == SECTOR
    return bytes(data)
