# SPDX-License-Identifier: GPL-2.0-or-later
"""How a loader starts the bootstrap processor: segments, control registers, the BIOS data area."""

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
    """A GDT for :func:`flat_segments`: code at selector 10h, data at 18h, as Linux's boot protocol wants."""
    descriptors = (
        0,
        0,
        segment_descriptor(0, FLAT_LIMIT, code),
        segment_descriptor(0, FLAT_LIMIT, FLAT_DATA),
    )
    return b"".join(descriptor.to_bytes(8, "little") for descriptor in descriptors)


def bios_data_area() -> list[tuple[int, bytes]]:
    """The words of the BIOS data area that boot code reads: where the EBDA is, how much memory lies below it.

    Linux places its real-mode trampoline below the smaller of the two (40Eh: segment, 413h: KiB).
    """
    ebda_segment = (EBDA_BASE >> 4).to_bytes(2, "little")
    conventional_kib = (EBDA_BASE // KIB).to_bytes(2, "little")
    return [
        (0x40E, ebda_segment),
        (0x413, conventional_kib),
        (EBDA_BASE, b"\x01"),  # the area's size in KiB
    ]
