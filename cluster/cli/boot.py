# SPDX-License-Identifier: GPL-2.0-or-later
"""``coremesh boot``: a guest for the length of one command line."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path

from coremesh.cluster.cli.process import say
from coremesh.cluster.cli.progress import fetch_progress, waiting
from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.cmdline import default_words, is_linux, several_hosts
from coremesh.cluster.machine.describe import DEBIAN_FIRMWARE, load_image, resolved_disks
from coremesh.cluster.machine.description import HostsWanted
from coremesh.cluster.machine.ending import CRASH_STATUS, TIMEOUT_STATUS, MachineEnd
from coremesh.cluster.machine.images.debian_disk import AFFINITY_WORD
from coremesh.cluster.machine.images.debian_image import fetch_debian_with
from coremesh.cluster.machine.images.seabios import fetch_vga_bios
from coremesh.cluster.machine.networks import network_of
from coremesh.cluster.machine.option_table import OPTIONS
from coremesh.cluster.machine.options import check, share_vcpus
from coremesh.cluster.machine.terminal import PlainText
from coremesh.core.errors import (
    ConfigurationError,
    ConsoleTimeoutError,
    CoremeshError,
    GuestCrashError,
    GuestImageError,
    ImageFetchError,
    MachineStateError,
)

INTERRUPTED_STATUS = 130
_POWER_OFF_SECONDS = 5.0
_DISK_POWER_OFF_SECONDS = 60.0  # what the guest has in memory is written first


@dataclass(frozen=True)
class BootOptions:
    """The command line's options, as given."""

    vcpus: int | None = None
    hosts: HostsWanted = 1
    device_host: int = 0
    policy: str = "adaptive"
    wire: str = "auto"
    memory: str = "1G"
    kernel: Path | None = None
    flavour: str = "amd64"
    initrd: Path | None = None
    append: str = ""
    cmdline: str | None = None
    modules: tuple[str, ...] = ()
    command: str | None = None
    timeout: float | None = None
    builtin: bool = False
    unpack: bool = True
    address: str | None = None
    bios: str | None = None
    boot: str | None = None
    reboot: bool = True
    disks: tuple[str, ...] = ()
    cdrom: Path | None = None
    net: tuple[str, ...] = ()
    screen: str = "serial"
    console: str = "serial"
    folders: tuple[str, ...] = ()
    rng: str | None = None


def boot_guest(options: BootOptions) -> int:
    """Boot, serve the console or run the command, and return the process's exit status."""
    # Before an image is got, and Machine says the same of what only it takes.
    shares = share_vcpus(options.hosts, options.vcpus, options.device_host)
    for field in fields(options):
        if field.name in OPTIONS and field.name not in ("hosts", "vcpus"):
            check(field.name, getattr(options, field.name))
    check("timeout", options.timeout)
    if options.command is not None:
        check("command", options.command)
    _check_screen(options)
    try:
        machine = _start(options, shares)
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    with machine:
        try:
            if options.command is not None:
                return _run(machine, options.command, options)
            if sys.stdin.isatty() and sys.stdout.isatty():
                return _interact(machine, options.timeout, text=options.screen == "text")
            return _stream(machine, options.timeout)
        except KeyboardInterrupt:
            return INTERRUPTED_STATUS


def _check_screen(options: BootOptions) -> None:
    check("screen", options.screen)
    if options.screen == "serial":
        return
    if options.command is not None:
        raise ConfigurationError("--run speaks to the serial console: leave --screen out.")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigurationError("--screen text needs a terminal; a script reads Machine.screen() instead.")


def _start(options: BootOptions, shares: tuple[int, ...]) -> Machine:
    kernel, initrd, modules, words = _images(options, shares)
    append = f"{words} {options.append}".strip()
    if options.screen == "text" and kernel is not None and is_linux(kernel):
        append = f"console=tty0 {append}".strip()  # the last one named is that of the shell
    if (
        kernel is not None
        and options.command is not None
        and "quiet" in default_words(kernel, append=append, quiet=True)
    ):
        append = f"quiet {append}".strip()  # the kernel's messages are not shown then, and they cost time
    with waiting(f"starting {_size(shares)}"):
        machine = Machine(
            vcpus=options.vcpus,
            hosts=options.hosts,
            device_host=options.device_host,
            policy=options.policy,
            wire=options.wire,
            memory=options.memory,
            kernel=kernel,
            initrd=initrd,
            modules=modules,
            cmdline=options.cmdline,
            append=append,
            unpack=options.unpack,
            address=options.address,
            bios=options.bios,
            boot=options.boot or (),
            reboot=options.reboot,
            disks=options.disks,
            cdrom=options.cdrom,
            net=options.net,
            console=options.console,
            folders=options.folders,
            rng=options.rng,
        )
    if machine.warning:
        say(machine.warning)
    if kernel is not None and options.command is None and options.cmdline is None:
        _tell_of_words(kernel, shares, append)
        if AFFINITY_WORD in words:
            say(f"the disk's services keep to the first host ('{words.split()[-1]}'); logins use all cores.")
    return machine


def _tell_of_words(kernel: bytes, shares: tuple[int, ...], append: str) -> None:
    """Say what the kernel of a machine of several hosts gets beyond what it gets on one."""
    added = several_hosts(shares)
    left = default_words(kernel, shares=shares, append=append)
    words = " ".join(word for word in left if word in added)
    if words:
        say(
            f"for several hosts the kernel gets '{words}'. A word of the same name in --append replaces one; "
            "'loglevel=7' there shows the kernel's messages."
        )


def _size(shares: tuple[int, ...]) -> str:
    vcpus = f"{sum(shares)} vCPU{'s' if sum(shares) > 1 else ''}"
    return f"{vcpus} on {len(shares)} hosts" if len(shares) > 1 else vcpus


def _images(
    options: BootOptions, shares: tuple[int, ...]
) -> tuple[bytes | None, bytes | None, list[tuple[bytes, str]], str]:
    """Return kernel (None: the firmware finds one), initramfs, modules, and the words that name its disk."""
    ram_bytes = check("memory", options.memory)
    modules = [_module(text, ram_bytes) for text in options.modules]
    initrd = None if options.initrd is None else load_image(options.initrd, "initrd", ram_bytes)
    if options.bios:
        if options.builtin or modules:
            raise ConfigurationError(
                "firmware boots a disk, a CD-ROM or a bzImage: leave out --bios, or --builtin and --module."
            )
        if options.command is not None and not (options.disks or options.cdrom or options.kernel):
            raise ConfigurationError(
                "firmware alone has no shell for --run: give it a --disk, a --cdrom or a --kernel to boot."
            )
        if options.bios == DEBIAN_FIRMWARE:
            with fetch_progress() as progress:
                fetch_vga_bios(progress=progress)  # SeaBIOS comes with it
        kernel = None if options.kernel is None else load_image(options.kernel, "kernel", ram_bytes)
        return kernel, initrd, [], ""
    if options.builtin:
        if options.kernel is not None or options.command is not None:
            raise ConfigurationError(
                "--builtin has its own kernel and no shell: leave out --kernel and --run."
            )
        return builtin_guest(), None, [], ""
    if options.kernel is not None:
        return load_image(options.kernel, "kernel", ram_bytes), initrd, modules, ""
    with waiting("checking the disk"):
        _, system = resolved_disks(check("disks", options.disks))
    if system is not None:
        kernel = system.kernel.read_bytes()
        initrd = system.initrd.read_bytes() if initrd is None else initrd
        return kernel, initrd, modules, system.words(shares, options.append)
    try:
        with fetch_progress() as progress:
            image = fetch_debian_with("9p" if options.folders else "", options.flavour, progress)
    except ImageFetchError as error:
        if options.command is not None:
            raise
        say(error)
        say("booting the built-in bare-metal guest instead; it has no shell.")
        return builtin_guest(), None, [], ""
    return (
        image.kernel.read_bytes(),
        image.initramfs(
            disks=bool(
                options.disks
                or options.cdrom
                or options.folders
                or options.rng
                or check("console", options.console).kind != "serial"
            ),
            network=network_of(check("net", options.net)),
        )
        if initrd is None
        else initrd,
        modules,
        "",
    )


def builtin_guest() -> bytes:
    """Return the bare-metal SMP guest that is built with the package (Multiboot)."""
    guest = resources.files("coremesh.core") / "guests" / "smp.elf"
    try:
        return guest.read_bytes()
    except OSError as error:
        raise GuestImageError(
            "the built-in guest is missing from this installation. Install again with 'pip install .'."
        ) from error


def _module(text: str, ram_bytes: int) -> tuple[bytes, str]:
    # As GRUB and QEMU have it: the text begins with the file's name.
    return load_image(text.split(" ", 1)[0], "module", ram_bytes), text


def _run(machine: Machine, command: str, options: BootOptions) -> int:
    timeout = options.timeout
    try:
        result = machine.run(command, timeout, on_output=_print)
    except ConsoleTimeoutError as error:
        say(error)
        return TIMEOUT_STATUS
    except GuestCrashError as error:
        say(error)
        return CRASH_STATUS
    except MachineStateError as error:  # the command itself switched the guest off
        end = machine.wait(0)
        say(error)
        return end.exit_status if end is not None else 1
    machine.console.write("poweroff -f || poweroff\n")
    machine.wait(_POWER_OFF_SECONDS if not options.disks else _DISK_POWER_OFF_SECONDS)
    return result.status


def _stream(machine: Machine, timeout: float | None) -> int:
    """Console to standard output, standard input to the console, until the end or the timeout."""
    begin = time.monotonic()
    threading.Thread(target=_feed, args=(machine,), name="standard input", daemon=True).start()
    plain = PlainText()
    over = False
    while not over:
        left = 1.0 if timeout is None else min(1.0, timeout - (time.monotonic() - begin))
        if left <= 0:
            return _timed_out(timeout)
        data, over = machine.console.take(left)
        _print(plain.feed(data))
    return _ended(machine.wait())


def _feed(machine: Machine) -> None:
    if sys.stdin is None or sys.stdin.isatty():
        return  # only the output was redirected: the keyboard stays the shell's
    try:
        if machine.cmdline:  # Linux throws away what was typed before it opened the port
            machine.wait_shell()
        while data := os.read(sys.stdin.fileno(), 4096):
            machine.console.write(data)
    except (OSError, ValueError, CoremeshError):
        return


def _interact(machine: Machine, timeout: float | None, *, text: bool) -> int:
    say(f"{_size(machine.shares)}; Ctrl-] leaves and switches the machine off")
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        machine.stop()

    timer = threading.Timer(timeout, expire) if timeout is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    left = machine.interact_on_screen() if text else machine.console.interact()
    if timer is not None:
        timer.cancel()
    print(file=sys.stderr)
    if timed_out.is_set():
        return _timed_out(timeout)
    if left:
        return 0
    return _ended(machine.wait())


def _ended(end: MachineEnd | None) -> int:
    if end is None:
        return 1
    if end.crashed:
        say(end.error())
    elif end.kind != "debug-exit":
        say(f"{end} after {end.seconds:.1f} s")
    return end.exit_status


def _timed_out(timeout: float | None) -> int:
    say(f"stopped after {timeout:g} s, the time given by --timeout")
    return TIMEOUT_STATUS


def _print(data: bytes) -> None:
    if data:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
