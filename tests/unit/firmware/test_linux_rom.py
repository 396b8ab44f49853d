# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel for a machine with firmware: what fw_cfg holds of it, and the option ROM that puts it together."""

import struct
from pathlib import Path

import pytest
from coremesh.cluster.machine.disks import boot_paths, check_boot, check_cdrom, check_disks
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.core.memory_layout import MIB
from coremesh.core.topology import Topology
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.hw.board.pc import PC_WITH_FIRMWARE
from coremesh.hw.firmware.linux_rom import BOOT_PATH, FILE, LinuxImage, linux_items
from coremesh.hw.firmware.seabios import describe_machine
from coremesh.hw.isa.fw_cfg import ForFirmware, Item

SETUP_SECTORS = 4


def bzimage(payload: bytes = b"\x90" * 4096, *, init_size: int = 4 * MIB) -> bytes:
    setup = bytearray((SETUP_SECTORS + 1) * 512)
    for offset, layout, value in (
        (0x1F1, "B", SETUP_SECTORS), (0x1F4, "I", len(payload) // 16), (0x1FE, "H", 0xAA55),
        (0x206, "H", 0x20F), (0x211, "B", 1), (0x22C, "I", 0x7FFF_FFFF), (0x230, "I", 2 * MIB),
        (0x238, "I", 2047),
        (0x258, "Q", 16 * MIB), (0x260, "I", init_size),
    ):  # fmt: skip
        struct.pack_into("<" + layout, setup, offset, value)
    setup[0x202:0x206] = b"HdrS"
    return bytes(setup) + payload


def copied(items: dict[int, bytes], rom: bytes, ram_bytes: int) -> bytearray:
    """RAM after the DMA accesses of the ROM's table, each as fw_cfg does it."""
    ram = bytearray(ram_bytes)
    at = 0xA0
    while (access := struct.unpack_from(">IIQ", rom, at))[0]:
        control, length, gpa = access
        assert control & 0xFFFF == 0b1010, "select, and read"
        assert len(items[control >> 16]) == length
        ram[gpa : gpa + length] = items[control >> 16]
        at += 16
    return ram


def test_given_a_bzimage_when_the_rom_has_run_then_memory_is_as_the_boot_protocol_says() -> None:
    kernel, initrd = bzimage(b"K" * 8192), b"I" * 5000
    items, rom = linux_items(LinuxImage(kernel, initrd, "quiet"), MemoryMap(64 * MIB))
    assert rom[:2] == b"\x55\xaa" and len(rom) == rom[2] * 512 and sum(rom) & 0xFF == 0
    assert rom[3] == 0xCB, "at its start it returns"
    header = rom[0x20:0x40]
    assert header.startswith(b"$PnP") and sum(header) & 0xFF == 0
    product, entry = struct.unpack_from("<H", header, 16)[0], struct.unpack_from("<H", header, 26)[0]
    assert rom[product:].startswith(b"Linux kernel\0") and rom[entry] == 0xFA
    ram = copied(items, rom, 64 * MIB)
    assert ram[MIB : MIB + 8192] == b"K" * 8192
    line_at, initrd_at, initrd_bytes = (
        struct.unpack_from("<I", ram, 0x1_0000 + offset)[0] for offset in (0x228, 0x218, 0x21C)
    )
    assert ram[line_at : line_at + 6] == b"quiet\0"
    assert ram[initrd_at : initrd_at + initrd_bytes] == initrd and initrd_at % 4096 == 0
    assert initrd_at + initrd_bytes <= 63 * MIB, "the firmware's tables are at the end of memory"
    assert ram[0x1_0210] == 0xFF and ram[0x1_0211] == 0x81 and ram[0x1_0202:0x1_0206] == b"HdrS"
    assert struct.unpack("<I", items[Item.KERNEL_SIZE])[0] == 8192


def test_what_cannot_start_is_refused_with_the_way_out() -> None:
    with pytest.raises(GuestImageError, match="bzImage"):
        linux_items(LinuxImage(bytes(8192), None, ""), MemoryMap(64 * MIB))
    with pytest.raises(ConfigurationError, match="more memory"):
        linux_items(LinuxImage(bzimage(init_size=40 * MIB), b"x" * 10 * MIB, ""), MemoryMap(64 * MIB))
    with pytest.raises(ConfigurationError, match="shorten it"):
        linux_items(LinuxImage(bzimage(), None, "x" * 3000), MemoryMap(64 * MIB))


def described(**options: object) -> ForFirmware:
    memory = MemoryMap(64 * MIB)
    return describe_machine(
        [0],
        memory,
        Topology(memory.layout, [1]),
        PC_WITH_FIRMWARE,
        0x3F8,
        **options,  # type: ignore[arg-type]
    )


def test_firmware_tries_the_kernel_before_all_devices() -> None:
    """And without a kernel and an order there is no file of it: SeaBIOS then has its own."""
    assert "bootorder" not in described().files and FILE not in described().files
    found = described(boot=["/pci@i0cf8/scsi@3/disk@0,0"], linux=LinuxImage(bzimage(), None, ""))
    assert found.files["bootorder"] == f"{BOOT_PATH}\n/pci@i0cf8/scsi@3/disk@0,0\0".encode()
    assert found.files[FILE][:2] == b"\x55\xaa"


def test_devices_are_named_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).write_bytes(bytes(512))
    disc = check_cdrom(tmp_path / "d")
    assert disc is not None
    disks = (*check_disks([tmp_path / "a", f"{tmp_path}/b,if=virtio", f"{tmp_path}/c,if=virtio"]), disc)
    first, second, third = (
        "/pci@i0cf8/ide@1,1/drive@0/disk@0", "/pci@i0cf8/scsi@3/disk@0,0", "/pci@i0cf8/scsi@4/disk@0,0",
    )  # fmt: skip
    cd = "/pci@i0cf8/ide@1,1/drive@1/disk@0"
    assert boot_paths(disks, check_boot("cdrom,disk")) == [cd, first, second, third]
    assert boot_paths(disks, check_boot(["disk2", "disk"])) == [third, first, second]
    assert boot_paths(disks, ()) == []
    with pytest.raises(ConfigurationError, match="no disk3 to boot from"):
        boot_paths(disks, ["disk3"])
    with pytest.raises(ConfigurationError, match="no cdrom"):
        boot_paths(disks[:1], ["cdrom"])


@pytest.mark.parametrize("wrong", ["floppy", "disk,", 3, ["disk", 1]])
def test_what_names_no_device_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="cdrom"):
        check_boot(wrong)
