# SPDX-License-Identifier: GPL-2.0-or-later
"""How a loader starts the bootstrap processor: segments, control registers, the BIOS data area."""

import struct
from typing import Final

from coremesh.core.image import RegisterValue
from coremesh.core.memory_layout import KIB
from coremesh.core.x86.memory_map import EBDA_BASE

LOADER_AREA: Final = 0x1000
"""First byte of conventional memory that loaders use; below lie the vectors and the BIOS data area."""
LOADER_END: Final = 0x9_0000

CR0_PE: Final = 1 << 0
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5
CR0_PG: Final = 1 << 31
CR4_PAE: Final = 1 << 5
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
RFLAGS_FIXED: Final = 1 << 1
"""Bit 1 of RFLAGS is always set (SDM vol. 1, 3.4.3); everything else, interrupts above all, is off."""

TEXT_MODE: Final = 3
"""The mode that the VGA is in when a guest starts (hw/isa/vga.py)."""
TEXT_ADDRESS: Final = 0xB_8000
TEXT_COLUMNS: Final = 80
TEXT_ROWS: Final = 25
TEXT_CELL_LINES: Final = 16

CODE_SELECTOR: Final = 0x10
DATA_SELECTOR: Final = 0x18
FLAT_LIMIT: Final = 0xFFFF_FFFF

# Segment attributes as in a descriptor (SDM vol. 3A, 3.4.5): access byte; bits 8 to 11 are AVL, L, D/B, G.
FLAT_DATA: Final = 0xC93
FLAT_CODE_32: Final = 0xC9B
FLAT_CODE_64: Final = 0xA9B
TSS_BUSY: Final = 0x8B
LDT: Final = 0x82


def segment_descriptor(base: int, limit: int, attributes: int) -> int:
    """Pack a segment descriptor (SDM vol. 3A, figure 3-8); ``limit`` is in bytes."""
    units = limit >> 12 if attributes & 0x800 else limit
    return (
        (units & 0xFFFF)
        | (base & 0xFF_FFFF) << 16
        | (attributes & 0xFF) << 40
        | (units >> 16 & 0xF) << 48
        | (attributes >> 8 & 0xF) << 52
        | (base >> 24 & 0xFF) << 56
    )


def flat_segments(code: int) -> dict[str, RegisterValue]:
    """The segment registers of a flat address space whose code segment has the attributes ``code``."""
    data = (DATA_SELECTOR, 0, FLAT_LIMIT, FLAT_DATA)
    return {
        "cs": (CODE_SELECTOR, 0, FLAT_LIMIT, code),
        **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
        "tr": (0, 0, 0xFFFF, TSS_BUSY),
        "ldtr": (0, 0, 0xFFFF, LDT),
    }


def flat_gdt(code: int) -> bytes:
    """A GDT for :func:`flat_segments`: code at selector 10h, data at 18h, as Linux's boot protocol wants.

    GRUB's has them there too. Code is at selector 8 as well, where kernels that were only ever started by
    QEMU believe it.
    """
    descriptors = (
        0,
        segment_descriptor(0, FLAT_LIMIT, code),
        segment_descriptor(0, FLAT_LIMIT, code),
        segment_descriptor(0, FLAT_LIMIT, FLAT_DATA),
    )
    return b"".join(descriptor.to_bytes(8, "little") for descriptor in descriptors)


def protected_mode(gdt: int, entry: int) -> dict[str, RegisterValue]:
    """The registers of a kernel that starts at ``entry`` in flat 32-bit protected mode without paging.

    ``gdt`` is the address of a :func:`flat_gdt`, which stays loaded.
    """
    return {
        **flat_segments(FLAT_CODE_32),
        "rip": entry,
        "rflags": RFLAGS_FIXED,
        "cr0": CR0_NE | CR0_ET | CR0_PE,
        "cr3": 0,
        "cr4": 0,
        "efer": 0,
        "gdtr": (gdt, len(flat_gdt(FLAT_CODE_32)) - 1),
        "idtr": (0, 0),
    }


def bios_data_area() -> list[tuple[int, bytes]]:
    """The BIOS data area as firmware leaves it, for boot code and kernels that read it, and the EBDA's size.

    Source: IBM PS/2 and PC BIOS Interface Technical Reference, section 3. Linux places its real-mode
    trampoline below the smaller of two addresses (40Eh: the EBDA's segment, 413h: KiB); teaching kernels look
    up the screen.
    """
    area = bytearray(0x100)
    for layout, offset, value in (
        ("H", 0x00, 0x3F8),  # COM1
        ("H", 0x0E, EBDA_BASE >> 4),
        ("H", 0x10, 0x0222),  # equipment: a coprocessor, 80 by 25 in colour, one serial port
        ("H", 0x13, EBDA_BASE // KIB),
        ("H", 0x1A, 0x1E),  # the keyboard's buffer: empty
        ("H", 0x1C, 0x1E),
        ("B", 0x49, TEXT_MODE),
        ("H", 0x4A, TEXT_COLUMNS),
        ("H", 0x4C, 4 * KIB),  # bytes of a page of text
        ("H", 0x60, 0x0D0E),  # the cursor's scan lines
        ("H", 0x63, 0x3D4),  # the CRT controller
        ("H", 0x80, 0x1E),  # where the keyboard's buffer begins and ends
        ("H", 0x82, 0x3E),
        ("B", 0x84, TEXT_ROWS - 1),
        ("H", 0x85, TEXT_CELL_LINES),
    ):
        struct.pack_into("<" + layout, area, offset, value)
    return [(0x400, bytes(area)), (EBDA_BASE, b"\x01")]  # the EBDA begins with its size in KiB
