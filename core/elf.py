# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of an ELF file that a boot loader needs: the entry point and the segments to load."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Final

from coremesh.core.errors import GuestImageError
from coremesh.core.memory_layout import MemoryLayout, Region
from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

ELF_MAGIC: Final = b"\x7fELF"
_NOTE: Final = struct.Struct("<3I")
MOST_SEGMENTS: Final = 128
"""No kernel has more program headers; a larger number is a corrupt file."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD segment: ``data`` goes to ``paddr``; up to ``memsz`` bytes the rest reads as zero."""

    paddr: int
    vaddr: int
    memsz: int
    data: bytes

    @property
    def region(self) -> Region:
        """The physical addresses that the segment takes."""
        return Region(self.paddr, self.memsz)


@dataclass(frozen=True, slots=True)
class Note:
    """An entry of a PT_NOTE segment: what the executable tells of itself, in terms of ``owner``."""

    owner: bytes
    kind: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ElfImage:
    """An executable's physical entry point, its segments, none of them empty, and its notes."""

    entry: int
    segments: tuple[Segment, ...]
    notes: tuple[Note, ...] = ()

    def note(self, owner: bytes, kind: int) -> bytes | None:
        """The bytes of the first note of this owner and kind; None without one."""
        for note in self.notes:
            if (note.owner, note.kind) == (owner, kind):
                return note.data
        return None


def elf_class(image: bytes) -> int:
    """The word size of an ELF file, 32 or 64, from its identification; 0 if it is neither or no ELF file."""
    if image[:4] != ELF_MAGIC or len(image) < 5:
        return 0
    return {1: 32, 2: 64}.get(image[4], 0)


def read_elf(image: bytes, *, bits: int, machine: str) -> ElfImage:
    """Parse a little-endian executable of the given word size and machine (``EM_386``, ``EM_X86_64``).

    Raises :class:`GuestImageError` that names the field which is wrong.
    """
    try:
        elf = ELFFile(BytesIO(image))
        header = elf.header
        kind, count, stride, offset = (
            header[name] for name in ("e_type", "e_phnum", "e_phentsize", "e_phoff")
        )
        if count > MOST_SEGMENTS:
            raise GuestImageError(
                f"the ELF header announces {count} program headers; the file is corrupt, build it again"
            )
        headers = [
            struct_parse(elf.structs.Elf_Phdr, elf.stream, stream_pos=offset + index * stride)
            for index in range(count)
        ]
    except GuestImageError:
        raise
    except (
        Exception
    ) as error:  # pyelftools lets through whatever its parser met: construct, struct, Unicode errors
        raise GuestImageError(
            f"the ELF headers cannot be read ({error}); the file is truncated or corrupt, build it again"
        ) from error
    if elf.elfclass != bits or not elf.little_endian or header["e_machine"] != machine:
        raise GuestImageError(
            f"this is an ELF{elf.elfclass} file for {header['e_machine']}, but a little-endian "
            f"ELF{bits} file for {machine} is needed; build the kernel for that"
        )
    if kind not in ("ET_EXEC", "ET_DYN"):
        raise GuestImageError(
            f"this ELF file is no executable ({kind}); link it first, or give the linked kernel"
        )
    segments = tuple(
        _segment(image, program)
        for program in headers
        if program["p_type"] == "PT_LOAD" and program["p_memsz"]
    )
    if not segments:
        raise GuestImageError(
            "this ELF file has no segment to load; give the linked kernel, not an object file"
        )
    notes = tuple(
        note for program in headers if program["p_type"] == "PT_NOTE" for note in _notes(image, program)
    )
    return ElfImage(_physical_entry(header["e_entry"], segments), segments, notes)


def check_segments(segments: Sequence[Segment], memory: MemoryLayout, free: Sequence[Region]) -> None:
    """Raise :class:`GuestImageError` unless each segment is RAM within one of ``free``, and none overlap."""
    regions = sorted((segment.region for segment in segments), key=lambda region: region.start)
    for region in regions:
        if not any(area.start <= region.start and min(region.end, 1 << 40) <= area.end for area in free):
            raise GuestImageError(
                f"a segment wants the address {region.start:#x}, where the firmware's tables live; "
                "link the kernel at 1 MiB or above"
            )
        if not memory.is_ram(region.start, region.size):
            raise GuestImageError(
                f"a segment wants {region.start:#x} to {region.end:#x}, which is no memory of this machine "
                f"with {memory.ram_bytes >> 20} MiB; give it more memory, or link the kernel lower"
            )
    for below, above in pairwise(regions):
        if below.overlaps(above):
            raise GuestImageError(
                f"two segments overlap at {above.start:#x}; the file is corrupt, fetch or build it again"
            )


def _segment(image: bytes, program: dict[str, int]) -> Segment:
    offset, filesz, memsz = program["p_offset"], program["p_filesz"], program["p_memsz"]
    if offset + filesz > len(image):
        raise GuestImageError(
            f"a segment's bytes end at {offset + filesz}, but the file has {len(image)}; "
            "it is truncated, fetch or build it again"
        )
    if filesz > memsz:
        raise GuestImageError(
            "a segment is larger in the file than in memory; the file is corrupt, build it again"
        )
    return Segment(program["p_paddr"], program["p_vaddr"], memsz, image[offset : offset + filesz])


def _notes(image: bytes, program: dict[str, int]) -> Iterator[Note]:
    """The entries of a PT_NOTE segment; one that leaves the segment ends the list."""
    area = image[program["p_offset"] : program["p_offset"] + program["p_filesz"]]
    align = 8 if program["p_align"] == 8 else 4
    at = 0
    while at + _NOTE.size <= len(area):
        owner_bytes, data_bytes, kind = _NOTE.unpack_from(area, at)
        data_at = -(-(at + _NOTE.size + owner_bytes) // align) * align
        owner = area[at + _NOTE.size : at + _NOTE.size + owner_bytes].rstrip(b"\0")
        at = -(-(data_at + data_bytes) // align) * align
        if data_at + data_bytes > len(area):
            return
        yield Note(owner, kind, area[data_at : data_at + data_bytes])


def _physical_entry(entry: int, segments: tuple[Segment, ...]) -> int:
    """The entry as a physical address: Linux stores it so; other kernels store the virtual one."""
    for segment in segments:
        if segment.region.contains(entry, 1):
            return entry
    for segment in segments:
        if Region(segment.vaddr, segment.memsz).contains(entry, 1):
            return entry - segment.vaddr + segment.paddr
    raise GuestImageError(
        f"the entry point {entry:#x} lies in no segment; the file is corrupt, build it again"
    )
