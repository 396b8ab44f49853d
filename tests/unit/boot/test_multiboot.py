# SPDX-License-Identifier: GPL-2.0-or-later
"""Multiboot 1, seen from the kernel: the state it starts in and the information it is handed."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.core.image import BootPlan
from coremesh.core.memory_layout import GIB, MIB
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.core.x86.multiboot import load_multiboot

KernelMaker = Callable[..., bytes]

MEMORY = MemoryMap(16 * MIB)


@dataclass
class Machine:
    """Guest memory as the plan leaves it, small enough to be a real buffer."""

    plan: BootPlan
    ram: bytearray

    @classmethod
    def after(cls, plan: BootPlan) -> "Machine":
        plan.check(MEMORY.layout)
        ram = bytearray(MEMORY.ram_bytes)
        for gpa, data in plan.writes:
            assert not any(ram[gpa : gpa + len(data)]), "two writes overlap"
            ram[gpa : gpa + len(data)] = data
        return cls(plan, ram)

    def register(self, name: str) -> int:
        value = self.plan.registers[name]
        assert isinstance(value, int)
        return value

    def words(self, gpa: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}I", self.ram, gpa)

    def info(self, offset: int) -> int:
        return self.words(self.register("rbx") + offset, 1)[0]

    def string(self, gpa: int) -> bytes:
        return bytes(self.ram[gpa : self.ram.index(0, gpa)])


def start(kernel: bytes, modules: list[tuple[bytes, str]] | None = None, cmdline: str = "") -> Machine:
    return Machine.after(load_multiboot(kernel, modules or [], cmdline, MEMORY))


def test_the_kernel_starts_in_flat_32_bit_protected_mode_without_paging(multiboot_elf: KernelMaker) -> None:
    machine = start(multiboot_elf())
    assert machine.register("rax") == 0x2BADB002
    assert machine.register("rip") == MIB + 12
    assert machine.register("cr0") & (1 << 31 | 1) == 1
    assert machine.register("efer") == 0 and machine.register("cr4") == 0
    assert not machine.register("rflags") & (1 << 17 | 1 << 9), "neither VM nor IF"
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = machine.plan.registers[name]
        assert isinstance(segment, tuple)
        _, base, limit, attributes = segment
        assert (base, limit) == (0, 0xFFFF_FFFF)
        assert attributes & 0x400, "a 32-bit segment"
        assert bool(attributes & 8) == (name == "cs"), "only CS is executable"


def test_the_information_tells_memory_command_line_and_loader(multiboot_elf: KernelMaker) -> None:
    machine = start(multiboot_elf(), cmdline="test=atomics rounds=7")
    assert machine.info(0) & (1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9) == 0b10_0100_1101
    assert (machine.info(4), machine.info(8)) == (639, 15 * 1024)
    assert machine.string(machine.info(16)) == b"test=atomics rounds=7"
    assert machine.string(machine.info(64)) == b"Coremesh"


def test_the_memory_map_is_the_firmwares(multiboot_elf: KernelMaker) -> None:
    machine = start(multiboot_elf())
    at, end = machine.info(48), machine.info(48) + machine.info(44)
    ranges = []
    while at < end:
        size, base, length, kind = struct.unpack_from("<IQQI", machine.ram, at)
        ranges.append((base, length, kind))
        at += size + 4
    assert at == end
    assert ranges == [(entry.start, entry.size, entry.kind) for entry in MEMORY.e820()]


def test_modules_keep_their_order_on_pages_of_their_own_behind_the_kernel(multiboot_elf: KernelMaker) -> None:
    modules = [(b"first" * 1000, "one"), (b"", "empty"), (b"third", "three arg")]
    machine = start(multiboot_elf(bss=10_000), modules)
    assert machine.info(20) == 3
    previous_end = MIB + 10_000
    for index, (data, text) in enumerate(modules):
        begin, end, string, reserved = machine.words(machine.info(24) + 16 * index, 4)
        assert begin % 4096 == 0 and begin >= previous_end and reserved == 0
        assert machine.ram[begin:end] == data
        assert machine.string(string) == text.encode()
        previous_end = end


def test_elf_headers_may_be_loaded_in_the_page_below_the_text(
    elf: KernelMaker, multiboot_header: KernelMaker
) -> None:
    kernel = elf(
        bits=32,
        entry=MIB + 12,
        segments=((MIB - 4096, 0, b"\x7fELF" + bytes(144), 148), (MIB, 0, multiboot_header(0) + b"\xf4", 13)),
    )
    assert start(kernel).register("rip") == MIB + 12


def test_bss_is_left_zero_and_free(multiboot_elf: KernelMaker) -> None:
    machine = start(multiboot_elf(code=b"\xf4" * 16, bss=8192), [(b"module", "")])
    assert not any(machine.ram[MIB + 28 : MIB + 28 + 8192])


def test_address_fields_place_a_kernel_that_is_no_elf(multiboot_header: KernelMaker) -> None:
    padding, code = b"\0" * 64, b"\xf4" * 100
    load = 2 * MIB
    header = multiboot_header(1 << 16, (load + 16, load, load + 140, load + 9000, load + 60))
    machine = start(padding[:16] + header + code, [(b"module", "")])
    assert machine.register("rip") == load + 60
    assert machine.ram[load + 16 : load + 20] == bytes.fromhex("02b0ad1b")
    assert machine.words(machine.info(24), 1)[0] == load + 12288


def test_open_ended_address_fields_mean_the_whole_file_and_no_bss(multiboot_header: KernelMaker) -> None:
    header = multiboot_header(1 << 16, (MIB, MIB, 0, 0, MIB + 32))
    machine = start(header + b"\xf4" * 50)
    assert machine.ram[MIB + 32 : MIB + 82] == b"\xf4" * 50


def test_the_header_is_found_on_any_word_of_the_first_8_kib(
    elf: KernelMaker, multiboot_header: KernelMaker
) -> None:
    def kernel(offset: int) -> bytes:
        body = bytes(offset - 84) + multiboot_header(0) + b"\xf4"
        return elf(bits=32, entry=MIB, segments=((MIB, 0, body, len(body)),))

    assert load_multiboot(kernel(8192 - 12), [], "", MEMORY)
    for unreachable in (8192 - 8, 4098):
        with pytest.raises(GuestImageError, match="no Multiboot header"):
            load_multiboot(kernel(unreachable), [], "", MEMORY)


def test_a_wrong_checksum_is_no_header(multiboot_elf: KernelMaker) -> None:
    kernel = bytearray(multiboot_elf())
    kernel[kernel.index(bytes.fromhex("02b0ad1b")) + 8] ^= 1
    with pytest.raises(GuestImageError, match="no Multiboot header"):
        load_multiboot(bytes(kernel), [], "", MEMORY)


@pytest.mark.parametrize(("flags", "complaint"), [(1 << 5, "flags 0x20"), (1 << 15, "flags 0x8000")])
def test_a_requirement_that_cannot_be_met_is_refused(
    multiboot_elf: KernelMaker, flags: int, complaint: str
) -> None:
    with pytest.raises(GuestImageError, match=complaint):
        load_multiboot(multiboot_elf(flags=flags), [], "", MEMORY)


def test_an_optional_flag_is_passed_over(multiboot_elf: KernelMaker) -> None:
    assert load_multiboot(multiboot_elf(flags=1 << 20), [], "", MEMORY)


def test_a_64_bit_elf_says_how_to_convert_it(multiboot_elf: KernelMaker) -> None:
    with pytest.raises(GuestImageError, match="objcopy"):
        load_multiboot(multiboot_elf(bits=64), [], "", MEMORY)


@pytest.mark.parametrize(
    ("addresses", "complaint"),
    [
        ((MIB, 2 * MIB, 0, 0, 2 * MIB), "does not allow"),
        ((2 * MIB, MIB, 0, 0, MIB), "does not allow"),
        ((MIB, MIB, 2 * MIB, 0, MIB), "truncated"),
        ((MIB, MIB, MIB - 4, 0, MIB), "announces 0 bytes"),
        ((MIB, MIB, 0, MIB + 1, MIB), "bss_end_addr"),
        ((MIB, MIB, 0, 0, 3 * MIB), "entry point"),
        ((MIB, MIB, 0, 0xFFFF_FFFF, MIB), "no memory of this machine"),
        ((0x400, 0x400, 0, 0, 0x400), "firmware's tables"),
        ((0x9_FC00, 0x9_FC00, 0, 0, 0x9_FC00), "firmware's tables"),
        ((0xF_0000, 0xF_0000, 0, 0, 0xF_0000), "firmware's tables"),
        ((0x7C00, 0x7C00, 0, 0x9_FC01, 0x7C00), "firmware's tables"),
    ],
)
def test_wrong_address_fields_are_named(
    multiboot_header: KernelMaker, addresses: tuple[int, ...], complaint: str
) -> None:
    with pytest.raises(GuestImageError, match=complaint):
        load_multiboot(multiboot_header(1 << 16, addresses) + b"\xf4" * 50, [], "", MEMORY)


def test_a_header_cut_off_before_its_address_fields(multiboot_header: KernelMaker) -> None:
    with pytest.raises(GuestImageError, match="ends inside its Multiboot header"):
        load_multiboot(multiboot_header(1 << 16), [], "", MEMORY)


def test_what_does_not_fit_is_a_matter_of_the_machine(multiboot_elf: KernelMaker) -> None:
    with pytest.raises(ConfigurationError, match="modules need 18 MiB"):
        load_multiboot(multiboot_elf(), [(bytes(16 * MIB), "big")], "", MEMORY)
    with pytest.raises(ConfigurationError, match="conventional memory"):
        load_multiboot(multiboot_elf(), [(b"x", "s" * 60_000)] * 10, "", MEMORY)
    with pytest.raises(ConfigurationError, match="at most 65535"):
        load_multiboot(multiboot_elf(), [], "x" * 65536, MEMORY)


def test_upper_memory_ends_at_the_devices_hole_of_a_large_machine(multiboot_elf: KernelMaker) -> None:
    plan = load_multiboot(multiboot_elf(), [], "", MemoryMap(8 * GIB))
    address = plan.registers["rbx"]
    assert isinstance(address, int)
    gpa, block = next((gpa, data) for gpa, data in plan.writes if gpa <= address < gpa + len(data))
    assert struct.unpack_from("<I", block, address - gpa + 8)[0] == (3 * GIB - MIB) // 1024


def test_a_kernel_that_asks_for_a_video_mode_is_told_of_the_text_mode(multiboot_elf: KernelMaker) -> None:
    """Given header bit 2, which is a preference, then the frame buffer is type 2: 80 by 25 of text."""
    machine = start(multiboot_elf(flags=1 << 2))
    assert machine.info(0) & 1 << 12
    at = machine.register("rbx") + 88
    assert struct.unpack_from("<Q3I2B", machine.ram, at) == (0xB_8000, 160, 80, 25, 16, 2)


@pytest.mark.parametrize(
    ("load", "size"), [(0x7C00, 512), (0x1000, 0x8_0000), (0x500, 100), (0x1_0000, 0x8_FC00)]
)
def test_a_kernel_may_lie_in_conventional_memory(multiboot_header: KernelMaker, load: int, size: int) -> None:
    """Given segments below 1 MiB where memory is free, what it is told lies elsewhere, modules above."""
    header = multiboot_header(1 << 16, (load, load, 0, load + size, load + 32))
    machine = start(header + b"\xf4" * 50, [(b"module", "text")], "words")
    assert machine.register("rip") == load + 32
    assert machine.ram[load + 32 : load + 82] == b"\xf4" * 50
    assert machine.string(machine.info(16)) == b"words"
    gdt, limit = machine.plan.registers["gdtr"]  # type: ignore[misc]
    for low, high in ((gdt, gdt + limit + 1), (machine.register("rbx"), machine.info(24) + 16)):
        assert high <= load or low >= load + size, "not where the kernel's bss is"
    assert machine.words(machine.info(24), 1)[0] >= MIB


def test_both_code_selectors_of_the_gdt_work(multiboot_elf: KernelMaker) -> None:
    """Given GRUB's 10h and QEMU's 8, then a far jump to either finds flat code; data is at 18h."""
    machine = start(multiboot_elf())
    gdt, limit = machine.plan.registers["gdtr"]  # type: ignore[misc]
    assert limit == 31
    null, qemu, grub, data = struct.unpack_from("<4Q", machine.ram, gdt)
    assert null == 0 and qemu == grub and grub >> 40 & 0xFE == 0x9A and data >> 40 & 0xFE == 0x92
    assert machine.plan.registers["cs"][0] == 0x10  # type: ignore[index]


def test_the_bios_data_area_describes_the_machine(multiboot_elf: KernelMaker) -> None:
    """Given a kernel that looks where a BIOS would have told it, then it finds COM1, the screen, the EBDA."""
    machine = start(multiboot_elf())

    def word(at: int) -> int:
        value: int = struct.unpack_from("<H", machine.ram, 0x400 + at)[0]
        return value

    assert (word(0x00), word(0x63), word(0x4A)) == (0x3F8, 0x3D4, 80)
    assert (machine.ram[0x449], machine.ram[0x484], word(0x85)) == (3, 24, 16)
    assert (word(0x0E) << 4, word(0x13)) == (0x9_FC00, 639)
    assert word(0x1A) == word(0x1C) == word(0x80) == 0x1E, "an empty keyboard buffer"
    assert word(0x10) & 0x30 == 0x20, "80 columns in colour"
