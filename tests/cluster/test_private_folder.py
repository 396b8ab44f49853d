# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders that no other user can enter, in places where everybody may make folders."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from coremesh.cluster.launch import private_folder, private_ray
from coremesh.cluster.launch.private_folder import PrivateFolder
from coremesh.core.errors import PlatformError

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """As /tmp is: everybody may make folders there."""
    folder = tmp_path / "base"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def folder(base: Path) -> Iterator[PrivateFolder]:
    made = PrivateFolder(base, "coremesh-1-")
    yield made
    made.remove()


def test_given_a_new_folder_when_it_is_looked_at_then_it_and_its_files_are_its_users_alone(
    folder: PrivateFolder,
) -> None:
    private_folder.check(folder.path)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.write("token", "secret").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        folder.write("token", "another")
    folder.remove()
    folder.remove()
    assert not folder.path.exists()


def test_given_a_generous_umask_when_a_folder_is_made_then_it_is_private_still(base: Path) -> None:
    before = os.umask(0)
    try:
        made = PrivateFolder(base, "coremesh-1-")
        private_folder.check(made.path)
        assert made.write("token", "secret").stat().st_mode & 0o777 == 0o600
        made.remove()
    finally:
        os.umask(before)


@as_root
def test_given_a_link_or_anothers_folder_when_it_is_checked_then_it_is_refused(base: Path) -> None:
    mine, theirs, link = base / "mine", base / "theirs", base / "link"
    mine.mkdir(mode=0o700)
    theirs.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, NOBODY)
    link.symlink_to(mine)
    private_folder.check(mine)
    for wrong in (theirs, link, base / "missing"):
        with pytest.raises(PlatformError, match="Remove it"):
            private_folder.check(wrong)
    mine.chmod(0o750)
    with pytest.raises(PlatformError, match="this user alone"):
        private_folder.check(mine)


@as_root
def test_given_a_folder_that_others_may_write_when_it_is_not_sticky_then_it_is_not_used(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert private_folder.is_safe_base(base)
    inner = base / "inner"
    inner.mkdir(mode=0o700)
    base.chmod(0o777)
    assert not private_folder.is_safe_base(base)
    assert not private_folder.is_safe_base(inner), "it can be renamed away as a whole"
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(inner))
    assert private_folder.base_folder(100) == Path("/tmp")
    base.chmod(0o1777)
    assert private_folder.base_folder(100) == inner
    assert private_folder.base_folder(10) == Path("/tmp"), "its name is too long for Unix sockets below it"
    os.chown(inner, NOBODY, NOBODY)
    assert not private_folder.is_safe_base(inner)


def test_given_a_folder_in_use_when_it_is_swept_then_it_stays_until_its_holder_has_ended(base: Path) -> None:
    """Process 1 always exists, and in another pid namespace any number may: the lock tells, not the name."""
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from coremesh.cluster.launch.private_folder import PrivateFolder\n"
        "made = PrivateFolder(Path(sys.argv[1]), 'coremesh-1-'); made.write('token', '')\n"
        "print(made.path, flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(base)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    path = Path(holder.stdout.readline().strip())
    private_ray.sweep(base)
    assert path.exists()
    holder.kill()
    holder.wait()
    private_ray.sweep(base)
    assert not path.exists()


@as_root
def test_given_what_others_left_under_our_name_when_it_is_swept_then_it_stays(
    base: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "token").touch()
    link, theirs = base / "coremesh-1-link", base / "coremesh-1-theirs"
    link.symlink_to(target)
    theirs.mkdir()
    (theirs / "token").touch()
    os.chown(theirs, NOBODY, NOBODY)
    (base / "coremesh-1-file").touch()
    private_ray.sweep(base)
    assert len(list(base.iterdir())) == 3
    assert (target / "token").exists()
