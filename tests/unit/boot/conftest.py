# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels of a few hundred bytes: real headers around code that is never run."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

KernelMaker = Callable[..., bytes]

MIB = 1 << 20


def _bzimage(
    *,
    payload: bytes = b"\x90" * 4096,
    setup_sects: int = 4,
    version: int = 0x020F,
    boot_flag: int = 0xAA55,
    magic: bytes = b"HdrS",
    loadflags: int = 1,
    xloadflags: int = 1,
    initrd_addr_max: int = 0x7FFF_FFFF,
    kernel_alignment: int = 2 * MIB,
    relocatable: int = 1,
    cmdline_size: int = 2047,
    pref_address: int = 16 * MIB,
    init_size: int = 4 * MIB,
    syssize: int | None = None,
) -> bytes:
    """A bzImage; every field of its setup header that a loader reads can be set."""
    setup = bytearray((setup_sects + 1) * 512)
    for offset, layout, value in (
        (0x1F1, "B", setup_sects),
        (0x1F4, "I", -(-len(payload) // 16) if syssize is None else syssize),
        (0x1FE, "H", boot_flag),
        (0x200, "H", 0x66EB),  # jump over the header, to 0x268
        (0x206, "H", version),
        (0x211, "B", loadflags),
        (0x22C, "I", initrd_addr_max),
        (0x230, "I", kernel_alignment),
        (0x234, "B", relocatable),
        (0x236, "H", xloadflags),
        (0x238, "I", cmdline_size),
        (0x258, "Q", pref_address),
        (0x260, "I", init_size),
    ):
        struct.pack_into("<" + layout, setup, offset, value)
    setup[0x202:0x206] = magic
    return bytes(setup) + payload


def _elf(
    *,
    bits: int = 64,
    machine: int | None = None,
    kind: int = 2,
    entry: int = 16 * MIB,
    segments: tuple[tuple[int, int, bytes, int], ...] = ((16 * MIB, 0, b"\xf4" * 64, 64),),
    prefix: bytes = b"",
    notes: tuple[tuple[bytes, int, bytes], ...] = (),
) -> bytes:
    """An executable without sections; segments are (paddr, vaddr or 0 for the same, bytes, memsz).

    ``notes`` are (owner, kind, bytes).
    """
    header_bytes, program_bytes = (64, 56) if bits == 64 else (52, 32)
    machine = machine if machine is not None else (62 if bits == 64 else 3)
    word = "Q" if bits == 64 else "I"
    area = b"".join(_note(*note) for note in notes)
    programs_count = len(segments) + bool(notes)
    data_offset = header_bytes + program_bytes * programs_count + len(prefix) + len(area)
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    header = ident + struct.pack(
        f"<HHI{word}{word}{word}IHHHHHH",
        *(kind, machine, 1, entry, header_bytes, 0),
        *(0, header_bytes, program_bytes, programs_count, 0, 0, 0),
    )
    programs, body = b"", b""
    for paddr, vaddr, data, memsz in segments:
        offset = data_offset + len(body)
        virtual = vaddr or paddr
        if bits == 64:
            programs += struct.pack("<IIQQQQQQ", 1, 7, offset, virtual, paddr, len(data), memsz, 4096)
        else:
            programs += struct.pack("<IIIIIIII", 1, offset, virtual, paddr, len(data), memsz, 7, 4096)
        body += data
    if notes:
        offset = data_offset - len(area)
        if bits == 64:
            programs += struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(area), len(area), 4)
        else:
            programs += struct.pack("<IIIIIIII", 4, offset, 0, 0, len(area), len(area), 4, 4)
    return header + programs + prefix + area + body


def _note(owner: bytes, kind: int, data: bytes) -> bytes:
    name = owner + b"\0"
    head = struct.pack("<3I", len(name), len(data), kind) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _multiboot_header(flags: int = 3, addresses: tuple[int, ...] = ()) -> bytes:
    magic = 0x1BADB002
    return struct.pack(f"<{3 + len(addresses)}I", magic, flags, -(magic + flags) & 0xFFFF_FFFF, *addresses)


def _multiboot_elf(*, flags: int = 3, bits: int = 32, code: bytes = b"\xf4" * 64, bss: int = 4096) -> bytes:
    """A Multiboot kernel at 1 MiB, as a linker makes it: the header first, then code and bss."""
    image = _multiboot_header(flags) + code
    return _elf(bits=bits, entry=MIB + 12, segments=((MIB, 0, image, len(image) + bss),))


def _multiboot2_header(tags: tuple[tuple[int, int, bytes], ...] = (), architecture: int = 0) -> bytes:
    """A header with these tags: (type, flags, bytes), and the one that ends the list."""
    body = b""
    for kind, flags, data in (*tags, (0, 0, b"")):
        tag = struct.pack("<HHI", kind, flags, 8 + len(data)) + data
        body += tag + bytes(-len(tag) % 8)
    magic, length = 0xE85250D6, 16 + len(body)
    return (
        struct.pack("<4I", magic, architecture, length, -(magic + architecture + length) & 0xFFFF_FFFF) + body
    )


def _multiboot2_elf(
    *, tags: tuple[tuple[int, int, bytes], ...] = (), bits: int = 32, architecture: int = 0, bss: int = 4096
) -> bytes:
    """A Multiboot 2 kernel at 1 MiB; its code begins behind the header."""
    header = _multiboot2_header(tags, architecture)
    image = header + b"\xf4" * 64
    # The header has to lie on 8 bytes in the file, too.
    prefix = bytes(-(64 + 56 if bits == 64 else 52 + 32) % 8)
    segments = ((MIB, 0, image, len(image) + bss),)
    return _elf(bits=bits, entry=MIB + len(header), segments=segments, prefix=prefix)


@pytest.fixture(scope="session")
def multiboot2_header() -> KernelMaker:
    return _multiboot2_header


@pytest.fixture(scope="session")
def multiboot2_elf() -> KernelMaker:
    return _multiboot2_elf


@pytest.fixture(scope="session")
def bzimage() -> KernelMaker:
    return _bzimage


@pytest.fixture(scope="session")
def elf() -> KernelMaker:
    return _elf


@pytest.fixture(scope="session")
def multiboot_header() -> KernelMaker:
    return _multiboot_header


@pytest.fixture(scope="session")
def multiboot_elf() -> KernelMaker:
    return _multiboot_elf


@pytest.fixture(scope="session")
def debian_kernel() -> bytes:
    """The kernel that 'coremesh fetch' has cached, or one named by COREMESH_TEST_KERNEL."""
    named = os.environ.get("COREMESH_TEST_KERNEL")
    if named:
        return Path(named).read_bytes()
    platformdirs = pytest.importorskip("platformdirs")
    cache = Path(os.environ.get("COREMESH_CACHE") or platformdirs.user_cache_dir("coremesh"))
    found = sorted(cache.rglob("vmlinuz*")) if cache.is_dir() else []
    if not found:
        pytest.skip("no Debian kernel in the image cache; 'coremesh fetch' gets one")
    return found[-1].read_bytes()
