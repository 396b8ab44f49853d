# SPDX-License-Identifier: GPL-2.0-or-later
"""The processor that the guest sees: what CPUID answers, and the MSRs that go with it.

Leaf numbers and bits are those of the Intel SDM, vol. 2A, CPUID, and vol. 4 for the MSRs. The choices:

*Features* are what the engine executes correctly and no more. Left out although the engine's decoder has
them: BMI1 and BMI2 (its BEXTR and BZHI lose the top bit of a full-width field) and ADX, which software
expects with them; XSAVE, MPX, PKU and LA57 (incomplete); SMAP (every STAC and CLAC would end a translated
block and split the data TLB in two); 1 GiB pages.

*Family 6, model 36h* is an in-order core ("Saltwell"). Linux lists it among those that do not speculate, and
so spends nothing on page-table isolation, retpolines or buffer clearing. That is the truth of this machine:
a guest's mitigations act on the speculation of a core that runs its instructions, and none does; what the
host's own core speculates on in translated code, the guest's retpolines and LFENCEs cannot reach. The model
also has no table of its own in Linux for TSC rates, TSC-deadline errata, idle states or performance
counters.

*Vendor Intel* because Linux reads the TSC's rate from leaf 15h from no other vendor, wakes further cores
without a 10 ms delay, and takes the time-stamp counters of all cores as synchronised.

*IA32_TSC_ADJUST* because Linux then skips the pairwise warp test at each core's start, and needs no watchdog
clock when there are at most two memory nodes: without it every core would spin in step with another one.

*The hypervisor leaf says KVM, with all of its services absent.* Linux uses x2APIC without interrupt
remapping only where a hypervisor's signature promises that it works. Of those it knows, Xen, Hyper-V and
Jailhouse then demand hypercalls or tables, VMware asks through a magic port, ACRN answers no; KVM's answer
is yes on the signature alone, and each of its services is used only if leaf 4000_0001h announces it.
"""

from dataclasses import dataclass
from enum import IntFlag, StrEnum
from functools import cache
from typing import Final

from coremesh.core.errors import ConfigurationError
from coremesh.core.x86.memory_map import PHYSICAL_ADDRESS_BITS

CpuidTable = dict[tuple[int, int], tuple[int, int, int, int]]
"""(leaf, subleaf) -> (EAX, EBX, ECX, EDX). Leaves outside SUBLEAF_LEAVES are stored under subleaf 0."""

SUBLEAF_LEAVES: Final = frozenset({0x4, 0x7, 0xB})
"""The leaves whose answer depends on ECX; all others ignore it."""

CRYSTAL_HZ: Final = 1_000_000_000
"""The core crystal clock, nominally: leaf 15h tells it, the timer of the local APIC counts it.

SDM vol. 3A, 11.5.4. 1 GHz is what QEMU and KVM count at: systems that were written for constant counts
instead of asking (xv6 and others) tick at their own rates."""

FAMILY: Final = 6
MODEL: Final = 0x36
STEPPING: Final = 1
VENDOR: Final = b"GenuineIntel"
BRAND: Final = b"Coremesh Virtual CPU"
HYPERVISOR_SIGNATURE: Final = b"KVMKVMKVM\0\0\0"

HIGHEST_BASIC: Final = 0x16
HIGHEST_EXTENDED: Final = 0x8000_0008
HIGHEST_HYPERVISOR: Final = 0x4000_0010
LINEAR_ADDRESS_BITS: Final = 48
CACHE_LINE_BYTES: Final = 64
MOST_DENOMINATORS: Final = 4096
"""How far the search for leaf 15h's ratio goes."""
MARGIN: Final = 8
"""Numerators left out, so that a crystal above its nominal rate does not overflow Linux's 32 bits."""
KVM_FEATURE_NOP_IO_DELAY: Final = 1 << 1
"""No port of this machine needs a pause between accesses: a hint, not a service."""


class Leaf1Edx(IntFlag):
    """CPUID.01H:EDX."""

    FPU = 1 << 0
    DE = 1 << 2
    PSE = 1 << 3
    TSC = 1 << 4
    MSR = 1 << 5
    PAE = 1 << 6
    MCE = 1 << 7
    CX8 = 1 << 8
    APIC = 1 << 9
    SEP = 1 << 11
    MTRR = 1 << 12
    PGE = 1 << 13
    MCA = 1 << 14
    CMOV = 1 << 15
    PAT = 1 << 16
    PSE36 = 1 << 17
    CLFSH = 1 << 19
    MMX = 1 << 23
    FXSR = 1 << 24
    SSE = 1 << 25
    SSE2 = 1 << 26
    HTT = 1 << 28


class Leaf1Ecx(IntFlag):
    """CPUID.01H:ECX."""

    SSE3 = 1 << 0
    PCLMULQDQ = 1 << 1
    SSSE3 = 1 << 9
    CX16 = 1 << 13
    SSE4_1 = 1 << 19
    SSE4_2 = 1 << 20
    X2APIC = 1 << 21
    MOVBE = 1 << 22
    POPCNT = 1 << 23
    TSC_DEADLINE = 1 << 24
    AES = 1 << 25
    RDRAND = 1 << 30
    HYPERVISOR = 1 << 31


class Leaf7Ebx(IntFlag):
    """CPUID.07H.0:EBX."""

    FSGSBASE = 1 << 0
    TSC_ADJUST = 1 << 1
    SMEP = 1 << 7


class Leaf7Edx(IntFlag):
    """CPUID.07H.0:EDX."""

    ARCH_CAPABILITIES = 1 << 29


class ExtendedEcx(IntFlag):
    """CPUID.80000001H:ECX."""

    LAHF_LM = 1 << 0


class ExtendedEdx(IntFlag):
    """CPUID.80000001H:EDX."""

    SYSCALL = 1 << 11
    NX = 1 << 20
    RDTSCP = 1 << 27
    LM = 1 << 29


class ArchCapabilities(IntFlag):
    """IA32_ARCH_CAPABILITIES, MSR 10Ah: what this processor does not suffer from."""

    RDCL_NO = 1 << 0
    SKIP_L1DFL_VMENTRY = 1 << 3
    SSB_NO = 1 << 4
    MDS_NO = 1 << 5
    PSCHANGE_MC_NO = 1 << 6
    TAA_NO = 1 << 8
    SBDR_SSDP_NO = 1 << 13
    FBSDP_NO = 1 << 14
    PSDP_NO = 1 << 15
    BHI_NO = 1 << 20
    PBRSB_NO = 1 << 24
    GDS_NO = 1 << 26
    RFDS_NO = 1 << 27
    ITS_NO = 1 << 62


class IsaLevel(StrEnum):
    """How much of the SSE family is announced; names as in the x86-64 psABI."""

    V1 = "x86-64-v1"
    """SSE2 and SSE3. C libraries then choose string functions without byte shuffles, which translate best."""
    V2 = "x86-64-v2"
    """SSSE3 to SSE4.2 and POPCNT, which newer distributions require, with AES and PCLMULQDQ."""


BASE_EDX: Final = (
    Leaf1Edx.FPU
    | Leaf1Edx.DE
    | Leaf1Edx.PSE
    | Leaf1Edx.TSC
    | Leaf1Edx.MSR
    | Leaf1Edx.PAE
    | Leaf1Edx.MCE
    | Leaf1Edx.CX8
    | Leaf1Edx.APIC
    | Leaf1Edx.SEP
    | Leaf1Edx.MTRR
    | Leaf1Edx.PGE
    | Leaf1Edx.MCA
    | Leaf1Edx.CMOV
    | Leaf1Edx.PAT
    | Leaf1Edx.PSE36
    | Leaf1Edx.CLFSH
    | Leaf1Edx.MMX
    | Leaf1Edx.FXSR
    | Leaf1Edx.SSE
    | Leaf1Edx.SSE2
)
BASE_ECX: Final = (
    Leaf1Ecx.SSE3
    | Leaf1Ecx.CX16
    | Leaf1Ecx.X2APIC
    | Leaf1Ecx.MOVBE
    | Leaf1Ecx.TSC_DEADLINE
    | Leaf1Ecx.RDRAND
    | Leaf1Ecx.HYPERVISOR
)
LEVEL_ECX: Final = {
    IsaLevel.V1: Leaf1Ecx(0),
    IsaLevel.V2: Leaf1Ecx.SSSE3
    | Leaf1Ecx.SSE4_1
    | Leaf1Ecx.SSE4_2
    | Leaf1Ecx.POPCNT
    | Leaf1Ecx.AES
    | Leaf1Ecx.PCLMULQDQ,
}

IA32_TSC_ADJUST: Final = 0x3B
IA32_ARCH_CAPABILITIES: Final = 0x10A
IA32_MISC_ENABLE: Final = 0x1A0

MSR_AT_RESET: Final = {
    # Readable and writable: a write moves this core's TSC by the difference (SDM vol. 3B, 18.17.3).
    IA32_TSC_ADJUST: 0,
    # Read-only.
    IA32_ARCH_CAPABILITIES: sum(ArchCapabilities),
    # Fast strings (bit 0): Linux then clears and copies pages with REP STOSQ and MOVSQ, one short loop in a
    # translated block. The enhanced form, ERMS in leaf 7, is not announced: it would make that REP MOVSB.
    IA32_MISC_ENABLE: 1,
}
"""MSRs whose values belong to the description of the processor rather than to the engine."""


@dataclass(frozen=True, slots=True)
class Topology:
    """How APIC ids divide: ``threads`` a core, ``cores`` a package, each field a power of two wide."""

    cores: int
    threads: int = 1

    @property
    def thread_bits(self) -> int:
        """How many low bits of an APIC id number the thread within its core."""
        return (self.threads - 1).bit_length()

    @property
    def package_bits(self) -> int:
        """How many low bits of an APIC id number the thread within its package."""
        return self.thread_bits + (self.cores - 1).bit_length()


def cpuid_table(
    apic_id: int,
    vcpus: int,
    tsc_hz: int,
    topology: Topology | None = None,
    level: IsaLevel = IsaLevel.V2,
) -> CpuidTable:
    """Everything that CPUID answers on the core ``apic_id`` of a machine with ``vcpus`` cores.

    ``tsc_hz`` is the rate of the time-stamp counter in hertz, 1 MHz to 100 GHz. ``topology`` defaults to one
    package of single-threaded cores. Raises :class:`ConfigurationError` for numbers out of range. Pure; any
    thread may call.
    """
    if vcpus < 1 or apic_id < 0:
        raise ConfigurationError(f"no machine has {vcpus} vCPUs or the APIC id {apic_id}; give at least one")
    topology = topology or Topology(cores=vcpus)
    logical = topology.cores * topology.threads
    many = logical > 1
    leaf1_ecx = BASE_ECX | LEVEL_ECX[level]
    leaf1_edx = BASE_EDX | (Leaf1Edx.HTT if many else Leaf1Edx(0))
    crystal = core_crystal(tsc_hz)
    mhz = max(1, round(tsc_hz / 1e6))
    table: CpuidTable = {
        (0x0, 0): _vendor(HIGHEST_BASIC, VENDOR[:4], VENDOR[8:], VENDOR[4:8]),
        (0x1, 0): (
            signature(),
            CACHE_LINE_BYTES // 8 << 8 | min(logical, 255) << 16 | (apic_id & 0xFF) << 24,
            int(leaf1_ecx),
            int(leaf1_edx),
        ),
        (0x2, 0): (0x0000_FF01, 0, 0, 0),  # descriptor FFh: the caches are in leaf 4
        (0x6, 0): (1 << 2, 0, 0, 0),  # ARAT: the local APIC's timer never stops
        (0x7, 0): (
            0,
            int(Leaf7Ebx.FSGSBASE | Leaf7Ebx.TSC_ADJUST | Leaf7Ebx.SMEP),
            0,
            int(Leaf7Edx.ARCH_CAPABILITIES),
        ),
        (0x15, 0): (crystal.denominator, crystal.numerator, crystal.hz, 0),
        (0x16, 0): (mhz & 0xFFFF, mhz & 0xFFFF, round(crystal.hz / 1e6), 0),
        (0x4000_0000, 0): _vendor(
            HIGHEST_HYPERVISOR,
            HYPERVISOR_SIGNATURE[:4],
            HYPERVISOR_SIGNATURE[4:8],
            HYPERVISOR_SIGNATURE[8:],
        ),
        (0x4000_0001, 0): (KVM_FEATURE_NOP_IO_DELAY, 0, 0, 0),
        # The rates in kHz, where VMware first put them and FreeBSD looks under KVM too.
        (0x4000_0010, 0): (tsc_hz // 1000 & 0xFFFF_FFFF, crystal.hz // 1000, 0, 0),
        (0x8000_0000, 0): (HIGHEST_EXTENDED, 0, 0, 0),
        (0x8000_0001, 0): (
            0,
            0,
            int(ExtendedEcx.LAHF_LM),
            int(ExtendedEdx.SYSCALL | ExtendedEdx.NX | ExtendedEdx.RDTSCP | ExtendedEdx.LM),
        ),
        (0x8000_0006, 0): (0, 0, 2048 << 16 | 6 << 12 | CACHE_LINE_BYTES, 0),  # L2: 2 MiB, 8-way
        (0x8000_0007, 0): (0, 0, 0, 1 << 8),  # invariant TSC
        (0x8000_0008, 0): (PHYSICAL_ADDRESS_BITS | LINEAR_ADDRESS_BITS << 8, 0, 0, 0),
        **_caches(topology),
        **_extended_topology(apic_id, topology),
    }
    brand = BRAND.ljust(48, b"\0")
    for index in range(3):
        part = brand[index * 16 : index * 16 + 16]
        eax, ebx, ecx, edx = (int.from_bytes(part[at : at + 4], "little") for at in (0, 4, 8, 12))
        table[0x8000_0002 + index, 0] = (eax, ebx, ecx, edx)
    return table


def answer(table: CpuidTable, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    """What the instruction returns for EAX = ``leaf`` and ECX = ``subleaf``: how a table is to be read.

    A leaf or subleaf that is not in the table reads as zeros; a leaf beyond the highest of its range gives
    the highest basic leaf (SDM vol. 2A, CPUID), and leaf 0Bh always repeats ECX and the APIC id.
    """
    beyond_basic = HIGHEST_BASIC < leaf < 0x4000_0000
    beyond_hypervisor = HIGHEST_HYPERVISOR < leaf < 0x8000_0000
    if beyond_basic or beyond_hypervisor or leaf > HIGHEST_EXTENDED:
        leaf = HIGHEST_BASIC
    key = (leaf, subleaf if leaf in SUBLEAF_LEAVES else 0)
    if leaf == 0xB and key not in table:
        return (0, 0, subleaf & 0xFF, table[0xB, 0][3])
    return table.get(key, (0, 0, 0, 0))


def signature() -> int:
    """CPUID.01H:EAX: extended model, family, model and stepping."""
    return (MODEL >> 4) << 16 | FAMILY << 8 | (MODEL & 0xF) << 4 | STEPPING


@dataclass(frozen=True, slots=True)
class Crystal:
    """The core crystal clock and how the time-stamp counter follows from it: hz * numerator / denominator."""

    hz: int
    numerator: int
    denominator: int


@cache
def core_crystal(tsc_hz: int) -> Crystal:
    """Leaf 15h for a time-stamp counter of ``tsc_hz``: the crystal is CRYSTAL_HZ, or as near as can be.

    Linux computes in 32 bits and in kHz, crystal kHz * numerator first. That leaves no ratio for rates such
    as 2999.9 MHz at 1 GHz: the crystal then is some millionths off, rather than the counter's rate. Of all
    that give Linux the rate to 1 kHz it is the one nearest to 1 GHz. Raises :class:`ConfigurationError`
    outside of 1 MHz to 100 GHz.
    """
    if not 1_000_000 <= tsc_hz <= 100_000_000_000:
        raise ConfigurationError(
            f"a time-stamp counter of {tsc_hz} Hz is out of range; give 1 MHz to 100 GHz"
        )
    nominal_khz, wanted_khz = CRYSTAL_HZ // 1000, round(tsc_hz / 1000)
    most = (1 << 32) // nominal_khz - MARGIN
    candidates = (
        (khz, numerator, denominator)
        for denominator in range(1, min(most * CRYSTAL_HZ // tsc_hz, MOST_DENOMINATORS) + 1)
        for numerator in (tsc_hz * denominator // CRYSTAL_HZ, -(-tsc_hz * denominator // CRYSTAL_HZ))
        if 0 < numerator <= most
        for khz in (wanted_khz * denominator // numerator, -(-wanted_khz * denominator // numerator))
        if khz * numerator < 1 << 32
    )

    def badness(candidate: tuple[int, int, int]) -> tuple[int, int, float]:
        khz, numerator, denominator = candidate
        told_khz = khz * numerator // denominator
        off_hz = abs(khz * 1000 * numerator / denominator - tsc_hz)
        return max(1, abs(told_khz - wanted_khz)), abs(khz - nominal_khz), off_hz

    khz, numerator, denominator = min(candidates, key=badness)
    return Crystal(khz * 1000, numerator, denominator)


def _vendor(highest: int, ebx: bytes, ecx: bytes, edx: bytes) -> tuple[int, int, int, int]:
    return (highest, *(int.from_bytes(word, "little") for word in (ebx, ecx, edx)))  # type: ignore[return-value]


def _caches(topology: Topology) -> CpuidTable:
    """Leaf 4: L1 data and instruction and L2 of each core, one L3 for the package."""
    data, instruction, unified = 1, 2, 3
    logical = 1 << topology.package_bits
    cores_field = min((1 << topology.package_bits - topology.thread_bits) - 1, 63)
    description = (
        # kind, level, KiB, ways, sharing threads
        (data, 1, 32, 8, topology.threads),
        (instruction, 1, 32, 8, topology.threads),
        (unified, 2, 2048, 8, topology.threads),
        (unified, 3, 16384, 16, logical),
    )
    leaves: CpuidTable = {}
    for index, (kind, level, kib, ways, sharing) in enumerate(description):
        sets = kib * 1024 // (ways * CACHE_LINE_BYTES)
        self_initialising = 1 << 8
        eax = kind | level << 5 | self_initialising | min(sharing - 1, 4095) << 14 | cores_field << 26
        leaves[0x4, index] = (eax, CACHE_LINE_BYTES - 1 | (ways - 1) << 22, sets - 1, 0)
    return leaves


def _extended_topology(apic_id: int, topology: Topology) -> CpuidTable:
    """Leaf 0Bh: where an x2APIC id divides into thread, core and package."""
    thread_level, core_level = 1, 2
    return {
        (0xB, 0): (topology.thread_bits, topology.threads, 0 | thread_level << 8, apic_id),
        (0xB, 1): (topology.package_bits, topology.cores * topology.threads, 1 | core_level << 8, apic_id),
    }
