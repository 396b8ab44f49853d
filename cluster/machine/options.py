# SPDX-License-Identifier: GPL-2.0-or-later
"""Each option of a machine, of its methods and of the command line: which type, which range, which text.

The one place where that is written down. `Machine`, its methods and the commands all call :func:`check` with
the option's name, before anything starts. Whatever is wrong is a :class:`ConfigurationError` that says what
would be right.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from coremesh.cluster.machine.consoles import check_console
from coremesh.cluster.machine.description import HostsWanted
from coremesh.cluster.machine.disks import check_boot, check_cdrom, check_disks
from coremesh.cluster.machine.folders import check_folders
from coremesh.cluster.machine.networks import check_networks
from coremesh.cluster.machine.shell import MAX_COMMAND
from coremesh.core.errors import ConfigurationError, shown
from coremesh.core.input_file import path_of
from coremesh.core.memory_layout import PAGE_BYTES
from coremesh.core.mesh import MAX_HOSTS, POLICIES, Policy
from coremesh.core.x86.memory_map import PHYSICAL_ADDRESS_BITS, MemoryMap
from coremesh.hw.decode import LAST, MMIO, PORT

Image = str | os.PathLike[str] | bytes

#: xAPIC identifiers are 8 bits wide and 255 is the broadcast address (Intel SDM vol. 3A, section 11.6.1).
MAX_VCPUS: Final = 255
PROTECTIONS: Final = ("auto", "userfaultfd", "mprotect")
WIRES: Final = ("auto", "shm", "tcp", "zmq")
OPERATIONS: Final = (
    "load", "store", "compare_swap", "exchange", "add", "and", "or", "xor",
    "min", "max", "min_signed", "max_signed",
)  # fmt: skip

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([KMGT]?)(?:iB|B)?", re.IGNORECASE | re.ASCII)
_ADDRESS = re.compile(r"\[?[^\s\[\]/@]+\]?:(\d{1,5})", re.ASCII)
_LONGEST_TEXT = 128 << 10  # of one option; Linux limits an argument of execve to as much
_LONGEST_PROMPT = 1000  # a regular expression
_LONGEST_SECONDS = 10**9  # 31 years; what a wait of the system takes ends at about 292


def check(name: str, value: Any) -> Any:
    """Return the value of the option `name` as the machine takes it; raise :class:`ConfigurationError`.

    Names are those of `Machine`'s parameters and of its methods'. KeyError for one that is not declared.
    """
    return CHECKS[name](value)


# --- vCPUs, hosts, memory --------------------------------------------------------------------------------


def parse_memory(size: Any) -> int:
    """Return a memory size in bytes, from bytes or from text such as '512M', '1G', '1.5GiB'.

    Units are powers of 1024. Raises :class:`ConfigurationError` for what is no size, or no size for a PC's
    RAM.
    """
    if isinstance(size, str):
        count = parse_size(size, "memory")
    else:
        count = _integer(size, "the memory size is a number of bytes, or text like 512M, 1G or 1.5G")
    return MemoryMap(count).ram_bytes


def parse_size(size: str, what: str) -> int:
    """Return the bytes of a size such as '512M', in units of 1024; raise :class:`ConfigurationError`."""
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise ConfigurationError(f"{shown(size)} is no {what} size; write it like 512M, 1G or 1.5G.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def check_vcpus(vcpus: Any) -> int:
    """Return `vcpus` if a machine can have that many, else raise :class:`ConfigurationError`."""
    return _whole("a machine has", "vCPUs", vcpus, 1, MAX_VCPUS)


def share_vcpus(hosts: HostsWanted, vcpus: int | None, device_host: int = 0) -> tuple[int, ...]:
    """Return how many vCPUs each host gets: a tuple of one number a host.

    `hosts` is a number of hosts, over which `vcpus` (by default one each) are spread evenly, or a list that
    gives each host's own, as ``[6, 2]`` or ``[{"vcpus": 6}, {"vcpus": 2}]``. `device_host` is the one that
    has the devices; it alone may have no vCPU, as the first of ``[0, 4, 4]``. Raises
    :class:`ConfigurationError`.
    """
    wanted = check("hosts", hosts)
    count = wanted if isinstance(wanted, int) else len(wanted)
    if check("device_host", device_host) >= count:
        raise ConfigurationError(
            f"host {device_host} cannot have the devices: the machine has {count}, which count from 0."
        )
    if isinstance(wanted, int):
        total = wanted if vcpus is None else check_vcpus(vcpus)
        if total < wanted:
            raise ConfigurationError(
                f"{total} vCPUs cannot be spread over {wanted} hosts: each runs at least one. Give more "
                "vCPUs or fewer hosts."
            )
        return tuple(total // wanted + (number < total % wanted) for number in range(wanted))
    shares: tuple[int, ...] = wanted
    if any(share == 0 and number != device_host for number, share in enumerate(shares)):
        raise ConfigurationError(
            f"a host without vCPUs has the devices: give each other one at least 1, or say --device-host "
            f"{shares.index(0)}."
        )
    check_vcpus(sum(shares))
    if vcpus is not None and check_vcpus(vcpus) != sum(shares):
        raise ConfigurationError(
            f"the hosts have {sum(shares)} vCPUs in all, and the machine was to have {vcpus}. "
            "Leave one of the two out."
        )
    return shares


def parse_hosts(text: str) -> int | list[int]:
    """Return what a person wrote for `hosts`: a number, or the vCPUs of each as '6,2'."""
    parts = text.split(",") if isinstance(text, str) else []
    numbers = [int(part) for part in parts if re.fullmatch(r" *\d{1,9} *", part, re.ASCII)]
    if not parts or len(numbers) != len(parts):
        raise ConfigurationError(
            f"{shown(text)} is no number of hosts; write 2, or the vCPUs of each as 6,2."
        )
    return numbers[0] if len(numbers) == 1 else numbers


def _hosts(hosts: Any) -> int | tuple[int, ...]:
    if isinstance(hosts, str | bytes | bytearray | memoryview | Mapping) or not isinstance(hosts, Sequence):
        try:
            count = _integer(hosts, "")
        except ConfigurationError:
            raise ConfigurationError(
                f"{shown(hosts)} is no number of hosts and no list of them, as [6, 2]."
            ) from None
        return _whole("a machine runs on", "hosts", count, 1, MAX_HOSTS)
    _whole("a machine runs on", "hosts", len(hosts), 1, MAX_HOSTS)
    shares = tuple(_share(host) for host in hosts)
    if not any(shares):
        raise ConfigurationError("no host has a vCPU; one alone may have none, as in [0, 4].")
    return shares


def _share(host: Any) -> int:
    if isinstance(host, Mapping):
        if set(host) != {"vcpus"}:
            raise ConfigurationError(f'{shown(dict(host))} describes no host; write {{"vcpus": 4}}.')
        host = host["vcpus"]
    # The host with the devices may have no vCPU.
    return _whole("a host runs", "vCPUs", host, 0, MAX_VCPUS)


def check_policy(policy: Any) -> Policy:
    """Return `policy` if there is one of that name, else raise :class:`ConfigurationError`."""
    chosen: Policy = _one_of("policy", policy, POLICIES)
    return chosen


# --- kinds of value --------------------------------------------------------------------------------------


def _integer(value: Any, right: str) -> int:
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except Exception:
            pass
    raise ConfigurationError(f"{right}; {shown(value)} is not one.")


def _whole(before: str, unit: str, value: Any, least: int, most: int) -> int:
    right = f"{before} {least} to {most} {unit}".rstrip()
    try:
        number = _integer(value, right)
    except ConfigurationError:
        number = None
    if number is None or not least <= number <= most:
        raise ConfigurationError(f"{right}, not {shown(value)}.")
    return number


def _number(what: str, least: int, most: int) -> Callable[[Any], int]:
    return lambda value: _whole(f"{what} is", "", value, least, most)


def _flag(what: str) -> Callable[[Any], bool]:
    def checked(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ConfigurationError(f"{what} is True or False, not {shown(value)}.")
        return value

    return checked


def _text(what: str, *, raw_bytes: bool = False, longest: int = _LONGEST_TEXT) -> Callable[[Any], str]:
    def checked(value: Any) -> str:
        if not isinstance(value, str):
            raise ConfigurationError(f"{what} is text, not {shown(value)}.")
        try:
            size = len(value.encode("utf-8", "surrogateescape" if raw_bytes else "strict"))
        except UnicodeEncodeError:
            raise ConfigurationError(f"{what} is not valid Unicode text: {shown(value)}.") from None
        if "\0" in value:
            raise ConfigurationError(f"{what} contains a zero byte: {shown(value)}.")
        if size > longest:
            raise ConfigurationError(f"{what} has {size} bytes; at most {longest} are taken.")
        return str(value)

    return checked


def _one_of(what: str, value: Any, known: Sequence[str]) -> Any:
    if not isinstance(value, str) or value not in known:
        raise ConfigurationError(f"no {what} {shown(value)}; there are {', '.join(known)}.")
    return value


def _seconds(what: str) -> Callable[[Any], float]:
    def checked(value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool | str | bytes | bytearray) else float(value)
        except Exception:
            number = math.nan
        if not 0 <= number <= _LONGEST_SECONDS:
            raise ConfigurationError(
                f"{what} is a number of seconds from 0 to {_LONGEST_SECONDS}, not {shown(value)}."
            )
        return number

    return checked


def _or_none(checked: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else checked(value)


def _function(what: str) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if not callable(value):
            raise ConfigurationError(f"{what} is a function, not {shown(value)}.")
        return value

    return checked


def _data(what: str) -> Callable[[Any], bytes]:
    def checked(value: Any) -> bytes:
        try:
            if isinstance(value, str):
                return value.encode("utf-8", "surrogateescape")
            if isinstance(value, bytes | bytearray | memoryview):
                return bytes(value)
        except ValueError as error:  # a lone surrogate; a view that was released
            raise ConfigurationError(f"{what} cannot be used ({error}).") from None
        raise ConfigurationError(f"{what} is text or bytes, not {shown(value)}.")

    return checked


def _image(what: str) -> Callable[[Any], Image]:
    def checked(value: Any) -> Image:
        if isinstance(value, bytes | bytearray | memoryview):
            return _data(f"the {what}")(value)
        if isinstance(value, str | os.PathLike):
            return path_of(what, value)
        raise ConfigurationError(f"the {what} is a path, or the image's bytes, not {shown(value)}.")

    return checked


def _bios(value: Any) -> Image | None:
    """None: no firmware; the text 'debian': Debian's SeaBIOS; else an image of one's own."""
    if value is None or value is False:
        return None
    if value is True or (isinstance(value, str) and value == "debian"):
        return "debian"
    image: Image = _image("firmware")(value)
    return image


def _modules(value: Any) -> tuple[tuple[Image, str], ...]:
    if not isinstance(value, list | tuple):
        raise ConfigurationError(
            f"modules is a list of paths, bytes, or pairs of one of these and a text, not {shown(value)}."
        )
    return tuple(_module(module) for module in value)


def _module(module: Any) -> tuple[Image, str]:
    if isinstance(module, tuple | list):
        if len(module) != 2:
            raise ConfigurationError(f"a module is an image, or (image, text), not {shown(module)}.")
        return _image("module")(module[0]), _text("a module's text", raw_bytes=True)(module[1])
    image = _image("module")(module)
    return image, "" if isinstance(image, bytes) else os.fspath(module)


def _prompt(value: Any) -> bytes:
    if isinstance(value, re.Pattern):
        value = value.pattern
    pattern = _data("prompt")(value)
    compiled = compiled_pattern("prompt", pattern)
    if len(pattern) > _LONGEST_PROMPT or compiled.search(b"") is not None:
        raise ConfigurationError(
            "prompt is a regular expression that is found at the end of the console's output when a shell "
            f"waits, of at most {_LONGEST_PROMPT} bytes; {shown(value)} is too long, or is found in nothing."
        )
    return pattern


def compiled_pattern(what: str, value: Any) -> re.Pattern[bytes]:
    """Return a regular expression for bytes; raise :class:`ConfigurationError` where `value` is not one."""
    if isinstance(value, re.Pattern) and isinstance(value.pattern, bytes):
        return value
    pattern = _data(what)(value)
    try:
        return re.compile(pattern)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise ConfigurationError(f"{what} is not a regular expression: {shown(pattern)} ({error}).") from None


def _rate(value: Any) -> int:
    """Bytes a second; 0 is as many as there are."""
    if value is True or (isinstance(value, str) and value == "max"):
        return 0
    right = "rng is 'max', or how many bytes a second the guest gets, as 64K"
    if not isinstance(value, str):
        rate = _integer(value, right)
    else:
        try:
            rate = parse_size(value, "rate")
        except ConfigurationError:
            raise ConfigurationError(f"{right}, not {shown(value)}.") from None
    if not 1 <= rate <= 1 << 40:
        raise ConfigurationError(f"{right}, not {shown(value)}.")
    return rate


def _address(value: Any) -> str:
    address: str = _text("address")(value)
    match = _ADDRESS.fullmatch(address)
    if address != "auto" and (match is None or not 1 <= int(match[1]) <= 65535):
        raise ConfigurationError(
            f"address is 'auto' or the host:port of a Ray cluster, not {shown(address)}. Leave it out to "
            "run on this machine."
        )
    return address


def _path(what: str) -> Callable[[Any], Any]:
    return lambda value: path_of(what, value)


def _device(value: Any) -> Any:
    """An object that a guest can access: `read` and `write`."""
    try:
        fits = callable(value.read) and callable(value.write) and not isinstance(value, type)
    except Exception:  # without them, or an object whose own __getattr__ fails
        fits = False
    if not fits:
        raise ConfigurationError(
            f"a device is an object with read(offset, size) and write(offset, size, value), not "
            f"{shown(value)}; derive a class from coremesh.PythonDevice and attach an object of it."
        )
    return value


def _addresses(name: str, space: int, last: int, default: int) -> Callable[[Any], tuple[int, int, int]]:
    """(space, first, last) of a base of `default` bytes, of a pair (base, length) or of a range."""

    def checked(value: Any) -> tuple[int, int, int]:
        first, length = 0, 0
        if isinstance(value, range) and value.step == 1:
            first, length = value.start, value.stop - value.start
        elif isinstance(value, tuple | list) and [type(part) for part in value] == [int, int]:
            first, length = value
        elif type(value) is int:
            first, length = value, default
        if length < 1 or first < 0 or first + length - 1 > last:
            raise ConfigurationError(
                f"{name} is where the device answers: a first address, a pair (first, length in bytes) or a "
                f"range, within 0 to {last:#x}; not {shown(value)}."
            )
        return space, first, first + length - 1

    return checked


def _forward(value: Any) -> Any:
    from coremesh.hw.backend.network.slirp import parse_forward

    return parse_forward(value)


#: What each option may be, by the name of the parameter.
CHECKS: Final[Mapping[str, Callable[[Any], Any]]] = {
    # Machine(...); the command line's options have the same names
    "vcpus": _or_none(check_vcpus),
    "memory": parse_memory,
    "kernel": _or_none(_image("kernel")),
    "initrd": _or_none(_image("initrd")),
    "cmdline": _or_none(_text("cmdline", raw_bytes=True)),
    "modules": _modules,
    "hosts": _hosts,
    "device_host": _number("the number of the host with the devices", 0, MAX_HOSTS - 1),
    "policy": check_policy,
    "curve": _flag("curve"),
    "wire": lambda value: _one_of("wire", value, WIRES),
    "append": _text("append", raw_bytes=True),
    "address": _or_none(_address),
    "prompt": _prompt,
    "protection": lambda value: _one_of("protection", value, PROTECTIONS),
    "unpack": _flag("unpack"),
    "bios": _bios,
    "boot": check_boot,
    "reboot": _flag("reboot"),
    "disks": check_disks,
    "cdrom": check_cdrom,
    "net": check_networks,
    "console": check_console,
    "folders": check_folders,
    "rng": _or_none(_rate),
    "progress": _or_none(_function("progress")),
    # its methods
    "command": _text("a command", raw_bytes=True, longest=MAX_COMMAND),
    "timeout": _or_none(_seconds("timeout")),
    "on_output": _or_none(_function("on_output")),
    "count": _number("count", 1, 1 << 20),
    "symbols": _or_none(_path("symbols")),
    "phys_base": _number("phys_base", 0, (1 << 52) - 1),
    "operation": lambda value: _one_of("operation", value, OPERATIONS),
    "gpa": _number("a guest-physical address", 0, (1 << 52) - 1),
    "size": _number("size", 1, 16),
    "operand": _number("operand", -(1 << 127), (1 << 128) - 1),
    "expected": _number("expected", -(1 << 127), (1 << 128) - 1),
    "host": _number("a host's number", 0, MAX_HOSTS - 1),
    "vcpu": _number("a vCPU's number", 0, MAX_VCPUS - 1),
    "length": _number("length", 0, 1 << 30),
    "port": _forward,
    "text": _text("what is typed"),
    "keys": _text("the keys to press"),
    "screen": lambda value: _one_of("screen", value, ("serial", "text")),
    "path": _path("capture"),
    "card": _number("a network card's number", 0, 7),
    "by_vcpu": _flag("by_vcpu"),
    "device": _device,
    "mmio": _or_none(_addresses("mmio", MMIO, (1 << PHYSICAL_ADDRESS_BITS) - 1, PAGE_BYTES)),
    "ports": _or_none(_addresses("ports", PORT, LAST[PORT], 8)),
    "name": _text("a device's name", longest=60),
    "irq": _or_none(_number("an ISA interrupt", 0, 15)),
    "level": _flag("the level of an interrupt line"),
    "answer": _seconds("the time to answer a guest"),
    # Console
    "data": _data("what is typed"),
    "columns": _number("the width of a terminal", 1, 65535),
    "rows": _number("the height of a terminal", 1, 65535),
    # other commands
    "flavour": _text("flavour"),
    "refresh": _flag("refresh"),
    "source_list": _or_none(_path("source list")),
    "pid": _or_none(_number("a process's number", 1, (1 << 31) - 1)),
}
