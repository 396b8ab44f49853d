# SPDX-License-Identifier: GPL-2.0-or-later
"""The processor's description, read as an operating system reads it."""

import struct

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.core.x86 import cpuid
from coremesh.core.x86.cpuid import IsaLevel, Leaf1Ecx, Leaf1Edx, answer, cpuid_table
from hypothesis import given, settings
from hypothesis import strategies as st

TSC_HZ = 2_000_000_000


def feature(register: int, flag: int) -> bool:
    return register & flag == flag


def test_every_register_has_32_bits() -> None:
    for table in (cpuid_table(254, 255, TSC_HZ), cpuid_table(0, 1, 99_000_000_000)):
        for registers in table.values():
            assert len(registers) == 4
            assert all(0 <= register < 1 << 32 for register in registers)


def test_vendor_brand_and_hypervisor_read_as_text() -> None:
    table = cpuid_table(0, 1, TSC_HZ)
    _, ebx, ecx, edx = answer(table, 0, 0)
    assert struct.pack("<3I", ebx, edx, ecx) == b"GenuineIntel"
    brand = b"".join(struct.pack("<4I", *answer(table, 0x8000_0002 + index, 0)) for index in range(3))
    assert brand.rstrip(b"\0") == b"Coremesh Virtual CPU"
    _, ebx, ecx, edx = answer(table, 0x4000_0000, 0)
    assert struct.pack("<3I", ebx, ecx, edx) == b"KVMKVMKVM\0\0\0"


def test_the_model_is_one_that_linux_does_not_guard_against_speculation() -> None:
    eax = answer(cpuid_table(0, 1, TSC_HZ), 1, 0)[0]
    family = eax >> 8 & 0xF
    model = eax >> 4 & 0xF | (eax >> 16 & 0xF) << 4
    assert (family, model) == (6, 0x36)


@pytest.mark.parametrize("level", list(IsaLevel))
def test_what_the_machine_needs_is_announced_at_every_level(level: IsaLevel) -> None:
    table = cpuid_table(0, 4, TSC_HZ, level=level)
    ecx, edx = answer(table, 1, 0)[2:]
    assert feature(
        ecx, Leaf1Ecx.X2APIC | Leaf1Ecx.TSC_DEADLINE | Leaf1Ecx.HYPERVISOR | Leaf1Ecx.CX16 | Leaf1Ecx.RDRAND
    )
    assert feature(edx, Leaf1Edx.APIC | Leaf1Edx.SSE2 | Leaf1Edx.SEP | Leaf1Edx.HTT | Leaf1Edx.PAT)
    assert answer(table, 6, 0)[0] & 1 << 2, "ARAT"
    assert answer(table, 7, 0)[1] & 1 << 1, "IA32_TSC_ADJUST"
    assert answer(table, 0x8000_0001, 0)[3] & (1 << 29 | 1 << 20 | 1 << 11) == 1 << 29 | 1 << 20 | 1 << 11
    assert answer(table, 0x8000_0007, 0)[3] == 1 << 8, "invariant TSC"


@pytest.mark.parametrize("level", list(IsaLevel))
def test_what_the_engine_lacks_is_not_announced(level: IsaLevel) -> None:
    table = cpuid_table(0, 4, TSC_HZ, level=level)
    monitor, fma, pcid, xsave, osxsave, avx, f16c = (1 << bit for bit in (3, 12, 17, 26, 27, 28, 29))
    assert not answer(table, 1, 0)[2] & (monitor | fma | pcid | xsave | osxsave | avx | f16c)
    vme, hlt_acpi = 1 << 1, 1 << 22
    assert not answer(table, 1, 0)[3] & (vme | hlt_acpi)
    _, ebx, ecx, _ = answer(table, 7, 0)
    bmi1, avx2, bmi2, invpcid, mpx, rdseed, adx, smap = (1 << bit for bit in (3, 5, 8, 10, 14, 18, 19, 20))
    assert not ebx & (bmi1 | avx2 | bmi2 | invpcid | mpx | rdseed | adx | smap)
    assert ecx == 0, "neither UMIP nor PKU nor LA57"
    assert answer(table, 0xD, 0) == answer(table, 0xD, 1) == (0, 0, 0, 0)
    svm, gib_pages = 1 << 2, 1 << 26
    assert not answer(table, 0x8000_0001, 0)[2] & svm
    assert not answer(table, 0x8000_0001, 0)[3] & gib_pages


def test_the_second_level_is_what_newer_distributions_require() -> None:
    psabi_v2 = Leaf1Ecx.SSSE3 | Leaf1Ecx.SSE4_1 | Leaf1Ecx.SSE4_2 | Leaf1Ecx.POPCNT | Leaf1Ecx.CX16
    assert feature(answer(cpuid_table(0, 1, TSC_HZ, level=IsaLevel.V2), 1, 0)[2], psabi_v2)
    assert not answer(cpuid_table(0, 1, TSC_HZ, level=IsaLevel.V1), 1, 0)[2] & Leaf1Ecx.SSSE3


def test_no_paravirtual_service_is_offered_under_the_hypervisors_name() -> None:
    eax, ebx, ecx, edx = answer(cpuid_table(0, 1, TSC_HZ), 0x4000_0001, 0)
    nop_io_delay = 1 << 1
    assert eax & ~nop_io_delay == ebx == ecx == edx == 0


@pytest.mark.parametrize("vcpus", [1, 2, 3, 8, 64, 255])
def test_every_core_finds_its_own_id_and_all_find_one_package(vcpus: int) -> None:
    packages = set()
    for apic_id in range(vcpus):
        table = cpuid_table(apic_id, vcpus, TSC_HZ)
        assert answer(table, 1, 0)[1] >> 24 == apic_id
        thread, core, end = (answer(table, 0xB, subleaf) for subleaf in (0, 1, 2))
        assert thread[3] == core[3] == end[3] == apic_id
        assert (thread[2] >> 8, core[2] >> 8, end[2] >> 8) == (1, 2, 0)
        assert (thread[1], core[1], end[1]) == (1, vcpus, 0)
        assert thread[0] == 0, "one thread a core"
        packages.add(apic_id >> core[0])
    assert packages == {0}


def test_threads_and_packages_divide_the_id_when_asked_for() -> None:
    topology = cpuid.Topology(cores=3, threads=2)
    table = cpuid_table(9, 12, TSC_HZ, topology)
    assert answer(table, 0xB, 0)[:2] == (1, 2)
    assert answer(table, 0xB, 1)[:2] == (3, 6)


def test_caches_multiply_out_to_their_sizes_and_the_list_ends() -> None:
    table = cpuid_table(0, 8, TSC_HZ)
    sizes = []
    for subleaf in range(10):
        eax, ebx, ecx, _ = answer(table, 4, subleaf)
        if eax & 0x1F == 0:
            break
        sizes.append(((ebx >> 22) + 1) * ((ebx >> 12 & 0x3FF) + 1) * ((ebx & 0xFFF) + 1) * (ecx + 1))
    assert sizes == [32 << 10, 32 << 10, 2 << 20, 16 << 20]


def test_a_leaf_beyond_the_highest_reads_as_the_highest_basic_one() -> None:
    table = cpuid_table(0, 1, TSC_HZ)
    highest = answer(table, answer(table, 0, 0)[0], 0)
    assert highest == answer(table, 0x16, 0)
    for leaf in (0x17, 0x1F, 0x3FFF_FFFF, 0x4000_0011, 0x8000_0009, 0xFFFF_FFFF):
        assert answer(table, leaf, 0) == highest
    assert answer(table, 0x3, 0) == (0, 0, 0, 0)
    assert answer(table, 1, 7) == answer(table, 1, 0), "leaf 1 ignores ECX"


@settings(deadline=None)  # a busy computer takes its time
@given(st.integers(1_000_000, 100_000_000_000))
def test_linux_computes_the_tscs_rate_to_a_kilohertz_without_overflow(tsc_hz: int) -> None:
    denominator, numerator, crystal_hz, _ = answer(cpuid_table(0, 1, tsc_hz), 0x15, 0)
    crystal_khz = crystal_hz // 1000
    assert 0 < crystal_khz * numerator < 1 << 32
    told_khz = crystal_khz * numerator // denominator
    assert abs(told_khz - tsc_hz / 1000) <= max(2, tsc_hz / 1000 * 2e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(1_000_000_000, 5_000_000_000))
def test_the_crystal_of_a_real_computers_rate_is_a_gigahertz_to_a_tenth_of_a_thousandth(tsc_hz: int) -> None:
    crystal = cpuid.core_crystal(tsc_hz)
    assert abs(crystal.hz - cpuid.CRYSTAL_HZ) < cpuid.CRYSTAL_HZ * 1e-4
    assert abs(crystal.hz * crystal.numerator / crystal.denominator - tsc_hz) <= max(2_500, tsc_hz * 1e-6)


def test_common_rates_are_told_exactly() -> None:
    for tsc_hz in (1_000_000_000, 2_000_000_000, 2_100_000_000, 2_400_000_000, 3_000_000_000, 2_995_200_000):
        crystal = cpuid.core_crystal(tsc_hz)
        assert crystal.hz == cpuid.CRYSTAL_HZ
        assert crystal.hz * crystal.numerator == tsc_hz * crystal.denominator


def test_numbers_out_of_range_are_refused() -> None:
    for apic_id, vcpus, tsc_hz in ((0, 0, TSC_HZ), (-1, 1, TSC_HZ), (0, 1, 0), (0, 1, 10**12)):
        with pytest.raises(ConfigurationError):
            cpuid_table(apic_id, vcpus, tsc_hz)


def test_the_msrs_say_that_the_processor_is_not_vulnerable_and_moves_strings_by_words() -> None:
    rdcl_no, ibrs_all, rsba = 1 << 0, 1 << 1, 1 << 2
    capabilities = cpuid.MSR_AT_RESET[cpuid.IA32_ARCH_CAPABILITIES]
    assert capabilities & rdcl_no and not capabilities & (ibrs_all | rsba)
    assert cpuid.MSR_AT_RESET[cpuid.IA32_MISC_ENABLE] & 1
    erms = 1 << 9
    assert not answer(cpuid_table(0, 1, TSC_HZ), 7, 0)[1] & erms
    assert cpuid.MSR_AT_RESET[cpuid.IA32_TSC_ADJUST] == 0
