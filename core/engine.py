# SPDX-License-Identifier: GPL-2.0-or-later
"""The vCPUs, local APICs and RAM of one host."""

from collections.abc import Sequence

from coremesh.core import cpuid
from coremesh.core._native import CpuDescription, NativeHost, host_tsc_hz

MAX_VCPUS = 255


class Host(NativeHost):
    """One host's share of a machine. All methods may be called from any Python thread.

    ``ram_bytes`` of RAM, ``low_ram_bytes`` of it below 4 GiB (multiples of 4096); one vCPU for each of
    ``apic_ids``, the machine's ``total_vcpus`` in all. The vCPU with APIC id 0 is the bootstrap processor.
    ``tsc_hz`` 0 means the host's own rate. ``protection`` of translated code: 'auto', 'userfaultfd' or
    'mprotect'. Raises OSError with the way out when the host refuses, ValueError for impossible sizes.
    """

    def __init__(
        self,
        *,
        ram_bytes: int,
        low_ram_bytes: int,
        apic_ids: Sequence[int],
        total_vcpus: int,
        tsc_hz: int = 0,
        protection: str = "auto",
    ) -> None:
        rate = tsc_hz or host_tsc_hz()
        highest = (cpuid.HIGHEST_BASIC, cpuid.HIGHEST_HYPERVISOR, cpuid.HIGHEST_EXTENDED)
        cpus = [
            CpuDescription(
                cpuid=cpuid.cpuid_table(apic_id, total_vcpus, rate),
                indexed_leaves=sorted(cpuid.SUBLEAF_LEAVES),
                highest=highest,
                msrs={
                    msr: value for msr, value in cpuid.MSR_AT_RESET.items() if msr != cpuid.IA32_TSC_ADJUST
                },
            )
            for apic_id in apic_ids
        ]
        super().__init__(
            ram_bytes=ram_bytes,
            low_ram_bytes=low_ram_bytes,
            apic_ids=list(apic_ids),
            bootstrap=0 if 0 in apic_ids else None,
            total_vcpus=total_vcpus,
            tsc_hz=rate,
            timer_hz=cpuid.LAPIC_TIMER_HZ,
            protection=protection,
            cpus=cpus,
        )
