# SPDX-License-Identifier: GPL-2.0-or-later
"""Real-mode code without a firmware: its interrupts lead somewhere, and it can ask for the memory map."""

import struct

from coremesh.core.engine import Host
from coremesh.core.x86.boot import bios_data_area
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
    for gpa, data in [*real_mode_vectors(memory), *bios_data_area(), (CODE, code)]:
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


def shown(host: Host) -> list[str]:
    text = host.ram_read(0xB_8000, 80 * 25 * 2)[0::2].decode("cp437").replace("\0", " ")
    return [text[at : at + 80].rstrip() for at in range(0, len(text), 80)]


def typed(text: bytes) -> bytes:
    """mov si,text; cld; again: lodsb; test al,al; jz end; mov ah,0Eh; mov bx,7; int 10h; jmp again; end: cli;
    hlt.
    """
    code = bytes.fromhex("be167c fc ac 84c0 7409 b40e bb0700 cd10 ebf2 faf4")
    return code.ljust(0x16, b"\x90") + text + b"\0"


def test_given_a_boot_sectors_print_loop_when_it_runs_then_int_10h_shows_the_text() -> None:
    """Lines, a backspace, text over the right border; the cursor stands in the BIOS data area behind it."""
    host, _ = run(typed(b"Hello\r\nwoorld\x08\x08\x08\x08\x08rld \r\n" + b"x" * 85 + b"\x07"))
    assert shown(host)[:4] == ["Hello", "wrld d", "x" * 80, "x" * 5]
    assert host.ram_read(0xB_8001, 1) == b"\x07"
    assert host.ram_read(0x450, 2) == bytes([5, 3])
    host.stop()


def test_given_a_full_screen_when_more_is_printed_then_it_scrolls() -> None:
    host, _ = run(typed(b"".join(b"line %d\r\n" % number for number in range(30))))
    assert shown(host) == [*(f"line {number}" for number in range(6, 30)), ""]
    assert host.ram_read(0x450, 2) == bytes([0, 24])
    host.stop()


def test_given_the_cursor_functions_when_they_are_called_then_they_agree() -> None:
    """Set it (2), print, ask for it (3) and for the mode (0Fh); registers that carry no answer are kept."""
    # mov dx,0A14h; mov ah,2; int 10h; mov al,'*'; mov ah,0Eh; int 10h; xor dx,dx; mov ah,3; int 10h;
    # mov si,dx; mov di,cx; mov ah,0Fh; int 10h
    host, _ = run(bytes.fromhex("ba140a b402 cd10 b02a b40e cd10 31d2 b403 cd10 89d6 89cf b40f cd10 faf4"))
    registers = host.registers(0)
    assert shown(host)[10] == " " * 20 + "*"
    assert registers["rsi"] == 0x0A15 and registers["rdi"] == 0x0D0E
    assert registers["rax"] & 0xFFFF == 0x5003 and registers["rsp"] == CODE
    host.stop()
