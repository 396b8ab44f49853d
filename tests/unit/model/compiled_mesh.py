# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled page protocol of several hosts, as an object whose every step Python chooses."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
NATIVE = REPOSITORY / "core/native"
SOURCES = sorted((NATIVE / "coherence").glob("*.cpp"))

READ, WRITE, ADD, WRITE_TWO = 1, 2, 3, 4
NONE, SHARED, MODIFIED = 0, 1, 2
NEVER, ALWAYS, ADAPTIVE = 0, 1, 2


def compiler() -> str | None:
    """The system's C++ compiler."""
    return shutil.which("g++") or shutil.which("c++")


def compile_one(source: Path, output: Path) -> Path:
    """One file of the protocol to an object file. Raises RuntimeError with what the compiler says."""
    found = compiler()
    assert found is not None
    include = [f"-I{NATIVE}", f"-I{REPOSITORY / 'tests/unit/native'}"]
    command = [found, "-std=gnu++20", "-O0", "-fPIC", *include, "-c", str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{source}: {done.stderr[-4000:]}")
    return output


def link(objects: list[Path], output: Path) -> Path:
    """Object files to a shared library."""
    found = compiler()
    assert found is not None
    command = [found, "-shared", "-o", str(output), *map(str, objects)]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    return output


def compile_all(folder: Path) -> dict[str, Path]:
    """The object file of each source by its name; two compilers at a time."""
    sources = [*SOURCES, Path(__file__).parent / "abi.cpp"]
    with ThreadPoolExecutor(2) as pool:
        objects = pool.map(lambda source: compile_one(source, folder / f"{source.stem}.o"), sources)
        return {source.name: made for source, made in zip(sources, objects, strict=True)}


def open_library(path: Path) -> ctypes.CDLL:
    """The library with its functions' types."""
    library = ctypes.CDLL(str(path))
    mesh, number, wide = ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint64
    signatures: dict[str, tuple[object, list[object]]] = {
        "new": (mesh, [number, wide, number, number, number, number]),
        "free": (None, [mesh]),
        "thread": (number, [mesh, number]),
        "begin": (None, [mesh, number, number, wide, wide]),
        "run": (ctypes.c_int, [mesh, number]),
        "deliver": (ctypes.c_int, [mesh, number, number]),
        "advance": (None, [mesh, wide]),
        "fire": (ctypes.c_int, [mesh]),
        "next_timer": (ctypes.c_int64, [mesh]),
        "waiting": (number, [mesh, number, number]),
        "kind": (number, [mesh, number, number]),
        "mapped": (number, [mesh, number, wide]),
        "word": (wide, [mesh, number, wide]),
        "done": (wide, [mesh, number]),
        "is": (number, [mesh, number]),
        "violations": (wide, [mesh]),
        "idle": (ctypes.c_int, [mesh, number]),
        "holders": (wide, [mesh, wide, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int)]),
        "arriving": (ctypes.c_int, [mesh, number, wide]),
        "broken": (ctypes.c_char_p, [mesh]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"mesh_{name}")
        function.restype = result
        function.argtypes = arguments
    return library


class Broken(AssertionError):
    """The protocol let a guest see what it must not, or left somebody waiting."""


class Mesh:
    """Hosts 0..hosts-1, pages 0..pages-1 in equal shares, one simulated thread per entry of `threads`."""

    def __init__(
        self, library: ctypes.CDLL, hosts: int, pages: int, threads: list[int], policy: int, prefetch: int = 0
    ) -> None:
        self.library = library
        self.hosts, self.pages, self.threads = hosts, pages, len(threads)
        self.handle = library.mesh_new(hosts, pages, policy, 50, 500, prefetch)
        for host in threads:
            library.mesh_thread(self.handle, host)
        self.writes = 0  # that have begun
        self.links = [(a, b) for a in range(hosts) for b in range(hosts) if a != b]

    def close(self) -> None:
        """Gives its memory back."""
        self.library.mesh_free(self.handle)

    def begin(self, thread: int, does: int, page: int, other: int) -> None:
        """An idle thread begins an instruction; a busy one goes on as it was."""
        if self.library.mesh_is(self.handle, thread) == 0:
            self.writes += {READ: 0, WRITE_TWO: 2}.get(does, 1)
        self.library.mesh_begin(self.handle, thread, does, page, other)

    def run(self, thread: int) -> bool:
        """A thread that can run does."""
        return bool(self.library.mesh_run(self.handle, thread))

    def deliver(self, sender: int, receiver: int) -> bool:
        """The oldest message of a link arrives."""
        return bool(self.library.mesh_deliver(self.handle, sender, receiver))

    def advance(self, us: int) -> None:
        """The clock goes on; timers that are due wait for `fire`."""
        self.library.mesh_advance(self.handle, us)

    def fire(self) -> bool:
        """One timer that is due fires."""
        return bool(self.library.mesh_fire(self.handle))

    def check(self) -> None:
        """One writer or readers, the last write everywhere, the directory exact. Raises Broken.

        The directory may list a host whose answer from the home is still on its way.
        """
        library, handle = self.library, self.handle
        if wrong := library.mesh_broken(handle):
            raise Broken(wrong.decode())
        writable, busy = ctypes.c_int(), ctypes.c_int()
        for page in range(self.pages):
            mapped = [library.mesh_mapped(handle, host, page) for host in range(self.hosts)]
            users = [host for host in range(self.hosts) if mapped[host] != NONE]
            if MODIFIED in mapped and len(users) != 1:
                raise Broken(f"page {page}: a writer beside another user: {mapped}")
            if len({library.mesh_word(handle, host, page) for host in users}) > 1:
                raise Broken(f"page {page}: two users see different bytes")
            holders = library.mesh_holders(handle, page, ctypes.byref(writable), ctypes.byref(busy))
            listed = [host for host in range(self.hosts) if holders >> host & 1]
            arriving = [host for host in listed if library.mesh_arriving(handle, host, page)]
            if not busy.value and listed != sorted({*users, *arriving}):
                raise Broken(f"page {page}: the directory lists {holders:b}, users are {users}")
        if library.mesh_violations(handle):
            raise Broken("an honest host's message was dropped")

    def finish(self, steps: int = 20_000) -> None:
        """Every message arrives, every thread runs, every timer fires: then nobody waits. Raises Broken."""
        library, handle = self.library, self.handle
        for _ in range(steps):
            moved = [self.deliver(a, b) for a, b in self.links]
            moved += [self.run(thread) for thread in range(self.threads)]
            moved.append(self.fire())
            if any(moved):
                self.check()
                continue
            until = library.mesh_next_timer(handle)
            if until < 0:
                break
            self.advance(until)
        else:
            raise Broken("it never comes to rest")
        self.check()
        for thread in range(self.threads):
            if library.mesh_is(handle, thread) != 0:
                raise Broken(f"thread {thread} waits for ever")
        words = 0
        for page in range(self.pages):
            user = next(host for host in range(self.hosts) if library.mesh_mapped(handle, host, page) != NONE)
            words += library.mesh_word(handle, user, page)
        if words != self.writes:
            raise Broken(f"{self.writes} additions have left {words}")
        for host in range(self.hosts):
            if not library.mesh_idle(handle, host):
                raise Broken(f"host {host} keeps something under way")
