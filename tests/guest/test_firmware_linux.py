# SPDX-License-Identifier: GPL-2.0-or-later
"""SeaBIOS to GRUB to Debian's kernel: from an IDE disk, a virtio disk and a CD, and again after a reboot."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.core.errors import ImageFetchError, MachineStateError

pytestmark = [pytest.mark.slow, pytest.mark.linux]

GRUB_CFG = """\
serial --unit=0 --speed=115200
terminal_output serial
echo GRUB runs
linux /boot/vmlinuz console=ttyS0,115200 panic=-1 quiet
initrd /boot/initrd.img
boot
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What grub-mkrescue makes: a CD that is also a disk."""
    for tool in ("grub-mkrescue", "xorriso", "mformat"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    try:
        debian = fetch_debian()
    except ImageFetchError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("grub")
    (folder / "tree/boot/grub").mkdir(parents=True)
    (folder / "tree/boot/grub/grub.cfg").write_text(GRUB_CFG)
    shutil.copy(debian.kernel, folder / "tree/boot/vmlinuz")
    (folder / "tree/boot/initrd.img").write_bytes(debian.initramfs())
    made = folder / "grub.iso"
    subprocess.run(["grub-mkrescue", "-o", made, folder / "tree"], check=True, capture_output=True)
    return made


@pytest.mark.parametrize(
    "place,vcpus,hosts", [("ide", 1, 1), ("virtio", 2, 1), ("cd", 8, 1), ("virtio", 4, 2)]
)
def test_given_grub_on_a_disk_or_a_cd_when_firmware_boots_it_then_debian_runs_on_all_cores(
    image: Path, place: str, vcpus: int, hosts: int
) -> None:
    media: dict[str, Any] = (
        {"cdrom": image} if place == "cd" else {"disks": [f"{image},readonly,format=raw,if={place}"]}
    )
    with Machine(vcpus, "1G", bios=True, hosts=hosts, **media) as machine:
        machine.wait_shell(240)
        assert machine.run("nproc", 60).output == f"{vcpus}\n"
        assert "acpi" in machine.run("ls /sys/firmware", 60).output
        if place != "cd":
            return
        with pytest.raises(MachineStateError, match="restarted"):
            machine.run("reboot -f", 60)
        machine.wait_shell(240)
        assert machine.restarts == 1 and machine.run("nproc", 60).output == f"{vcpus}\n"
