# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's boot protocols of 64 and of 32 bits: a bzImage or a vmlinux starts without real-mode code.

Source: the kernel's Documentation/arch/x86/boot.rst, "64-bit Boot Protocol" and "32-bit Boot Protocol", and
zero-page.rst. The zero page (struct boot_params), the command line, the GDT and the page tables lie in
conventional memory, where the kernel reads them once; initramfs and kernel lie in extended memory.

A kernel of 64 bits starts in long mode, with the first 4 GiB mapped one to one; one of 32 bits in protected
mode without paging.
"""

import struct
from dataclasses import dataclass
from typing import Final

from coremesh.core.elf import ElfImage, check_segments, elf_class, read_elf
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.core.image import BootPlan, encode_command_line
from coremesh.core.memory_layout import GIB, MIB, PAGE_BYTES, Region
from coremesh.core.x86.boot import (
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR4_PAE,
    EFER_LMA,
    EFER_LME,
    FLAT_CODE_32,
    FLAT_CODE_64,
    TEXT_CELL_LINES,
    TEXT_COLUMNS,
    TEXT_MODE,
    TEXT_ROWS,
    bios_data_area,
    flat_gdt,
    flat_segments,
    protected_mode,
)
from coremesh.core.x86.memory_map import EXTENDED_MEMORY_BASE, KERNEL_AREA, MemoryMap
from coremesh.core.x86.real_mode import real_mode_vectors

LINUX_MINIMUM_RAM: Final = 64 * MIB

GDT_ADDRESS: Final = 0x1000
PAGE_TABLES: Final = 0x2000
IDENTITY_MAPPED: Final = 4 * GIB
ZERO_PAGE: Final = 0x8000
STACK_TOP: Final = 0xA000
COMMAND_LINE: Final = 0x1_0000
COMMAND_LINE_ROOM: Final = 0x1_0000

HEADER_START: Final = 0x1F1
HEADER_MAGIC: Final = b"HdrS"
BOOT_FLAG: Final = 0xAA55
SECTOR_BYTES: Final = 512
PARAGRAPH_BYTES: Final = 16
HEADER_END: Final = 0x268
"""End of the fields that a loader acts on; protocol 2.10 has all of them, 2.12 added 64-bit entry points."""
OLDEST_PROTOCOL: Final = 0x020A
OLDEST_64_BIT_PROTOCOL: Final = 0x020C
LOADED_HIGH: Final = 1 << 0
NOTES_OWNER: Final = b"Linux"
"""Of notes in a vmlinux (include/linux/elfnote.h there)."""
XLF_KERNEL_64: Final = 1 << 0
ENTRY_64: Final = 0x200
"""startup_64 lies here from the start of the protected-mode kernel: part of the protocol."""
UNREGISTERED_LOADER: Final = 0xFF
DEFAULT_INITRD_MAX: Final = {64: 0x7FFF_FFFF, 32: 0x37FF_FFFF}
"""A kernel of 32 bits maps 896 MiB of memory for itself."""
DEFAULT_CMDLINE_SIZE: Final = 2047
LARGEST_ALIGNMENT: Final = GIB

_EGA_256_KIB: Final = 3
"""In BL, the answer of INT 10h AX=1200h: how much display memory there is."""
_IS_VGA: Final = 1
_E820_ENTRY: Final = struct.Struct("<QQI")


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """The fields of a bzImage's setup header that a loader acts on; names as in the kernel's document.

    ``bits`` are those of the entry point to use: 64 where there is such a one.
    """

    raw: bytes
    bits: int
    payload_offset: int
    payload_bytes: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable: bool
    cmdline_size: int
    pref_address: int
    init_size: int


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A kernel with its place decided: what ``load_linux`` needs to finish the plan."""

    name: str
    bits: int
    writes: list[tuple[int, bytes]]
    taken: list[Region]
    entry: int
    header: bytes
    cmdline_size: int
    initrd_addr_max: int


def is_bzimage(image: bytes) -> bool:
    """Tell whether the file has a Linux boot sector's signature; says nothing of its health."""
    return image[0x202:0x206] == HEADER_MAGIC


def is_vmlinux(image: bytes) -> bool:
    """Tell whether an ELF file is a Linux kernel, by the notes that the kernel's build leaves in it.

    False for one that cannot be read, too.
    """
    try:
        elf = _read_vmlinux(image)
    except GuestImageError:
        return False
    return any(note.owner == NOTES_OWNER for note in elf.notes)


def load_linux(
    kernel: bytes, initrd: bytes | None, cmdline: str, memory: MemoryMap, acpi_rsdp: int
) -> BootPlan:
    """Plan the start of a bzImage or a vmlinux; ``acpi_rsdp`` is the RSDP's guest-physical address.

    Raises :class:`GuestImageError` for a kernel or initramfs that cannot start, :class:`ConfigurationError`
    when the memory is too small or the command line too long. May be called from any thread.
    """
    if memory.ram_bytes < LINUX_MINIMUM_RAM:
        raise ConfigurationError(
            f"Linux does not start in {memory.ram_bytes / MIB:g} MiB of memory; give at least "
            f"{LINUX_MINIMUM_RAM // MIB} MiB, better 256 MiB"
        )
    placed = _place_bzimage(kernel, memory) if is_bzimage(kernel) else _place_vmlinux(kernel, memory)
    line = encode_command_line(cmdline, min(placed.cmdline_size, COMMAND_LINE_ROOM - 1))
    writes = [
        *real_mode_vectors(memory),
        *bios_data_area(),
        (COMMAND_LINE, line),
        *placed.writes,
    ]
    ramdisk = Region(0, 0)
    if initrd is not None:
        ramdisk = _place_initrd(initrd, placed, memory)
        writes.append((ramdisk.start, initrd))
    writes.append((ZERO_PAGE, _zero_page(placed.header, memory, ramdisk, acpi_rsdp)))
    code = FLAT_CODE_64 if placed.bits == 64 else FLAT_CODE_32
    writes.append((GDT_ADDRESS, flat_gdt(code)))
    registers = {**protected_mode(GDT_ADDRESS, placed.entry), "rsi": ZERO_PAGE, "rsp": STACK_TOP}
    if placed.bits == 64:
        writes.append((PAGE_TABLES, identity_page_tables()))
        registers |= {
            **flat_segments(code),
            "cr0": CR0_PG | CR0_NE | CR0_ET | CR0_PE,
            "cr3": PAGE_TABLES,
            "cr4": CR4_PAE,
            "efer": EFER_LME | EFER_LMA,
        }
    return BootPlan(writes=writes, registers=registers, entry_name=placed.name)


def read_setup_header(image: bytes) -> SetupHeader:
    """Check a bzImage's setup header and take from it what matters; raises :class:`GuestImageError`."""
    if len(image) < HEADER_END:
        raise GuestImageError(
            f"the kernel file ends after {len(image)} bytes, inside its setup header; "
            "it is truncated, fetch it again"
        )

    def take(kind: str, offset: int) -> int:
        value: int = struct.unpack_from("<" + kind, image, offset)[0]
        return value

    if not is_bzimage(image) or take("H", 0x1FE) != BOOT_FLAG:
        raise GuestImageError(
            "the kernel's boot signature is missing; give a bzImage (Debian's vmlinuz), or fetch it again"
        )
    version = take("H", 0x206)
    if version < OLDEST_PROTOCOL:
        raise GuestImageError(
            f"this kernel (boot protocol {version >> 8}.{version & 0xFF:02}) is too old for this loader; "
            "give one of version 2.6.31 or newer"
        )
    if not take("B", 0x211) & LOADED_HIGH:
        raise GuestImageError("this kernel is a zImage, loaded below 1 MiB; give a bzImage (make bzImage)")
    payload_offset = ((take("B", 0x1F1) or 4) + 1) * SECTOR_BYTES
    payload_bytes = take("I", 0x1F4) * PARAGRAPH_BYTES
    if payload_bytes <= ENTRY_64:
        raise GuestImageError("the kernel's header announces no code; the file is corrupt, fetch it again")
    if payload_offset + payload_bytes > len(image) + PARAGRAPH_BYTES - 1:
        raise GuestImageError(
            f"the kernel's header announces {payload_offset + payload_bytes} bytes, but the file has "
            f"{len(image)}; it is truncated, fetch it again"
        )
    alignment = take("I", 0x230)
    if alignment < PAGE_BYTES or alignment > LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise GuestImageError(
            f"the kernel's header wants the alignment {alignment:#x}; the file is corrupt, fetch it again"
        )
    end_of_header = 0x202 + image[0x201]
    return SetupHeader(
        bits=64 if version >= OLDEST_64_BIT_PROTOCOL and take("H", 0x236) & XLF_KERNEL_64 else 32,
        raw=image[HEADER_START : max(HEADER_END, min(end_of_header, 0x290))],
        payload_offset=payload_offset,
        payload_bytes=payload_bytes,
        initrd_addr_max=take("I", 0x22C),
        kernel_alignment=alignment,
        relocatable=bool(take("B", 0x234)),
        cmdline_size=take("I", 0x238),
        pref_address=take("Q", 0x258),
        init_size=take("I", 0x260),
    )


def identity_page_tables() -> bytes:
    """Page tables at :data:`PAGE_TABLES` that map the first 4 GiB to themselves, with 2 MiB pages.

    1 GiB pages would need one table fewer, but the guest's cores do not announce them.
    """
    present_writable, page_size = 0b11, 1 << 7
    directories = IDENTITY_MAPPED // GIB
    first_directory = PAGE_TABLES + 2 * PAGE_BYTES
    pml4 = struct.pack("<Q", PAGE_TABLES + PAGE_BYTES | present_writable)
    pdpt = struct.pack(
        f"<{directories}Q",
        *(first_directory + index * PAGE_BYTES | present_writable for index in range(directories)),
    )
    entries = directories * 512
    pages = struct.pack(
        f"<{entries}Q", *(index * 2 * MIB | page_size | present_writable for index in range(entries))
    )
    return pml4.ljust(PAGE_BYTES, b"\0") + pdpt.ljust(PAGE_BYTES, b"\0") + pages


def _place_bzimage(image: bytes, memory: MemoryMap) -> _Kernel:
    header = read_setup_header(image)
    payload = image[header.payload_offset : header.payload_offset + header.payload_bytes]
    size = max(header.init_size, len(payload))
    start = _load_address(header, size, memory)
    raw = bytearray(header.raw)
    struct.pack_into("<I", raw, 0x214 - HEADER_START, start)  # code32_start
    return _Kernel(
        name="Linux bzImage",
        bits=header.bits,
        writes=[(start, payload)],
        taken=[Region(start, size)],
        entry=start + (ENTRY_64 if header.bits == 64 else 0),
        header=bytes(raw),
        cmdline_size=header.cmdline_size,
        initrd_addr_max=header.initrd_addr_max,
    )


def _load_address(header: SetupHeader, size: int, memory: MemoryMap) -> int:
    """Where the protected-mode kernel goes: the address it prefers, rounded up to what it can run at.

    Loading a relocatable kernel lower gains nothing: it would move itself up to that address.
    """
    start = header.pref_address
    if header.relocatable:
        alignment = header.kernel_alignment
        start = -(-max(start, EXTENDED_MEMORY_BASE) // alignment) * alignment
    if start < EXTENDED_MEMORY_BASE or start >= IDENTITY_MAPPED:
        raise GuestImageError(
            f"the kernel's header asks for the load address {start:#x}; the file is corrupt, fetch it again"
        )
    if not memory.low.contains(start, size):
        raise ConfigurationError(
            f"this kernel needs {-(-(start + size) // MIB)} MiB of memory below 4 GiB to start, but the "
            f"machine has {memory.low_ram_bytes // MIB} MiB there; give it more memory"
        )
    return start


def _place_vmlinux(image: bytes, memory: MemoryMap) -> _Kernel:
    bits = elf_class(image)
    if not bits:
        raise GuestImageError(
            "the file is neither a bzImage nor an ELF kernel; give Debian's vmlinuz, or a vmlinux"
        )
    elf = _read_vmlinux(image)
    check_segments(elf.segments, memory.layout, (KERNEL_AREA,))
    if elf.entry >= IDENTITY_MAPPED:
        raise GuestImageError(
            f"the entry point {elf.entry:#x} lies above 4 GiB; link the kernel to start below 4 GiB"
        )
    header = bytearray(HEADER_END - HEADER_START)
    for kind, offset, value in (
        ("H", 0x1FE, BOOT_FLAG),
        ("H", 0x206, OLDEST_64_BIT_PROTOCOL),
        ("B", 0x211, LOADED_HIGH),
        ("I", 0x22C, DEFAULT_INITRD_MAX[bits]),
        ("I", 0x230, 2 * MIB),
        ("I", 0x238, DEFAULT_CMDLINE_SIZE),
    ):
        struct.pack_into("<" + kind, header, offset - HEADER_START, value)
    header[0x202 - HEADER_START : 0x206 - HEADER_START] = HEADER_MAGIC
    return _Kernel(
        name="Linux vmlinux",
        bits=bits,
        writes=[(segment.paddr, segment.data) for segment in elf.segments if segment.data],
        taken=[segment.region for segment in elf.segments],
        entry=elf.entry,
        header=bytes(header),
        cmdline_size=DEFAULT_CMDLINE_SIZE,
        initrd_addr_max=DEFAULT_INITRD_MAX[bits],
    )


def _read_vmlinux(image: bytes) -> ElfImage:
    bits = elf_class(image)
    return read_elf(image, bits=bits, machine="EM_X86_64" if bits == 64 else "EM_386")


def _place_initrd(initrd: bytes, kernel: _Kernel, memory: MemoryMap) -> Region:
    """As high as the kernel allows: the kernel's own early allocations grow from below."""
    if not initrd:
        raise GuestImageError("the initramfs is empty; give a cpio archive, or none at all")
    start = memory.place_below(len(initrd), kernel.initrd_addr_max + 1, kernel.taken)
    if start is None:
        raise ConfigurationError(
            f"the initramfs of {len(initrd) / MIB:.1f} MiB finds no room beside the kernel in "
            f"{memory.low_ram_bytes // MIB} MiB; give the machine more memory"
        )
    return Region(start, len(initrd))


def _zero_page(header: bytes, memory: MemoryMap, ramdisk: Region, acpi_rsdp: int) -> bytes:
    """Struct boot_params: zeros, the kernel's own setup header, and what the loader adds (zero-page.rst)."""
    page = bytearray(PAGE_BYTES)
    page[HEADER_START : HEADER_START + len(header)] = header
    e820 = memory.e820()
    fields = (
        # struct screen_info. Without it Linux takes the machine for one that has no screen.
        ("B", 0x006, TEXT_MODE),
        ("B", 0x007, TEXT_COLUMNS),
        ("B", 0x00A, _EGA_256_KIB),
        ("B", 0x00E, TEXT_ROWS),
        ("B", 0x00F, _IS_VGA),
        ("H", 0x010, TEXT_CELL_LINES),
        ("Q", 0x070, acpi_rsdp),
        ("B", 0x1E8, len(e820)),
        ("H", 0x1FA, 0xFFFF),  # vid_mode: normal
        ("B", 0x210, UNREGISTERED_LOADER),
        ("I", 0x218, ramdisk.start),
        ("I", 0x21C, ramdisk.size),
        ("I", 0x228, COMMAND_LINE),
    )
    for kind, offset, value in fields:
        struct.pack_into("<" + kind, page, offset, value)
    page[0x1EF] = 0  # sentinel: the fields above the header are the loader's own
    for index, entry in enumerate(e820):
        _E820_ENTRY.pack_into(page, 0x2D0 + index * _E820_ENTRY.size, entry.start, entry.size, entry.kind)
    return bytes(page)
