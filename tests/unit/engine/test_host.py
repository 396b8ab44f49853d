# SPDX-License-Identifier: GPL-2.0-or-later
"""The native host as its users meet it: states, registers, memory, ends. Guests of a few bytes."""

import gc
import os
import threading
import time
from pathlib import Path

import pytest
from coremesh.core._native import StateError
from coremesh.core.engine import Host
from coremesh.core.errors import ConfigurationError
from coremesh.core.memory_layout import MemoryLayout, Region
from raw_host import CLI_HLT, CODE, HLT, RAM, SPIN, raw_host, until, until_halted


class RaisingNode:
    """A device node that breaks its promise never to raise."""

    def access(self, space: int, address: int, size: int, is_write: bool, value: int) -> int:
        raise ValueError("this device is broken")

    def eoi(self, vector: int) -> None:
        raise ValueError("this device is broken")

    def acknowledge(self) -> int:
        raise ValueError("this device is broken")


def test_given_a_host_when_it_is_driven_out_of_order_then_it_says_so_and_lives() -> None:
    host = raw_host()
    for too_early in (host.pause, host.resume):
        with pytest.raises(StateError):
            too_early()
    host.start()
    with pytest.raises(StateError):
        host.start()
    with pytest.raises(StateError, match="pause"):
        host.registers(0)
    host.resume()
    host.pause()
    host.pause()
    assert host.registers(0)["rip"] == CODE
    host.resume()
    assert host.wait(0.0) is None
    host.pause()
    host.stop()
    host.stop()
    ending = host.wait(1.0)
    assert isinstance(ending, dict)
    assert ending["kind"] == "stopped"
    for too_late in (host.start, host.pause, host.resume):
        with pytest.raises(StateError):
            too_late()


def test_given_a_host_that_never_ran_when_it_is_stopped_then_it_ends() -> None:
    host = raw_host()
    host.stop()
    ending = host.wait(0.0)
    assert isinstance(ending, dict)
    assert ending["kind"] == "stopped"


def test_given_many_threads_when_all_pause_and_resume_then_nobody_hangs_and_the_guest_goes_on() -> None:
    host = raw_host(b"\x40" + b"\xeb\xfd")  # inc eax; jmp back
    host.start()
    stop = time.monotonic() + 0.4

    def push() -> None:
        while time.monotonic() < stop:
            host.pause()
            host.resume()

    pushers = [threading.Thread(target=push) for _ in range(4)]
    for pusher in pushers:
        pusher.start()
    for pusher in pushers:
        pusher.join(20)
        assert not pusher.is_alive()
    host.pause()
    before = host.registers(0)["rax"]
    host.resume()
    time.sleep(0.05)
    host.pause()
    assert host.registers(0)["rax"] != before
    host.stop()


def test_given_registers_when_they_are_written_then_they_read_back_the_same() -> None:
    host = raw_host()
    state = host.registers(0)
    state |= {name: 0x1111_1111 * n for n, name in enumerate(("rax", "rbx", "rsi", "rbp"), 1)}
    state |= {
        "rflags": 0x246,
        "cr2": 0xDEAD_B000,
        "gdtr": (0x3000, 0x37),
        "fs": (0x10, 0x1234_5000, 0xFFF, 0x493),
    }
    host.set_registers(0, state)
    assert host.registers(0) == state
    host.set_registers(0, {"rax": 5})
    assert host.registers(0) == state | {"rax": 5}
    with pytest.raises(KeyError):
        host.set_registers(0, {"rxx": 5})
    with pytest.raises(IndexError):
        host.registers(1)


def test_given_addresses_beyond_ram_when_they_are_read_or_written_then_an_index_error_says_so() -> None:
    host = raw_host()
    host.ram_write(RAM - 4, b"last")
    assert host.ram_read(RAM - 4, 4) == b"last"
    assert host.ram_read(RAM, 0) == b""
    for gpa, length in ((RAM, 1), (RAM - 1, 2), (1 << 32, 1), ((1 << 64) - 1, 1), (0, RAM + 1)):
        with pytest.raises(IndexError):
            host.ram_read(gpa, length)
    for gpa in (RAM, RAM - 1, 0xFEE0_0000, (1 << 64) - 2):
        with pytest.raises(IndexError):
            host.ram_write(gpa, b"ab")


def test_given_a_host_when_its_statistics_are_read_then_each_vcpu_has_every_key() -> None:
    host = raw_host(HLT, vcpus=3)
    host.start()
    until_halted(host)
    stats = host.stats()
    assert [stat["apic_id"] for stat in stats] == [0, 1, 2]
    assert [stat["state"] for stat in stats] == ["halted", "wait-for-sipi", "wait-for-sipi"]
    for stat in stats:
        assert list(stat) == list(stats[0])
    assert stats[0]["exits_halt"] == 1
    assert stats[0]["translations"] > 0
    host.stop()


def test_given_two_hosts_in_one_process_when_both_run_then_neither_sees_the_other() -> None:
    # mov eax, value; mov [0x5000], eax; hlt
    hosts = [raw_host(b"\xb8" + bytes([n]) * 4 + b"\xa3\x00\x50\x00\x00" + HLT) for n in (1, 2)]
    for host in hosts:
        host.start()
    for host in hosts:
        until_halted(host)
    assert [host.ram_read(0x5000, 4) for host in hosts] == [b"\1" * 4, b"\2" * 4]
    hosts[0].stop()
    assert hosts[1].stats()[0]["state"] == "halted"
    hosts[1].stop()


def test_given_64_hosts_one_after_the_other_when_each_is_dropped_then_threads_and_mappings_go_with_it() -> (
    None
):
    def counts() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/task")), Path("/proc/self/maps").read_text().count("\n")  # noqa: PTH208

    def one() -> None:
        host = raw_host(HLT)
        host.start()
        until_halted(host)
        host.stop()

    one()
    threads, mappings = counts()
    for _ in range(64):
        one()
    threads_after, mappings_after = counts()
    assert threads_after <= threads
    assert mappings_after <= mappings + 32, "each host would leave at least one behind"


def test_given_no_idt_when_an_exception_comes_then_the_ending_names_the_vcpu_and_its_registers() -> None:
    host = raw_host(b"\xb8\x78\x56\x34\x12\x0f\x0b")  # mov eax, 12345678h; ud2
    host.set_registers(0, {"idtr": (0, 0)})
    host.start()
    ending = host.wait(20.0)
    assert isinstance(ending, dict)
    assert (ending["kind"], ending["vcpu"]) == ("triple-fault", 0)
    assert [vcpu["state"] for vcpu in ending["vcpus"]] == ["stopped"]
    host.stop()
    assert host.wait(0.0) == ending
    registers = host.registers(0)
    assert (registers["rip"], registers["rax"]) == (CODE + 5, 0x1234_5678)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_given_a_node_that_raises_when_the_guest_asks_it_then_it_reads_ones_and_the_host_lives() -> None:
    code = b"\xba\x00\x03\x00\x00\xec\xa2\x00\x50\x00\x00\xee"  # mov edx,300h; in al,dx; mov [5000h],al; out
    host = raw_host(code + CLI_HLT)
    host.connect(RaisingNode())
    host.claim(0, 0x300, 0x300)
    host.start()
    until_halted(host)
    assert host.ram_read(0x5000, 1) == b"\xff"
    assert host.stats()[0]["exits_io"] == 2
    host.stop()


def test_given_sizes_that_no_machine_has_when_a_host_is_made_then_an_error_says_so() -> None:
    refused: tuple[list[Region], ...] = (
        [],
        [Region(0, 0)],
        [Region(0, 4097)],
        [Region(0, 8192), Region(4096, 4096)],
        [Region(100, 4096)],
    )
    for regions in refused:
        with pytest.raises(ConfigurationError):
            MemoryLayout.of(regions)
    with pytest.raises(ValueError, match="40 bits"):
        Host(memory=MemoryLayout.of([Region(0, 1 << 50)]), apic_ids=[0], total_vcpus=1)


def test_given_an_architecture_that_there_is_not_when_a_host_is_made_then_the_known_ones_are_named() -> None:
    memory = MemoryLayout.of([Region(0, 4096)])
    with pytest.raises(ValueError, match="no guest architecture 'pdp11'; take one of: x86_64"):
        Host(memory=memory, apic_ids=[0], total_vcpus=1, architecture="pdp11")


def test_given_registers_that_no_core_has_when_they_are_set_then_an_error_names_them() -> None:
    host = raw_host(SPIN)
    with pytest.raises(KeyError, match="no register is called x0"):
        host.set_registers(0, {"x0": 1})
    with pytest.raises(ValueError, match="gdtr has 2 parts"):
        host.set_registers(0, {"gdtr": (1, 2, 3)})
    with pytest.raises(ValueError, match="cs has a part of 32 bits"):
        host.set_registers(0, {"cs": (1 << 32, 0, 0, 0)})
    before = host.registers(0)
    host.set_registers(0, before)
    assert host.registers(0) == before
    host.stop()


def test_given_16_engines_in_one_process_when_they_run_then_each_has_its_own_code(  # U17
) -> None:
    hosts = [raw_host(SPIN) for _ in range(16)]
    for host in hosts:
        host.start()
    until(lambda: all(host.stats()[0]["translations"] for host in hosts), "an engine does not run")
    for host in hosts:
        host.stop()


def test_given_locked_accesses_over_two_pages_when_paused_then_every_instruction_has_ended() -> None:
    """Given a vCPU that counts a word over two pages up with LOCK, when the machine pauses at any moment.

    Then the vCPU stands before an instruction, and its registers and memory are those of that moment.
    """
    counter = 0x2FFE
    code = bytes.fromhex(
        "b801000000"  # loop: mov eax, 1
        "41"  # inc ecx
        "f00fc105" + counter.to_bytes(4, "little").hex() + "ebf0"  # lock xadd [counter], eax; jmp loop
    )
    host = raw_host(code)
    host.set_registers(0, {"rcx": 0})
    host.start()
    until(lambda: host.stats()[0]["atomics_crossing"] > 10, "a count")
    for _ in range(400):
        host.pause()
        registers = host.registers(0)
        count = int.from_bytes(host.ram_read(counter, 4), "little")
        assert registers["rip"] in (CODE, CODE + 5, CODE + 6, CODE + 14)
        done = registers["rcx"] - (registers["rip"] == CODE + 6)
        assert count == done & 0xFFFF_FFFF
        if registers["rip"] == CODE:
            assert registers["rax"] == count - 1
        host.resume()
    host.stop()
