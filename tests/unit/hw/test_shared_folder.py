# SPDX-License-Identifier: GPL-2.0-or-later
"""A shared folder as a 9P client uses it, and as one that wants out of it tries."""

import contextlib
import errno
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

sys.path.append(str(Path(__file__).parent))

import virtio_driver as vd
from coremesh.hw.backend.p9 import messages as p9
from coremesh.hw.backend.p9.folder import SharedFolder
from coremesh.hw.backend.p9.messages import numbers, text
from coremesh.hw.backend.p9.server import Server
from coremesh.hw.virtio.p9 import Virtio9p
from coremesh.hw.virtio.pci import VirtioPci
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from p9_client import ROOM, Client, error_of
from virtio_driver import Driver, Ram, plug


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_bytes(b"secret")
    folder = tmp_path / "share"
    folder.mkdir()
    return folder


@pytest.fixture
def client(share: Path) -> Iterator[Client]:
    server = Server(SharedFolder(share))
    yield Client(server)
    server.retire()
    server.folder.close()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def descriptors() -> int:
    return len(names_in(Path("/proc/self/fd")))


# --- what a client does ------------------------------------------------------------------------------------


def test_files_are_made_written_read_listed_and_removed(client: Client, share: Path) -> None:
    """Given an empty folder, then what a guest makes is on this computer, and what is made here is there."""
    fid = client.create(b"a", 0o640)
    data = os.urandom(150_000)
    for at in range(0, len(data), 50_000):
        assert client.write(fid, data[at : at + 50_000], at) == 50_000
    client.ask(p9.FSYNC, numbers((4, fid), (4, 0)))
    assert (share / "a").read_bytes() == data
    assert stat.S_IMODE((share / "a").stat().st_mode) == 0o640
    client.clunk(fid)
    (share / "b").write_bytes(b"of the host")
    assert client.read(client.open(client.walk(b"b"))) == b"of the host"
    client.ask(p9.MKDIR, numbers((4, 0)) + text(b"d") + numbers((4, 0o755), (4, 0)))
    inner = client.walk(b"d")
    client.create(b"x", start=inner)
    client.ask(p9.RENAMEAT, numbers((4, inner)) + text(b"x") + numbers((4, 0)) + text(b"y"))
    client.ask(p9.LINK, numbers((4, inner), (4, client.walk(b"y"))) + text(b"z"))
    client.ask(p9.SYMLINK, numbers((4, 0)) + text(b"l") + text(b"../outside") + numbers((4, 0)))
    assert client.ask(p9.READLINK, numbers((4, client.walk(b"l")))).text() == b"../outside"
    assert client.names(client.open(client.walk())) == [b".", b"..", b"a", b"b", b"d", b"l", b"y"]
    assert (share / "d/z").samefile(share / "y")
    assert error_of(lambda: client.ask(p9.UNLINKAT, numbers((4, 0)) + text(b"d") + numbers((4, 0x200)))) == (
        errno.ENOTEMPTY
    )
    client.ask(p9.UNLINKAT, numbers((4, inner)) + text(b"z") + numbers((4, 0)))
    client.ask(p9.UNLINKAT, numbers((4, 0)) + text(b"d") + numbers((4, 0x200)))
    assert names_in(share) == ["a", "b", "l", "y"]
    client.change(client.walk(b"a"), 8, size=10)
    client.change(client.walk(b"a"), 1, mode=0o6755)
    status = (share / "a").stat()
    assert status.st_size == 10
    assert stat.S_IMODE(status.st_mode) == 0o755, "no set-user-ID file of this computer's user"


def test_a_folder_of_many_files_is_listed_whole(client: Client, share: Path) -> None:
    """Given 500 files and answers of 200 bytes, then each name comes once."""
    for number in range(500):
        (share / f"file-{number:03}").touch()
    names = client.names(client.open(client.walk()))
    assert names == [b".", b"..", *(b"file-%03d" % n for n in range(500))]


def test_an_open_file_outlives_its_name(client: Client, share: Path) -> None:
    """Given a file that the guest has open, when it is removed, then its data can be read on."""
    (share / "a").write_bytes(b"still here")
    fid = client.open(client.walk(b"a"))
    (share / "a").unlink()
    assert client.read(fid) == b"still here"


def test_owners_of_the_guest_are_kept_beside_the_file(share: Path) -> None:
    """Given security 'mapped', then the guest has owners of its own, and the host's file is its user's."""
    server = Server(SharedFolder(share, security="mapped"))
    client = Client(server)
    fid = client.create(b"a", 0o4755)
    try:
        client.change(fid, 2 | 4, uid=1234, gid=77)
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    assert client.attributes(client.walk(b"a")) == (0o104755, 1234, 77)
    status = (share / "a").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.getuid(), 0o600)
    server.folder.close()


# --- one that wants out ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [b"..", b".", b"", b"/", b"../outside", b"a/../../outside", b"a\0b", b"x" * 256]
)
def test_no_name_leads_out(client: Client, share: Path, name: bytes) -> None:
    """Given a name that is no single component, then every message that has one is refused."""
    (share / "a").mkdir()
    (share / "f").touch()
    actions = [
        lambda: client.walk(name),
        lambda: client.walk(b"a", name),
        lambda: client.create(name),
        lambda: client.ask(p9.MKDIR, numbers((4, 0)) + text(name) + numbers((4, 0o755), (4, 0))),
        lambda: client.ask(p9.SYMLINK, numbers((4, 0)) + text(name) + text(b"x") + numbers((4, 0))),
        lambda: client.ask(
            p9.MKNOD, numbers((4, 0)) + text(name) + numbers((4, 0o100644), (4, 0), (4, 0), (4, 0))
        ),
        lambda: client.ask(p9.LINK, numbers((4, 0), (4, client.walk(b"f"))) + text(name)),
        lambda: client.ask(p9.RENAMEAT, numbers((4, 0)) + text(b"f") + numbers((4, 0)) + text(name)),
        lambda: client.ask(p9.RENAMEAT, numbers((4, 0)) + text(name) + numbers((4, 0)) + text(b"g")),
        lambda: client.ask(p9.UNLINKAT, numbers((4, 0)) + text(name) + numbers((4, 0))),
        lambda: client.ask(p9.UNLINKAT, numbers((4, 0)) + text(name) + numbers((4, 0x200))),
    ]
    for action in actions:
        assert error_of(action) in (errno.EINVAL, errno.ENAMETOOLONG, errno.ENOENT)
    assert names_in(share) == ["a", "f"]
    assert (share.parent / "outside").read_bytes() == b"secret"


def test_symbolic_links_are_not_followed(client: Client, share: Path) -> None:
    """Given links to a file and a folder outside, then neither is opened, walked through, or changed."""
    (share / "file").symlink_to(share.parent / "outside")
    (share / "folder").symlink_to(share.parent)
    assert error_of(lambda: client.open(client.walk(b"file"))) == errno.ELOOP
    assert error_of(lambda: client.open(client.walk(b"folder"))) == errno.ELOOP
    assert error_of(lambda: client.walk(b"folder", b"outside")) == errno.ENOENT
    assert error_of(lambda: client.walk(b"outside", start=client.walk(b"folder"))) == errno.ENOTDIR
    assert error_of(lambda: client.create(b"file", flags=os.O_RDWR | os.O_TRUNC)) == errno.ELOOP
    assert error_of(lambda: client.create(b"new", start=client.walk(b"folder"))) == errno.ENOTDIR
    assert error_of(lambda: client.change(client.walk(b"file"), 8, size=0)) == errno.EINVAL
    client.change(client.walk(b"file"), 1, mode=0)
    outside = share.parent / "outside"
    assert outside.read_bytes() == b"secret" and stat.S_IMODE(outside.stat().st_mode) != 0


def test_pipes_and_devices_are_not_opened(client: Client, share: Path) -> None:
    """Given a pipe, a socket and a device in the folder, then to open one is an error at once, and no act."""
    os.mkfifo(share / "pipe")
    made = ["pipe"]
    try:
        os.mknod(share / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        made.append("null")
    except PermissionError:
        pass
    for name in made:
        for flags in (0, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
            begin = time.monotonic()
            assert (
                error_of(lambda n=name, f=flags: client.open(client.walk(n.encode()), f)) == errno.EOPNOTSUPP
            )
            assert error_of(lambda n=name, f=flags: client.create(n.encode(), flags=f)) == errno.EOPNOTSUPP
            assert time.monotonic() - begin < 5
    device = numbers((4, 0)) + text(b"new") + numbers((4, 0o020666), (4, 1), (4, 3), (4, 0))
    assert error_of(lambda: client.ask(p9.MKNOD, device)) == errno.EPERM
    assert not (share / "new").exists()


def test_a_link_that_changes_while_it_is_walked_leads_nowhere(client: Client, share: Path) -> None:
    """Given a folder that is exchanged for a link to the outside again and again, then no walk ends there."""
    (share / "real").mkdir()
    (share / "real" / "outside").write_bytes(b"harmless")
    (share / "link").symlink_to(share.parent)
    over = threading.Event()

    def exchange() -> None:
        while not over.is_set():
            for name in ("real", "link"):
                (share / name).rename(share / "d")
                (share / "d").rename(share / name)

    thread = threading.Thread(target=exchange)
    thread.start()
    seen = set()
    try:
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            try:
                fid = client.walk(b"d", b"outside")
            except OSError:
                continue
            with contextlib.suppress(OSError):
                seen.add(client.read(client.open(fid)))
            client.clunk(fid)
    finally:
        over.set()
        thread.join()
    assert seen <= {b"harmless"}


CHANGING = {
    "create": lambda c: c.create(b"new"),
    "open": lambda c: c.open(c.walk(b"f"), os.O_RDWR),
    "truncate": lambda c: c.open(c.walk(b"f"), os.O_TRUNC),
    "mkdir": lambda c: c.ask(p9.MKDIR, numbers((4, 0)) + text(b"n") + numbers((4, 0o755), (4, 0))),
    "symlink": lambda c: c.ask(p9.SYMLINK, numbers((4, 0)) + text(b"n") + text(b"x") + numbers((4, 0))),
    "mknod": lambda c: c.ask(p9.MKNOD, numbers((4, 0)) + text(b"n") + numbers((4, 0o100644), *[(4, 0)] * 3)),
    "link": lambda c: c.ask(p9.LINK, numbers((4, 0), (4, c.walk(b"f"))) + text(b"n")),
    "rename": lambda c: c.ask(p9.RENAMEAT, numbers((4, 0)) + text(b"f") + numbers((4, 0)) + text(b"n")),
    "unlink": lambda c: c.ask(p9.UNLINKAT, numbers((4, 0)) + text(b"f") + numbers((4, 0))),
    "setattr": lambda c: c.change(c.walk(b"f"), 1, mode=0o777),
    "size": lambda c: c.change(c.walk(b"f"), 8, size=1),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGING)
def test_nothing_changes_in_a_folder_that_is_only_read(share: Path, what: str) -> None:
    """Given a share with 'readonly', then what would change it is EROFS; it can be read."""
    (share / "f").write_bytes(b"kept")
    before = (share / "f").stat()
    server = Server(SharedFolder(share, read_only=True))
    client = Client(server)
    assert error_of(lambda: CHANGING[what](client)) == errno.EROFS
    assert client.read(client.open(client.walk(b"f"))) == b"kept"
    assert names_in(share) == ["f"] and (share / "f").stat().st_mode == before.st_mode
    server.retire()
    server.folder.close()


def test_a_full_disk_is_the_guests_error(tmp_path: Path) -> None:
    """Given a file system of 256 KiB, when a guest writes more, then it gets ENOSPC; what fitted is there."""
    script = (
        "import os, sys; sys.path[:0] = [sys.argv[1]]; import test_shared_folder as t\n"
        "c = t.Client(t.Server(t.SharedFolder(sys.argv[2])))\n"
        "fid = c.create(b'a'); done = 0\n"
        "try:\n"
        "    for at in range(0, 1 << 20, 32768): done += c.write(fid, b'x' * 32768, at)\n"
        "except OSError as error: print(error.errno, 100000 < done < 300000, c.read(fid, 0, 9) == b'x' * 9)\n"
    )
    place = f'mount -t tmpfs -o size=256k none {tmp_path} && exec "$@"'
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        place,
        "-",
        sys.executable,
        "-c",
        script,
        str(Path(__file__).parent),
    ]
    if shutil.which("unshare") is None or subprocess.run([*command[:4], "true"], check=False).returncode:
        pytest.skip("no name spaces for this user")
    found = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert found.stdout.split() == [str(errno.ENOSPC), "True", "True"], found.stderr


def test_fids_are_bounded_and_given_back(client: Client, share: Path) -> None:
    """Given a client that walks for ever, then it gets EMFILE, and a new session has all back."""
    before = descriptors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coremesh.hw.backend.p9.server.MOST_FIDS", 200)
        found = [error_of(client.walk) for _ in range(300)]
    assert found.count(errno.EMFILE) == 101
    Client(client.server)
    assert descriptors() <= before + 1


def test_a_file_is_not_closed_under_a_request_that_uses_it(client: Client, share: Path) -> None:
    """Given threads that read while others give the fids up, then a read has the file's bytes or EBADF."""
    (share / "f").write_bytes(b"f" * 4096)
    over = threading.Event()
    wrong: list[bytes] = []

    def others() -> None:
        while not over.is_set():  # takes the numbers of descriptors that have just become free
            with (share.parent / "outside").open("rb") as file:
                file.read(1)

    def read(number: int) -> None:
        mine = Client.__new__(Client)
        mine.server, mine.next = client.server, 10_000 * (number // 2 + 1)
        while not over.is_set():
            try:
                fid = mine.open(mine.walk(b"f")) if number % 2 == 0 else mine.next
                mine.next = 10_000 * (number // 2 + 1)
                data = mine.read(fid)
                mine.clunk(fid)
            except OSError as error:
                if error.errno != errno.EBADF:
                    wrong.append(str(error).encode())
                continue
            if data != b"f" * 4096:
                wrong.append(data)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(6)] + [threading.Thread(target=others)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    over.set()
    for thread in threads:
        thread.join()
    assert not wrong


KINDS = st.sampled_from([
    p9.STATFS, p9.LOPEN, p9.LCREATE, p9.SYMLINK, p9.MKNOD, p9.RENAME, p9.READLINK, p9.GETATTR, p9.SETATTR,
    p9.XATTRWALK, p9.XATTRCREATE, p9.READDIR, p9.FSYNC, p9.LOCK, p9.GETLOCK, p9.LINK, p9.MKDIR, p9.RENAMEAT,
    p9.UNLINKAT, p9.TVERSION, p9.AUTH, p9.ATTACH, p9.FLUSH, p9.WALK, p9.READ, p9.WRITE, p9.CLUNK, p9.REMOVE,
    0, 255,
])  # fmt: skip
NAMES = st.sampled_from([b"a", b"f", b"d", b"l", b"..", b".", b"", b"/etc", b"../outside", b"\0", b"x" * 300])
FIELD = st.one_of(
    st.sampled_from([numbers((4, n)) for n in (0, 1, 2, 3, 0xFFFF_FFFF)]),
    st.sampled_from([numbers((8, n)) for n in (0, 1, 1 << 63, (1 << 64) - 1)]),
    st.sampled_from([numbers((2, n)) for n in (0, 1, 2, 0xFFFF)]),
    NAMES.map(text),
    st.binary(max_size=40),
)
MESSAGE = st.one_of(
    st.tuples(KINDS, st.lists(FIELD, max_size=8).map(b"".join)).map(lambda m: p9.message(m[0], 1, m[1])),
    st.tuples(
        st.sampled_from([p9.WALK]), st.integers(0, 3), st.integers(0, 3), st.lists(NAMES, max_size=3)
    ).map(
        lambda m: p9.message(
            m[0], 1, numbers((4, m[1]), (4, m[2]), (2, len(m[3]))) + b"".join(map(text, m[3]))
        )
    ),
    st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 0o1000, 0o100, 0xFFFF_FFFF])).map(
        lambda m: p9.message(p9.LOPEN, 1, numbers((4, m[0]), (4, m[1])))
    ),
    st.tuples(st.integers(0, 3), NAMES, st.integers(0, 0xFFFF), st.integers(0, 0o177777)).map(
        lambda m: p9.message(
            p9.LCREATE, 1, numbers((4, m[0])) + text(m[1]) + numbers((4, m[2]), (4, m[3]), (4, 0))
        )
    ),
    st.binary(max_size=64),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=st.lists(MESSAGE, max_size=30), room=st.sampled_from([11, 100, ROOM]))
def test_any_messages_are_answered_and_nothing_outside_changes(
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
    messages: list[bytes],
    room: int,
) -> None:
    """Given any messages, then each has an answer that fits, and no descriptor is left."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "outside").write_bytes(b"secret")
    share = folder / "share"
    (share / "d").mkdir(parents=True)
    (share / "f").write_bytes(b"f")
    (share / "l").symlink_to("../outside")
    before = descriptors()
    server = Server(SharedFolder(share))
    Client(server)
    with caplog.at_level(logging.ERROR):
        for each in messages:
            reply = server.answer(each, room)
            size, _, _ = p9.HEADER.unpack_from(reply)
            assert size == len(reply) <= room
    assert not caplog.records, caplog.text
    server.retire()
    server.folder.close()
    assert descriptors() == before
    assert (folder / "outside").read_bytes() == b"secret" and names_in(folder) == [
        "outside",
        "share",
    ]
    shutil.rmtree(folder)


# --- the device --------------------------------------------------------------------------------------------


class Mounted:
    """The device with a driver."""

    def __init__(self, make_pc: Any, share: Path) -> None:
        self.ram = Ram(4 << 20)
        self.model = Virtio9p(SharedFolder(share), name="p9", tag="work", workers=4)
        self.pc = plug(make_pc, self.ram, lambda bus: VirtioPci(self.model, bus))
        self.pc.node.start()
        self.driver = Driver(self.pc, self.ram)
        (self.ring,) = self.driver.start(vd.VERSION_1, size=16)
        self.page = self.driver.page(1 << 20)

    def answer(self, request: bytes, room: int) -> bytes:
        """The client's :class:`Server`."""
        room = min(room, 65536)
        self.ram.ram_write(self.page, request)
        self.ring.offer(
            self.ring.chain([(self.page, len(request), False), (self.page + (1 << 19), room, True)])
        )
        self.ring.ring()
        ((_, written),) = self.ring.wait()
        return self.ram.ram_read(self.page + (1 << 19), written)


def test_the_device_carries_requests_and_answers(make_pc: Any, share: Path) -> None:
    """Given a driver, then the tag is in the configuration, and a file written by it is on this computer."""
    mounted = Mounted(make_pc, share)
    assert mounted.driver.access(vd.DEVICE_CFG, 0, 2) == 4
    assert mounted.driver.access(vd.DEVICE_CFG, 2, 4).to_bytes(4, "little") == b"work"
    client = Client(mounted)  # type: ignore[arg-type]
    assert client.write(client.create(b"a"), b"hello") == 5
    assert (share / "a").read_bytes() == b"hello"
    counts = mounted.pc.device.counts()
    assert counts["bytes_written"] == 5 and counts["errors"] == counts["resets_needed"] == 0
    mounted.pc.node.stop()


def test_a_request_without_room_for_an_answer_stops_the_device_until_its_reset(
    make_pc: Any, share: Path
) -> None:
    """Given a chain that no driver makes, then the device asks for a reset, and forgets the guest's files."""
    mounted = Mounted(make_pc, share)
    Client(mounted)  # type: ignore[arg-type]
    mounted.ring.offer(mounted.ring.chain([(mounted.page, 7, False), (mounted.page, 10, True)]))
    mounted.ring.ring()
    deadline = time.monotonic() + 10
    while not mounted.driver.status & vd.NEEDS_RESET:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    mounted.driver.next_page = Ram.BASE
    (mounted.ring,) = mounted.driver.start(vd.VERSION_1, size=16)
    mounted.page = mounted.driver.page(1 << 20)
    assert (
        p9.HEADER.unpack_from(mounted.answer(p9.message(p9.CLUNK, 1, numbers((4, 0))), 64))[1]
        == p9.LERROR + 1
    )
    assert Client(mounted).walk()  # type: ignore[arg-type]
    assert mounted.pc.device.counts()["resets_needed"] == 1
    mounted.pc.node.stop()


def test_open_files_go_on_in_a_loaded_machine(make_pc: Any, share: Path) -> None:
    """Given a guest with a file open and one that has gone, when the machine is loaded, then it reads on."""
    (share / "d").mkdir()
    (share / "d" / "f").write_bytes(b"content")
    (share / "gone").touch()
    first = Mounted(make_pc, share)
    client = Client(first)  # type: ignore[arg-type]
    fid, gone = client.open(client.walk(b"d", b"f")), client.walk(b"gone")
    first.pc.node.stop()
    saved = json.loads(json.dumps(first.pc.node.save()))
    (share / "gone").unlink()
    model = Virtio9p(SharedFolder(share), name="p9", tag="work", workers=4)
    second = plug(make_pc, first.ram, lambda bus: VirtioPci(model, bus))
    second.node.load(saved)
    second.node.start()
    first.driver.pc = second
    assert client.read(fid) == b"content"
    assert error_of(lambda: client.attributes(gone)) == errno.EBADF
    assert client.walk(b"d")
    second.node.stop()
