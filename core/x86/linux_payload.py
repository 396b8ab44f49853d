# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel proper inside a bzImage, unpacked on the host instead of by the guest.

A bzImage unpacks itself when it starts, which for an xz payload is most of what a short boot executes. The
ELF file inside is the same kernel and starts by the same protocol; only the random load address is lost.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Final, Protocol

from coremesh.core.elf import elf_class
from coremesh.core.errors import GuestImageError
from coremesh.core.memory_layout import GIB
from coremesh.core.x86.linux_boot import read_setup_header

PAYLOAD_FIELDS: Final = 0x248
"""payload_offset, from the end of the setup code, and payload_length: in the header since protocol 2.08."""
LARGEST_KERNEL: Final = GIB


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_FORMATS: Final[tuple[tuple[bytes, Callable[[], _Decompressor]], ...]] = (
    (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ)),
    (b"\x5d\0\0", lambda: lzma.LZMADecompressor(format=lzma.FORMAT_ALONE)),
    (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
    (b"BZh", bz2.BZ2Decompressor),
)


def unpack_linux(image: bytes) -> bytes:
    """The vmlinux, an ELF file, inside a bzImage that was packed with xz, lzma, gzip or bzip2.

    Raises :class:`GuestImageError` for a damaged file and for the formats that Python does not know (lz4,
    zstd, lzo): such a bzImage starts by itself all the same. May be called from any thread; takes a second.
    """
    header = read_setup_header(image)
    offset, length = struct.unpack_from("<II", image, PAYLOAD_FIELDS)
    start = header.payload_offset + offset
    packed = image[start : start + length]
    if not length or len(packed) < length:
        raise GuestImageError("the kernel's payload lies outside the file; it is truncated, fetch it again")
    decompressor = next((make() for magic, make in _FORMATS if packed.startswith(magic)), None)
    if decompressor is None:
        raise GuestImageError(
            "the kernel is packed in a format unknown to the host; start the bzImage itself"
        )
    kernel = _unpack(decompressor, packed, min(header.init_size, LARGEST_KERNEL))
    if elf_class(kernel) != header.bits:
        raise GuestImageError(
            f"the kernel's payload is no {header.bits}-bit ELF file; start the bzImage itself"
        )
    return kernel


def _unpack(decompressor: _Decompressor, packed: bytes, limit: int) -> bytes:
    """At most ``limit`` bytes: a kernel never unpacks to more than the memory it asks for (init_size)."""
    try:
        unpacked = decompressor.decompress(packed, limit + 1)
    except (lzma.LZMAError, zlib.error, OSError) as error:
        raise GuestImageError(
            f"the kernel does not unpack ({error}); it is corrupt, fetch it again"
        ) from error
    if len(unpacked) > limit:
        raise GuestImageError(
            "the kernel unpacks to more than its header says; it is corrupt, fetch it again"
        )
    if not decompressor.eof:
        raise GuestImageError("the kernel's payload ends too early; it is truncated, fetch it again")
    return unpacked
