# SPDX-License-Identifier: GPL-2.0-or-later
"""SeaBIOS starts at the reset vector, moves to RAM, finds cores and disks, and boots one."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import MIB, PASSED, BaremetalMachine
from boot_sector import HELLO, boot_sector, waiting_sector
from coremesh.cluster.machine.images.seabios import fetch_seabios, fetch_vga_bios
from coremesh.cluster.machine.machine_state import MachineState
from coremesh.core.errors import ImageFetchError
from coremesh.hw.backend.screen import read_screen
from coremesh.hw.isa.debug_console import DebugConsole
from coremesh.hw.isa.vga import Vga


@pytest.fixture(scope="module")
def bios() -> bytes:
    try:
        return fetch_seabios()
    except ImageFetchError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("firmware") / "hello.img"
    image.write_bytes(boot_sector().ljust(MIB, b"\0"))
    return image


def log_of(machine: BaremetalMachine) -> str:
    console = machine.node.devices["debug-console"]
    assert isinstance(console, DebugConsole)
    return console.text()


@pytest.mark.parametrize("interface", ["ide", "virtio"])
def test_given_a_boot_sector_on_a_disk_when_seabios_starts_then_it_runs_it(
    bios: bytes, disk: Path, interface: str
) -> None:
    with BaremetalMachine(None, vcpus=2, bios=bios, disks=[f"{disk},if={interface}"]) as machine:
        machine.start()
        result = machine.finish(30)
        assert result.status == PASSED, result.story() + log_of(machine)
    assert HELLO in result.output
    log = log_of(machine)
    assert "Found 2 cpu(s)" in log and "QEMU fw_cfg DMA interface supported" in log, log
    assert "len 0x0000000008000000 [RAM]" in log and "(via xsdt)" in log, log


def test_given_the_vgas_own_firmware_when_a_boot_sector_prints_then_it_is_on_the_screen_and_the_console(
    bios: bytes, disk: Path
) -> None:
    """INT 10h of the option ROM prints at B8000h; SeaBIOS's serial screen stands before it."""
    with BaremetalMachine(None, vcpus=1, bios=bios, disks=[disk], vga_bios=fetch_vga_bios()) as machine:
        machine.start()
        result = machine.finish(30)
        assert result.status == PASSED, result.story() + log_of(machine)
        vga = machine.node.devices["vga"]
        assert isinstance(vga, Vga)
        text = str(read_screen(vga.text_mode(), machine.host.ram_read))
    assert HELLO in result.output and HELLO in text and "SeaBIOS (version" in text, text


@pytest.mark.parametrize("order,first", [((), 0), (("disk1",), 1), (("disk2", "disk"), 2)])
def test_given_an_order_when_seabios_looks_for_a_disk_then_it_boots_the_one_that_is_first(
    bios: bytes, tmp_path: Path, order: tuple[str, ...], first: int
) -> None:
    """Given an IDE disk and two virtio disks; without an order SeaBIOS prefers the IDE disk."""
    disks = []
    for number, interface in enumerate(("ide", "virtio", "virtio")):
        image = tmp_path / f"{number}.img"
        image.write_bytes(boot_sector().replace(b"Hello", f"Disk{number}".encode()).ljust(MIB, b"\0"))
        disks.append(f"{image},if={interface}")
    with BaremetalMachine(None, vcpus=1, bios=bios, disks=disks, boot=order) as machine:
        machine.start()
        result = machine.finish(30)
        assert result.status == PASSED, result.story() + log_of(machine)
    assert f"Disk{first} from the boot sector" in result.output


def test_given_a_machine_in_its_firmware_when_it_is_saved_then_another_goes_on_in_the_same_firmware(
    bios: bytes, tmp_path: Path
) -> None:
    """The firmware runs in RAM behind its ROM, to which it has steered the processor. A key comes after."""
    image = tmp_path / "disk.img"
    image.write_bytes(waiting_sector("before", "after").ljust(MIB, b"\0"))
    with BaremetalMachine(None, vcpus=2, bios=bios, disks=[image]) as machine:
        machine.start()
        machine.wait_for("before", 30)
        machine.host.pause()
        machine.node.stop()
        state = MachineState.take(machine.host, machine.node, machine.clock)
        assert machine.host.steering, "it has moved to RAM"
    state.write(tmp_path / "saved")
    again = MachineState.read(tmp_path / "saved")
    with BaremetalMachine(None, vcpus=2, bios=bios, disks=[image], state=again) as machine:
        machine.start()
        machine.console.feed(b"x")
        result = machine.finish(30)
        assert result.status == PASSED, result.story() + log_of(machine)
    assert "after" in result.output and "before" not in result.output


@pytest.mark.slow
def test_given_255_vcpus_when_seabios_starts_them_then_it_counts_all(bios: bytes, disk: Path) -> None:
    with BaremetalMachine(None, vcpus=255, bios=bios, disks=[disk]) as machine:
        machine.start()
        result = machine.finish(120)
        assert result.status == PASSED, result.story() + log_of(machine)
    assert "Found 255 cpu(s) max supported 255 cpu(s)" in log_of(machine)


@pytest.mark.slow
@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_given_a_cd_of_grub_mkrescue_when_seabios_starts_then_grub_boots_a_kernel_from_it(
    bios: bytes, guest: Callable[[str], Path], tmp_path: Path, vcpus: int
) -> None:
    """GRUB starts the bare-metal guest by Multiboot: its console and its cores come from the firmware."""
    for tool in ("grub-mkrescue", "xorriso", "mformat"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    tree = tmp_path / "tree" / "boot" / "grub"
    tree.mkdir(parents=True)
    shutil.copy(guest("smp"), tree.parent / "guest.elf")
    (tree / "grub.cfg").write_text(
        "serial --unit=0 --speed=115200\nterminal_output serial\n"
        "echo GRUB runs\nmultiboot /boot/guest.elf\nboot\n"
    )
    image = tmp_path / "rescue.iso"
    subprocess.run(
        ["grub-mkrescue", "-o", image, tmp_path / "tree"], check=True, capture_output=True, timeout=60
    )
    with BaremetalMachine(None, vcpus=vcpus, bios=bios, cdrom=image) as machine:
        machine.start()
        result = machine.finish(60)
        assert "GRUB runs" in result.output, result.story() + log_of(machine)
        assert result.status == PASSED, result.story()
