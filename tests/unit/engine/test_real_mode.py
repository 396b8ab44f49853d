# SPDX-License-Identifier: GPL-2.0-or-later
"""Real-mode code without a firmware: its interrupts lead somewhere, and it can ask for the memory map."""

import struct

from coremesh.core.engine import Host
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.core.x86.real_mode import real_mode_vectors
from raw_host import until_halted

CODE, BUFFER = 0x7C00, 0x500
ENTRY = struct.Struct("<QQI")
# xor ebx,ebx; mov di,500h; again: mov eax,0E820h; mov edx,'SMAP'; mov ecx,24; int 15h; jc end;
# add di,20; test ebx,ebx; jnz again; end: cli; hlt
ASK = (
    bytes.fromhex("6631db bf0005 66b820e80000 66ba") + b"PAMS"
    + bytes.fromhex("66b918000000 cd15 7208 83c714 6685db 75e2 faf4")
)  # fmt: skip


def run(code: bytes, ram_bytes: int = 16 << 20) -> tuple[Host, MemoryMap]:
    memory = MemoryMap(ram_bytes)
    host = Host(memory=memory.layout, apic_ids=[0], total_vcpus=1)
    for gpa, data in [*real_mode_vectors(memory), (CODE, code)]:
        host.ram_write(gpa, data)
    flat = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), (0, 0, 0xFFFF, 0x93))
    start = {"cs": (0, 0, 0xFFFF, 0x9B), "cr0": 0x10, "rip": CODE, "rsp": CODE, "idtr": (0, 0x3FF)}
    host.set_registers(0, {**start, **flat})
    host.start()
    until_halted(host)
    host.pause()
    return host, memory


def test_given_real_mode_code_when_it_asks_int_15h_then_it_gets_the_memory_map() -> None:
    host, memory = run(ASK)
    registers = host.registers(0)
    expected = [(entry.start, entry.size, int(entry.kind)) for entry in memory.e820()]
    got = [ENTRY.unpack(host.ram_read(BUFFER + 20 * i, 20)) for i in range(len(expected))]
    assert got == expected
    assert registers["rdi"] == BUFFER + 20 * len(expected)
    assert registers["rax"] == 0x534D4150
    assert registers["rcx"] == 20
    assert not registers["rflags"] & 1
    host.stop()


def test_given_any_other_call_then_the_carry_flag_says_that_it_is_not_there() -> None:
    """INT 13h, INT 10h, INT 15h with another function; registers come back as they were."""
    for call in ("cd13", "cd10", "b82400 cd15", "cdff"):
        host, _ = run(bytes.fromhex(f"f8 be3412 {call} faf4"))
        registers = host.registers(0)
        assert registers["rflags"] & 1, call
        assert (registers["rsi"], registers["rsp"]) == (0x1234, CODE)
        host.stop()


def test_given_an_interrupt_or_an_exception_then_the_code_goes_on_with_its_flags() -> None:
    """INT 8 stands for the timer's vector, INT 70h for the clock's, INT 3 for an exception."""
    host, _ = run(bytes.fromhex("f8 cd08 cd70 cc b80700 faf4"))
    registers = host.registers(0)
    assert registers["rax"] == 7
    assert not registers["rflags"] & 1
    host.stop()
