# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line as a process: Ctrl-C at any moment of its start, standard streams closed or full."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremesh.cluster
import pytest

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]

HELLO = bytes.fromhex("66baf803") + b"".join(b"\xb0" + bytes([letter]) + b"\xee" for letter in b"hi\r\n")
TALKS = HELLO + b"\xeb" + (256 - len(HELLO) - 2).to_bytes(1, "little")  # prints for ever
EXIT_0 = bytes.fromhex("66baf400b800000000ef") + b"\xeb\xfe"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is installed, with the file that the build generates, whatever this checkout has."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "coremesh").mkdir()
    for part in coremesh.__path__[0:1]:
        for name in ("core", "hw", "cluster"):
            (folder / "coremesh" / name).symlink_to(Path(part, name).resolve())
    with (ROOT / "pyproject.toml").open("rb") as file:
        generated = tomllib.load(file)["tool"]["scikit-build"]["generate"]
    template = next(file["template"] for file in generated if file["path"] == "coremesh/__init__.py")
    (folder / "coremesh" / "__init__.py").write_text(template)
    return folder


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coremesh.cluster.cli", *arguments]


@pytest.fixture
def kernel(tiny_guest: Callable[[bytes], bytes], tmp_path: Path) -> Callable[[bytes], str]:
    def write(code: bytes) -> str:
        (tmp_path / "kernel").write_bytes(tiny_guest(code))
        return str(tmp_path / "kernel")

    return write


def test_what_is_said_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from coremesh.cluster.cli import process

    process.say(RuntimeError("node \x1b[31mn1\x1b[0m\r\x07 \u202eabc é\nnext\tline"))
    assert capsys.readouterr().err == "coremesh: node \\x1b[31mn1\\x1b[0m\\r\\x07 \\u202eabc é\nnext\tline\n"


# --- Ctrl-C ----------------------------------------------------------------------------------------------

#: Sends this process a signal when it begins to import a module.
INTERRUPTER = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(os.environ["INTERRUPT_BY"]))

if "INTERRUPT_AT" in os.environ:
    sys.meta_path.insert(0, Interrupter())
"""


@pytest.mark.parametrize(
    ("arguments", "module"),
    [
        (["--help"], "typer"),
        (["--help"], "coremesh.cluster.cli.commands"),
        (["--version"], "coremesh.core.errors"),
        (["--version"], "importlib.metadata"),
        (["doctor"], "coremesh.cluster.cli.doctor"),
        (["fetch"], "coremesh.cluster.machine.images.debian_image"),
        (["top"], "coremesh.cluster.cli.top"),
        (["top"], "rich.console"),
        (["bench"], "coremesh.cluster.cli.benchmark"),
        (["boot"], "coremesh.cluster.cli.boot"),
        (["boot"], "coremesh.core.elf"),
        (["boot", "--hosts", "2"], "ray"),
        (["boot", "--hosts", "2"], "ray._private.worker"),
    ],
)
def test_ctrl_c_while_modules_are_imported_ends_it_without_a_word(
    arguments: list[str],
    module: str,
    package: Path,
    tmp_path: Path,
    family: Any,
    kernel: Callable[[bytes], str],
) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTER)
    if arguments[0] == "boot":
        arguments = [*arguments, "--kernel", kernel(HELLO + EXIT_0)]
    done = subprocess.run(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={
            **family.environment,
            "PYTHONPATH": f"{tmp_path}:{package}",
            "INTERRUPT_AT": module,
            "INTERRUPT_BY": str(int(signal.SIGINT)),
        },
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
    assert family.wait_gone(5) == {}


def test_the_package_imports_nothing_heavy_until_it_is_asked_for_a_name(package: Path) -> None:
    """Given an installed package, when it is imported, then Ctrl-C is soon the command line's own affair."""
    look = (
        "import sys, coremesh, coremesh.cluster.cli.process; before = len(sys.modules);"
        "assert not {'typer', 'ray', 'pandas', 'zmq', 'coremesh.cluster.launch.machine'} & set(sys.modules);"
        "from coremesh import Machine, ConfigurationError, fetch_debian; assert len(sys.modules) > before;"
        "assert all(hasattr(coremesh, name) for name in coremesh.__all__); print(Machine.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(package)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("Machine\n", "")


@pytest.mark.parametrize(("options", "imported"), [("", False), (", rng=0", True)])
def test_a_machine_imports_what_it_has(options: str, imported: bool, package: Path) -> None:
    """Given no disk, card, folder or the like, when it is assembled, then no module of them is loaded."""
    build = (
        "import sys, coremesh.core; from pathlib import Path;"
        "from coremesh.cluster.machine.assembly import assemble;"
        "from coremesh.cluster.machine.description import MachineDescription;"
        "from coremesh.hw.backend.console import ConsolePort;"
        "kernel = (Path(coremesh.core.__path__[0]) / 'guests' / 'smp.elf').read_bytes();"
        f"it = MachineDescription(vcpus=1, ram_bytes=64 << 20, kernel=kernel{options});"
        "made = assemble(it, ConsolePort(), print); made.host.stop(); made.close();"
        "apart = ('virtio', 'ata.cdrom', 'ata.disk', 'backend.formats', 'backend.network', 'backend.p9');"
        "names = tuple('coremesh.hw.' + name for name in apart);"
        "print(any(module.startswith(names) for module in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", build], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(package)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{imported}\n", "")


def test_a_signal_that_was_ignored_stays_ignored(package: Path, tmp_path: Path) -> None:
    """Given nohup, when the terminal hangs up in the middle, then the command goes on."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTER)
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command("--version")], capture_output=True, check=False,
        env={
            **os.environ, "PYTHONPATH": f"{tmp_path}:{package}",
            "INTERRUPT_AT": "typer", "INTERRUPT_BY": str(int(signal.SIGHUP)),
        },
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


# --- streams ---------------------------------------------------------------------------------------------

QUICK = [["--help"], ["--version"], ["doctor"]]
FULL = b"coremesh: standard output cannot be written: No space left on device.\n"


def run(shell: str, *arguments: str, family: Any) -> tuple[int, bytes]:
    """Run the command with redirections of a shell; its status and what it said on standard error."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {shell}; exit ${{PIPESTATUS[0]}}', "bash", *command(*arguments)],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, env=family.environment, timeout=100,
    )  # fmt: skip
    assert family.wait_gone(10) == {}
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_output_that_is_full_closed_or_not_read_has_its_status_and_no_traceback(
    arguments: list[str], family: Any
) -> None:
    usual = run(">/dev/null", *arguments, family=family)
    assert run(">/dev/full", *arguments, family=family) == (74, FULL)
    assert run(">&-", *arguments, family=family) == usual == (0, b"")
    assert run("<&- >&- 2>&-", *arguments, family=family) == (0, b"")
    assert run("| true", *arguments, family=family) == (141, b"")


@pytest.mark.parametrize("arguments", [["top"], ["bench"], ["fetch"], ["boot", "--vcpus", "0"]], ids=" ".join)
def test_errors_that_cannot_be_told_leave_their_status(
    arguments: list[str], family: Any, tmp_path: Path
) -> None:
    family.environment |= {
        "PATH": "/nowhere:/bin",
        "COREMESH_CACHE": "/proc/none",
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    told = run("", *arguments, family=family)
    assert told[0] in (1, 2) and told[1].startswith(b"coremesh: ")
    for shell in ("2>/dev/full", "<&- >&- 2>&-", "2>&1 | true"):
        assert run(shell, *arguments, family=family) == (told[0], b"")


def test_a_guest_whose_output_cannot_be_written_is_stopped(
    family: Any, address: str, kernel: Callable[[bytes], str]
) -> None:
    """Given a guest that prints for ever, when its reader has enough or the disk is full, then all ends."""
    boot = ["boot", "--kernel", kernel(TALKS), "--address", address]
    assert run("| head -n 2 >/dev/null", *boot, family=family) == (141, b"")
    assert run(">/dev/full", *boot, family=family) == (74, FULL)


def test_a_guest_runs_with_all_streams_closed(
    family: Any, address: str, kernel: Callable[[bytes], str]
) -> None:
    boot = ["boot", "--kernel", kernel(HELLO + EXIT_0), "--address", address]
    begin = time.monotonic()
    assert run("<&- >&- 2>&-", *boot, family=family) == (1, b"")  # n*2+1 of what the guest wrote
    assert time.monotonic() - begin < 60
