# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged kernels by the thousand: each gives a plan within RAM or a typed error, and costs little memory."""

import contextlib
import tracemalloc
from collections.abc import Callable

import pytest
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.core.memory_layout import GIB, MIB
from coremesh.core.x86.kernel import plan_boot
from coremesh.core.x86.memory_map import MemoryMap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KernelMaker = Callable[..., bytes]

MACHINES = [MemoryMap(size) for size in (2 * MIB, 64 * MIB, 256 * MIB, 4 * GIB)]
CHEAP = 4 * MIB
"""A plan copies the file and adds some tables; anything beyond would follow a number from the file."""

# Words in which a corrupt size or address shows best, beside arbitrary ones.
WORDS = st.sampled_from([0, 1, 0x7F, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x10_0000, 0x100_0000])
mutations = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), WORDS | st.integers(0, 0xFFFF_FFFF), st.sampled_from([1, 2, 4])
    ),
    max_size=8,
)
fuzz = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def damage(image: bytes, header_bytes: int, changes: list[tuple[float, int, int]], kept: float) -> bytes:
    """Overwrite words of the header, then cut the file; both places are fractions of what there is."""
    data = bytearray(image)
    for place, word, size in changes:
        at = int(place * (min(header_bytes, len(data)) - size))
        data[at : at + size] = word.to_bytes(4, "little")[:size]
    return bytes(data[: int(len(data) * kept)])


def attempt(image: bytes, memory: MemoryMap) -> None:
    """Plan a start; any exception but the two announced ones, or a plan outside RAM, fails the test."""
    tracemalloc.start()
    try:
        with contextlib.suppress(GuestImageError, ConfigurationError):
            plan = plan_boot(image, b"initrd", "console=ttyS0", memory, 0xE_0000)
            plan.check(memory.layout)
            entry = plan.registers["rip"]
            assert isinstance(entry, int) and memory.is_ram(entry, 1)
        assert tracemalloc.get_traced_memory()[1] < CHEAP + 4 * len(image)
    finally:
        tracemalloc.stop()


kept_fractions = st.just(1.0) | st.floats(0, 1)


@fuzz
@given(mutations, kept_fractions, st.sampled_from(MACHINES))
def test_a_damaged_bzimage(
    bzimage: KernelMaker, changes: list[tuple[float, int, int]], kept: float, memory: MemoryMap
) -> None:
    boot_sector, header = bzimage()[:0x1F0], bzimage()[0x1F0:]
    whole = boot_sector + damage(header, 0x80, changes, 1.0)
    attempt(whole[: int(kept * len(whole))], memory)


@fuzz
@given(mutations, kept_fractions, st.sampled_from(MACHINES))
def test_a_damaged_vmlinux(
    elf: KernelMaker, changes: list[tuple[float, int, int]], kept: float, memory: MemoryMap
) -> None:
    attempt(damage(elf(), 64 + 56, changes, kept), memory)


@fuzz
@given(mutations, kept_fractions, st.sampled_from(MACHINES))
def test_a_damaged_multiboot_elf(
    multiboot_elf: KernelMaker, changes: list[tuple[float, int, int]], kept: float, memory: MemoryMap
) -> None:
    attempt(damage(multiboot_elf(), 52 + 32 + 12, changes, kept), memory)


@fuzz
@given(
    st.integers(0, 0x1F_FFFF),
    st.tuples(*[st.integers(0, 0xFFFF_FFFF) | st.integers(MIB - 64, MIB + 256) | st.just(0)] * 5),
    st.integers(0, 200),
    st.sampled_from(MACHINES),
)
def test_multiboot_address_fields_of_any_value(
    multiboot_header: KernelMaker, flags: int, addresses: tuple[int, ...], code: int, memory: MemoryMap
) -> None:
    attempt(multiboot_header(flags | 1 << 16, addresses) + b"\xf4" * code, memory)


@fuzz
@given(st.binary(max_size=4096), st.sampled_from(MACHINES))
def test_a_file_of_noise(noise: bytes, memory: MemoryMap) -> None:
    attempt(noise, memory)
    attempt(b"\x7fELF\x02\x01\x01" + noise, memory)
    attempt(b"\x7fELF\x01\x01\x01" + noise, memory)


@fuzz
@given(mutations, st.just(1.0) | st.floats(0, 1), st.sampled_from(MACHINES))
def test_debians_own_kernel_damaged(
    debian_header: bytes, changes: list[tuple[float, int, int]], kept: float, memory: MemoryMap
) -> None:
    attempt(damage(debian_header, 0x300, changes, kept), memory)


@pytest.fixture(scope="module")
def debian_header(debian_kernel: bytes) -> bytes:
    """The real setup code; the payload behind it is short, which is one more thing to notice."""
    return debian_kernel[:32768]


@settings(fuzz, max_examples=150)
@given(mutations, kept_fractions, st.sampled_from(MACHINES), st.sampled_from([32, 64]))
def test_a_damaged_multiboot_2_kernel(
    multiboot2_elf: KernelMaker,
    changes: list[tuple[float, int, int]],
    kept: float,
    memory: MemoryMap,
    bits: int,
) -> None:
    tags = ((1, 0, bytes(8)), (3, 0, (0x10_0040).to_bytes(4, "little")), (5, 1, bytes(12)))
    attempt(damage(multiboot2_elf(bits=bits, tags=tags), 256, changes, kept), memory)


@settings(fuzz, max_examples=150)
@given(mutations, kept_fractions, st.sampled_from(MACHINES), st.sampled_from([32, 64]))
def test_a_damaged_pvh_kernel(
    elf: KernelMaker, changes: list[tuple[float, int, int]], kept: float, memory: MemoryMap, bits: int
) -> None:
    notes = ((b"GNU", 3, bytes(20)), (b"Xen", 18, (0x100_0010).to_bytes(8, "little")))
    attempt(damage(elf(bits=bits, notes=notes), 256, changes, kept), memory)
