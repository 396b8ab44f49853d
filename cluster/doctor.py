# SPDX-License-Identifier: GPL-2.0-or-later
"""``coremesh doctor``: what this host offers, what will be used, and why; each finding from a real try."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coremesh.cluster import debian, images

GOOD, NOTE, BAD = "good", "note", "bad"

_SYS_USERFAULTFD = 323  # x86-64 (Linux, arch/x86/entry/syscalls/syscall_64.tbl)
_UFFD_USER_MODE_ONLY = 1
_UFFDIO_API = 0xC018AA3F  # _IOWR(0xAA, 0x3F, struct uffdio_api)
_UFFD_API = 0xAA
_USERFAULTFD_IOC_NEW = 0xAA00
_FEATURE_WRITE_PROTECT_SHARED = 1 << 12  # UFFD_FEATURE_WP_HUGETLBFS_SHMEM, Linux 5.19
_FEATURE_MINOR_SHARED = 1 << 10  # UFFD_FEATURE_MINOR_SHMEM, Linux 5.14


@dataclass(frozen=True)
class Finding:
    """One line of the report: `level` is 'good', 'note' (works, but) or 'bad' (a guest cannot run)."""

    subject: str
    level: str
    found: str
    meaning: str = ""


def examine() -> list[Finding]:
    """Return all findings, in the order of the report. A check that fails itself is a finding too."""
    findings = []
    for check in _CHECKS:
        try:
            findings.append(check())
        except Exception as error:  # the report must come out on the strangest host
            subject = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(subject, NOTE, "could not be examined", str(error)))
    return findings


def print_findings(*, as_json: bool = False) -> int:
    """Print the report on standard output; return 0 if a guest can run here, else 1."""
    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table("", "what", "found", "what it means")
        marks = {GOOD: "[green]ok[/green]", NOTE: "[yellow]note[/yellow]", BAD: "[red]bad[/red]"}
        for finding in findings:
            table.add_row(marks[finding.level], finding.subject, finding.found, finding.meaning)
        Console().print(table)
    return 1 if any(finding.level == BAD for finding in findings) else 0


def _host() -> Finding:
    machine, release = platform.machine(), platform.release()
    if machine != "x86_64":
        return Finding("host", BAD, f"{machine}, Linux {release}", "the engine is built for x86-64 hosts")
    return Finding("host", GOOD, f"{machine}, Linux {release}, Python {platform.python_version()}")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    return Finding("cores", GOOD, str(cores), f"up to {cores} vCPUs run at full speed; more share them")


def _memory() -> Finding:
    values = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(values[name].split()[0]) >> 10 for name in ("MemTotal", "MemAvailable"))
    found = f"{free} of {total} MiB available"
    if free < 1536:
        return Finding("memory", NOTE, found, "a 1 GiB guest and Ray need about 1.5 GiB; give --memory 256M")
    return Finding("memory", GOOD, found, "Ray takes 0.6 GiB, each vCPU 16 to 20 MiB beside the guest's RAM")


def _userfaultfd() -> Finding:
    features, how = _userfaultfd_features()
    if features is None:
        why = f"not allowed ({how}); guest memory is guarded with mprotect"
        return Finding("userfaultfd", NOTE, "no", why)
    if not features & _FEATURE_WRITE_PROTECT_SHARED:
        why = "no write protection of shared memory (Linux 5.19); guest memory is guarded with mprotect"
        return Finding("userfaultfd", NOTE, how, why)
    minor = "minor faults too" if features & _FEATURE_MINOR_SHARED else "no minor faults"
    return Finding("userfaultfd", GOOD, how, f"guards translated code and guest memory; {minor}")


def _memory_mappings() -> Finding:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    meaning = "the mprotect fallback splits a mapping at each protected page"
    if limit < 65530:
        return Finding("vm.max_map_count", NOTE, str(limit), f"{meaning}: raise it to 65530 or more")
    return Finding("vm.max_map_count", GOOD, str(limit), f"{meaning}; this is the limit")


def _overcommit() -> Finding:
    mode = int(Path("/proc/sys/vm/overcommit_memory").read_text())
    if mode == 2:
        meaning = (
            "each vCPU reserves address space that it never fills: strict accounting may refuse many vCPUs"
        )
        return Finding("vm.overcommit_memory", NOTE, "2", f"{meaning}; set it to 0")
    return Finding("vm.overcommit_memory", GOOD, str(mode), "reserved address space costs nothing")


def _limits() -> Finding:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    threads, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    address, _ = resource.getrlimit(resource.RLIMIT_AS)
    found = f"{files} files, {_limit(threads)} threads, {_limit(address)} address space"
    if files < 1024 or 0 <= threads < 1024 or address != resource.RLIM_INFINITY:
        return Finding(
            "limits", NOTE, found, "raise with ulimit -n 4096, -u 4096, -v unlimited for many vCPUs"
        )
    return Finding("limits", GOOD, found)


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free >> 20
    if free < 100:
        meaning = "Ray's object store falls back to disk; in a container give --shm-size 256m"
        return Finding("/dev/shm", NOTE, f"{free} MiB free", meaning)
    return Finding("/dev/shm", GOOD, f"{free} MiB free", "for Ray's object store")


def _temporary_folder() -> Finding:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free >> 20
    if free < 100:
        return Finding(
            "temporary folder", BAD, f"{folder}, {free} MiB free", "Ray needs room for its logs there"
        )
    return Finding("temporary folder", GOOD, f"{folder}, {free} MiB free")


def _ray() -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Finding("Ray", GOOD, version("ray"), "started on this machine when needed, or --address")
    except PackageNotFoundError:
        return Finding("Ray", BAD, "not installed", "install coremesh with pip, which brings it")


def _engine() -> Finding:
    try:
        from coremesh.core import _native
    except ImportError as error:
        return Finding("engine", BAD, "cannot be loaded", str(error))
    report: Callable[[], dict[str, Any]] | None = getattr(_native, "doctor", None)
    if report is None:
        return Finding("engine", GOOD, "loaded")
    facts = report()
    found = ", ".join(f"{name} {value}" for name, value in facts.items())
    return Finding("engine", BAD if facts.get("ok") is False else GOOD, found, "its self-check at start")


def _package_tools() -> Finding:
    missing = debian.missing_tools()
    if missing:
        meaning = "no Debian kernel can be fetched: give --kernel FILE; --builtin boots without one"
        return Finding("Debian's tools", NOTE, f"missing: {', '.join(missing)}", meaning)
    return Finding("Debian's tools", GOOD, ", ".join(debian.TOOLS), "fetch the guest's kernel")


def _image_cache() -> Finding:
    folder = images.cache_folder()
    found = [image for flavour in images.FLAVOURS if (image := images.cached_debian(flavour))]
    if found:
        releases = ", ".join(image.release for image in found)
        return Finding("image cache", GOOD, f"{folder}: {releases}", "hashes checked just now")
    place = folder
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return Finding("image cache", NOTE, str(folder), "cannot be written: set COREMESH_CACHE")
    return Finding("image cache", GOOD, f"{folder}: empty", "'coremesh boot' or 'coremesh fetch' fills it")


def _userfaultfd_features() -> tuple[int | None, str]:
    """Try the system call, then the device (Linux 6.1), and return (features or None, how or why not)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY)
    how = "system call"
    if descriptor < 0:
        reason = errno.errorcode.get(ctypes.get_errno(), "error")
        try:
            device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None, reason
        descriptor = libc.ioctl(device, _USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
        os.close(device)
        how = "/dev/userfaultfd"
        if descriptor < 0:
            return None, reason
    api = (ctypes.c_uint64 * 3)(_UFFD_API, 0, 0)
    answered = libc.ioctl(descriptor, ctypes.c_ulong(_UFFDIO_API), api) == 0
    os.close(descriptor)
    return (int(api[1]), how) if answered else (None, "the API is refused")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


_CHECKS: tuple[Callable[[], Finding], ...] = (
    _host,
    _cores,
    _memory,
    _engine,
    _userfaultfd,
    _memory_mappings,
    _overcommit,
    _limits,
    _ray,
    _shared_memory,
    _temporary_folder,
    _package_tools,
    _image_cache,
)
