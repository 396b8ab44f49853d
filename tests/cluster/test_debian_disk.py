# SPDX-License-Identifier: GPL-2.0-or-later
"""A root disk made of Debian packages without privileges: files, owners, dpkg's database, the user's copy."""

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from coremesh.cluster.machine import device_host
from coremesh.cluster.machine.describe import describe
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.device_host import DeviceHost
from coremesh.cluster.machine.disks import check_disks
from coremesh.cluster.machine.images import debian_disk, ext4
from coremesh.cluster.machine.images.root_tree import RootTree, merged, safe
from coremesh.core.errors import ConfigurationError, ImageFetchError

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
SIZE = 16 << 20


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A .deb with a program in /bin under two names, a configuration file, a link, and files of others."""
    root = tmp_path / "package"
    for folder in ("DEBIAN", "bin", "etc", "usr/share/doc", "var/mail"):
        (root / folder).mkdir(parents=True)
    (root / "bin/tool").write_text("#!/bin/sh\n")
    (root / "bin/tool").chmod(0o4755)
    (root / "bin/other-name").hardlink_to(root / "bin/tool")
    (root / "etc/tool.conf").write_text("colour=red\n")
    (root / "etc/secret").write_text("x")
    (root / "etc/secret").chmod(0o640)
    (root / "usr/share/doc/link").symlink_to("/etc/tool.conf")
    (root / "var/mail").chmod(0o2775)
    (root / "DEBIAN/control").write_text(
        "Package: tool\nVersion: 1.0\nArchitecture: amd64\nMulti-Arch: same\nMaintainer: x <x@example.org>\n"
        "Description: a tool\n of one line\n"
    )
    (root / "DEBIAN/conffiles").write_text("/etc/tool.conf\n")
    (root / "DEBIAN/postinst").write_text("#!/bin/sh\n")
    (root / "DEBIAN/postinst").chmod(0o755)
    archive = tmp_path / "tool.deb"
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(archive)]
    subprocess.run(command, check=True, capture_output=True)
    return archive


def inode(image: Path, path: str) -> str:
    command = [ext4.tool("debugfs"), "-R", f"stat {path}", f"{image}?offset={ext4.PARTITION_OFFSET}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_dpkg
def test_given_a_package_when_it_is_unpacked_onto_a_disk_then_owners_and_modes_are_roots(
    tmp_path: Path, package: Path
) -> None:
    (tmp_path / "tree").mkdir()
    tree = RootTree(tmp_path / "tree")
    tree.unpack(package)
    tree.directory("var/lib/odd", 0o700)
    tree.attributes["var/lib/odd"] = type(tree.attributes["etc/secret"])(7, 42, 0o40700)
    tree.finish()
    image = tmp_path / "disk.img"
    ext4.write_disk(image, SIZE, tree, tmp_path)
    ext4.check(image)
    assert image.stat().st_size == SIZE
    for name in ("/usr/bin/tool", "/usr/bin/other-name"):  # /bin is merged; both names are one inode
        text = inode(image, name)
        assert "Mode:  04755" in text
        assert "Links: 2" in text
        assert "User:     0   Group:     0" in text
    assert "Mode:  0640" in inode(image, "/etc/secret")
    assert "Mode:  02775" in inode(image, "/var/mail")
    assert "User:     7   Group:    42" in inode(image, "/var/lib/odd")
    assert "User:     0   Group:     0" in inode(image, "/")
    table = image.read_bytes()[:512]
    assert table[510:] == b"\x55\xaa"
    assert int.from_bytes(table[454:458], "little") * 512 == ext4.PARTITION_OFFSET


@needs_dpkg
def test_given_an_unpacked_package_when_dpkg_reads_the_database_then_it_is_unpacked_and_whole(
    tmp_path: Path, package: Path
) -> None:
    (tmp_path / "tree").mkdir()
    tree = RootTree(tmp_path / "tree")
    tree.unpack(package)
    tree.finish()
    asked = ["dpkg-query", f"--admindir={tmp_path}/tree/var/lib/dpkg", "-W", "-f"]
    form = "${Package} ${Status} ${Conffiles}"
    said = subprocess.run([*asked, form], capture_output=True, text=True, check=True).stdout
    assert said.startswith("tool install ok unpacked")
    assert "/etc/tool.conf" in said
    listed = (tmp_path / "tree/var/lib/dpkg/info/tool:amd64.list").read_text().splitlines()
    assert "/bin/tool" in listed, "as the package names it"
    assert (tmp_path / "tree/var/lib/dpkg/info/tool:amd64.postinst").exists()


def test_given_paths_of_an_archive_then_they_stay_below_the_root() -> None:
    assert safe("./usr//bin/x") == "usr/bin/x"
    with pytest.raises(Exception, match="leaves the root"):
        safe("./usr/../../etc/passwd")
    assert (merged("bin/sh"), merged("bin"), merged("lib64/ld.so"), merged("srv/x")) == (
        "usr/bin/sh", "bin", "usr/lib64/ld.so", "srv/x",
    )  # fmt: skip


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a disk in it, as a fetch leaves it."""
    monkeypatch.setenv("COREMESH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COREMESH_DISKS", str(tmp_path / "disks"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache/debian-disk-amd64"
    folder.mkdir(parents=True)
    with (folder / "disk.img").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(1 << 20)
        file.write(b"root" * 1024)
    for name in ("vmlinuz", "initrd.img"):
        (folder / name).write_bytes(name.encode())
    hashes = {name: debian_disk._hash(folder / name) for name in ("disk.img", "vmlinuz", "initrd.img")}
    options = {"flavour": "amd64", "size": 64 << 20, "ssh": False}
    manifest = {"options": options, "release": "6.1", "cmdline": "root=UUID=1 rw", "sha256": hashes}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_given_a_fetched_disk_when_a_machine_names_it_then_it_gets_a_copy_that_keeps_what_is_written(
    fetched: Path, tmp_path: Path
) -> None:
    disks, system = debian_disk.resolve(check_disks(["debian"]))
    own = tmp_path / "disks/debian/disk.img"
    assert disks[0].path == own
    assert own.read_bytes() == (fetched / "disk.img").read_bytes()
    assert own.stat().st_blocks * 512 < 1 << 20, "holes stay holes"
    with own.open("r+b") as file:
        file.write(b"mine")
    assert debian_disk.resolve(check_disks(["debian"]))[0][0].path == own
    assert own.read_bytes()[:4] == b"mine"
    assert system is not None
    assert system.cmdline == "root=UUID=1 rw"
    kept, _ = debian_disk.resolve(check_disks(["debian,snapshot"]))
    assert kept[0].path == fetched / "disk.img", "a snapshot needs no copy"


def test_given_two_files_of_one_content_when_their_holes_differ_then_their_hashes_agree(
    tmp_path: Path,
) -> None:
    """A file system moves the borders of holes when it writes a file back; the content stays the same."""
    sparse, dense = tmp_path / "sparse", tmp_path / "dense"
    with sparse.open("wb") as file:
        file.truncate(1 << 20)
        for at in (4096, 40960, 65536 + 8192):
            os.pwrite(file.fileno(), b"x" * 4096, at)
    dense.write_bytes(sparse.read_bytes())
    assert debian_disk._hash(sparse) == debian_disk._hash(dense)
    with dense.open("r+b") as file:
        os.pwrite(file.fileno(), b"y", 65536 + 8192)
    assert debian_disk._hash(sparse) != debian_disk._hash(dense)


def test_given_the_cached_disk_when_it_was_changed_then_it_is_not_used(fetched: Path) -> None:
    with (fetched / "disk.img").open("r+b") as file:
        file.seek(40 << 20)
        file.write(b"x")
    assert debian_disk.cached_debian_disk() is None
    with pytest.raises(ImageFetchError, match="coremesh fetch debian --disk 4G"):
        debian_disk.resolve(check_disks(["debian,snapshot"]))


def test_given_a_disk_of_an_earlier_layout_then_it_boots_as_before_and_firmware_is_told_of_a_new_one(
    fetched: Path, tmp_path: Path
) -> None:
    """It has no boot loader. A fetch makes a new one; the copy of the old one is the user's to remove."""
    assert debian_disk.cached_debian_disk() is None, "so that a fetch makes it anew"
    _, system = debian_disk.resolve(check_disks(["debian"]))
    assert system is not None and system.cmdline == "root=UUID=1 rw"
    with pytest.raises(ImageFetchError, match=r"disks/debian was made before .*coremesh fetch debian"):
        system.require_boot_loader()
    with pytest.raises(ImageFetchError, match="boot loader"):
        describe(disks=["debian"], bios=bytes(1 << 16))
    manifest = json.loads((fetched / "manifest.json").read_text())
    manifest["options"]["layout"] = debian_disk.LAYOUT
    (fetched / "manifest.json").write_text(json.dumps(manifest))
    assert debian_disk.cached_debian_disk() is not None
    debian_disk.pristine_disk().require_boot_loader()


@pytest.mark.parametrize(
    ("layout", "shares", "append", "word"),
    [
        (3, (4, 4), "", " systemd.cpu_affinity=0-3"),
        (3, (1, 1), "", " systemd.cpu_affinity=0-0"),
        (3, (0, 2, 2), "", " systemd.cpu_affinity=0-1"),  # the first host has the devices alone
        (3, (8,), "", ""),
        (3, (0, 2), "", ""),
        (3, (4, 4), "quiet systemd.cpu_affinity=5", ""),  # a person's own
        (2, (4, 4), "", ""),  # logins would keep to the first host
    ],
)
def test_given_several_hosts_when_the_fetched_disk_boots_then_its_services_keep_to_the_first(
    fetched: Path, layout: int, shares: tuple[int, ...], append: str, word: str
) -> None:
    manifest = json.loads((fetched / "manifest.json").read_text())
    manifest["options"]["layout"] = layout
    (fetched / "manifest.json").write_text(json.dumps(manifest))
    assert debian_disk.pristine_disk().words(shares, append) == f"root=UUID=1 rw{word}"


def test_given_no_fetched_disk_then_the_error_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREMESH_CACHE", str(tmp_path))
    monkeypatch.setenv("COREMESH_DISKS", str(tmp_path / "disks"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageFetchError, match="coremesh fetch debian --disk 4G"):
        describe(disks=["debian"])
    (tmp_path / "debian").write_bytes(bytes(512))
    assert check_disks(["debian"])[0].path == tmp_path / "debian", "a file of that name comes first"
    with pytest.raises(ConfigurationError, match="1 GiB to"):
        debian_disk.fetch_debian_disk(4096)


@pytest.mark.parametrize(("shown", "typed"), [(b"debian login: ", b"root\n"), (b"busy...", b"\n")])
def test_given_a_console_that_falls_silent_when_a_shell_is_waited_for_then_it_is_asked_for(
    shown: bytes, typed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the wait comes in slices shorter than the silence; and never while no call waits."""
    monkeypatch.setattr(device_host, "_NUDGE_SECONDS", 0.2)
    monkeypatch.setattr(device_host, "_POLL_SECONDS", 0.1)
    host = DeviceHost(MachineDescription(vcpus=1, ram_bytes=1 << 20, kernel=b""))
    threading.Thread(target=host._watch_shell, daemon=True).start()
    host._port.transmit(shown)
    time.sleep(0.6)
    assert host._port.take(10) == b""
    for _ in range(20):
        host.wait_shell(0.05)
    assert host._port.take(100).startswith(typed)
    host._port.transmit(b"root@debian:~# ")
    assert host.wait_shell(10) is not None
    host._ended.set()


def test_given_a_login_prompt_when_a_shell_is_waited_for_then_the_name_is_typed_at_once_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing else is to be waited for there; and a guest too busy to echo it does not get it twice."""
    monkeypatch.setattr(device_host, "_NUDGE_SECONDS", 60.0)
    host = DeviceHost(MachineDescription(vcpus=1, ram_bytes=1 << 20, kernel=b""))
    threading.Thread(target=host._watch_shell, daemon=True).start()
    host._port.transmit(b"\r\ndebian login: ")
    begin = time.monotonic()
    typed = b""
    while time.monotonic() < begin + 3:
        host.wait_shell(0.1)
        typed += host._port.take(100)
    assert typed == b"root\n"
    host._ended.set()


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.timeout(1800)
def test_given_no_privileges_when_a_debian_disk_is_made_then_it_boots_to_a_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given Debian's packages, when a disk is made of them and booted, on IDE and virtio, root logs in."""
    from coremesh.cluster.launch.machine import Machine

    monkeypatch.setenv("COREMESH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COREMESH_DISKS", str(tmp_path / "disks"))
    monkeypatch.chdir(tmp_path)
    seen: dict[str, float] = {}
    try:
        made = debian_disk.fetch_debian_disk(2 << 30, progress=seen.__setitem__)
    except ImageFetchError as error:
        if "package sources" in str(error):
            pytest.skip(f"no package archive: {error}")
        raise
    assert all(done == 1.0 for done in seen.values()), seen
    assert made.disk.stat().st_mode & 0o777 == 0o444
    for interface in ("ide", "virtio"):
        with Machine(vcpus=2, disks=[f"debian,if={interface},snapshot"], append="quiet") as machine:
            machine.wait_shell(300)
            assert machine.run("id -un", 60).output.strip() == "root"
            assert machine.run("systemctl --failed --no-legend --plain | cat", 60).output == ""
            assert machine.run("dpkg --audit", 60).output.strip() == ""
            assert " / " in machine.run("mount | grep ext4", 60).output
        with Machine(vcpus=2, disks=[f"debian,if={interface},snapshot"], bios=True) as machine:
            machine.wait_shell(300)
            assert "BOOT_IMAGE=/boot/vmlinuz-" in machine.run("cat /proc/cmdline", 60).output
            assert machine.run("systemctl --failed --no-legend --plain | cat", 60).output.strip() == ""
    with Machine(vcpus=1, disks=["debian"], append="quiet") as machine:
        machine.wait_shell(300)
        machine.run("echo kept >/srv/kept; sync", 60)
        machine.console.write("systemctl poweroff -f\n")
        assert machine.wait(120) is not None
    ext4.check(debian_disk.own_disk().disk)
    with Machine(vcpus=1, disks=["debian"], append="quiet") as machine:
        assert machine.run("cat /srv/kept", 300).output.strip() == "kept"
