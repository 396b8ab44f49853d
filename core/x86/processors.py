# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine's processors as the native core takes them: their answers to CPUID, MSRs and rates."""

from collections.abc import Sequence

from coremesh.core._native import CpuDescription
from coremesh.core.x86 import cpuid


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
