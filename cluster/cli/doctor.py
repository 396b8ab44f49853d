# SPDX-License-Identifier: GPL-2.0-or-later
"""``coremesh doctor``: what this host offers, what will be used, and why; each finding from a real try."""

from __future__ import annotations

import functools
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

from coremesh.cluster.launch import preflight, private_ray
from coremesh.cluster.machine.images import cache, debian_image, packages
from coremesh.core.cores import usable_cores
from coremesh.core.errors import ImageFetchError, PlatformError

GOOD, NOTE, BAD = "good", "note", "bad"


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
    cores = usable_cores()
    return Finding("cores", GOOD, str(cores), f"up to {cores} vCPUs run at full speed; more share them")


def _memory() -> Finding:
    values = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(values[name].split()[0]) >> 10 for name in ("MemTotal", "MemAvailable"))
    found = f"{free} of {total} MiB available"
    if free < 1536:
        return Finding("memory", NOTE, found, "a 1 GiB guest and Ray need about 1.5 GiB; give --memory 256M")
    # Measured (pages of no file, Debian's kernel, 5 vCPUs less 1): mostly translations, which have a bound.
    meaning = (
        "beside the guest's RAM, Ray takes 0.6 GiB and a vCPU 20 MiB after a boot, about 30 under load "
        "(the one that boots 55), 130 at most"
    )
    return Finding("memory", GOOD, found, meaning)


@functools.cache
def _facts() -> dict[str, Any]:
    """Return what the engine found: by trying the real system calls, and by looking at its own layout."""
    from coremesh.core import _native

    return dict(_native.doctor())


def _engine() -> Finding:
    try:
        facts = _facts()
    except ImportError as error:
        return Finding("engine", BAD, "cannot be loaded", str(error))
    check = str(facts["engine"])
    floats = "host SSE for the guest's floating point" if facts["host_sse"] else "the engine's floating point"
    return Finding("engine", GOOD if check == "ok" else BAD, f"self-check: {check}", floats)


def _clock() -> Finding:
    facts = _facts()
    return Finding(
        "guest clock", GOOD, str(facts["clock"]), f"the guest's TSC runs at {facts['tsc_hz'] / 1e6:.0f} MHz"
    )


def _protection() -> Finding:
    facts = _facts()
    works = facts["userfaultfd"] or facts["mprotect"]
    meaning = "guards the pages that hold translated code"
    return Finding("memory guard", GOOD if works else BAD, str(facts["protection"]), meaning)


def _userfaultfd() -> Finding:
    facts = _facts()
    works = bool(facts["userfaultfd"])
    return Finding(
        "userfaultfd",
        GOOD if works else NOTE,
        "works" if works else "cannot be used: mprotect will be",
        str(facts["userfaultfd_detail"]),
    )


def _mprotect() -> Finding:
    facts = _facts()
    works = bool(facts["mprotect"])
    found = "works" if works else "cannot be used"
    if facts["max_map_count"] < 65530:
        return Finding(
            "mprotect", NOTE, found, f"{facts['mprotect_detail']}; set vm.max_map_count to 65530 or more"
        )
    return Finding("mprotect", GOOD if works else NOTE, found, str(facts["mprotect_detail"]))


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


def _threads() -> Finding:
    needed = preflight.RAY_THREADS + preflight.threads_of(vcpus=1, hosts=1)
    try:
        preflight.require_threads(needed)
    except PlatformError as error:
        return Finding("threads", BAD, "too few may be started", str(error))
    return Finding(
        "threads", GOOD, f"{needed} may be started", "for Ray and one vCPU; each vCPU takes two more"
    )


def _loopback() -> Finding:
    try:
        preflight.require_loopback()
    except PlatformError as error:
        return Finding("loopback", BAD, "no connection to this host itself", str(error))
    return Finding(
        "loopback", GOOD, preflight.LOOPBACK, "Ray's processes talk over it, and listen on nothing else"
    )


def _shared_memory() -> Finding:
    try:
        preflight.require_shared_memory()
    except PlatformError as error:
        return Finding("/dev/shm", BAD, "cannot be written", str(error))
    free = shutil.disk_usage(preflight.SHARED_MEMORY).free >> 20
    if free < 100:
        meaning = "Ray's object store falls back to disk; in a container give --shm-size 256m"
        return Finding("/dev/shm", NOTE, f"{free} MiB free", meaning)
    return Finding("/dev/shm", GOOD, f"{free} MiB free", "for Ray's object store")


def _temporary_folder() -> Finding:
    try:
        folder = private_ray.base_folder()
    except PlatformError as error:
        return Finding("temporary folder", BAD, tempfile.gettempdir(), str(error))
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


def _user_network() -> Finding:
    from coremesh.hw.backend.network import slirp

    if not slirp.available():
        return Finding("user network", NOTE, "no libslirp", "for --net user: apt install libslirp0")
    return Finding("user network", GOOD, "libslirp", "--net user, with ports forwarded")


def _package_tools() -> Finding:
    missing = packages.missing_tools()
    if missing:
        meaning = "no Debian kernel can be fetched: give --kernel FILE; --builtin boots without one"
        return Finding("Debian's tools", NOTE, f"missing: {', '.join(missing)}", meaning)
    return Finding("Debian's tools", GOOD, ", ".join(packages.TOOLS), "fetch the guest's kernel")


def _disk_formats() -> Finding:
    from coremesh.hw.backend.nbd import PACKAGE, PROGRAM, QEMU_FORMATS

    others = ", ".join(QEMU_FORMATS)
    if shutil.which(PROGRAM) is None:
        meaning = f"{others} need {PROGRAM}: 'apt install {PACKAGE}'"
        return Finding("disk formats", NOTE, "raw", meaning)
    return Finding("disk formats", GOOD, f"raw; {others} by {PROGRAM}", "--disk FILE,format=F")


def _disk_making() -> Finding:
    from coremesh.cluster.machine.images import ext4

    try:
        for name in ext4.TOOLS:
            ext4.tool(name)
    except ImageFetchError as error:
        return Finding("disk making", NOTE, "not possible", str(error))
    return Finding("disk making", GOOD, ", ".join(ext4.TOOLS), "'coremesh fetch debian --disk 4G'")


def _image_cache() -> Finding:
    folder = cache.cache_folder()
    found = [image for flavour in debian_image.FLAVOURS if (image := debian_image.cached_debian(flavour))]
    if found:
        releases = ", ".join(image.release for image in found)
        return Finding("image cache", GOOD, f"{folder}: {releases}", "hashes checked just now")
    place = folder
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return Finding("image cache", NOTE, str(folder), "cannot be written: set COREMESH_CACHE")
    return Finding("image cache", GOOD, f"{folder}: empty", "'coremesh boot' or 'coremesh fetch' fills it")


def _shared_guest_memory() -> Finding:
    facts = _facts()
    way = str(facts["shared_protection"])
    why = ""
    for name in ("userfaultfd", "userfaultfd-copy"):  # the better ways first; why not those before the chosen
        if name == way:
            break
        detail = facts[f"shared_{name.replace('-', '_')}_detail"]
        why += f"; not {name}: {detail}"
    meaning = f"guards the memory that several hosts share{why}"
    return Finding("pages between hosts", GOOD if way == "userfaultfd" else NOTE, way, meaning)


def _wires() -> Finding:
    import zmq
    from coremesh.core.links.tcp import loaded_libsodium

    found, lacks = ["shm"], ""
    try:
        found.append(f"tcp ({Path(loaded_libsodium()).name})")
    except PlatformError as error:
        lacks = f"; {error}"
    if zmq.has("curve"):
        found.append(f"zmq (libzmq {zmq.zmq_version()}, CURVE)")
    else:
        lacks += "; libzmq has no CURVE, so that zmq cannot be encrypted: install pyzmq's own wheel"
    meaning = "what carries messages between hosts: shm on one computer, the first of the others on several"
    return Finding("wires", NOTE if lacks else GOOD, ", ".join(found), meaning + lacks)


def _link_ports() -> Finding:
    from ipaddress import ip_address

    from coremesh.core.links.door import Door

    door = Door(ip_address("127.0.0.1"))
    guarded = door.guarded
    door.close()
    if not guarded:
        meaning = (
            "this kernel takes no packet filter on a socket: a stranger that reaches a link's port can take "
            "all descriptors of a host, though not be heard; keep strangers off by a firewall"
        )
        return Finding("link ports", NOTE, "open to all", meaning)
    return Finding("link ports", GOOD, "filtered", "only hosts of the same machine can connect")


def _link_priority() -> Finding:
    from coremesh.core._native import link_priority

    words = {"fifo": "SCHED_FIFO", "nice": "nice -20"}
    priority = link_priority()
    got = words.get(priority)
    if got is None:
        meaning = (
            "pages move some times slower between hosts whose vCPUs outnumber their cores; allow it with "
            "'ulimit -r 99' or CAP_SYS_NICE"
        )
        short = "as any thread's, with a short slice" if priority == "slice" else "as any thread's"
        return Finding("link priority", NOTE, short, meaning)
    return Finding("link priority", GOOD, got, "links to other hosts go before vCPUs")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


_CHECKS: tuple[Callable[[], Finding], ...] = (
    _host,
    _cores,
    _memory,
    _engine,
    _clock,
    _protection,
    _userfaultfd,
    _mprotect,
    _overcommit,
    _limits,
    _shared_guest_memory,
    _wires,
    _link_ports,
    _link_priority,
    _ray,
    _threads,
    _loopback,
    _shared_memory,
    _temporary_folder,
    _user_network,
    _package_tools,
    _disk_formats,
    _disk_making,
    _image_cache,
)
