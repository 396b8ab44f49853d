# SPDX-License-Identifier: GPL-2.0-or-later
"""A host's part of x86 as the native core takes it: CPUID, MSRs, rates, boot processor."""

from collections.abc import Sequence

from coremesh.core._native import CpuDescription, Platform, x86_platform
from coremesh.core.x86 import cpuid


def make_platform(
    apic_ids: Sequence[int], total_vcpus: int, tsc_hz: int, package_cores: int | None
) -> Platform:
    """The platform of a host with these cores; the machine's core with APIC id 0 is the bootstrap processor.

    Arguments as of :func:`describe_processors`.
    """
    return x86_platform(
        apic_ids=list(apic_ids),
        bootstrap=0 if 0 in apic_ids else None,
        total_vcpus=total_vcpus,
        timer_hz=timer_hz(tsc_hz),
        cpus=describe_processors(apic_ids, total_vcpus, tsc_hz, package_cores),
    )


def describe_processors(
    apic_ids: Sequence[int], total_vcpus: int, tsc_hz: int, package_cores: int | None
) -> list[CpuDescription]:
    """One description for each of ``apic_ids``, of ``total_vcpus`` in all whose TSC runs at ``tsc_hz``.

    ``package_cores`` are a package's; None: all vCPUs are one package.
    """
    topology = None if package_cores is None else cpuid.Topology(cores=package_cores)
    highest = (cpuid.HIGHEST_BASIC, cpuid.HIGHEST_HYPERVISOR, cpuid.HIGHEST_EXTENDED)
    kept = {msr: value for msr, value in cpuid.MSR_AT_RESET.items() if msr != cpuid.IA32_TSC_ADJUST}
    return [
        CpuDescription(
            cpuid=cpuid.cpuid_table(apic_id, total_vcpus, tsc_hz, topology),
            indexed_leaves=sorted(cpuid.SUBLEAF_LEAVES),
            highest=highest,
            msrs=kept,
        )
        for apic_id in apic_ids
    ]


def timer_hz(tsc_hz: int) -> int:
    """The rate of the local APICs' timers, which CPUID leaf 15h tells."""
    return cpuid.core_crystal(tsc_hz).hz
