# SPDX-License-Identifier: GPL-2.0-or-later
"""A far transfer of virtual-8086 code uses the stack as user code, whatever ring the engine is in."""

import struct

import pytest
from raw_host import HLT, raw_host, until_halted

DIRECTORY, TABLE, TSS, GDT, IDT, HANDLER, SEEN, STACK = (
    0x1_0000,
    0x1_1000,
    0x3000,
    0x4000,
    0x5000,
    0x6000,
    0x7000,
    0x8000,
)
USER, KERNEL = 7, 3  # page table entries: present and writable
PRESENT, WRITE, BY_USER = 1, 2, 4  # error code of #PF (SDM vol. 3A 4.7)


def _selector(base: int, access: int) -> tuple[int, int, int, int]:
    return base >> 4, base, 0xFFFF, access


@pytest.mark.parametrize(
    ("code", "error", "address"),
    [
        (b"\x9a\x00\x00\x00\x01", PRESENT | WRITE | BY_USER, STACK + 0xFE),  # call 100h:0
        (b"\x66\x9a\x00\x00\x00\x00\x00\x01", PRESENT | WRITE | BY_USER, STACK + 0xFC),
        (b"\xcf", PRESENT | BY_USER, STACK + 0x100),  # iret
        (b"\x66\xcf", PRESENT | BY_USER, STACK + 0x100),
        (b"\xcb", PRESENT | BY_USER, STACK + 0x100),  # retf
    ],
)
def test_given_a_stack_of_the_kernel_when_virtual_8086_code_uses_it_then_it_is_a_page_fault(
    code: bytes, error: int, address: int
) -> None:
    """The frame has the instruction's own address."""
    host = raw_host(code)
    host.ram_write(DIRECTORY, struct.pack("<I", TABLE | USER))
    host.ram_write(TABLE, b"".join(struct.pack("<I", page << 12 | KERNEL) for page in range(512)))
    host.ram_write(TABLE + 4, struct.pack("<I", 0x1000 | USER))
    host.ram_write(GDT, struct.pack("<QQQ", 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF))
    host.ram_write(IDT + 14 * 8, struct.pack("<HHHH", HANDLER, 8, 0x8E00, 0))
    host.ram_write(TSS + 4, struct.pack("<II", 0x2000, 0x10))
    # mov ax,10h; mov ds,ax (it is null behind virtual-8086 code); pop [SEEN]; pop [SEEN+4]; mov eax,cr2;
    # mov [SEEN+8],eax
    handler = (
        b"\x66\xb8\x10\x00\x8e\xd8\x8f\x05"
        + struct.pack("<I", SEEN)
        + b"\x8f\x05"
        + struct.pack("<I", SEEN + 4)
    )
    host.ram_write(HANDLER, handler + b"\x0f\x20\xd0\xa3" + struct.pack("<I", SEEN + 8) + HLT)
    data = dict.fromkeys(("ds", "es", "fs", "gs"), _selector(0x1000, 0xF3))
    host.set_registers(
        0,
        {
            "cr3": DIRECTORY,
            "cr0": 0x8001_0011,
            "rflags": 0x2_3002,  # VM, IOPL 3
            "rip": 0,
            "rsp": 0x100,
            "cs": _selector(0x1000, 0xF3),
            "ss": _selector(STACK, 0xF3),
            "tr": (0x18, TSS, 0x67, 0x8B),
            "gdtr": (GDT, 23),
            "idtr": (IDT, 0x7FF),
            **data,
        },
    )
    host.start()
    until_halted(host)
    host.stop()
    assert struct.unpack("<III", host.ram_read(SEEN, 12)) == (error, 0, address)
