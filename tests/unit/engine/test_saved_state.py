# SPDX-License-Identifier: GPL-2.0-or-later
"""vCPUs saved and loaded: each word comes back, what waits for a vCPU comes, damage is refused by name."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from coremesh.core._native import StateError as OrderError
from coremesh.core.engine import Host
from coremesh.core.state import State, StateError
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_host import CODE, LAPIC, raw_host, until, until_halted

GDT, IDT, STUBS, STACK, RESULT, AP_CODE = 0x5000, 0x6000, 0x8000, 0x7000, 0x500, 0x9000
TIMER, SPURIOUS_ON = 0x40, 0x1FF
FAR = 1 << 63  # a deadline in some decades

WIDTHS = {
    "cr3": 40,
    "dr6": 32,
    "x87_sign_exponent": 16,
    "x87_empty": 1,
    "x87_top": 3,
    "x87_opcode": 11,
    "x87_cs": 16,
    "x87_ds": 16,
    "x87_status": 16,
    "ia32_sysenter_cs": 32,
    "ia32_fmask": 32,
    "ia32_tsc_aux": 32,
    "ia32_mcg_status": 3,
    "ia32_mtrr_def_type": 12,
    "mxcsr": 16,
    "interrupt_shadow": 1,
    "nmi_blocked": 1,
    "task_priority": 8,
    "spurious": 13,
    "error_status": 8,
    "errors": 8,
    "logical_destination": 32,
    "destination_format": 32,
    "lint0": 1,
    "lint1": 1,
    "extint_message": 1,
    "timer_first": 32,
    "nmi_pending": 1,
    "init_pending": 1,
    "sipi_pending": 1,
    "sipi_vector": 8,
}
MODES = [  # CR0, CR4, IA32_EFER: real, protected, paged, PAE, long mode with SSE and its exceptions
    (0x10, 0x600, 0),
    (0x11, 0x8, 0x800),
    (0x8001_0033, 0x90, 0),
    (0x8000_0011, 0x20, 0x800),
    (0x8005_0033, 0x6A0, 0xD01),
]
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")


def machine(code: bytes = b"\xf4", vcpus: int = 1) -> Host:
    """A vCPU in flat 32-bit code, with an IDT whose handlers push their vector and halt."""
    host = raw_host(code, vcpus=vcpus, code_buffer_bytes=1 << 20)
    host.ram_write(GDT, bytes(8) + bytes.fromhex("ffff0000009bcf00 ffff00000093cf00"))
    for vector in range(256):
        host.ram_write(STUBS + 4 * vector, b"\x6a" + bytes((vector,)) + b"\xf4")
        at = STUBS + 4 * vector
        host.ram_write(IDT + 8 * vector, (at & 0xFFFF | 8 << 16 | 0x8E00 << 32).to_bytes(8, "little"))
    host.set_registers(0, {"gdtr": (GDT, 23), "idtr": (IDT, 2047), "rsp": STACK})
    return host


@contextmanager
def going_on(state: State, other: Host) -> Iterator[Host]:
    """A machine built anew that goes on from ``state``, its RAM that of the ``other``."""
    host = machine(vcpus=other.vcpus)
    for gpa, length in other.ram_extents():
        host.ram_write(gpa, other.ram_read(gpa, length))
    host.load_state(json.loads(json.dumps(state)))
    host.start()
    try:
        yield host
    finally:
        host.stop()


def event(host: Host) -> tuple[int, int]:
    """The vector of the event whose handler halted the first vCPU, and where it came."""
    until_halted(host)
    host.pause()
    stack = host.ram_read(host.registers(0)["rsp"], 8)
    host.resume()
    return int.from_bytes(stack[:1]), int.from_bytes(stack[4:], "little")


# --- every word comes back


def random_state(state: State, seed: int) -> State:
    """One that a processor may be in, ``state`` having its shape."""
    r = random.Random(seed)

    def value(name: str, present: Any) -> Any:
        if isinstance(present, list):
            return [value(name, word) for word in present]
        return r.getrandbits(WIDTHS.get(name, 64))

    state = copy.deepcopy(state)
    for vcpu in state["vcpus"]:
        registers, lapic, events = vcpu["registers"], vcpu["lapic"], vcpu["events"]
        kept = {**lapic}
        for part in (registers, lapic, events):
            for name, present in part.items():
                part[name] = value(name, present)
        registers["rflags"] = r.getrandbits(22) & 0x3F7FD5 | 2
        registers["cr0"], registers["cr4"], registers["ia32_efer"] = r.choice(MODES)
        registers["xcr0"] = r.choice((1, 3))
        registers["interrupt_shadow"] = r.randrange(3)
        registers["x87_control"] = r.getrandbits(16) & 0x1F3F | 0x40
        for name in SEGMENTS:
            registers[name] = [r.getrandbits(bits) for bits in (16, 64, 32, 12)]
        registers["gdtr"] = [r.getrandbits(64), r.getrandbits(16)]
        registers["idtr"] = [r.getrandbits(64), r.getrandbits(16)]
        dr7 = registers["dr7"] = r.getrandbits(32) & ~0xD800 | 0x400
        watched = [n for n in range(4) if dr7 >> 2 * n & 3 and dr7 >> 16 + 4 * n & 1]
        registers["data_breakpoints_hit"] = sum(1 << n for n in watched if r.random() < 0.5)
        lapic["apic_id"] = kept["apic_id"]
        lapic["apic_base"] = r.choice((0xFEE0_0100, 0xFEE0_0900, 0xFEE0_0D00))
        lapic["lvt"] = [r.getrandbits(17) | r.randrange(3) << 17, *(r.getrandbits(17) for _ in range(5))]
        lapic["timer_running"], lapic["timer_initial"] = r.choice(((0, 0), (1, 1 + r.getrandbits(31))))
        lapic["timer_divide"] = r.choice((0, 1, 2, 3, 8, 9, 10, 11))
        deadline_mode = lapic["lvt"][0] >> 17 == 2
        lapic["timer_due"] = FAR if deadline_mode or lapic["timer_running"] else 0
        events["activity_state"] = r.choice((0, 1, 3))
        events["sipi_vector"] *= events["sipi_pending"]
        for msr in vcpu["msrs"]:
            vcpu["msrs"][msr] = r.getrandbits(64)
    return state


@pytest.fixture(scope="module")
def fresh() -> State:
    """The state of a machine that has not started."""
    return raw_host(code_buffer_bytes=1 << 20).save_state()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_every_word_of_a_state_comes_back(fresh: State, seed: int) -> None:
    """Given a random state, when it goes through JSON into a machine, then the machine's is the same."""
    state = random_state(fresh, seed)
    host = raw_host(code_buffer_bytes=1 << 20)
    host.load_state(json.loads(json.dumps(state)))
    again = host.save_state()
    assert state["tsc"] <= again.pop("tsc") < state.pop("tsc") + 60 * host.tsc_hz
    for was, now in zip(state["vcpus"], again["vcpus"], strict=True):
        for part in was:
            assert {n: v for n, v in now[part].items() if v != was[part][n]} == {}, part


def test_a_new_machines_state_is_one_that_can_be_loaded(fresh: State) -> None:
    host = raw_host(code_buffer_bytes=1 << 20)
    host.load_state(fresh)
    assert host.save_state()["vcpus"] == fresh["vcpus"]


# --- what waits for a vCPU comes


def test_a_timer_that_was_due_across_the_save_wakes_the_vcpu_from_hlt() -> None:
    """Given HLT with a one-shot count under way, when the vCPU goes on elsewhere, then the timer wakes it."""
    code = b"".join(
        b"\xc7\x05" + (LAPIC + register).to_bytes(4, "little") + value.to_bytes(4, "little")
        for register, value in ((0xF0, SPURIOUS_ON), (0x3E0, 0xB), (0x320, TIMER), (0x380, 300_000_000))
    )
    first = machine(code + b"\xfb\xf4")  # sti; hlt
    first.start()
    until_halted(first)
    first.pause()
    state = first.save_state()
    assert state["vcpus"][0]["events"]["activity_state"] == 1
    assert state["vcpus"][0]["lapic"]["timer_due"] > state["tsc"]
    first.resume()
    with going_on(state, first) as second:
        for host in (first, second):  # to be saved takes nothing away
            until(lambda: host.stats()[0]["interrupts"] == 1, "no interrupt")  # noqa: B023
            assert event(host) == (TIMER, CODE + len(code) + 2)
    first.stop()


def test_a_core_in_real_mode_and_one_that_waits_for_its_start_go_on() -> None:
    """Given a core that waits for SIPI, when it is saved, started elsewhere, and saved again in real mode.

    Then it counts on in a third machine.
    """
    send = b"".join(
        b"\xc7\x05" + (LAPIC + register).to_bytes(4, "little") + value.to_bytes(4, "little")
        for register, value in ((0xF0, SPURIOUS_ON), (0x310, 1 << 24), (0x300, 0x600 | AP_CODE >> 12))
    )
    first = machine(send + b"\xf4", vcpus=2)
    first.ram_write(AP_CODE, b"\x31\xc0\x8e\xd8\xff\x06\x00\x05\xeb\xfa")  # ds = 0; l: inc word [500h]; jmp l

    def count(host: Host) -> int:
        return int.from_bytes(host.ram_read(RESULT, 2), "little")

    state = first.save_state()
    assert [vcpu["events"]["activity_state"] for vcpu in state["vcpus"]] == [0, 3]
    with going_on(state, first) as second:
        until(lambda: count(second) > 0, "the core does not start")
        second.pause()
        state, reached = second.save_state(), count(second)
        registers = state["vcpus"][1]["registers"]
        assert registers["cs"][:2] == [AP_CODE >> 4, AP_CODE]
        assert not registers["cr0"] & 1
        with going_on(state, second) as third:
            until(lambda: count(third) != reached, "the core does not go on")
    first.stop()


def test_a_start_that_was_under_way_comes() -> None:
    first = machine(vcpus=2)
    first.ram_write(AP_CODE, b"\x31\xc0\x8e\xd8\xff\x06\x00\x05\xf4")
    state = first.save_state()
    state["vcpus"][1]["events"].update(sipi_pending=1, sipi_vector=AP_CODE >> 12)
    with going_on(state, first) as second:
        until(lambda: second.ram_read(RESULT, 1) == b"\x01", "the core does not start")


def test_a_pending_nmi_comes_unless_it_is_blocked() -> None:
    first = machine(b"\x90\x90\xf4")
    state = first.save_state()
    state["vcpus"][0]["events"]["nmi_pending"] = 1
    with going_on(state, first) as second:
        assert event(second) == (2, CODE)
    state["vcpus"][0]["registers"]["nmi_blocked"] = 1
    with going_on(state, first) as second:
        until_halted(second)
        second.pause()
        assert second.registers(0)["rip"] == CODE + 3
        assert second.save_state()["vcpus"][0]["events"]["nmi_pending"] == 1


@pytest.mark.parametrize("flags", [0x000, 0x8D5, 0x400, 0xCD5])
def test_the_first_instruction_finds_the_flags(flags: int) -> None:
    """Given a vCPU saved with these flags, when it goes on, then its first instruction has them."""
    # pushf; pop eax; mov [500h], eax; hlt
    first = machine(b"\x9c\x58\xa3" + RESULT.to_bytes(4, "little") + b"\xf4")
    state = first.save_state()
    registers = state["vcpus"][0]["registers"]
    registers["rflags"] = registers["rflags"] & ~0xCD5 | flags
    with going_on(state, first) as second:
        until_halted(second)
        assert int.from_bytes(second.ram_read(RESULT, 4), "little") & 0xCD5 == flags


@pytest.mark.parametrize("shadow", [0, 1, 2])
def test_an_interrupt_waits_for_the_instruction_in_the_shadow(shadow: int) -> None:
    """Given a vCPU saved behind STI or MOV SS, when an interrupt waits, then one instruction is first."""
    first = machine(b"\x40\x90\xf4")  # inc eax; nop; hlt
    state = first.save_state()
    vcpu = state["vcpus"][0]
    vcpu["registers"]["rflags"] |= 0x200
    vcpu["registers"]["interrupt_shadow"] = shadow
    vcpu["lapic"].update(spurious=SPURIOUS_ON, irr=[0, 1, 0, 0])
    with going_on(state, first) as second:
        assert event(second) == (TIMER, CODE + (shadow > 0))


@pytest.mark.parametrize(("shadow", "comes"), [(0, True), (1, True), (2, False)])
def test_an_instruction_breakpoint_does_not_fire_behind_mov_ss(shadow: int, comes: bool) -> None:
    """Given a vCPU saved behind STI or MOV SS, before a breakpoint, then only MOV SS holds it back."""
    first = machine(b"\x90\x90\xf4")
    state = first.save_state()
    registers = state["vcpus"][0]["registers"]
    registers["dr0"], registers["dr7"], registers["interrupt_shadow"] = CODE, 0x402, shadow
    with going_on(state, first) as second:
        until_halted(second)
        second.pause()
        assert (second.registers(0)["rip"] != CODE + 3) == comes


def test_a_data_breakpoint_that_was_hit_is_reported() -> None:
    first = machine(b"\x90\xf4")
    state = first.save_state()
    registers = state["vcpus"][0]["registers"]
    registers["dr2"], registers["dr7"] = RESULT, 0x400 | 1 << 4 | 1 << 24  # DR2: writes of a byte
    registers["data_breakpoints_hit"] = 4
    with going_on(state, first) as second:
        assert event(second) == (1, CODE)
        second.pause()
        assert second.save_state()["vcpus"][0]["registers"]["dr6"] & 0xF == 4


def test_breakpoints_work_after_a_load() -> None:
    """Given debug registers that were loaded, when the guest writes there, then #DB comes after the write."""
    first = machine(b"\xc6\x05" + RESULT.to_bytes(4, "little") + b"\x01\x90\xf4")  # mov byte [500h], 1
    state = first.save_state()
    registers = state["vcpus"][0]["registers"]
    registers["dr0"], registers["dr7"] = RESULT, 0x401 | 1 << 16
    with going_on(state, first) as second:
        assert event(second) == (1, CODE + 7)


# --- time


def test_time_goes_on_from_the_saved_moment() -> None:
    code = (
        b"\x0f\x31\xa3"
        + RESULT.to_bytes(4, "little")
        + b"\x89\x15"
        + (RESULT + 4).to_bytes(4, "little")
        + b"\xf4"
    )
    first = machine(code)  # rdtsc; mov [500h], eax; mov [504h], edx
    state = first.save_state()
    state["tsc"] = 1 << 50
    state["vcpus"][0]["events"]["tsc_adjust"] = 12345
    with going_on(state, first) as second:
        until_halted(second)
        tsc = int.from_bytes(second.ram_read(RESULT, 8), "little")
        assert 0 <= tsc - (1 << 50) - 12345 < 20 * second.tsc_hz


# --- what does not fit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s.update(version=99), "version 99"),
        (lambda s: s.pop("version"), "lacks version"),
        (lambda s: s["vcpus"][0].pop("lapic"), "lacks lapic"),
        (lambda s: s["vcpus"][0]["registers"].pop("cr3"), "lacks cr3"),
        (lambda s: s["vcpus"][0]["registers"].update(colour=1), "colour"),
        (lambda s: s["vcpus"][0]["registers"].update(cr3="0"), r"registers\.cr3"),
        (lambda s: s["vcpus"][0]["registers"]["gpr"].pop(), r"registers\.gpr"),
        (lambda s: s["vcpus"][0]["registers"]["gpr"].__setitem__(3, 1 << 64), r"registers\.gpr"),
        (lambda s: s["vcpus"][0]["registers"].update(rip=-1), r"registers\.rip"),
        (lambda s: s["vcpus"][0]["registers"].update(x87_top=8), r"registers\.x87_top"),
        (lambda s: s["vcpus"][0]["registers"].update(mxcsr=1 << 16), r"registers\.mxcsr"),
        (lambda s: s["vcpus"][0]["registers"].update(cr4=1 << 12), r"registers\.cr4"),  # LA57
        (lambda s: s["vcpus"][0]["registers"].update(cr0=1 << 31), r"registers\.cr0"),  # paging, unprotected
        (lambda s: s["vcpus"][0]["registers"].update(ia32_efer=1 << 10), r"registers\.ia32_efer"),
        (lambda s: s["vcpus"][0]["registers"].update(ia32_efer=1 << 12), r"registers\.ia32_efer"),  # SVM
        (lambda s: s["vcpus"][0]["registers"].update(xcr0=7), r"registers\.xcr0"),
        (lambda s: s["vcpus"][0]["registers"].update(interrupt_shadow=3), r"registers\.interrupt_shadow"),
        (lambda s: s["vcpus"][0]["registers"]["cs"].__setitem__(3, 1 << 12), r"registers\.cs"),
        (
            lambda s: s["vcpus"][0]["registers"].update(data_breakpoints_hit=1),
            r"registers\.data_breakpoints_hit",
        ),
        (lambda s: s["vcpus"][0]["lapic"].update(apic_id=1), r"lapic\.apic_id"),
        (lambda s: s["vcpus"][0]["lapic"].update(lint0=2), r"lapic\.lint0"),
        (lambda s: s["vcpus"][0]["events"].update(activity_state=2), r"events\.activity_state"),
        (lambda s: s["vcpus"][0]["events"].update(sipi_vector=256), r"events\.sipi_vector"),
        (lambda s: s["vcpus"][0]["msrs"].update({"0x10": 1}), "0x10"),
        (lambda s: s["vcpus"].append(s["vcpus"][0]), "2 entries, not 1"),
        (lambda s: s.update(tsc_hz=s["tsc_hz"] + 1000), "tsc_hz="),
        (lambda s: s.update(vcpus={}), "vcpus"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(
    fresh: State, damage: Callable[[State], object], words: str
) -> None:
    """When a state lacks a field, has one too many, or holds what no processor holds, it is a StateError."""
    state = copy.deepcopy(fresh)
    damage(state)
    with pytest.raises(StateError, match=words):
        raw_host(code_buffer_bytes=1 << 20).load_state(state)


def test_a_running_machine_is_neither_saved_nor_loaded() -> None:
    host = raw_host()
    state = host.save_state()
    host.start()
    with pytest.raises(OrderError, match="pause"):
        host.save_state()
    host.pause()
    with pytest.raises(OrderError, match="before start"):
        host.load_state(state)
    host.stop()
    with pytest.raises(OrderError, match="has ended"):
        host.save_state()
