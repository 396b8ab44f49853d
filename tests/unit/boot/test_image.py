# SPDX-License-Identifier: GPL-2.0-or-later
"""Recognising a kernel file: the right loader for each, and for anything else what to do."""

import gzip
from collections.abc import Callable

import pytest
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.core.memory_layout import MIB
from coremesh.core.x86.kernel import plan_boot
from coremesh.core.x86.memory_map import MemoryMap

KernelMaker = Callable[..., bytes]

MEMORY = MemoryMap(256 * MIB)


def test_each_kind_of_kernel_goes_to_its_loader(
    bzimage: KernelMaker, elf: KernelMaker, multiboot_elf: KernelMaker
) -> None:
    for kernel, name in (
        (bzimage(), "Linux bzImage"),
        (elf(), "Linux vmlinux"),
        (multiboot_elf(), "Multiboot"),
    ):
        assert plan_boot(kernel, None, "", MEMORY, 0xE0000).entry_name == name


def test_a_multiboot_kernel_gets_the_initramfs_before_its_modules(multiboot_elf: KernelMaker) -> None:
    plan = plan_boot(multiboot_elf(), b"RAMDISK", "", MEMORY, 0, [(b"MODULE", "m")])
    start = {data: gpa for gpa, data in plan.writes}
    assert start[b"RAMDISK"] < start[b"MODULE"]


def test_linux_takes_no_modules(bzimage: KernelMaker) -> None:
    with pytest.raises(ConfigurationError, match="put them into the initramfs"):
        plan_boot(bzimage(), None, "", MEMORY, 0xE0000, [(b"x", "m")])


@pytest.mark.parametrize(
    ("kernel", "way_out"),
    [
        (b"", "is empty"),
        (b"\0", "no known kind"),
        (b"hello world" * 1000, "Multiboot 2 or PVH is needed"),
        (gzip.compress(b"kernel"), "gunzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "unzstd"),
        (b"!<arch>\ndebian-binary", "dpkg-deb -x"),
        (b"070701" + bytes(200), "as the initramfs"),
        (b"MZ" + bytes(4096), "EFI program"),
        (b"\x7fELF\x01\x01\x01" + bytes(100), "add one"),
        (b"\x7fELF\x02\x01\x01" + bytes(2), "cannot be read"),
        (b"\x7fELF", "no known kind"),
    ],
)
def test_anything_else_says_what_it_is_and_what_to_give(kernel: bytes, way_out: str) -> None:
    with pytest.raises(GuestImageError, match=way_out):
        plan_boot(kernel, None, "", MEMORY, 0xE0000)
