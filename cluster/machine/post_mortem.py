# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host tells of itself when its machine ends badly: its vCPUs, and the last messages between hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN_VCPUS = 16
_SHOWN_MESSAGES = 24
_CR0_PE, _EFER_LMA, _RFLAGS_VM = 1, 1 << 10, 1 << 17
_CS_LONG, _CS_32 = 1 << 9, 1 << 10  # of the descriptor's access word (SDM vol. 3A 3.4.5)

Rows = Sequence[Mapping[str, Any]]


def format_vcpus(glances: Rows, registers: Mapping[int, Mapping[str, Any]], first_vcpu: int = 0) -> str:
    """Return a line for each vCPU of a host: what it did, in which mode, where, and what waits for it.

    `glances` as of ``Host.glances``; `registers` of those whose registers are known, by the host's own
    number. The machine counts the host's vCPUs from `first_vcpu`.
    """
    lines = [_vcpu(glance, registers.get(glance["vcpu"]), first_vcpu) for glance in glances[:_SHOWN_VCPUS]]
    if len(glances) > _SHOWN_VCPUS:
        lines.append(f"  and {len(glances) - _SHOWN_VCPUS} more vCPUs of this host")
    return "\n".join(lines)


def format_trace(entries: Rows, shown: int = _SHOWN_MESSAGES) -> str:
    """Return the last `shown` messages of the page protocol, the newest at the end; '' without any.

    `entries` as of ``Host.trace``. Times count from the newest. I, S, M: the host may do nothing with the
    page, read it, write it.
    """
    if not entries:
        return ""
    last = entries[-shown:]
    newest = last[-1]["time_ns"]
    head = f"last {len(last)} messages of the page protocol on this host (ms before the newest):"
    return "\n".join([head, *(_message(entry, newest) for entry in last)])


def mode(registers: Mapping[str, Any]) -> str:
    """Return the processor mode that the registers say: 'real', 'virtual-8086', '16-bit' to '64-bit'."""
    if not registers["cr0"] & _CR0_PE:
        return "real"
    if registers["rflags"] & _RFLAGS_VM:
        return "virtual-8086"
    access = registers["cs"][3]
    if registers["efer"] & _EFER_LMA and access & _CS_LONG:
        return "64-bit"
    return "32-bit" if access & _CS_32 else "16-bit"


def _vcpu(glance: Mapping[str, Any], registers: Mapping[str, Any] | None, first_vcpu: int) -> str:
    words = [glance["state"]]
    if glance["inside"]:
        words.append("in guest code")
    if glance["waits_for_page"] is not None:
        words.append(f"waits for RAM page {glance['waits_for_page']:#x}")
    if registers is not None:
        words.append(f"{mode(registers)} rip={registers['rip']:x} rsp={registers['rsp']:x}")
        words.append("IF=1" if registers["rflags"] & 1 << 9 else "IF=0")
    if glance["requested"] >= 0:
        words.append(f"vector {glance['requested']:#x} pending")
    if glance["extint"]:
        words.append("8259A pending")
    if glance["request"]:
        words.append(f"{glance['request'].upper()} pending")
    return f"  vCPU {first_vcpu + glance['vcpu']}: {', '.join(words)}"


def _message(entry: Mapping[str, Any], newest: int) -> str:
    way = "->" if entry["sent"] else "<-"
    access = entry["before"] if entry["before"] == entry["after"] else f"{entry['before']}->{entry['after']}"
    page = f"{entry['gpa']:#x}" if entry["gpa"] is not None else f"number {entry['page']:#x} (none)"
    rejected = " REJECTED" if entry["rejected"] else ""
    return (
        f"  {(entry['time_ns'] - newest) / 1e6:10.3f} {way} host {entry['peer']:<2} {entry['kind']:<8} "
        f"page {page} {access} for host {entry['requester']} "
        f"#{entry['serial']}{rejected}"
    )
