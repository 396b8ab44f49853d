# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware image behind the guest ``pam`` (``baremetal/pam.c``): code and a word for each segment."""

_BYTES = 0x4_0000
_SEGMENTS = [0xC_0000 + 0x4000 * number for number in range(12)] + [0xF_0000]
_PAGE, _FUNCTION, _WORDS = 0x2000, 0x800, 0x400


def shadow_image() -> bytes:
    """256 KiB, whose second half also shows at E0000."""
    image = bytearray(b"\xff" * _BYTES)
    for number, start in enumerate(_SEGMENTS):
        if start < 0xE_0000:
            continue
        value = (0x0500 + number).to_bytes(4, "little")
        at = _BYTES - 0x10_0000 + start + _PAGE
        image[at + _FUNCTION : at + _FUNCTION + 6] = b"\xb8" + value + b"\xc3"  # mov eax, value; ret
        image[at + _WORDS : at + _WORDS + 4] = value
    return bytes(image)
