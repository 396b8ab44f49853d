# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the bare-metal guests and runs one to its end: on Coremesh in this process, or on QEMU beside it.

No Ray here: a machine is put together as a host's process does it. A guest prints on COM1 and
ends by writing the debug-exit port: ``RunResult.status`` is ``(value << 1) | 1``, as both emulators say.
"""

import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coremesh.cluster.machine.assembly import assemble
from coremesh.cluster.machine.description import MachineDescription, Module, Rom
from coremesh.cluster.machine.disks import check_cdrom, check_disks
from coremesh.cluster.machine.machine_state import MachineState
from coremesh.hw.backend.console import ConsolePort
from coremesh.hw.power import PowerEvent

REPOSITORY = Path(__file__).resolve().parents[2]
RUNTIME = REPOSITORY / "core" / "guests"
SOURCES = REPOSITORY / "tests" / "guest" / "baremetal"
FLOAT_ROWS = REPOSITORY / "tests" / "unit" / "native" / "float"
QEMU = "qemu-system-x86_64"

PASSED = 33  # (16 << 1) | 1: what finish() writes when every check held
MIB = 1 << 20

COMPILE = shlex.split(
    "-m64 -std=gnu17 -O2 -ffreestanding -nostdlib -static -fno-pie -no-pie -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -mno-red-zone -mgeneral-regs-only -Wall -Wextra -Wno-format "
    "-Wl,--build-id=none -Wl,-z,max-page-size=4096 -Wl,-z,noexecstack"
)
RUNTIME_SOURCES = ("start.S", "traps.S", "traps.c", "console.c", "paging.c", "lapic.c", "cores.c")


@dataclass(frozen=True)
class RunResult:
    """How a guest ended. ``status`` is None when it did not end by debug-exit; then ``ended`` says how:
    'power-off', 'reset', 'timeout' or what ``Host.wait`` calls it ('triple-fault', 'internal-error')."""

    output: str
    ended: str
    status: int | None
    seconds: float
    stats: list[dict[str, int | str]] = field(default_factory=list)
    detail: str = ""
    code: dict[str, int] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """The ``key=value`` words of the output; a key that comes twice keeps its last value."""
        found: dict[str, float] = {}
        for word in self.output.split():
            key, equals, value = word.partition("=")
            if equals and value.lstrip("-").isdigit():
                found[key] = float(value)
        return found

    def total(self, counter: str) -> int:
        """The sum of a counter of ``Host.stats`` over the vCPUs."""
        return sum(int(vcpu[counter]) for vcpu in self.stats)

    def story(self) -> str:
        """What to show when a test fails."""
        return f"ended by {self.ended} {self.detail} after {self.seconds:.2f} s\n{self.output}"


def build_guest(theme: str, folder: Path, sources: Path = SOURCES) -> Path:
    """Compile a theme's guest (``theme.c``, ``theme_*.c``, ``theme_*.S`` in ``sources``) to an ELF32 file in
    ``folder``.

    Raises subprocess.CalledProcessError when the compiler refuses.
    """
    parts = sorted(p for p in sources.glob(f"{theme}*") if p.suffix in (".c", ".S"))
    return _compile(theme, [p for p in parts if p.stem == theme or p.stem.startswith(f"{theme}_")], folder)


def build_builtin_guest(folder: Path) -> Path:
    """The guest that the package carries, built from its source; the ELF32 file."""
    return _compile("built-in", [RUNTIME / "smp.c"], folder)


def build_float_guest(folder: Path, rows_each: int = 64) -> Path:
    """The guest ``float`` with this host's own answers to ``rows_each`` operands of each instruction (at most
    256) built in; the ELF32 file. An x86-64 host only.
    """
    export, rows = folder / "float_export", folder / "float_rows.bin"
    host_sources = [FLOAT_ROWS / "float_export.c", FLOAT_ROWS / "float_host.c"]
    subprocess.run(["gcc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-o", export, *host_sources], check=True)
    subprocess.run([export, str(rows_each), rows], check=True)
    return _compile("float", [SOURCES / "float.c"], folder, [f'-DFLOAT_ROWS_FILE="{rows}"'])


def _compile(name: str, sources: list[Path], folder: Path, options: Sequence[str] = ()) -> Path:
    elf64, elf32 = folder / f"{name}.elf64", folder / f"{name}.elf"
    script = f"-Wl,-T,{RUNTIME / 'guest.ld'}"
    runtime = [RUNTIME / name for name in RUNTIME_SOURCES]
    command: list[str | Path] = [
        "gcc",
        *COMPILE,
        *options,
        f"-I{RUNTIME}",
        f"-I{SOURCES}",
        script,
        "-o",
        elf64,
    ]
    subprocess.run([*command, *runtime, *sources], check=True)
    # Multiboot 1 knows ELF32 only.
    subprocess.run(["objcopy", "--strip-all", "-O", "elf32-i386", elf64, elf32], check=True)
    return elf32


class BaremetalMachine:
    """A machine put together in this process. A context manager: leaving it ends all of its threads.

    ``host`` is the native engine, ``console`` what the guest prints. The constructor lays out RAM; ``start``
    lets the guest run; ``finish`` waits for its end. With a ``state`` the guest goes on from there,
    with a ``bios`` and no guest it begins in that.
    """

    def __init__(
        self,
        guest: Path | None,
        *,
        vcpus: int,
        cmdline: str = "",
        protection: str = "auto",
        ram_bytes: int = 128 * MIB,
        modules: Sequence[tuple[bytes, str]] = (),
        disks: Sequence[Path | str] = (),
        cdrom: Path | None = None,
        roms: Sequence[Rom] = (),
        bios: bytes = b"",
        boot: Sequence[str] = (),
        vga_bios: bytes = b"",
        state: MachineState | None = None,
    ) -> None:
        self.console = ConsolePort()
        self.events: list[PowerEvent] = []
        self._over = threading.Event()
        self._started = 0.0
        disc = check_cdrom(cdrom)
        description = MachineDescription(
            vcpus=vcpus,
            ram_bytes=ram_bytes,
            kernel=guest.read_bytes() if guest is not None else b"",
            cmdline=cmdline,
            modules=tuple(Module(data, text) for data, text in modules),
            protection=protection,
            unpack=False,
            disks=check_disks(list(disks)) + (() if disc is None else (disc,)),
            roms=tuple(roms),
            bios=bios,
            bios_bytes=len(bios),
            boot=tuple(boot),
            vga_bios=vga_bios,
        )
        assembled = assemble(description, self.console, self._on_power, state=state)
        self.host, self.node, self.clock = assembled.host, assembled.node, assembled.clock
        self._close = assembled.close

    def _on_power(self, event: PowerEvent) -> None:
        self.events.append(event)
        self._over.set()

    def __enter__(self) -> "BaremetalMachine":
        self.node.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.host.stop()
        self.node.stop()
        self._close()

    def start(self) -> None:
        """Let the vCPUs run."""
        self._started = time.monotonic()
        self.host.start()

    def save(self) -> MachineState:
        """The state of this moment; the guest goes on."""
        self.host.pause()
        self.node.stop()
        state = MachineState.take(self.host, self.node, self.clock)
        self.node.start()
        self.host.resume()
        return state

    def output(self) -> str:
        """All that the guest has printed so far."""
        return self.console.read(0, 0.0)[0].decode("latin-1")

    def wait_for(self, text: str, timeout: float = 20.0) -> str:
        """Wait until the guest has printed ``text``; all output. Raises AssertionError at the timeout."""
        deadline = time.monotonic() + timeout
        while text not in self.output():
            assert time.monotonic() < deadline, f"no {text!r} from the guest:\n{self.output()}"
            time.sleep(0.002)
        return self.output()

    def finish(self, timeout: float = 60.0) -> RunResult:
        """Wait for the guest's end, or give up; the vCPUs are parked then."""
        crash: Any = None
        deadline = time.monotonic() + timeout
        while not self._over.wait(0.002):
            crash = self.host.wait(0.0)
            if crash or time.monotonic() > deadline:
                break
        seconds = time.monotonic() - self._started
        self.host.pause()
        ended, detail, status = "timeout", "", None
        if self.events:
            ended = self.events[0].kind
            status = self.events[0].value << 1 | 1 if ended == "debug-exit" else None
        elif crash:
            vcpu = int(str(crash["vcpu"]))
            ended, detail = str(crash["kind"]), f"{crash['detail']} {self._registers(vcpu)}"
        else:
            detail = self._registers(0)
        return RunResult(
            self.output(), ended, status, seconds, self.host.stats(), detail, self.host.code_counters()
        )

    def _registers(self, vcpu: int) -> str:
        state = self.host.registers(vcpu)
        return " ".join(f"{name}={value:x}" for name, value in state.items() if isinstance(value, int))


def run_on_coremesh(
    guest: Path,
    *,
    vcpus: int,
    cmdline: str = "",
    protection: str = "auto",
    ram_bytes: int = 128 * MIB,
    modules: Sequence[tuple[bytes, str]] = (),
    disks: Sequence[Path] = (),
    roms: Sequence[Rom] = (),
    bios: bytes = b"",
    timeout: float = 60.0,
) -> RunResult:
    """Start the guest on a machine of its own in this process and wait for its end."""
    with BaremetalMachine(
        guest,
        vcpus=vcpus,
        cmdline=cmdline,
        protection=protection,
        ram_bytes=ram_bytes,
        modules=modules,
        disks=disks,
        roms=roms,
        bios=bios,
    ) as machine:
        machine.start()
        return machine.finish(timeout)


def qemu_is_there() -> bool:
    """Whether the emulator to compare with is installed."""
    return shutil.which(QEMU) is not None


def run_on_qemu(
    guest: Path,
    *,
    vcpus: int,
    cmdline: str = "",
    cpu: str = "max,vendor=GenuineIntel",
    timeout: float = 60.0,
    program: Sequence[str] = (QEMU,),
    options: Sequence[str] = (),
) -> RunResult:
    """The same on QEMU with its multi-threaded translator.

    ``program`` is its command and first arguments, ``options`` are more of them.
    """
    command = f"-accel tcg,thread=multi -cpu {cpu} -m 128 -smp {vcpus} -display none -no-reboot"
    devices = ["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    started = time.monotonic()
    try:
        done = subprocess.run(
            [*program, *command.split(), *devices, *options, "-kernel", str(guest), "-append", cmdline],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode("latin-1")
        return RunResult(output, "timeout", None, time.monotonic() - started)
    output = done.stdout.decode("latin-1")
    seconds = time.monotonic() - started
    if done.returncode & 1 and done.returncode > 1:
        return RunResult(output, "debug-exit", done.returncode, seconds)
    return RunResult(output, "reset or power-off", None, seconds, detail=done.stderr.decode("latin-1"))
