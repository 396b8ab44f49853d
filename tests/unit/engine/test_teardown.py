# SPDX-License-Identifier: GPL-2.0-or-later
"""A host is freed whatever its guest has armed: what ends an engine must not ask for what is gone."""

import gc
import struct

import pytest
from coremesh.core.engine import Host
from raw_host import HLT, LAPIC, SPIN, raw_host, until, until_halted

MOV_DR0, MOV_DR1, MOV_DR2, MOV_DR7 = (b"\x0f\x23" + bytes([0xC0 | number << 3]) for number in (0, 1, 2, 7))


def _load(value: int) -> bytes:
    return b"\xb8" + struct.pack("<I", value)  # mov eax, value


def _store(address: int, value: int) -> bytes:
    return b"\xc7\x05" + struct.pack("<II", address, value)


WATCH_READS_AND_WRITES = _load(0x5000) + MOV_DR0 + _load(0xF0001) + MOV_DR7
WATCH_WRITES = _load(0x5000) + MOV_DR1 + _load(0xD0_0004) + MOV_DR7
BREAK_AT_CODE = _load(0x5000) + MOV_DR2 + _load(0x20) + MOV_DR7
ALL_FOUR = WATCH_READS_AND_WRITES + _load(0x5000) + MOV_DR1 + MOV_DR2 + _load(0x0DDF_00FF) + MOV_DR7
APIC_ON = _store(LAPIC + 0xF0, 0x1FF)
PERIODIC_TIMER = APIC_ON + _store(LAPIC + 0x320, 0x2_0040) + _store(LAPIC + 0x380, 0x10000)
ONE_SHOT_TIMER = APIC_ON + _store(LAPIC + 0x320, 0x40) + _store(LAPIC + 0x380, 0xFFFF_FFFF)
SINGLE_STEP = b"\x9c\x81\x0c\x24\x00\x01\x00\x00\x9d"  # pushf; or dword [esp], 100h; popf


@pytest.mark.parametrize("started", ["running", "halted", "stopped", "paused"])
@pytest.mark.parametrize(
    "armed",
    [WATCH_READS_AND_WRITES, WATCH_WRITES, BREAK_AT_CODE, ALL_FOUR, PERIODIC_TIMER, ONE_SHOT_TIMER],
    ids=["reads-and-writes", "writes", "code", "all-four", "periodic-timer", "one-shot-timer"],
)
def test_given_what_a_guest_has_armed_when_its_host_is_freed_then_it_goes_in_peace(
    armed: bytes, started: str
) -> None:
    """In each state that a host can be freed in; the flag at 6000h says that the guest got there."""
    end = HLT if started == "halted" else SPIN
    host: Host | None = raw_host(armed + _store(0x6000, 1) + end, vcpus=2)
    assert host
    host.start()
    until(lambda: bool(host and host.ram_read(0x6000, 1) == b"\1"), "the guest does not arm it")
    if started == "halted":
        until_halted(host)
    elif started == "paused":
        host.pause()
    elif started == "stopped":
        host.stop()
    host = None
    gc.collect()


def test_given_a_host_that_never_ran_when_it_is_freed_with_registers_set_then_it_goes_in_peace() -> None:
    host: Host | None = raw_host(SPIN)
    assert host
    host.set_registers(0, {"rflags": 0x102})
    host = None
    gc.collect()


def test_given_a_single_step_when_the_machine_ends_by_it_then_its_host_can_be_freed() -> None:
    """No IDT: the first trap ends the machine, with the step still armed."""
    host: Host | None = raw_host(WATCH_WRITES + SINGLE_STEP + SPIN)
    assert host
    host.start()
    assert host.wait(10.0)
    host = None
    gc.collect()
