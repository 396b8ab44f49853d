# SPDX-License-Identifier: GPL-2.0-or-later
"""The one object that a person handles: a guest computer, from its start to its end."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from coremesh.cluster import images, session
from coremesh.cluster.assembly import check_images
from coremesh.cluster.build import extension_hash
from coremesh.cluster.command import run_command
from coremesh.cluster.console import Console
from coremesh.cluster.description import (
    MachineDescription,
    Module,
    check_vcpus,
    default_cmdline,
    parse_memory,
)
from coremesh.cluster.ending import MachineEnd
from coremesh.cluster.host import HostProcess
from coremesh.cluster.lifeline import ProcessIdentity
from coremesh.cluster.shell import PROMPT, CommandResult
from coremesh.core.errors import ConsoleTimeoutError, HostLostError, MachineStateError

if TYPE_CHECKING:
    import pandas

Image = str | os.PathLike[str] | bytes

# A blocking method of each kind has threads of its own, so that a long wait never keeps a short call waiting.
_GROUPS = {"console": 8, "waiting": 8, "control": 4}
_GROUP_OF = {
    "read_console": "console",
    "feed_console": "control",
    "wait": "waiting",
    "wait_shell": "waiting",
    "pause": "control",
    "resume": "control",
    "stop": "control",
}
_WAIT_SLICE = 1.0  # seconds a remote wait blocks, so that Ctrl-C is noticed in between


class Machine:
    """A guest computer with `vcpus` cores and `memory` bytes of RAM, running when the constructor returns.

    ::

        with Machine(vcpus=4) as machine:
            print(machine.run("nproc").output)

    `kernel` and `initrd` are paths or bytes. Without a kernel the machine boots Debian's, with a busybox
    initramfs; both are fetched at first use. `cmdline` replaces the kernel's default command line, `append`
    is added to it. `modules` are Multiboot modules: paths, bytes, or pairs of one of these and a text.
    `address` names a Ray cluster to run on; otherwise Ray is started on this machine, quietly, and shared by
    all machines of the process. `prompt` is a regular expression for the prompt of the guest's shell.
    `protection` is how guest memory is guarded: 'auto', 'userfaultfd' or 'mprotect'. `unpack` lets the host
    unpack a bzImage's kernel, which saves the guest seconds and costs it KASLR. `progress` is told about
    a fetch (what, 0..1).

    Raises :class:`ConfigurationError`, :class:`GuestImageError`, :class:`ImageFetchError` or
    :class:`PlatformError` before anything runs. Methods may be called from any thread. A machine that is no
    longer referred to is stopped, and so are all at the end of the process, however it ends.
    """

    def __init__(
        self,
        vcpus: int = 1,
        memory: int | str = "1G",
        kernel: Image | None = None,
        initrd: Image | None = None,
        cmdline: str | None = None,
        modules: Sequence[Image | tuple[Image, str]] = (),
        *,
        append: str = "",
        address: str | None = None,
        prompt: bytes = PROMPT,
        protection: str = "auto",
        unpack: bool = True,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        self.vcpus = check_vcpus(vcpus)
        self.memory = parse_memory(memory)
        build = extension_hash()
        description = self._describe(kernel, initrd, cmdline, modules, append, prompt, protection, progress)
        description = replace(description, unpack=unpack)
        check_images(description)
        self.cmdline = description.cmdline
        self._end: MachineEnd | None = None
        self._paused = False
        self._shell = threading.Lock()  # one command at a time
        self._timings: dict[str, float | None] = {"ray_start": session.ensure(address)}

        begin = time.monotonic()
        self._remote = _start_actor(description)
        self._finalizer = weakref.finalize(self, _finish, self._remote)
        try:
            self._remote.call("console_end")
            self._timings["actor_start"] = time.monotonic() - begin
            begin = time.monotonic()
            self._facts: dict[str, Any] = self._remote.call("prepare", build)
            self._timings["load"] = time.monotonic() - begin
            self._remote.call("start")
        except BaseException:
            self._finalizer()
            raise
        self.console = Console(self._remote, lambda: self.wait(0))

    # --- running -----------------------------------------------------------------------------------------

    def run(
        self,
        command: str,
        timeout: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> CommandResult:
        """Run a command in the guest's shell and return its output and exit status.

        Waits for the shell first. Standard input is empty; standard error is part of the output. `timeout` is
        in seconds of this host and includes the wait; the command is interrupted then and
        :class:`ConsoleTimeoutError` raised. `on_output` gets the output's bytes as they come.
        """
        begin = time.monotonic()
        if self._paused:
            raise MachineStateError("the machine is paused: call resume() first.")
        with self._shell:
            self.wait_shell(timeout)
            console = Console(self._remote, lambda: self.wait(0))
            console.skip()
            left = None if timeout is None else max(0.1, timeout - (time.monotonic() - begin))
            return run_command(console, command, left, on_output)

    def wait_shell(self, timeout: float | None = None) -> float:
        """Wait until a shell has shown its prompt; return :attr:`boot_seconds`."""
        begin = time.monotonic()
        while self._timings.get("boot") is None:
            left = _WAIT_SLICE if timeout is None else min(_WAIT_SLICE, timeout - (time.monotonic() - begin))
            if left <= 0:
                tail = self._tail()
                raise ConsoleTimeoutError(
                    f"no shell prompt on the console in {timeout:g} s; its last bytes: {tail[-200:]!r}", tail
                )
            self._timings["boot"] = self._call("wait_shell", left)
            if self._timings["boot"] is None and (end := self.wait(0)) is not None:
                raise end.error() if end.crashed else MachineStateError(f"{end} before a shell was ready.")
        seconds = self._timings["boot"]
        assert seconds is not None
        return seconds

    def pause(self) -> None:
        """Park all vCPUs; returns when none runs."""
        self._call("pause")
        self._paused = True

    def resume(self) -> None:
        """Let parked vCPUs go on."""
        self._call("resume")
        self._paused = False

    def wait(self, timeout: float | None = None) -> MachineEnd | None:
        """Wait for the machine's end and return it; None if it still runs after `timeout` seconds."""
        begin = time.monotonic()
        while self._end is None:
            left = _WAIT_SLICE if timeout is None else min(_WAIT_SLICE, timeout - (time.monotonic() - begin))
            self._end = self._call("wait", max(0.0, left))
            if timeout is not None and time.monotonic() - begin >= timeout:
                break
        return self._end

    def stop(self) -> MachineEnd:
        """Switch the machine off if it still runs, free all it holds, and return how it ended."""
        if self._finalizer.alive:
            try:
                self._end = self._end or self._remote.call("stop")
            except HostLostError:
                self._end = MachineEnd("stopped", detail="its host process had gone")
            self._finalizer()
        return self._end or MachineEnd("stopped")

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- looking at it -----------------------------------------------------------------------------------

    @property
    def boot_seconds(self) -> float | None:
        """Seconds from the start of emulation to the first prompt; None while there was none."""
        if self._timings.get("boot") is None and self._finalizer.alive:
            self._timings["boot"] = self._remote.call("wait_shell", 0.0)
        return self._timings["boot"]

    @property
    def timings(self) -> dict[str, float | None]:
        """Seconds spent: 'ray_start', 'actor_start', 'load' (RAM, devices, images) and 'boot' (emulation)."""
        return {**self._timings, "boot": self.boot_seconds}

    @property
    def state(self) -> str:
        """'running', 'paused', or the kind of :class:`MachineEnd`."""
        if not self._finalizer.alive:
            return self._end.kind if self._end is not None else "stopped"
        end = self.wait(0)
        if end is not None:
            return end.kind
        return "paused" if self._paused else "running"

    def stats(self) -> pandas.DataFrame:
        """Return the engine's counters: one row a vCPU, columns as of ``Host.stats``."""
        import pandas

        table = pandas.DataFrame(self._call("stats"))
        table.index.name = "vcpu"
        return table

    def device_stats(self) -> pandas.DataFrame:
        """Return accesses and lock contention: one row a device."""
        import pandas

        table = pandas.DataFrame.from_dict(self._call("device_counters"), orient="index")
        table.index.name = "device"
        return table

    def registers(self, vcpu: int = 0) -> dict[str, Any]:
        """Return a vCPU's registers; the machine must be paused."""
        registers: dict[str, Any] = self._call("registers", vcpu)
        return registers

    def read_memory(self, gpa: int, length: int) -> bytes:
        """Return `length` bytes of guest RAM at guest-physical address `gpa`."""
        data: bytes = self._call("read_memory", gpa, length)
        return data

    def __repr__(self) -> str:
        return f"<Machine: {self.vcpus} vCPUs, {self.memory >> 20} MiB, {self.state}>"

    def _repr_html_(self) -> str:
        from coremesh.cluster.report import machine_html

        return machine_html(self)

    @property
    def facts(self) -> dict[str, Any]:
        """What the host chose: 'protection', 'tsc_hz', 'pid'."""
        return dict(self._facts)

    # --- inside ------------------------------------------------------------------------------------------

    def _call(self, method: str, *arguments: Any) -> Any:
        if not self._finalizer.alive:
            raise MachineStateError("the machine was stopped; make another one.")
        return self._remote.call(method, *arguments)

    def _tail(self) -> bytes:
        data: bytes = self._call("read_console", max(0, self._call("console_end") - 2000), 0.0)[0]
        return data

    def _describe(
        self,
        kernel: Image | None,
        initrd: Image | None,
        cmdline: str | None,
        modules: Sequence[Image | tuple[Image, str]],
        append: str,
        prompt: bytes,
        protection: str,
        progress: Callable[[str, float], None] | None,
    ) -> MachineDescription:
        if kernel is None:
            debian = images.fetch_debian(progress=progress)
            kernel_bytes = debian.kernel.read_bytes()
            initrd_bytes: bytes | None = debian.initramfs() if initrd is None else _load(initrd, "initrd")
        else:
            kernel_bytes = _load(kernel, "kernel")
            initrd_bytes = None if initrd is None else _load(initrd, "initrd")
        line = default_cmdline(kernel_bytes) if cmdline is None else cmdline
        return MachineDescription(
            vcpus=self.vcpus,
            ram_bytes=self.memory,
            kernel=kernel_bytes,
            initrd=initrd_bytes,
            cmdline=f"{line} {append}".strip(),
            modules=tuple(_module(module) for module in modules),
            prompt=prompt,
            protection=protection,
        )


def _load(image: Image, what: str) -> bytes:
    return image if isinstance(image, bytes) else images.read_image(image, what)


def _module(module: Image | tuple[Image, str]) -> Module:
    image, text = module if isinstance(module, tuple) else (module, None)
    if text is None:
        text = "" if isinstance(image, bytes) else os.fspath(image)
    return Module(_load(image, "module"), text)


def _start_actor(description: MachineDescription) -> session.Remote:
    import ray

    remote: Any = ray.remote  # its annotations do not know concurrency groups
    actor_class = remote(
        num_cpus=0, max_restarts=0, max_task_retries=0, concurrency_groups=_GROUPS, max_concurrency=4
    )(HostProcess)
    return session.Remote(actor_class.remote(description, ProcessIdentity.current()), _GROUP_OF)


def _finish(remote: session.Remote) -> None:
    """Free a machine's process; it may have gone already."""
    remote.kill()
