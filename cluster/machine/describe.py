# SPDX-License-Identifier: GPL-2.0-or-later
"""From the options of a machine to its description: options checked, images read, a command line chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from coremesh.cluster.machine.assembly import check_images
from coremesh.cluster.machine.cmdline import command_line
from coremesh.cluster.machine.description import MachineDescription, Module
from coremesh.cluster.machine.disks import Disk, check_places
from coremesh.cluster.machine.images import debian_image
from coremesh.cluster.machine.images.seabios import fetch_seabios, fetch_vga_bios
from coremesh.cluster.machine.networks import network_of
from coremesh.cluster.machine.option_table import OPTIONS
from coremesh.cluster.machine.options import Image, check, share_vcpus
from coremesh.core.errors import ConfigurationError, GuestImageError
from coremesh.hw.firmware.seabios import LARGEST_ROM

if TYPE_CHECKING:
    from coremesh.cluster.machine.images.debian_disk import DebianDisk

#: An ELF kernel's file holds more than is loaded: symbols, line numbers.
LARGEST_KERNEL: Final = 1 << 30
DEBIAN_FIRMWARE: Final = "debian"


def describe(**options: Any) -> MachineDescription:
    """Return the machine that `options` describe: those of :data:`OPTIONS`, whose meaning is `Machine`'s.

    Reads the images, after all else was found right. Raises :class:`ConfigurationError`,
    :class:`GuestImageError` or :class:`ImageFetchError`. No engine and no Ray is needed. Any thread.
    """
    unknown = set(options) - set(OPTIONS)
    if unknown:
        raise TypeError(f"a machine has no option {min(unknown)!r}")

    def value(name: str) -> Any:
        return options.get(name, OPTIONS[name].default)

    def given(name: str) -> Any:
        return check(name, value(name))

    shares = share_vcpus(value("hosts"), value("vcpus"), value("device_host"))
    ram_bytes = given("memory")
    given_line = given("cmdline")
    append = given("append")
    wanted: dict[str, Any] = {
        "prompt": given("prompt"),
        "protection": given("protection"),
        "unpack": given("unpack"),
        "device_host": given("device_host"),
        "policy": given("policy"),
        "curve": given("curve"),
        "wire": given("wire"),
        "rng": given("rng"),
        "restarts": given("reboot"),
        "boot": given("boot"),
    }
    progress, flavour = given("progress"), given("flavour")
    debian_image.check_flavour(flavour)
    drives = given("disks")
    if (disc := given("cdrom")) is not None:
        drives = (*drives, disc)
    check_places(drives)
    networks = given("net")
    console = given("console")
    folders = given("folders")
    kernel, initrd = given("kernel"), given("initrd")
    pairs = given("modules")

    drives, system = resolved_disks(drives)
    bios = given("bios")
    if bios is None and wanted["boot"]:
        raise ConfigurationError("only a firmware looks for what to boot: add --bios, or leave out --boot.")
    if bios is not None:
        if system is not None:
            system.require_boot_loader()
        return _with_firmware(
            bios,
            options,
            MachineDescription(
                vcpus=sum(shares),
                ram_bytes=ram_bytes,
                kernel=b"",
                shares=shares,
                disks=drives,
                networks=networks,
                console=console,
                folders=folders,
                **wanted,
            ),
            progress,
        )
    initrd_bytes: bytes | None
    if kernel is None and system is not None:
        kernel_bytes = system.kernel.read_bytes()
        initrd_bytes = (
            system.initrd.read_bytes() if initrd is None else load_image(initrd, "initrd", ram_bytes)
        )
        append = f"{system.words(shares, append)} {append}".strip()
    elif kernel is None:
        debian = debian_image.fetch_debian_with("9p" if folders else "", flavour, progress)
        kernel_bytes = debian.kernel.read_bytes()
        initrd_bytes = (
            debian.initramfs(
                disks=bool(drives or folders) or wanted["rng"] is not None or console.kind != "serial",
                network=network_of(networks),
            )
            if initrd is None
            else load_image(initrd, "initrd", ram_bytes)
        )
    else:
        kernel_bytes = load_image(kernel, "kernel", ram_bytes)
        initrd_bytes = None if initrd is None else load_image(initrd, "initrd", ram_bytes)
    line = (
        command_line(kernel_bytes, shares=shares, append=append, console=console.linux_word)
        if given_line is None
        else f"{given_line} {append}".strip()
    )
    description = MachineDescription(
        vcpus=sum(shares),
        ram_bytes=ram_bytes,
        kernel=kernel_bytes,
        initrd=initrd_bytes,
        cmdline=line,
        modules=tuple(Module(load_image(image, "module", ram_bytes), text) for image, text in pairs),
        shares=shares,
        disks=drives,
        networks=networks,
        console=console,
        folders=folders,
        **wanted,
    )
    check_images(description)
    return description


def _with_firmware(
    bios: Image, options: dict[str, Any], description: MachineDescription, progress: Any
) -> MachineDescription:
    """The machine that begins in the firmware `bios`, which finds by itself what to boot, or has a kernel."""
    with_kernel = options.get("kernel") is not None
    for name in ("modules",) if with_kernel else ("modules", "initrd", "cmdline", "append"):
        if options.get(name):
            way_out = "leave it out" if with_kernel else "give it a kernel, too, or leave it out"
            raise ConfigurationError(
                f"a firmware starts what the guest's boot loader chooses, or a kernel of yours, without "
                f"modules: {name!r} has no use here, {way_out}."
            )
    vga_bios = b""
    if bios == DEBIAN_FIRMWARE:
        image, vga_bios = fetch_seabios(progress=progress), fetch_vga_bios(progress=progress)
    else:
        image = load_image(bios, "firmware", LARGEST_ROM)
    complete = replace(description, bios=image, bios_bytes=len(image), vga_bios=vga_bios)
    if with_kernel:
        complete = replace(complete, kernel_by_firmware=True, **_kernel_for(options, complete))
    check_images(complete)
    return complete


def _kernel_for(options: dict[str, Any], description: MachineDescription) -> dict[str, Any]:
    """Kernel, initramfs and command line, as without a firmware."""
    ram_bytes = description.ram_bytes
    kernel = load_image(check("kernel", options["kernel"]), "kernel", ram_bytes)
    initrd = check("initrd", options.get("initrd"))
    line, append = check("cmdline", options.get("cmdline")), check("append", options.get("append", ""))
    return {
        "kernel": kernel,
        "initrd": None if initrd is None else load_image(initrd, "initrd", ram_bytes),
        "cmdline": command_line(
            kernel, shares=description.shares, append=append, console=description.console.linux_word
        )
        if line is None
        else f"{line} {append}".strip(),
    }


def resolved_disks(disks: tuple[Disk, ...]) -> tuple[tuple[Disk, ...], DebianDisk | None]:
    """Return `disks` with the file of the fetched Debian disk in the place of its name, and that disk.

    Raises :class:`ImageFetchError` where a person names it and none was fetched. Any thread.
    """
    if not any(disk.is_fetched for disk in disks):
        return disks, None
    from coremesh.cluster.machine.images import debian_disk

    return debian_disk.resolve(disks)


def load_image(image: Image, what: str, ram_bytes: int) -> bytes:
    """Return the bytes of `what` ('kernel', 'initrd', 'module') for a guest with `ram_bytes` of RAM.

    `image` is a path, or the bytes themselves. Raises :class:`GuestImageError`.
    """
    if isinstance(image, bytes):
        if not image:
            raise GuestImageError(f"the {what} is empty.")
        return image
    limit, why = ram_bytes, "It must fit the guest's memory: give a larger --memory, or another file."
    if what == "kernel" and limit < LARGEST_KERNEL:
        limit, why = LARGEST_KERNEL, "Remove what is not loaded with 'strip -d'."
    return debian_image.read_image(image, what, limit, why)
