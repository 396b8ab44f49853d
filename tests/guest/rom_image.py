# SPDX-License-Identifier: GPL-2.0-or-later
"""The ROM that the guest ``rom`` runs from: code, numbers, and a page table (``baremetal/rom.c``)."""

from coremesh.cluster.machine.description import Rom

ROM_BASE = 0xFFFC_0000
"""The last 256 KiB below 4 GiB, where a PC has its firmware."""
_BYTES = 0x4_0000
_MAPPED = 0x300_0000
_PRESENT_AND_WRITABLE = 3


def rom() -> Rom:
    """The firmware's place, with the image in it."""
    return Rom(ROM_BASE, _BYTES, rom_image())


def rom_image() -> bytes:
    """The bytes alone."""
    image = bytearray(b"\xf4" * _BYTES)
    image[0:6] = b"\xb8\x78\x56\x34\x12\xc3"  # mov eax, 12345678h; ret
    # mov dword [rip + 1], 0bad0badh, which is the next instruction's number; mov eax, 600dc0deh; ret
    writer = b"\xc7\x05\x01\x00\x00\x00\xad\x0b\xad\x0b\xb8\xde\xc0\x0d\x60\xc3"
    image[0x100 : 0x100 + len(writer)] = writer
    for at in range(0x1000, 0xF000, 8):
        image[at : at + 8] = (at * 0x9E37_79B9_7F4A_7C15 & (1 << 64) - 1).to_bytes(8, "little")
    image[0xF000:0x1_0000] = (_MAPPED | _PRESENT_AND_WRITABLE).to_bytes(8, "little") + bytes(4088)
    return bytes(image)
