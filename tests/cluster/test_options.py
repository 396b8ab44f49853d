# SPDX-License-Identifier: GPL-2.0-or-later
"""Wrong options: whatever is given to a machine, its methods or a command, the answer is an error of ours.

No machine is started: a description is made of the options, as `Machine` does before it starts Ray.
"""

import asyncio
import inspect
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from coremesh.cluster.cli import commands
from coremesh.cluster.cli.boot import BootOptions
from coremesh.cluster.launch.attached import PythonDevice
from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine import options
from coremesh.cluster.machine.attachments import Wanted
from coremesh.cluster.machine.console import Console
from coremesh.cluster.machine.describe import LARGEST_KERNEL, describe
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.images.debian_image import fetch_debian
from coremesh.cluster.machine.option_table import OPTIONS
from coremesh.core.errors import ConfigurationError, CoremeshError, GuestImageError
from coremesh.core.symbols import SymbolTable
from coremesh.hw.backend.network.slirp import Forward
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


class Hostile:
    """An object on which every question fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __index__(self) -> int:
        raise RuntimeError("no index")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __fspath__(self) -> str:
        raise RuntimeError("no path")

    def __float__(self) -> float:
        raise RuntimeError("no number")


def released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


#: What a careless or a malicious person gives.
JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 255, 256, 1 << 200, 10**5000, 0.5, float("nan"), float("inf"), -0.0, 1j,
    "", " ", "x", "1", "auto", "9" * 400, "9" * 400 + "G", "1G", "\0", "a\0b", "\ud800", "a\udcff",
    "é" * 70_000, "\x1b[2J",
    "/dev/zero", "/dev/null", "/nonexistent/x", "/", "~nobody-of-that-name/x", "/proc/self/mem",
    "(", "(?P<", ".*",
    b"", b"x", b"\0", b"(", b"\xff" * 100, bytearray(b"x"), bytearray(), memoryview(b"x"), released(),
    [], [1], [0], [1, 2], [[]], [None], ["/dev/zero"], [("/dev/zero", 5)], [(b"x", "\0")], [(b"x", "\ud800")],
    (b"x", "t", "u"), [{"vcpus": 1}], [{"vcpus": None}], [{}], [{5: 6}], {}, {"vcpus": 2}, set(),
    range(3), range(10**9),
    iter([1]), print, Path("/"), Path("a\0b"), Hostile(), [Hostile()], Hostile, object(), re.compile("x"),
    re.compile(b"x"), re.compile(b""),
]  # fmt: skip

MACHINE_OPTIONS = list(inspect.signature(Machine).parameters)
METHODS = [
    (name, [parameter for parameter in inspect.signature(method).parameters if parameter != "self"])
    for name, method in inspect.getmembers(Machine, inspect.isfunction)
    if not name.startswith("_")
]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may come so far that Ray is started."""
    from coremesh.cluster.launch import session

    def ensure(address: object = None) -> float:
        raise AssertionError("Ray would have been started")

    monkeypatch.setattr(session, "ensure", ensure)


@pytest.fixture(scope="module")
def kernel() -> bytes:
    """A Multiboot kernel of a few bytes."""
    import struct

    head = 0x1BADB002, 1 << 16
    text, size = 0x10_0000, 34
    return (
        struct.pack("<8I", *head, -sum(head) & 0xFFFF_FFFF, text, text, text + size, text + size, text + 32)
        + b"\xeb\xfe"
    )


def sound(description: MachineDescription) -> bool:
    """Whether every field has its type, so that nothing can fail later on a host for want of it."""
    d = description
    return (
        type(d.vcpus) is type(d.ram_bytes) is int
        and 1 <= d.vcpus <= 255
        and d.ram_bytes % 4096 == 0
        and sum(d.shares) == d.vcpus
        and all(type(share) is int for share in d.shares)
        and type(d.kernel) is bytes
        and (d.initrd is None or type(d.initrd) is bytes)
        and type(d.cmdline) is str
        and d.cmdline.encode("utf-8", "surrogateescape").count(0) == 0
        and all(type(module.data) is bytes and type(module.text) is str for module in d.modules)
        and type(d.prompt) is bytes
        and re.compile(d.prompt).search(b"") is None
        and d.protection in ("auto", "userfaultfd", "mprotect")
        and type(d.unpack) is type(d.curve) is bool
        and d.policy in ("never", "always", "adaptive")
    )


# --- every option, every method: declared, and asked with junk --------------------------------------------


def test_every_option_and_every_parameter_of_a_method_is_declared_in_one_place() -> None:
    asked = {*MACHINE_OPTIONS, *(name for _, names in METHODS for name in names)}
    assert asked <= set(options.CHECKS), asked - set(options.CHECKS)


def test_given_the_table_of_options_when_machine_and_the_command_are_read_then_they_have_its_rows() -> None:
    """Their parameters are written out for people and type checkers; names and defaults are the table's."""
    parameters = inspect.signature(Machine).parameters
    assert list(parameters) == list(OPTIONS)
    assert {name: p.default for name, p in parameters.items()} == {
        n: row.default for n, row in OPTIONS.items()
    }

    command: Any = typer.main.get_command(commands.app)
    offered = {word: option for option in command.commands["boot"].params for word in option.opts}
    for name, row in OPTIONS.items():
        flag = row.flag or f"--{name}"
        assert (flag in offered) == bool(row.text), name
        if row.text:
            option = offered.pop(flag)
            assert option.help == row.text
            assert (option.default or None) == (str(row.default) if name == "hosts" else row.default or None)
    assert set(offered) == {"--run", "--timeout", "--builtin", "--screen", "--log"}, (
        "an option that the table does not have"
    )


def test_given_an_option_that_there_is_not_when_a_machine_is_described_then_it_is_named() -> None:
    with pytest.raises(TypeError, match="'vcpu'"):
        describe(vcpu=2)


@pytest.mark.parametrize("name", sorted(options.CHECKS))
def test_given_junk_when_an_option_is_checked_then_it_is_right_or_refused_in_our_words(name: str) -> None:
    refused = 0
    for junk in JUNK:
        try:
            options.check(name, junk)
        except CoremeshError as error:
            refused += 1
            assert 10 < len(str(error)) < 400
    assert refused > len(JUNK) // 3, "a check that lets everything pass"


@pytest.mark.parametrize("name", sorted(set(MACHINE_OPTIONS) - {"address"}))
def test_given_junk_for_an_option_when_a_machine_is_described_then_it_is_sound_or_refused(
    name: str, kernel: bytes
) -> None:
    for junk in JUNK:
        if name == "kernel" and junk is None:
            continue  # Debian's
        try:
            description = describe(**{"kernel": kernel, "memory": "16M", name: junk})
        except CoremeshError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
        else:
            assert sound(description)


TEXTS = st.text(st.characters(codec=None), max_size=30)
ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        TEXTS,
        st.binary(max_size=30),
        st.integers(0, len(JUNK) - 1).map(lambda number: JUNK[number]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(st.just("vcpus"), inner)
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_combination_of_values_fails_in_another_way(data: st.DataObject, kernel: bytes) -> None:
    given_options: dict[str, Any] = {"kernel": kernel, "memory": "16M"}
    for name in data.draw(
        st.sets(st.sampled_from(sorted(set(MACHINE_OPTIONS) - {"address", "kernel"})), min_size=1, max_size=3)
    ):
        given_options[name] = data.draw(ANYTHING)
    try:
        description = describe(**given_options)
    except CoremeshError:
        return
    assert sound(description)


def test_given_junk_when_a_machine_is_made_then_it_is_refused_before_ray_starts(kernel: bytes) -> None:
    for name, junk in {
        "vcpus": "4", "memory": "9" * 400, "kernel": 5, "initrd": "/dev/zero", "cmdline": 5,
        "modules": "file", "hosts": "2", "policy": None, "curve": 1, "append": None, "address": "local",
        "prompt": "(", "protection": None, "unpack": "no", "progress": 5,
    }.items():  # fmt: skip
        with pytest.raises(CoremeshError):
            options: dict[str, Any] = {"kernel": kernel, name: junk}
            Machine(**options)


class Silent:
    """Stands where a machine's hosts are: to call it is to have let junk pass."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def call(self, method: str, *arguments: Any, **more: Any) -> Any:
        self.calls.append((method, *arguments))
        raise ConfigurationError("passed on to the host")

    all = each = call

    def wait(self, timeout: float) -> None:
        self.calls.append(("wait", timeout))
        raise ConfigurationError("passed on to the host")

    def __len__(self) -> int:
        return 2


@pytest.fixture
def machine(kernel: bytes) -> Iterator[Machine]:
    """A machine that was described and never started."""
    made = Machine.__new__(Machine)
    made._description = describe(kernel=kernel, memory="16M", hosts=2)
    made.shares, made.vcpus, made.memory = (1, 1), 2, 16 << 20
    made._hosts = Silent()  # type: ignore[assignment]
    made._end, made._paused, made._timings, made._shell = None, False, {}, threading.Lock()
    import weakref

    made._finalizer = weakref.finalize(made, threading.Event().set)
    yield made
    made._finalizer.detach()


@pytest.mark.parametrize(("method", "names"), [pair for pair in METHODS if pair[1]])
def test_given_junk_when_a_method_is_called_then_it_is_refused_or_passed_on_sound(
    method: str, names: list[str], machine: Machine
) -> None:
    good: dict[str, Any] = {
        "command": "true", "timeout": 0, "gpa": 0x1000, "length": 16, "size": 8, "operation": "load",
        "vcpu": 0, "port": "tcp:0:22", "path": "traffic.pcap", "device": PythonDevice(),
        "mmio": 0xFED0_0000,
    }  # fmt: skip
    wanted = {name: good[name] for name in names if name in good}
    for name in names:
        for junk in JUNK:
            if name == "timeout" and junk is None:
                continue  # waits for ever, as asked
            with pytest.raises(CoremeshError):
                answer = getattr(machine, method)(**{**wanted, name: junk})
                if inspect.iscoroutine(answer):
                    asyncio.run(answer)
    sound = (str, int, float, bytes, list, Path, Forward, Wanted)
    for call in machine._hosts.calls:  # type: ignore[attr-defined]
        assert all(isinstance(word, sound) for word in call), call


def test_given_junk_when_a_console_is_used_then_it_is_refused() -> None:
    console = Console(Silent(), lambda: None)
    junk: Any
    for junk in [5, None, [1], Hostile(), "\ud800", released()]:
        with pytest.raises(ConfigurationError):
            console.write(junk)
    for junk in ["(", b"(", 5, None, re.compile("text"), Hostile()][:4]:
        with pytest.raises(ConfigurationError):
            console.expect(junk, 0.1)
    for junk in [-1, float("nan"), None, "1", 1e300]:
        with pytest.raises(ConfigurationError):
            console.read(junk)
    assert not any("feed_console" in call for call in console._remote.calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["flavour", "refresh", "progress", "source_list"])
def test_given_junk_when_an_image_is_fetched_then_it_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREMESH_CACHE", str(tmp_path / "file" / "below"))  # no cache can be there
    (tmp_path / "file").touch()
    for junk in JUNK:
        with pytest.raises(CoremeshError):
            fetch_debian(**{name: junk})
    monkeypatch.setenv("COREMESH_CACHE", "~nobody-of-that-name/x")
    with pytest.raises(ConfigurationError, match="COREMESH_CACHE"):
        fetch_debian()


# --- what a person is told -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_options", "words"),
    [
        ({"memory": "9" * 400}, "512M"),
        ({"memory": 10**5000}, "memory"),
        ({"vcpus": 10**5000}, "1 to 255"),
        ({"append": "\ud800"}, "append is not valid Unicode"),
        ({"append": None}, "append is text, not None"),
        ({"cmdline": 5}, "cmdline is text, not 5"),
        ({"cmdline": "a\0b"}, "zero byte"),
        ({"modules": "file"}, "list of paths"),
        ({"modules": [("a", "b", "c")]}, r"\(image, text\)"),
        ({"modules": [5]}, "module is a path"),
        ({"protection": None}, "auto, userfaultfd, mprotect"),
        ({"unpack": "no"}, "True or False"),
        ({"curve": 0}, "True or False"),
        ({"prompt": b"("}, "not a regular expression"),
        ({"prompt": b""}, "found in nothing"),
        ({"prompt": 5}, "text or bytes"),
        ({"kernel": "a\0b"}, "zero byte"),
        ({"kernel": 5}, "path, or the image's bytes"),
        ({"hosts": "2"}, "no number of hosts"),
        ({"hosts": range(10**9)}, "1 to 64"),
    ],
)
def test_a_wrong_option_is_refused_with_what_would_be_right(
    given_options: dict[str, Any], words: str, kernel: bytes
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        describe(**{"kernel": kernel, "memory": "16M", **given_options})


@pytest.mark.parametrize(
    "address", ["", "local", "host", "host:0", "host:99999", "ray://host:1", "a b:1", "x\0:1", 5]
)
def test_an_address_that_names_no_cluster_is_refused(address: Any) -> None:
    with pytest.raises(ConfigurationError, match="address"):
        options.check("address", address)


@pytest.mark.parametrize("address", [None, "auto", "127.0.0.1:6379", "head.example.org:6379", "[::1]:6379"])
def test_an_address_that_names_one_is_taken(address: str | None) -> None:
    assert options.check("address", address) == address


def test_what_means_the_same_is_taken_for_the_same(kernel: bytes, tmp_path: Path) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(kernel)
    forms: list[Any] = [kernel, bytearray(kernel), memoryview(kernel), str(file), file]
    assert {describe(kernel=form, memory="16M").kernel for form in forms} == {kernel}
    prompts: list[Any] = ["# $", b"# $", re.compile(b"# $")]
    assert {describe(kernel=kernel, memory="16M", prompt=prompt).prompt for prompt in prompts} == {b"# $"}
    modules = describe(kernel=kernel, memory="16M", modules=[file, (str(file), "a b"), (b"x", "c")]).modules
    assert [(module.data, module.text) for module in modules] == [
        (kernel, str(file)),
        (kernel, "a b"),
        (b"x", "c"),
    ]


# --- files that are none, or have no end -----------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", ["kernel", "initrd", "modules", "symbols"])
@pytest.mark.parametrize("kind", ["device", "terminal", "pipe", "socket", "folder", "huge"])
def test_given_a_file_without_end_when_it_is_named_then_it_is_refused_at_once(
    what: str, kind: str, kernel: bytes, tmp_path: Path
) -> None:
    place = tmp_path / "it"
    making: dict[str, Callable[[], Any]] = {
        "device": lambda: place.symlink_to("/dev/zero"),
        "terminal": lambda: place.symlink_to("/dev/ptmx"),
        "pipe": lambda: os.mkfifo(place),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(str(place)),
        "folder": place.mkdir,
        "huge": lambda: place.open("wb").truncate(6 << 30),
    }
    making[kind]()
    kinds = {
        "device": "is a device", "terminal": "is a device", "pipe": "is a pipe", "socket": "cannot read",
        "folder": "is a directory", "huge": f"too large: {6 << 30} bytes",
    }  # fmt: skip
    with pytest.raises(CoremeshError, match=kinds[kind]) as refusal:
        if what == "symbols":
            SymbolTable.read(place)
        else:
            value: Any = [place] if what == "modules" else place
            describe(**{"kernel": kernel, "memory": "16M", what: value})
    assert isinstance(refusal.value, ConfigurationError if what == "symbols" else GuestImageError)
    if kind == "huge":
        limit = {"kernel": LARGEST_KERNEL, "symbols": 256 << 20}.get(what, 16 << 20)
        assert f"at most {limit} " in str(refusal.value)


def test_a_file_whose_size_the_system_does_not_tell_is_read_to_its_end() -> None:
    """Files of /proc have size 0: when one is given, its content counts."""
    from coremesh.core.input_file import read_input_file

    version = read_input_file("/proc/version", "kernel", 1000, "", GuestImageError)
    assert version.startswith(b"Linux")
    with pytest.raises(GuestImageError, match="too large"):
        read_input_file("/proc/version", "kernel", 5, "", GuestImageError)


def test_given_no_option_on_the_command_line_when_boot_checks_them_then_each_default_passes() -> None:
    """What the command takes for "not given" has to be what the option's check takes for it."""
    defaults = BootOptions()
    for field in fields(defaults):
        if field.name in OPTIONS and field.name not in ("hosts", "vcpus"):
            options.check(field.name, getattr(defaults, field.name))
