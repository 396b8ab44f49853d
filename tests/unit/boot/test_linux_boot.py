# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's boot protocols, seen from the kernel: what it finds in memory and registers at its entry."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from itertools import pairwise

import pytest
from coremesh.core.elf import read_elf
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.core.image import BootPlan
from coremesh.core.memory_layout import GIB, MIB
from coremesh.core.x86.kernel import plan_boot
from coremesh.core.x86.linux_boot import is_vmlinux, load_linux
from coremesh.core.x86.linux_payload import unpack_linux
from coremesh.core.x86.memory_map import E820Type, MemoryMap

KernelMaker = Callable[..., bytes]

RSDP = 0xE_0000
MEMORY = MemoryMap(256 * MIB)


class Ram:
    """Guest memory after the plan's writes; what nobody wrote reads as zero."""

    def __init__(self, plan: BootPlan) -> None:
        self._writes = plan.writes

    def read(self, gpa: int, length: int) -> bytes:
        data = bytearray(length)
        for start, written in self._writes:
            low, high = max(gpa, start), min(gpa + length, start + len(written))
            if low < high:
                data[low - gpa : high - gpa] = written[low - start : high - start]
        return bytes(data)

    def word(self, layout: str, gpa: int) -> int:
        value: int = struct.unpack("<" + layout, self.read(gpa, struct.calcsize("<" + layout)))[0]
        return value

    def string(self, gpa: int) -> bytes:
        return self.read(gpa, 4096).split(b"\0")[0]


def register(plan: BootPlan, name: str) -> int:
    value = plan.registers[name]
    assert isinstance(value, int)
    return value


def walk(ram: Ram, cr3: int, address: int) -> int:
    """Translate as the MMU does in 4-level paging (SDM vol. 3A, 4.5.4)."""
    table = cr3
    for level in (3, 2, 1):
        entry = ram.word("Q", table + (address >> 12 + 9 * level & 0x1FF) * 8)
        assert entry & 3 == 3, f"{address:#x} is not mapped writable at level {level}"
        if entry & 1 << 7:
            assert level == 1, "1 GiB pages are not announced"
            return (entry & ~0x1F_FFFF) + (address & 0x1F_FFFF)
        table = entry & ~0xFFF
    raise AssertionError("no 4 KiB pages are expected")


def test_the_kernel_starts_in_long_mode_at_its_64_bit_entry(bzimage: KernelMaker) -> None:
    plan = load_linux(bzimage(), None, "", MEMORY, RSDP)
    assert register(plan, "rip") == 16 * MIB + 0x200
    assert register(plan, "cr0") & (1 << 31 | 1) == 1 << 31 | 1
    assert register(plan, "cr4") & 1 << 5
    assert register(plan, "efer") == 1 << 8 | 1 << 10
    assert register(plan, "rflags") == 2
    code, data = plan.registers["cs"], plan.registers["ds"]
    assert isinstance(code, tuple) and isinstance(data, tuple)
    assert code[0] == 0x10 and code[3] & 0x200, "selector __BOOT_CS, L bit"
    assert all(plan.registers[name] == data for name in ("es", "ss")) and data[0] == 0x18


@pytest.mark.parametrize("changes", [{"xloadflags": 0}, {"version": 0x020B}, {"version": 0x020A}])
def test_a_kernel_of_32_bits_starts_in_protected_mode_without_paging(
    bzimage: KernelMaker, changes: dict[str, int]
) -> None:
    """Given a bzImage without a 64-bit entry, then it starts at its first byte, in flat 32-bit segments."""
    plan = load_linux(bzimage(**changes), b"initrd", "console=tty0", MEMORY, RSDP)
    ram, zero_page = Ram(plan), register(plan, "rsi")
    assert register(plan, "rip") == 16 * MIB
    assert register(plan, "cr0") & (1 << 31 | 1) == 1
    assert [register(plan, name) for name in ("cr3", "cr4", "efer")] == [0, 0, 0]
    code = plan.registers["cs"]
    assert isinstance(code, tuple) and code[0] == 0x10 and code[3] & 0x600 == 0x400, "D bit, not L"
    assert ram.word("I", zero_page + 0x214) == 16 * MIB
    assert ram.string(ram.word("I", zero_page + 0x228)) == b"console=tty0"
    assert ram.word("I", zero_page + 0x218) and ram.word("Q", zero_page + 0x70) == RSDP


def test_the_kernel_is_told_of_the_text_screen(bzimage: KernelMaker) -> None:
    """Given struct screen_info, then Linux finds a VGA in 80 columns and 25 rows, as the card comes up."""
    plan = load_linux(bzimage(), None, "", MEMORY, RSDP)
    ram, page = Ram(plan), register(plan, "rsi")
    assert [ram.word("B", page + at) for at in (0x06, 0x07, 0x0E, 0x0F)] == [3, 80, 25, 1]
    assert ram.word("B", page + 0x0A) != 0x10 and ram.word("H", page + 0x10) == 16


@pytest.mark.parametrize("bits", [32, 64])
def test_a_vmlinux_is_known_by_the_notes_of_its_build(elf: KernelMaker, bits: int) -> None:
    """Given an ELF file of either size, then it is Linux if its notes say so; other owners do not count."""
    kernel = elf(
        bits=bits, notes=((b"GNU", 3, b"\1" * 20), (b"Linux", 256, b"6.1.0\0"), (b"Xen", 18, b"\0" * 4))
    )
    assert is_vmlinux(kernel)
    assert not is_vmlinux(elf(bits=bits, notes=((b"Xen", 18, b"\0" * 4),)))
    assert not is_vmlinux(elf(bits=bits)) and not is_vmlinux(b"") and not is_vmlinux(kernel[:60])
    plan = plan_boot(kernel, None, "quiet", MEMORY, RSDP)
    assert register(plan, "efer") == (1 << 8 | 1 << 10 if bits == 64 else 0)
    assert register(plan, "rip") == 16 * MIB


def test_an_elf_file_of_32_bits_that_is_nothing_known_is_refused(elf: KernelMaker) -> None:
    """Without Linux's notes and without a Multiboot header it is not started by guess."""
    with pytest.raises(GuestImageError, match="32-bit ELF file"):
        plan_boot(elf(bits=32), None, "", MEMORY, RSDP)


def test_notes_that_leave_their_segment_are_not_read(elf: KernelMaker) -> None:
    """Given a note whose size is wrong, then the list of notes ends there."""
    kernel = bytearray(elf(bits=32, notes=((b"One", 1, b"abcd"), (b"Linux", 1, b""))))
    at = kernel.index(b"One") - 12
    assert [note.owner for note in read_elf(bytes(kernel), bits=32, machine="EM_386").notes] == [
        b"One",
        b"Linux",
    ]
    struct.pack_into("<I", kernel, at + 4, 0xFFFF_FFF0)
    assert read_elf(bytes(kernel), bits=32, machine="EM_386").notes == ()


def test_the_descriptors_in_memory_agree_with_the_segment_registers(bzimage: KernelMaker) -> None:
    plan = load_linux(bzimage(), None, "", MEMORY, RSDP)
    gdtr = plan.registers["gdtr"]
    assert isinstance(gdtr, tuple)
    for name in ("cs", "ds"):
        segment = plan.registers[name]
        assert isinstance(segment, tuple)
        selector, base, limit, attributes = segment
        assert selector + 7 <= gdtr[1]
        descriptor = Ram(plan).word("Q", gdtr[0] + selector)
        assert descriptor >> 40 & 0xFF == attributes & 0xFF
        assert descriptor >> 52 & 0xF == attributes >> 8
        assert (descriptor >> 16 & 0xFF_FFFF | descriptor >> 56 << 24) == base == 0
        assert (descriptor & 0xFFFF | (descriptor >> 48 & 0xF) << 16) == limit >> 12


def test_the_first_four_gib_are_mapped_to_themselves(bzimage: KernelMaker) -> None:
    plan = load_linux(bzimage(), None, "", MEMORY, RSDP)
    ram, cr3 = Ram(plan), register(plan, "cr3")
    for address in (0, 0x8123, 16 * MIB + 0x200, GIB - 1, 3 * GIB + 5, 4 * GIB - 1):
        assert walk(ram, cr3, address) == address


def test_the_zero_page_carries_the_setup_header_and_what_the_loader_found(bzimage: KernelMaker) -> None:
    initrd = b"070701" + b"x" * 5000
    plan = load_linux(bzimage(), initrd, "console=ttyS0 quiet", MEMORY, RSDP)
    ram, zero_page = Ram(plan), register(plan, "rsi")
    assert ram.read(zero_page + 0x202, 4) == b"HdrS"
    assert ram.word("H", zero_page + 0x206) == 0x020F
    assert ram.word("B", zero_page + 0x210) == 0xFF
    assert ram.word("B", zero_page + 0x1EF) == 0, "a set sentinel makes Linux clear what we filled in"
    assert ram.word("Q", zero_page + 0x70) == RSDP
    assert ram.string(ram.word("I", zero_page + 0x228)) == b"console=ttyS0 quiet"
    start, size = ram.word("I", zero_page + 0x218), ram.word("I", zero_page + 0x21C)
    assert ram.read(start, size) == initrd
    assert start % 4096 == 0 and start + size <= MEMORY.low_ram_bytes


@pytest.mark.parametrize("size", [256 * MIB, 3 * GIB, 6 * GIB])
def test_the_zero_page_tells_the_e820_map(bzimage: KernelMaker, size: int) -> None:
    memory = MemoryMap(size)
    plan = load_linux(bzimage(), None, "", memory, RSDP)
    ram, zero_page = Ram(plan), register(plan, "rsi")
    told = []
    for index in range(ram.word("B", zero_page + 0x1E8)):
        start, length, kind = struct.unpack("<QQI", ram.read(zero_page + 0x2D0 + 20 * index, 20))
        told.append((start, length, E820Type(kind)))
    assert told == [(entry.start, entry.size, entry.kind) for entry in memory.e820()]


def test_the_bios_data_area_names_the_top_of_conventional_memory(bzimage: KernelMaker) -> None:
    ram = Ram(load_linux(bzimage(), None, "", MEMORY, RSDP))
    assert ram.word("H", 0x40E) << 4 == ram.word("H", 0x413) * 1024 == 0x9_FC00


def test_a_preferred_address_that_is_not_aligned_is_rounded_up(bzimage: KernelMaker) -> None:
    plan = load_linux(bzimage(pref_address=17 * MIB), None, "", MEMORY, RSDP)
    assert register(plan, "rip") == 18 * MIB + 0x200


def test_an_initramfs_is_kept_off_the_memory_that_the_kernel_unpacks_into(bzimage: KernelMaker) -> None:
    kernel = bzimage(init_size=40 * MIB)
    plan = load_linux(kernel, bytes(10 * MIB), "", MemoryMap(64 * MIB), RSDP)
    start = Ram(plan).word("I", register(plan, "rsi") + 0x218)
    assert start + 10 * MIB <= 16 * MIB, "between 1 MiB and the kernel, as there is no room above it"


def test_an_initramfs_lies_below_what_the_kernel_can_reach(bzimage: KernelMaker) -> None:
    plan = load_linux(bzimage(initrd_addr_max=64 * MIB - 1), b"x", "", MemoryMap(4 * GIB), RSDP)
    assert Ram(plan).word("I", register(plan, "rsi") + 0x218) == 64 * MIB - 4096


def test_no_two_writes_of_a_plan_overlap(bzimage: KernelMaker) -> None:
    plan = load_linux(bzimage(), bytes(MIB), "x" * 2047, MEMORY, RSDP)
    plan.check(MEMORY.layout)
    spans = sorted((start, start + len(data)) for start, data in plan.writes)
    assert all(left[1] <= right[0] for left, right in pairwise(spans))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"magic": b"none"}, "neither a bzImage"),
        ({"boot_flag": 0x1234}, "boot signature is missing"),
        ({"version": 0x0209}, "too old"),
        ({"loadflags": 0}, "zImage"),
        ({"syssize": 0}, "announces no code"),
        ({"syssize": 1 << 20}, "truncated"),
        ({"kernel_alignment": 0}, "alignment"),
        ({"kernel_alignment": 3 * MIB}, "alignment"),
        ({"kernel_alignment": 2 << 30}, "alignment"),
        ({"pref_address": 0, "relocatable": 0}, "load address"),
        ({"pref_address": 1 << 63}, "load address"),
    ],
)
def test_a_damaged_header_is_named(bzimage: KernelMaker, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(GuestImageError, match=complaint):
        load_linux(bzimage(**changes), None, "", MEMORY, RSDP)


def test_a_kernel_cut_short_is_told_apart_from_a_whole_one(bzimage: KernelMaker) -> None:
    whole = bzimage(payload=b"\x90" * 100_000)
    load_linux(whole, None, "", MEMORY, RSDP)
    for length in (0x206, 0x267, 0x268, 2560, 50_000, len(whole) - 16):
        with pytest.raises(GuestImageError):
            load_linux(whole[:length], None, "", MEMORY, RSDP)


def test_too_little_memory_says_how_much_is_needed(bzimage: KernelMaker) -> None:
    with pytest.raises(ConfigurationError, match="at least 64 MiB"):
        load_linux(bzimage(), None, "", MemoryMap(32 * MIB), RSDP)
    with pytest.raises(ConfigurationError, match="needs 116 MiB"):
        load_linux(bzimage(init_size=100 * MIB), None, "", MemoryMap(64 * MIB), RSDP)
    with pytest.raises(ConfigurationError, match="initramfs of 60"):
        load_linux(bzimage(), bytes(60 * MIB), "", MemoryMap(64 * MIB), RSDP)


def test_a_command_line_that_the_kernel_cannot_take_is_refused(bzimage: KernelMaker) -> None:
    load_linux(bzimage(cmdline_size=10), None, "0123456789", MEMORY, RSDP)
    with pytest.raises(ConfigurationError, match="at most 10"):
        load_linux(bzimage(cmdline_size=10), None, "0123456789a", MEMORY, RSDP)
    with pytest.raises(ConfigurationError, match="zero byte"):
        load_linux(bzimage(), None, "a\0b", MEMORY, RSDP)
    with pytest.raises(ConfigurationError, match="at most 65535"):
        load_linux(bzimage(cmdline_size=0xFFFF_FFFF), None, "x" * 65536, MEMORY, RSDP)


def test_an_empty_initramfs_is_an_error_and_none_is_not(bzimage: KernelMaker) -> None:
    with pytest.raises(GuestImageError, match="initramfs is empty"):
        load_linux(bzimage(), b"", "", MEMORY, RSDP)


def test_a_vmlinux_is_loaded_by_physical_addresses_with_the_same_zero_page(elf: KernelMaker) -> None:
    text, data = b"\xf4" * 100, b"data"
    virtual = 0xFFFF_FFFF_8000_0000
    kernel = elf(
        entry=16 * MIB + 4,
        segments=((16 * MIB, virtual + 16 * MIB, text, 100), (18 * MIB, virtual + 18 * MIB, data, 8 * MIB)),
    )
    plan = load_linux(kernel, b"initrd", "root=/dev/ram", MEMORY, RSDP)
    ram, zero_page = Ram(plan), register(plan, "rsi")
    assert register(plan, "rip") == 16 * MIB + 4
    assert ram.read(16 * MIB, 100) == text and ram.read(18 * MIB, 8) == b"data\0\0\0\0"
    assert ram.read(zero_page + 0x202, 4) == b"HdrS" and ram.word("H", zero_page + 0x1FE) == 0xAA55
    assert ram.read(ram.word("I", zero_page + 0x218), 6) == b"initrd"
    assert ram.word("Q", zero_page + 0x70) == RSDP


def test_a_virtual_entry_point_is_turned_into_a_physical_one(elf: KernelMaker) -> None:
    virtual = 0xFFFF_FFFF_8100_0000
    kernel = elf(entry=virtual + 16, segments=((16 * MIB, virtual, b"\xf4" * 64, 64),))
    assert register(load_linux(kernel, None, "", MEMORY, RSDP), "rip") == 16 * MIB + 16


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"machine": 183}, "for EM_AARCH64"),
        ({"kind": 1}, "no executable"),
        ({"segments": ()}, "no segment"),
        ({"entry": 0x1234}, "entry point"),
        ({"segments": ((0x8000, 0, b"x", 1),), "entry": 0x8000}, "firmware's tables"),
        ({"segments": ((1 << 50, 0, b"x", 1),), "entry": 1 << 50}, "no memory of this machine"),
        ({"segments": ((MIB, 0, b"xx", 1 << 60),), "entry": MIB}, "no memory of this machine"),
        ({"segments": ((MIB, 0, b"xx", 1),), "entry": MIB}, "larger in the file"),
        ({"segments": ((MIB, 0, b"xx", 2), (MIB + 1, 0, b"yy", 2)), "entry": MIB}, "overlap"),
    ],
)
def test_a_damaged_vmlinux_is_named(elf: KernelMaker, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(GuestImageError, match=complaint):
        load_linux(elf(**changes), None, "", MEMORY, RSDP)


def test_debians_own_kernel_is_accepted(debian_kernel: bytes) -> None:
    memory = MemoryMap(512 * MIB)
    plan = load_linux(debian_kernel, bytes(5 * MIB), "console=ttyS0", memory, RSDP)
    plan.check(memory.layout)
    assert register(plan, "rip") == 16 * MIB + 0x200


PACKERS = [lzma.compress, lambda data: lzma.compress(data, lzma.FORMAT_ALONE), gzip.compress, bz2.compress]


def packed_bzimage(bzimage: KernelMaker, packed: bytes, init_size: int = 4 * MIB) -> bytes:
    image = bytearray(bzimage(payload=bytes(1024) + packed + bytes(512), init_size=init_size))
    struct.pack_into("<II", image, 0x248, 1024, len(packed))
    return bytes(image)


@pytest.mark.parametrize("pack", PACKERS)
def test_the_kernel_inside_a_bzimage_is_unpacked_and_starts(
    bzimage: KernelMaker, elf: KernelMaker, pack: Callable[[bytes], bytes]
) -> None:
    vmlinux = elf()
    unpacked = unpack_linux(packed_bzimage(bzimage, pack(vmlinux)))
    assert unpacked == vmlinux
    assert register(load_linux(unpacked, None, "", MEMORY, RSDP), "rip") == 16 * MIB


@pytest.mark.parametrize("pack", PACKERS)
def test_a_damaged_payload_is_named(
    bzimage: KernelMaker, elf: KernelMaker, pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(elf(segments=((16 * MIB, 0, bytes(range(256)) * 40, 10240),)))
    for damaged, complaint in (
        (packed[: len(packed) // 2], "truncated|corrupt"),
        (pack(bytes(5 * MIB)), "more than its header says"),
        (pack(b"no kernel"), "no 64-bit ELF"),
        (packed[:14] + b"\xff" * 40, "corrupt|truncated"),
    ):
        with pytest.raises(GuestImageError, match=complaint):
            unpack_linux(packed_bzimage(bzimage, damaged))


def test_a_payload_of_an_unknown_format_is_left_to_the_guest(bzimage: KernelMaker) -> None:
    with pytest.raises(GuestImageError, match="start the bzImage itself"):
        unpack_linux(packed_bzimage(bzimage, b"\x28\xb5\x2f\xfd zstd"))
    with pytest.raises(GuestImageError, match="outside the file"):
        unpack_linux(bzimage())
