# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels that start by Multiboot, by Multiboot 2 and by PVH, and what they find; Linux by its PVH entry."""

import gzip
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED, RunResult, run_on_coremesh
from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_image import cached_debian
from coremesh.core.x86.kernel import KernelKind, kernel_kind
from coremesh.core.x86.linux_payload import unpack_linux

SOURCES = Path(__file__).parent / "entries"
MULTIBOOT, MULTIBOOT2, PVH = 1, 2, 3
MIB = 1 << 20
COMPILE = shlex.split(
    "gcc -m32 -std=gnu17 -O2 -ffreestanding -nostdlib -static -fno-pie -no-pie -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -mgeneral-regs-only -Wall -Wextra --param=min-pagesize=0 "
    "-Wl,--build-id=none -Wl,-z,noexecstack"
)
MODULES = [(b"first content\0", "first text"), (b"second\0", "second")]
SEEN = {
    "cmdline='words for the kernel'", "module='first text'", "content='first content'", "module_bytes=14",
    "module='second'", "content='second'", "module_bytes=7", f"extended_kib={127 * 1024}",
    f"crtc={0x3D4}",
}  # fmt: skip
SCREEN = {f"framebuffer={0xB8000}", "columns=80", "kind=2"}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that builds the kernel for an entry, linked to a base address."""
    folder = tmp_path_factory.mktemp("entries")

    def build(entry: int, base: int = MIB) -> Path:
        target = folder / f"kernel-{entry}-{base:x}.elf"
        script = [f"-Wl,-T,{SOURCES / 'kernel.ld'}", f"-Wl,--defsym=BASE={base}"]
        sources = [str(SOURCES / "start.S"), str(SOURCES / "kernel.c")]
        command = [*COMPILE, f"-DENTRY_KIND={entry}", *script, *sources, "-o", str(target)]
        subprocess.run(command, check=True)
        return target

    return build


def told(kernel: Path) -> tuple[RunResult, set[str]]:
    result = run_on_coremesh(kernel, vcpus=1, cmdline="words for the kernel", modules=MODULES)
    return result, set(result.output.splitlines())


@pytest.mark.parametrize("base", [MIB, 0x7C00, 0x2_0000])
def test_given_a_multiboot_kernel_when_it_starts_then_it_is_told_all(
    kernel: Callable[..., Path], base: int
) -> None:
    """At 1 MiB as most are, and in conventional memory; it asks for a video mode and gets text."""
    result, words = told(kernel(MULTIBOOT, base))
    assert result.status == PASSED, result.story()
    assert words >= SEEN | SCREEN | {"lower_kib=639"}, result.story()


@pytest.mark.parametrize("base", [MIB, 0x2_0000])
def test_given_a_multiboot_2_kernel_when_it_starts_then_its_tags_hold(
    kernel: Callable[..., Path], base: int
) -> None:
    """Command line, loader, modules, memory, screen, ACPI's root, and its own symbols by name."""
    result, words = told(kernel(MULTIBOOT2, base))
    assert result.status == PASSED, result.story()
    wanted = {"lower_kib=639", "loader='Coremesh'", "marker=42", "rsdp_revision=2", f"base={base}"}
    assert words >= SEEN | SCREEN | wanted, result.story()
    assert f"tags={sum(1 << kind for kind in (1, 2, 3, 4, 6, 8, 9, 14, 15, 21))}" in words


def test_given_a_pvh_kernel_when_it_starts_then_its_start_info_holds(kernel: Callable[..., Path]) -> None:
    """An entry point in a note; memory map, modules and ACPI's root in one structure."""
    result, words = told(kernel(PVH))
    assert result.status == PASSED, result.story()
    assert words >= SEEN | {"rsdp_revision=2"}, result.story()


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.timeout(300)
@pytest.mark.parametrize("vcpus", [2])
def test_given_debians_kernel_without_the_notes_that_say_linux_when_it_starts_by_pvh_then_it_boots(
    vcpus: int,
) -> None:
    """Nothing else of the kernel is changed. Command line, memory, initramfs and ACPI all arrive."""
    image = cached_debian()
    if image is None:
        pytest.skip("no Debian image in the cache")
    vmlinux = unpack_linux(image.kernel.read_bytes())
    assert kernel_kind(vmlinux) is KernelKind.LINUX
    hidden = re.sub(rb"(\x06\0\0\0.{8})Linux\0\0\0", rb"\1Other\0\0\0", vmlinux, flags=re.DOTALL)
    assert kernel_kind(hidden) is KernelKind.PVH
    with Machine(
        vcpus, "512M", hidden, image.initramfs(), cmdline="console=ttyS0,115200 panic=-1 loglevel=7 pvh=yes"
    ) as machine:
        machine.wait_shell(120)
        assert machine.run("nproc; cat /proc/cmdline").output == (
            f"{vcpus}\nconsole=ttyS0,115200 panic=-1 loglevel=7 pvh=yes\n"
        )
        assert machine.run("dmesg | grep -c 'Booting paravirtualized kernel\\|ACPI: RSDP'").output != "0\n"
        assert int(machine.run("awk '/MemTotal/ {print $2}' /proc/meminfo").output) > 450_000
        machine.console.write("poweroff -f\n")
        end = machine.wait(60)
        assert end is not None and end.kind == "power-off"


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "vcpus"), [(KernelKind.MULTIBOOT, 4), (KernelKind.MULTIBOOT2, 1)])
def test_given_xen_when_it_starts_by_multiboot_then_linux_on_it_gives_a_shell(
    from_debian: Callable[[str, str], bytes], kind: KernelKind, vcpus: int
) -> None:
    """A hypervisor from outside, with Linux as its first domain: two modules, cores started in real mode.

    It has both headers; the checksum of the first one is spoilt to have it started by the second. Linux finds
    the screen through it.
    """
    image = cached_debian()
    if image is None:
        pytest.skip("no Debian image in the cache")
    xen = bytearray(gzip.decompress(from_debian("xen-hypervisor-4.17-amd64", r"boot/xen-.*\.gz")))
    if kind is KernelKind.MULTIBOOT2:
        xen[xen.index(bytes.fromhex("02b0ad1b")) + 8] ^= 1
    assert kernel_kind(bytes(xen)) is kind
    modules = [(image.kernel.read_bytes(), "dom0 console=hvc0"), (image.initramfs(), "initrd")]
    cmdline = "com1=115200,8n1 console=com1,vga dom0_mem=512M"
    with Machine(vcpus, "1G", bytes(xen), cmdline=cmdline, modules=modules) as machine:
        machine.console.expect("Xen version 4.17", 120)
        machine.console.expect("~ #", 300)
        assert "Run /init as init process" in machine.screen()
        machine.console.write("cat /sys/hypervisor/type; nproc; cat /proc/cmdline\n")
        machine.console.expect(rf"xen\s+{vcpus}\s+console=hvc0\s", 120)
