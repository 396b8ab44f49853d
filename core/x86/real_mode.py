# SPDX-License-Identifier: GPL-2.0-or-later
"""What real-mode code finds of a BIOS where no firmware ran: interrupt vectors, and the memory map.

Code that goes back to real mode (a hypervisor's start of its cores, a loader) lets interrupts come there.
A table of zeroes would send each to address 0, to run the table itself. Here every vector leads to a stub:
an exception returns, a hardware interrupt is ended at the 8259A pair, INT 15h AX=E820h gives the memory map
(ACPI 6.4, section 15.1), INT 10h prints, and every other call comes back with the carry flag set: not
supported.
"""

from typing import Final

from coremesh.core.x86.memory_map import BIOS_BASE, MemoryMap
from coremesh.core.x86.real_mode_screen import INT_10H

VECTORS: Final = 256
_SEGMENT: Final = 0xF000
_EXCEPTIONS: Final = range(0x00, 0x08)
_MASTER: Final = range(0x08, 0x10)
_SLAVE: Final = range(0x70, 0x78)
_SCREEN: Final = 0x10
_MEMORY_MAP: Final = 0x15
_ENTRY_BYTES: Final = 20

_RETURN: Final = bytes.fromhex("cf")  # iret
_END_OF_MASTER: Final = bytes.fromhex("50 b020 e620 58 cf")  # push ax; mov al,20h; out 20h,al; pop ax; iret
_END_OF_SLAVE: Final = bytes.fromhex("50 b020 e6a0 e620 58 cf")  # the same, out 0A0h,al first
# push bp; mov bp,sp; or word [bp+6],1; pop bp; iret: the carry flag that the caller gets.
_UNSUPPORTED: Final = bytes.fromhex("55 89e5 834e0601 5d cf")


def real_mode_vectors(memory: MemoryMap) -> list[tuple[int, bytes]]:
    """The interrupt vector table and the code behind it, as (guest-physical address, bytes). Pure."""
    entries = memory.e820()
    code = bytearray()
    stubs: dict[bytes, int] = {}
    for stub in (_RETURN, _END_OF_MASTER, _END_OF_SLAVE, _UNSUPPORTED, INT_10H):
        stubs[stub] = len(code)
        code += stub
    table = b"".join(
        entry.start.to_bytes(8, "little")
        + entry.size.to_bytes(8, "little")
        + int(entry.kind).to_bytes(4, "little")
        for entry in entries
    )
    origin = BIOS_BASE - (_SEGMENT << 4)
    table_at = len(code)
    code += table
    memory_map_at = len(code)
    code += _memory_map(len(entries), origin + table_at)

    def offset(vector: int) -> int:
        if vector in _EXCEPTIONS:
            return stubs[_RETURN]
        if vector in _MASTER:
            return stubs[_END_OF_MASTER]
        if vector in _SLAVE:
            return stubs[_END_OF_SLAVE]
        if vector == _SCREEN:
            return stubs[INT_10H]
        return memory_map_at if vector == _MEMORY_MAP else stubs[_UNSUPPORTED]

    vectors = b"".join(
        (origin + offset(vector)).to_bytes(2, "little") + _SEGMENT.to_bytes(2, "little")
        for vector in range(VECTORS)
    )
    return [(0, vectors), (BIOS_BASE, bytes(code))]


def _memory_map(count: int, table: int) -> bytes:
    """INT 15h: the function E820h, with ``count`` entries at offset ``table`` of the segment."""
    answer = b"".join(
        (
            bytes.fromhex("6656 6657 1e"),  # push esi; push edi; push ds
            bytes.fromhex("0e 1f"),  # push cs; pop ds
            bytes.fromhex("666bf314"),  # imul esi,ebx,20
            bytes.fromhex("81c6") + table.to_bytes(2, "little"),  # add si,table
            bytes.fromhex("66b914000000"),  # mov ecx,20
            bytes.fromhex("fc f3a4"),  # cld; rep movsb: to ES:DI
            bytes.fromhex("66b914000000"),  # mov ecx,20
            bytes.fromhex("1f 665f 665e"),  # pop ds; pop edi; pop esi
            bytes.fromhex("6643"),  # inc ebx
            bytes.fromhex("6683fb") + bytes([count]),  # cmp ebx,count
            bytes.fromhex("7503 6631db"),  # jne +3; xor ebx,ebx: that was the last one
            bytes.fromhex("66b8") + b"PAMS",  # mov eax,'SMAP'
            bytes.fromhex("55 89e5 836606fe 5d cf"),  # push bp; mov bp,sp; and word [bp+6],~1; pop bp; iret
        )
    )
    code = b""
    # Each test jumps over what follows it to the stub at the end.
    tests = (
        (bytes.fromhex("663d20e80000"), 0x75),  # cmp eax,0E820h; jne
        (bytes.fromhex("6681fa") + b"PAMS", 0x75),  # cmp edx,'SMAP'; jne
        (bytes.fromhex("6683f914"), 0x72),  # cmp ecx,20; jb
        (bytes.fromhex("6683fb") + bytes([count]), 0x73),  # cmp ebx,count; jae
    )
    left = sum(len(test) + 2 for test, _ in tests)
    for test, jump in tests:
        left -= len(test) + 2
        code += test + bytes([jump, left + len(answer)])
    return code + answer + _UNSUPPORTED
