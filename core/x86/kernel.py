# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kind of kernel a file is, and the loader that starts it."""

from collections.abc import Sequence
from typing import Final

from coremesh.core.elf import elf_class
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.core.image import BootPlan
from coremesh.core.x86.linux_boot import is_bzimage, is_vmlinux, load_linux
from coremesh.core.x86.memory_map import MemoryMap
from coremesh.core.x86.multiboot import find_header, load_multiboot

INITRD_MODULE_NAME: Final = "initrd"

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


def plan_boot(
    kernel: bytes,
    initrd: bytes | None,
    cmdline: str,
    memory: MemoryMap,
    acpi_rsdp: int,
    modules: Sequence[tuple[bytes, str]] = (),
) -> BootPlan:
    """Recognise a bzImage, a Multiboot kernel or a vmlinux, and plan its start.

    A Multiboot kernel gets the initramfs as its first module, named ``initrd``, and then ``modules``,
    bytes and a string each. Raises :class:`GuestImageError` for a file of another kind or a damaged one,
    :class:`ConfigurationError` when the machine does not suit it. May be called from any thread.
    """
    linux = is_bzimage(kernel)
    if not linux and find_header(kernel) is not None:
        first = [] if initrd is None else [(initrd, INITRD_MODULE_NAME)]
        return load_multiboot(kernel, [*first, *modules], cmdline, memory)
    if linux or elf_class(kernel) == 64 or is_vmlinux(kernel):
        if modules:
            raise ConfigurationError(
                "Linux takes no modules; put them into the initramfs, or give a Multiboot kernel"
            )
        return load_linux(kernel, initrd, cmdline, memory, acpi_rsdp)
    raise GuestImageError(f"{_stranger(kernel)}; 'coremesh fetch' gets a Debian kernel")


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
        "the kernel file is of no known kind: a Linux bzImage (vmlinuz), a vmlinux "
        "or a Multiboot 1 kernel is needed"
    )
