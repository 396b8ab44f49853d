# SPDX-License-Identifier: GPL-2.0-or-later
"""Multiboot 2 and PVH, seen from the kernel: headers that are taken or refused, and what it is handed."""

import struct
from collections.abc import Callable

import pytest
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.core.image import BootPlan
from coremesh.core.memory_layout import MIB
from coremesh.core.x86.kernel import KernelKind, kernel_kind, plan_boot
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.core.x86.multiboot2 import load_multiboot2
from coremesh.core.x86.pvh import load_pvh

KernelMaker = Callable[..., bytes]

MEMORY = MemoryMap(16 * MIB)
RSDP = bytes(range(36))
INFORMATION, ADDRESS, ENTRY, FRAMEBUFFER, OPTIONAL = 1, 2, 3, 5, 1


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def memory_of(plan: BootPlan) -> bytearray:
    plan.check(MEMORY.layout)
    ram = bytearray(MEMORY.ram_bytes)
    for gpa, data in plan.writes:
        assert not any(ram[gpa : gpa + len(data)]), "two writes overlap"
        ram[gpa : gpa + len(data)] = data
    return ram


def register(plan: BootPlan, name: str) -> int:
    value = plan.registers[name]
    assert isinstance(value, int)
    return value


def tags_of(plan: BootPlan) -> dict[int, list[bytes]]:
    """The information's tags by type."""
    ram, at = memory_of(plan), register(plan, "rbx")
    assert at % 8 == 0
    total, reserved = struct.unpack_from("<2I", ram, at)
    assert reserved == 0
    found: dict[int, list[bytes]] = {}
    end, at = at + total, at + 8
    while True:
        kind, size = struct.unpack_from("<2I", ram, at)
        found.setdefault(kind, []).append(bytes(ram[at + 8 : at + size]))
        at = -(-(at + size) // 8) * 8
        if kind == 0:
            assert (size, at) == (8, end)
            return found


@pytest.mark.parametrize("bits", [32, 64])
def test_the_kernel_starts_in_32_bit_protected_mode_and_is_handed_tags(
    multiboot2_elf: KernelMaker, bits: int
) -> None:
    """Given an ELF file of either size, then the state is that of Multiboot, and the tags hold."""
    kernel = multiboot2_elf(bits=bits)
    assert kernel_kind(kernel) is KernelKind.MULTIBOOT2
    plan = load_multiboot2(kernel, [(b"data", "its text")], "a line", MEMORY, RSDP)
    assert register(plan, "rax") == 0x36D76289
    assert register(plan, "cr0") & (1 << 31 | 1) == 1 and register(plan, "efer") == 0
    tags = tags_of(plan)
    assert tags[1] == [b"a line\0"] and tags[2] == [b"Coremesh\0"]
    ((start, end), text) = struct.unpack_from("<2I", tags[3][0]), tags[3][0][8:]
    assert start % 4096 == 0 and memory_of(plan)[start:end] == b"data" and text == b"its text\0"
    assert struct.unpack("<2I", tags[4][0]) == (639, 15 * 1024)
    entry_bytes, version = struct.unpack_from("<2I", tags[6][0])
    assert (entry_bytes, version) == (24, 0)
    ranges = [struct.unpack_from("<2Q2I", tags[6][0], at) for at in range(8, len(tags[6][0]), 24)]
    assert ranges == [(e.start, e.size, e.kind, 0) for e in MEMORY.e820()]
    assert struct.unpack("<Q3I2BH", tags[8][0]) == (0xB_8000, 160, 80, 25, 16, 2, 0)
    assert tags[14] == [RSDP[:20]] and tags[15] == [RSDP] and tags[21] == [words(MIB)]
    assert 9 not in tags, "this file has no sections"


def test_the_entry_tag_goes_before_the_elf_entry(multiboot2_elf: KernelMaker) -> None:
    """Given an entry address in the header, then the kernel starts there; outside of it is an error."""
    plan = load_multiboot2(multiboot2_elf(tags=((ENTRY, 0, words(MIB + 40)),)), [], "", MEMORY)
    assert register(plan, "rip") == MIB + 40
    for wrong in (0x10, 8 * MIB):
        with pytest.raises(GuestImageError, match="outside what is loaded"):
            load_multiboot2(multiboot2_elf(tags=((ENTRY, 0, words(wrong)),)), [], "", MEMORY)


def test_address_tags_place_a_kernel_that_is_no_elf(multiboot2_header: KernelMaker) -> None:
    """Given the four addresses and an entry, then a flat file is loaded as they say, bss included."""
    load = 2 * MIB
    tags = ((ADDRESS, 0, words(load, load, 0, load + 9000)), (ENTRY, 0, words(load + 80)))
    kernel = multiboot2_header(tags) + b"\xf4" * 100
    plan = load_multiboot2(kernel, [(b"module", "")], "", MEMORY)
    assert register(plan, "rip") == load + 80
    (start, _) = struct.unpack_from("<2I", tags_of(plan)[3][0])
    assert start == load + 12288
    with pytest.raises(GuestImageError, match="no entry tag"):
        load_multiboot2(multiboot2_header(tags[:1]) + b"\xf4" * 100, [], "", MEMORY)
    with pytest.raises(GuestImageError, match="too short"):
        load_multiboot2(multiboot2_header(((ADDRESS, 0, b"abcd"), tags[1])), [], "", MEMORY)
    with pytest.raises(GuestImageError, match="no ELF file"):
        load_multiboot2(multiboot2_header(), [], "", MEMORY)


@pytest.mark.parametrize(
    ("tag", "complaint"),
    [
        ((INFORMATION, 0, words(4, 12)), "information of type 12"),
        ((INFORMATION, 0, words(77)), "information of type 77"),
        ((30, 0, b""), "requires tag 30"),
    ],
)
def test_a_requirement_that_cannot_be_met_is_refused_and_an_optional_one_passed_over(
    multiboot2_elf: KernelMaker, tag: tuple[int, int, bytes], complaint: str
) -> None:
    """Given a tag that asks for what there is not, then flag 1 of the tag decides."""
    with pytest.raises(GuestImageError, match=complaint):
        load_multiboot2(multiboot2_elf(tags=(tag,)), [], "", MEMORY)
    kind, _, data = tag
    assert load_multiboot2(multiboot2_elf(tags=((kind, OPTIONAL, data),)), [], "", MEMORY)


def test_what_is_always_so_is_granted(multiboot2_elf: KernelMaker) -> None:
    """Console flags, a frame buffer, modules on pages, a kernel that could be moved, EFI's entries."""
    tags = tuple((kind, 0, words(1, 2, 3, 4)) for kind in (4, 5, 6, 7, 8, 9, 10))
    assert load_multiboot2(multiboot2_elf(tags=tags), [], "", MEMORY)


def test_another_architecture_is_refused(multiboot2_elf: KernelMaker) -> None:
    """MIPS is architecture 4."""
    with pytest.raises(GuestImageError, match="architecture 4"):
        load_multiboot2(multiboot2_elf(architecture=4), [], "", MEMORY)


def test_a_kernel_with_both_headers_is_started_by_the_one_that_can(
    elf: KernelMaker, multiboot_header: KernelMaker, multiboot2_header: KernelMaker
) -> None:
    """Given both, then Multiboot 1 is taken, but for an ELF file of 64 bits, which only 2 knows."""
    for bits, kind in ((32, KernelKind.MULTIBOOT), (64, KernelKind.MULTIBOOT2)):
        second = multiboot2_header()
        body = second + multiboot_header(0) + b"\xf4" * 8
        prefix = bytes(-(120 if bits == 64 else 84) % 8)
        kernel = elf(bits=bits, entry=MIB + 60, segments=((MIB, 0, body, len(body)),), prefix=prefix)
        assert kernel_kind(kernel) is kind


def test_the_root_of_acpi_comes_from_the_tables(multiboot2_elf: KernelMaker) -> None:
    """Given firmware's tables, then the copy in the tags is theirs; without tables there is none."""
    plan = plan_boot(multiboot2_elf(), None, "", MEMORY, 0xE_0010, (), [(0xE_0000, bytes(16) + RSDP)])
    assert tags_of(plan)[15] == [RSDP]
    assert 15 not in tags_of(plan_boot(multiboot2_elf(), None, "", MEMORY, 0xE_0010))


# --- PVH -----------------------------------------------------------------------------------------------


def pvh_kernel(elf: KernelMaker, entry: int = MIB + 16, bits: int = 32) -> bytes:
    note = struct.pack("<Q" if bits == 64 else "<I", entry)
    return elf(
        bits=bits,
        entry=MIB,
        segments=((MIB, 0, b"\xf4" * 64, 4096),),
        notes=((b"GNU", 3, bytes(20)), (b"Xen", 18, note)),
    )


@pytest.mark.parametrize("bits", [32, 64])
def test_a_pvh_kernel_starts_at_the_entry_of_its_note(elf: KernelMaker, bits: int) -> None:
    """Given the note, then EBX leads to struct hvm_start_info, version 1, with modules and memory."""
    kernel = pvh_kernel(elf, bits=bits)
    assert kernel_kind(kernel) is KernelKind.PVH
    plan = load_pvh(kernel, [(b"ramdisk", "initrd"), (b"two", "")], "a line", MEMORY, 0xE_0000)
    ram, at = memory_of(plan), register(plan, "rbx")
    assert register(plan, "rip") == MIB + 16 and register(plan, "cr0") & (1 << 31 | 1) == 1
    magic, version, flags, count, modules, line, rsdp, ranges, entries, _ = struct.unpack_from(
        "<4I4Q2I", ram, at
    )
    assert (magic, version, flags, count, rsdp) == (0x336EC578, 1, 0, 2, 0xE_0000)
    assert ram[line:].startswith(b"a line\0")
    start, size, text, _ = struct.unpack_from("<4Q", ram, modules)
    assert ram[start : start + size] == b"ramdisk" and ram[text:].startswith(b"initrd\0")
    rows = [struct.unpack_from("<2Q2I", ram, ranges + 24 * row) for row in range(entries)]
    assert rows == [(e.start, e.size, e.kind, 0) for e in MEMORY.e820()]


def test_a_pvh_kernel_that_cannot_start_is_refused(elf: KernelMaker) -> None:
    """Given an entry outside of the kernel, or no note, or too little room, then the error names it."""
    with pytest.raises(GuestImageError, match="outside what is loaded"):
        load_pvh(pvh_kernel(elf, entry=8 * MIB), [], "", MEMORY, 0)
    with pytest.raises(GuestImageError, match="CONFIG_PVH"):
        load_pvh(elf(bits=32), [], "", MEMORY, 0)
    with pytest.raises(ConfigurationError, match="modules need"):
        load_pvh(pvh_kernel(elf), [(bytes(16 * MIB), "")], "", MEMORY, 0)
    with pytest.raises(ConfigurationError, match="conventional memory"):
        load_pvh(pvh_kernel(elf), [(b"x", "s" * 60_000)] * 10, "", MEMORY, 0)
