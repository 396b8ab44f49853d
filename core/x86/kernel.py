# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kind of kernel a file is, and the loader that starts it."""

from collections.abc import Sequence
from enum import Enum
from typing import Final

from coremesh.core.elf import elf_class
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.core.image import BootPlan
from coremesh.core.x86 import multiboot, multiboot2, pvh
from coremesh.core.x86.linux_boot import is_bzimage, is_vmlinux, load_linux
from coremesh.core.x86.memory_map import MemoryMap

INITRD_MODULE_NAME: Final = "initrd"
RSDP_BYTES: Final = 36

_STRANGERS: Final = (
    (b"\x1f\x8b", "a gzip archive", "unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it with unzstd"),
    (b"\xfd7zXZ\0", "an xz archive", "unpack it with unxz"),
    (
        b"!<arch>\n",
        "an archive, perhaps a Debian package",
        "unpack it with dpkg-deb -x and give its boot/vmlinuz",
    ),
    (b"070701", "a cpio archive", "give it as the initramfs, and a kernel beside it"),
    (b"MZ", "an EFI program without a Linux boot header", "give a bzImage, an ELF or a Multiboot kernel"),
)


class KernelKind(Enum):
    """How a kernel is started; the value is for a person."""

    LINUX = "Linux"
    MULTIBOOT = "Multiboot"
    MULTIBOOT2 = "Multiboot 2"
    PVH = "PVH"
    UNKNOWN = "unknown"


def kernel_kind(kernel: bytes) -> KernelKind:
    """Recognise a kernel by its headers. Any thread.

    One that has several entries is started by the first of Multiboot, Multiboot 2, Linux's own protocol and
    PVH that it has; Multiboot 1 does not take ELF files of 64 bits. An ELF file of 64 bits without any of
    their marks is taken for a vmlinux.
    """
    if is_bzimage(kernel):
        return KernelKind.LINUX
    first, second = multiboot.find_header(kernel), multiboot2.find_header(kernel)
    if first is not None and not (second and elf_class(kernel) == 64):
        return KernelKind.MULTIBOOT
    if second is not None:
        return KernelKind.MULTIBOOT2
    if is_vmlinux(kernel):
        return KernelKind.LINUX
    if pvh.find_entry(kernel) is not None:
        return KernelKind.PVH
    return KernelKind.LINUX if elf_class(kernel) == 64 else KernelKind.UNKNOWN


def plan_boot(
    kernel: bytes,
    initrd: bytes | None,
    cmdline: str,
    memory: MemoryMap,
    acpi_rsdp: int,
    modules: Sequence[tuple[bytes, str]] = (),
    tables: Sequence[tuple[int, bytes]] = (),
) -> BootPlan:
    """Recognise a bzImage, a vmlinux, or a kernel of Multiboot, Multiboot 2 or PVH, and plan its start.

    Kernels that take modules get the initramfs as the first one, named ``initrd``, and then ``modules``,
    bytes and a string each. ``tables`` are what firmware lays into memory, the RSDP at ``acpi_rsdp`` among
    it. Raises :class:`GuestImageError` for a file of another kind or a damaged one,
    :class:`ConfigurationError` when the machine does not suit it. May be called from any thread.
    """
    kind = kernel_kind(kernel)
    if kind is KernelKind.LINUX:
        if modules:
            raise ConfigurationError(
                "Linux takes no modules; put them into the initramfs, or give a Multiboot kernel"
            )
        return load_linux(kernel, initrd, cmdline, memory, acpi_rsdp)
    first = [] if initrd is None else [(initrd, INITRD_MODULE_NAME)]
    every = [*first, *modules]
    if kind is KernelKind.MULTIBOOT:
        return multiboot.load_multiboot(kernel, every, cmdline, memory)
    if kind is KernelKind.MULTIBOOT2:
        rsdp = _bytes_at(tables, acpi_rsdp)
        return multiboot2.load_multiboot2(kernel, every, cmdline, memory, rsdp)
    if kind is KernelKind.PVH:
        return pvh.load_pvh(kernel, every, cmdline, memory, acpi_rsdp)
    raise GuestImageError(f"{_stranger(kernel)}; 'coremesh fetch' gets a Debian kernel")


def _bytes_at(tables: Sequence[tuple[int, bytes]], rsdp: int) -> bytes:
    for gpa, data in tables:
        if gpa <= rsdp and rsdp + RSDP_BYTES <= gpa + len(data):
            return data[rsdp - gpa : rsdp - gpa + RSDP_BYTES]
    return b""


def _stranger(kernel: bytes) -> str:
    if not kernel:
        return "the kernel file is empty"
    if elf_class(kernel) == 32:
        return (
            "the kernel is a 32-bit ELF file, not Linux's and without a Multiboot header: add one to its "
            "first 8 KiB"
        )
    for magic, kind, cure in _STRANGERS:
        if kernel.startswith(magic):
            return f"the kernel file is {kind}: {cure}"
    return (
        "the kernel file is of no known kind: a Linux bzImage (vmlinuz), a vmlinux, or a kernel of "
        "Multiboot, Multiboot 2 or PVH is needed"
    )
