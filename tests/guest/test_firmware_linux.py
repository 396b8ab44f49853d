# SPDX-License-Identifier: GPL-2.0-or-later
"""SeaBIOS to GRUB to Debian's kernel: from an IDE disk, a virtio disk and a CD, and again; iPXE."""

import functools
import http.server
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_disk import cached_debian_disk
from coremesh.cluster.machine.images.debian_image import DebianImage
from coremesh.core.errors import MachineStateError
from grub_disk import MODULES, make_disk, needs_grub

pytestmark = pytest.mark.linux

LINUX = """\
echo GRUB runs
linux {root}/boot/vmlinuz console=ttyS0,115200 panic=-1 quiet
initrd {root}/boot/initrd.img
boot
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, debian: DebianImage) -> Path:
    """Debian's kernel and an initramfs, as on a disk."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "boot").mkdir()
    shutil.copy(debian.kernel, folder / "boot/vmlinuz")
    (folder / "boot/initrd.img").write_bytes(debian.initramfs())
    return folder


@pytest.fixture(scope="module")
def disk(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRUB behind the partition table, and one ext4 partition."""
    needs_grub()
    made = tmp_path_factory.mktemp("grub") / "disk.img"
    make_disk(made, 64 << 20, tree, LINUX.format(root="(hd0,msdos1)"))
    return made


@pytest.mark.parametrize(
    "interface,vcpus,hosts",
    [
        ("virtio", 2, 1),
        pytest.param("ide", 1, 1, marks=pytest.mark.slow),
        pytest.param("virtio", 4, 2, marks=pytest.mark.slow),
    ],
)
def test_given_grub_on_a_disk_when_firmware_boots_it_then_debian_runs_on_all_cores_and_again(
    disk: Path, interface: str, vcpus: int, hosts: int
) -> None:
    with Machine(vcpus, "512M", bios=True, hosts=hosts, disks=[f"{disk},readonly,if={interface}"]) as machine:
        machine.console.expect("GRUB runs", 120)
        machine.wait_shell(240)
        assert machine.run("nproc", 60).output == f"{vcpus}\n"
        assert "acpi" in machine.run("ls /sys/firmware", 60).output
        with pytest.raises(MachineStateError, match="restarted"):
            machine.run("reboot -f", 60)
        machine.wait_shell(240)
        assert machine.restarts == 1 and machine.run("nproc", 60).output == f"{vcpus}\n"


def test_given_a_kernel_when_firmware_starts_it_then_it_has_its_command_line_and_initramfs(
    debian: DebianImage,
) -> None:
    """As without firmware, and the kernel's own real-mode code has run: it asked the BIOS for the memory."""
    with Machine(
        2, "512M", debian.kernel, debian.initramfs(), bios=True, append="quiet given=yes"
    ) as machine:
        machine.wait_shell(240)
        assert "given=yes" in machine.run("cat /proc/cmdline", 60).output
        assert machine.run("nproc", 60).output == "2\n"
        assert machine.run("dmesg | grep -c 'BIOS-e820.*usable'", 60).output == "2\n"


MENU = """\
set timeout=-1
menuentry 'The first system' { echo First was chosen; sleep 600 }
menuentry 'Another system' { echo Another was chosen; sleep 600 }
"""


def test_given_grubs_menu_on_the_screen_when_keys_choose_an_entry_then_it_is_seen_to_run(
    tmp_path: Path,
) -> None:
    """By the VGA's own firmware and the PS/2 keyboard: nothing of it is on the serial port."""

    def seen(text: str, line: str = "", color: int = 0) -> bool:
        """Whether ``text`` comes to stand on the screen, and the ``line`` has the background ``color``."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            screen = machine.screen()
            rows = [n for n, row in enumerate(screen.rows) if line in row]
            if text in screen and rows and screen.attributes[rows[0]][5] >> 4 & 7 == color:
                return True
            time.sleep(0.1)
        return False

    needs_grub()
    (tmp_path / "tree/boot/grub").mkdir(parents=True)
    (tmp_path / "tree/boot/grub/grub.cfg").write_text(MENU)
    disk = tmp_path / "disk.img"
    make_disk(disk, 16 << 20, tmp_path / "tree", "", menu=True)
    with Machine(1, "64M", bios=True, disks=[f"{disk},readonly,if=ide"]) as machine:
        assert seen("GNU GRUB", "The first system", 7), machine.screen()
        assert seen("Another system", "Another system", 0)
        machine.press("down")
        assert seen("GNU GRUB", "Another system", 7), machine.screen()
        assert seen("GNU GRUB", "The first system", 0)
        machine.press("enter")
        assert seen("Another was chosen"), machine.screen()
        assert "First was chosen" not in machine.screen()


@pytest.mark.slow
def test_given_a_cd_of_grub_mkrescue_when_firmware_boots_it_then_debian_runs_on_all_cores(
    tree: Path, tmp_path: Path
) -> None:
    needs_grub()
    for tool in ("grub-mkrescue", "xorriso", "mformat"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    (tree / "boot/grub").mkdir(exist_ok=True)
    text = "serial --unit=0 --speed=115200\nterminal_output serial\n" + LINUX.format(root="")
    (tree / "boot/grub/grub.cfg").write_text(text)
    image = tmp_path / "grub.iso"
    subprocess.run(["grub-mkrescue", "-d", MODULES, "-o", image, tree], check=True, capture_output=True)
    with Machine(8, "512M", bios=True, cdrom=image) as machine:
        machine.wait_shell(240)
        assert machine.run("nproc", 60).output == "8\n"


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.slow
def test_given_ipxes_cd_when_firmware_boots_it_then_it_runs_a_script_that_a_server_has(
    from_debian: Callable[[str, str], bytes], tmp_path: Path
) -> None:
    """A system from outside with a driver of its own for the network card: DHCP, then HTTP."""

    def shows(text: str, times: int = 1) -> bool:
        deadline = time.monotonic() + 120
        while str(machine.screen()).count(text) < times and time.monotonic() < deadline:
            time.sleep(0.1)
        return str(machine.screen()).count(text) >= times

    def types(line: str) -> None:
        for end, key in enumerate(line, 1):
            machine.press({" ": "space", ":": "shift-;"}.get(key, key))
            # SeaBIOS keeps at most fifteen keys until iPXE reads them. It drops any more.
            assert shows(f"iPXE> {line[:end]}".rstrip()), machine.screen()
        machine.press("enter")

    (tmp_path / "s").write_text("#!ipxe\necho It runs on ${net0/ip} by ${net0/gateway}\nshell\n")
    image = tmp_path / "ipxe.iso"
    image.write_bytes(from_debian("ipxe", r"usr/lib/ipxe/ipxe\.iso"))
    handler = functools.partial(_Silent, directory=str(tmp_path))
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        Machine(1, "256M", bios=True, cdrom=image, net="user") as machine,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            assert shows("Open Source Network Boot Firmware"), machine.screen()
            machine.press("ctrl-b")
            assert shows("iPXE>"), machine.screen()
            types("dhcp")
            assert shows("iPXE>", times=2), machine.screen()
            types(f"chain http://10.0.2.2:{server.server_port}/s")
            assert shows("It runs on 10.0.2.15 by 10.0.2.2"), machine.screen()
        finally:
            server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("interface", ["virtio", "ide"])
def test_given_the_debian_disk_when_firmware_boots_it_then_root_logs_in(interface: str) -> None:
    """The disk of ``coremesh fetch debian --disk``, where this user has one: its own GRUB, its own menu."""
    if cached_debian_disk() is None:
        pytest.skip("no Debian disk with a boot loader: 'coremesh fetch debian --disk 4G' makes one")
    with Machine(2, "1G", bios=True, disks=[f"debian,if={interface},snapshot"]) as machine:
        machine.wait_shell(300)
        assert machine.run("id -un", 60).output.strip() == "root"
        assert "BOOT_IMAGE=/boot/vmlinuz-" in machine.run("cat /proc/cmdline", 60).output
        assert machine.run("systemctl --failed --no-legend --plain | cat", 60).output.strip() == ""
