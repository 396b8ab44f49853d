# SPDX-License-Identifier: GPL-2.0-or-later
"""Getting the Debian image with the real apt, keeping it, and what happens when that goes wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coremesh.cluster.machine.images import debian_image, packages
from coremesh.cluster.machine.images.debian_image import DebianImage, cached_debian, fetch_debian
from coremesh.core.errors import ConfigurationError, GuestImageError, ImageFetchError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty image cache."""
    monkeypatch.setenv("COREMESH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def filled(debian: DebianImage, cache: Path) -> Path:
    """A cache of its own that holds the real image."""
    shutil.copytree(debian.folder, cache / "debian-amd64")
    return cache / "debian-amd64"


@pytest.fixture
def unreachable(tmp_path: Path) -> Path:
    """Package sources at a port where nobody listens: a host that is offline."""
    if packages.missing_tools():
        pytest.skip("no apt on this host")
    sources = tmp_path / "sources.list"
    sources.write_text("deb http://127.0.0.1:9/debian bookworm main\n")
    return sources


def test_the_image_is_a_linux_kernel_and_a_static_program(debian: DebianImage) -> None:
    assert debian.kernel.read_bytes()[0x202:0x206] == b"HdrS"
    assert debian.busybox.read_bytes()[:4] == b"\x7fELF"
    assert debian.release.endswith("-amd64")
    assert len(debian.initramfs()) > debian.busybox.stat().st_size


def test_a_cached_image_needs_no_network(filled: Path, unreachable: Path) -> None:
    image = fetch_debian(source_list=unreachable)
    assert image.folder == filled


def test_a_cache_that_may_only_be_read_serves_its_image(filled: Path, unreachable: Path) -> None:
    """Given a cache on a file system that is mounted read-only, when its image is valid, then it is used."""
    if os.geteuid() == 0:
        if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
            pytest.skip("no mount namespace can be made here")
        command = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"',
            "sh",
        ]
        command += [str(filled.parent)]
    else:
        filled.parent.chmod(0o500)
        command = []
    look = (
        "from coremesh.cluster.machine.images.debian_image import fetch_debian; print(fetch_debian().folder)"
    )
    done = subprocess.run([*command, sys.executable, "-c", look], capture_output=True, text=True, check=False)
    filled.parent.chmod(0o700)
    assert done.stdout.strip() == str(filled), done.stderr


def test_a_damaged_image_is_not_used(filled: Path, unreachable: Path) -> None:
    kernel = filled / "vmlinuz"
    data = bytearray(kernel.read_bytes())
    data[len(data) // 2] ^= 1
    kernel.write_bytes(data)
    assert cached_debian() is None
    with pytest.raises(ImageFetchError):
        fetch_debian(source_list=unreachable)


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"sha256": 3}', '{"sha256": {"vmlinuz": "0"}}'])
def test_a_damaged_manifest_is_not_believed(filled: Path, manifest: str) -> None:
    (filled / "manifest.json").write_text(manifest)
    assert cached_debian() is None


def test_offline_the_error_says_what_to_do_and_leaves_nothing_behind(cache: Path, unreachable: Path) -> None:
    with pytest.raises(ImageFetchError, match=r"127\.0\.0\.1.*--kernel"):
        fetch_debian(source_list=unreachable)
    assert [path.name for path in cache.iterdir()] == ["debian-amd64.lock"]


def test_a_refresh_that_fails_keeps_the_old_image(filled: Path, unreachable: Path) -> None:
    with pytest.raises(ImageFetchError):
        fetch_debian(refresh=True, source_list=unreachable)
    assert cached_debian() is not None


def test_what_a_killed_fetch_left_is_swept_up(cache: Path, unreachable: Path) -> None:
    (cache / "fetch-amd64-dead").mkdir(parents=True)
    with pytest.raises(ImageFetchError):
        fetch_debian(source_list=unreachable)
    assert not (cache / "fetch-amd64-dead").exists()


def test_a_cache_that_cannot_be_made_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COREMESH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ImageFetchError, match="COREMESH_CACHE"):
        fetch_debian()


def test_a_full_disk_is_said_before_the_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian_image, "_SPACE_NEEDED", 1 << 60)
    with pytest.raises(ImageFetchError, match="no room"):
        fetch_debian()


def test_missing_tools_are_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ImageFetchError, match=r"apt-get.*--kernel"):
        fetch_debian()


def test_an_unknown_flavour_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cloud-amd64"):
        fetch_debian("arm64")


def test_a_package_that_is_no_package_is_said_so(tmp_path: Path, unreachable: Path) -> None:
    archive = tmp_path / "x.deb"
    archive.write_bytes(b"!<arch>\nnot really")
    with pytest.raises(ImageFetchError, match=r"x\.deb"):
        packages.extract(archive, "boot/vmlinuz-.*")
    with pytest.raises(ImageFetchError, match=r"x\.deb"):
        packages.version(archive)


def test_two_processes_that_want_it_at_once_both_get_it_from_one_fetch(
    debian: DebianImage, cache: Path
) -> None:
    """Given an empty cache, when two processes ask, then apt works once and both have the same image."""
    code = (
        "from coremesh.cluster.machine.images.debian_image import fetch_debian\n"
        "stages = []\n"
        "image = fetch_debian(progress=lambda what, done: stages.append(what))\n"
        "print(len(stages) > 0, image.kernel.stat().st_ino)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=300) for process in processes]
    if any(process.returncode for process in processes):
        pytest.skip(f"the archive cannot be reached: {answers[0][1][-200:]!r}")
    words = sorted(answer[0].split() for answer in answers)
    assert [fetched for fetched, _ in words] == [b"False", b"True"]
    assert words[0][1] == words[1][1]
    assert sorted(path.name for path in cache.iterdir()) == ["debian-amd64", "debian-amd64.lock"]
    manifest = json.loads((cache / "debian-amd64" / "manifest.json").read_text())
    assert set(manifest["sha256"]) == {"vmlinuz", "busybox", "modules.cpio"}


def test_a_persons_own_files_are_read_or_the_error_names_them(tmp_path: Path) -> None:
    file = tmp_path / "kernel"
    with pytest.raises(GuestImageError, match="coremesh fetch"):
        debian_image.read_image(file, "kernel", 1000, "")
    file.write_bytes(b"")
    with pytest.raises(GuestImageError, match="empty"):
        debian_image.read_image(file, "kernel", 1000, "")
    with pytest.raises(GuestImageError, match="is a directory"):
        debian_image.read_image(tmp_path, "initrd", 1000, "")
    file.write_bytes(b"x")
    assert debian_image.read_image(file, "kernel", 1000, "") == b"x"


def test_one_file_is_taken_out_of_a_package(tmp_path: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb on this host")
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: x\nVersion: 1.2-3\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    (root / "boot").mkdir()
    (root / "boot" / "vmlinuz-9").write_bytes(b"kernel")
    subprocess.run(["dpkg-deb", "-b", str(root), str(tmp_path / "x.deb")], check=True, capture_output=True)
    assert packages.extract(tmp_path / "x.deb", "boot/vmlinuz-.*") == ("boot/vmlinuz-9", b"kernel")
    assert packages.version(tmp_path / "x.deb") == "1.2-3"
    with pytest.raises(ImageFetchError, match="no file like"):
        packages.extract(tmp_path / "x.deb", "boot/initrd")
