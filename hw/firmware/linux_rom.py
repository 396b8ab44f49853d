# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux kernel that a machine with its own firmware starts: an option ROM that firmware boots from first.

The kernel, its initramfs and its command line are items of fw_cfg, by the keys that QEMU gives them, which
UEFI firmware knows too. For a BIOS they come with an option ROM. It lets fw_cfg copy them to their places
and jumps into the kernel's own real-mode code, which asks the BIOS for the memory map and the screen.

Sources: Linux Documentation/arch/x86/boot.rst; Plug and Play BIOS Specification 1.0A, section 3.2 (the
expansion header and its bootstrap entry vector); QEMU docs/specs/fw_cfg (DMA).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coremesh.core.errors import ConfigurationError
from coremesh.core.image import encode_command_line
from coremesh.core.memory_layout import MIB, PAGE_BYTES
from coremesh.core.x86.linux_boot import (
    COMMAND_LINE_ROOM,
    DEFAULT_CMDLINE_SIZE,
    DEFAULT_INITRD_MAX,
    HEADER_START,
    UNREGISTERED_LOADER,
    read_setup_header,
)
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.hw.isa.fw_cfg import DMA_CONTROL, Item

FILE: Final = "genroms/linux.bin"
"""SeaBIOS runs the ROMs of this folder, and boots from them as its boot order says."""
BOOT_PATH: Final = f"/rom@{FILE}"

SETUP_AT: Final = 0x1_0000
COMMAND_LINE_AT: Final = 0x2_0000
KERNEL_AT: Final = MIB
_FIRMWARES_OWN: Final = MIB
"""Firmware keeps its tables at the end of the RAM below 4 GiB."""

_ROM_UNIT: Final = 512
_PNP_AT, _CODE_AT, _TABLE_AT = 0x20, 0x40, 0xA0
# Bootstrap entry: real mode, anything in the registers. Each line of the table is a DMA access, which is
# copied to 7C00h and started there; the guest waits until its first word is zero.
_CODE: Final = b"".join(
    (
        bytes.fromhex("fa fc 0e 1f"),  # cli; cld; push cs; pop ds
        bytes.fromhex("31c0 8ec0"),  # xor ax,ax; mov es,ax
        bytes.fromhex("be") + _TABLE_AT.to_bytes(2, "little"),  # mov si,table
        bytes.fromhex("66833c00 742f"),  # next: cmp dword [si],0; je start
        bytes.fromhex("bf007c b90800 f3a5"),  # mov di,7c00h; mov cx,8; rep movsw
        bytes.fromhex("6631c0 ba1405 66ef"),  # xor eax,eax; mov dx,514h; out dx,eax
        bytes.fromhex("66b800007c00 ba1805 66ef"),  # mov eax,7c0000h: 7C00h, big-endian; mov dx,518h; out
        bytes.fromhex("2666a1007c 6685c0 74d5"),  # wait: mov eax,[es:7c00h]; test eax,eax; jz next
        bytes.fromhex("66a900000001 74ee"),  # test eax,1000000h: the error bit; jz wait
        bytes.fromhex("cd18"),  # int 18h: the next device to boot from
        bytes.fromhex("b80010 8ed8 8ec0 8ee0 8ee8 8ed0"),  # start: all segments are the setup's
        bytes.fromhex("bcf0ff ea00002010"),  # mov sp,0fff0h; jmp 1020h:0
    )
)
_HEAP_END: Final = 0x1_0000 - 0x200
_CAN_USE_HEAP: Final = 0x80
_NORMAL_MODE: Final = 0xFFFF


@dataclass(frozen=True)
class LinuxImage:
    """A bzImage, its initramfs or None, and its command line."""

    kernel: bytes
    initrd: bytes | None
    cmdline: str


def linux_items(image: LinuxImage, memory: MemoryMap) -> tuple[dict[int, bytes], bytes]:
    """The items of fw_cfg, and the option ROM that makes a running kernel of them. Pure.

    Raises :class:`GuestImageError` for what is no bzImage, :class:`ConfigurationError` for a command line
    that is too long and for too little memory.
    """
    header = read_setup_header(image.kernel)
    setup_bytes = header.payload_offset
    setup = bytearray(image.kernel[:setup_bytes])
    kernel = image.kernel[setup_bytes:]
    longest = min(header.cmdline_size or DEFAULT_CMDLINE_SIZE, COMMAND_LINE_ROOM - 1)
    line = encode_command_line(image.cmdline, longest)
    initrd = image.initrd or b""
    initrd_at = _place_initrd(len(initrd), header.initrd_addr_max or DEFAULT_INITRD_MAX[64], memory)
    needed = max(KERNEL_AT + len(kernel), header.pref_address + header.init_size)
    if needed > (initrd_at if initrd else memory.low.end - _FIRMWARES_OWN):
        raise ConfigurationError(
            f"the kernel, which takes memory up to {needed / MIB:.0f} MiB, and its initramfs of "
            f"{len(initrd) / MIB:.1f} MiB do not fit {memory.low_ram_bytes // MIB} MiB; give the machine "
            "more memory"
        )
    for kind, offset, value in (
        ("H", 0x1FA, _NORMAL_MODE),
        ("B", 0x210, UNREGISTERED_LOADER),
        ("B", 0x211, setup[0x211] | _CAN_USE_HEAP),
        ("I", 0x218, initrd_at if initrd else 0),
        ("I", 0x21C, len(initrd)),
        ("H", 0x224, _HEAP_END),
        ("I", 0x228, COMMAND_LINE_AT),
    ):
        assert offset >= HEADER_START
        struct.pack_into("<" + kind, setup, offset, value)
    places = {
        Item.SETUP_DATA: (SETUP_AT, bytes(setup)),
        Item.CMDLINE_DATA: (COMMAND_LINE_AT, line),
        Item.KERNEL_DATA: (KERNEL_AT, kernel),
        **({Item.INITRD_DATA: (initrd_at, initrd)} if initrd else {}),
    }
    sizes = {
        Item.SETUP_SIZE: len(setup),
        Item.CMDLINE_SIZE: len(line),
        Item.KERNEL_SIZE: len(kernel),
        Item.INITRD_SIZE: len(initrd),
    }
    items = {key: data for key, (_, data) in places.items()}
    items |= {key: struct.pack("<I", size) for key, size in sizes.items()}
    return items, option_rom({key: (at, len(data)) for key, (at, data) in places.items()})


def option_rom(places: Mapping[int, tuple[int, int]]) -> bytes:
    """The ROM that copies items, by key (guest-physical address, bytes), and enters the setup code. Pure."""
    table = b"".join(
        struct.pack(">IIQ", key << 16 | DMA_CONTROL.SELECT | DMA_CONTROL.READ, length, at)
        for key, (at, length) in places.items()
    )
    name_at = _TABLE_AT + len(table) + 4
    content = table + bytes(4) + b"Linux kernel\0"
    # Signature, version, length in units of 16 bytes; manufacturer, product; three vectors, resources.
    header = struct.pack("<4sBB8xHH4xHHHHH", b"$PnP", 0x10, 2, 0, name_at, 0, 0, _CODE_AT, 0, 0)
    header = header[:9] + bytes((-sum(header) & 0xFF,)) + header[10:]
    rom = bytearray(_TABLE_AT) + content
    units = -(-(len(rom) + 1) // _ROM_UNIT)
    rom = rom.ljust(units * _ROM_UNIT, b"\0")
    rom[:4] = bytes((0x55, 0xAA, units, 0xCB))  # at its start it has nothing to do: retf
    rom[0x1A:0x1C] = _PNP_AT.to_bytes(2, "little")
    rom[_PNP_AT : _PNP_AT + len(header)] = header
    rom[_CODE_AT : _CODE_AT + len(_CODE)] = _CODE
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom)


def _place_initrd(size: int, highest: int, memory: MemoryMap) -> int:
    """As high as the kernel and the firmware allow."""
    end = min(highest + 1, memory.low.end - _FIRMWARES_OWN)
    return max(0, (end - size) // PAGE_BYTES * PAGE_BYTES)
