# SPDX-License-Identifier: GPL-2.0-or-later
"""The one object that a person handles: a guest computer, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from coremesh.cluster.launch import preflight, session, telemetry
from coremesh.cluster.launch.attached import Attachment, Place, wanted_of
from coremesh.cluster.launch.hosts import Hosts, start_child
from coremesh.cluster.launch.inspection import Inspection
from coremesh.cluster.machine.build import own_build
from coremesh.cluster.machine.command import run_command
from coremesh.cluster.machine.console import Console
from coremesh.cluster.machine.consoles import ConsoleDevice
from coremesh.cluster.machine.describe import describe
from coremesh.cluster.machine.description import HostsWanted
from coremesh.cluster.machine.disks import Disk
from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.folders import Folder
from coremesh.cluster.machine.networks import Network
from coremesh.cluster.machine.option_table import OPTIONS
from coremesh.cluster.machine.options import Image, check
from coremesh.cluster.machine.shell import PROMPT, CommandResult
from coremesh.core.errors import (
    ConfigurationError,
    ConsoleTimeoutError,
    CoremeshError,
    HostLostError,
    MachineStateError,
)

_WAIT_SLICE = 1.0  # seconds a remote wait blocks, so that Ctrl-C is noticed in between


class Machine(Inspection):
    """A guest computer with `vcpus` cores and `memory` bytes of RAM, running when the constructor returns.

    >>> from coremesh import Machine
    >>> with Machine(vcpus=2, memory="256M") as machine:
    ...     machine.run("nproc")
    ...     machine.wait(timeout=0) is None  # it still runs
    ...     int(machine.stats()["interrupts"].sum()) > 0
    CommandResult(output='2\\n', status=0, raw=b'2\\n')
    True
    True
    >>> machine.state
    'stopped'

    The first machine fetches Debian's kernel. One host is a child process of this one; for several, Ray is
    started here, quietly, and shared by all machines of the process. Options:

    **Size.** `vcpus` is 1 to 255. `memory` is bytes, or text such as "512M" or "1.5G" in powers of 1024.

    **What it boots.** `kernel` and `initrd` are paths or bytes: a bzImage, a vmlinux, or a kernel of
    Multiboot, Multiboot 2 or PVH. Without a kernel it is Debian's with a busybox initramfs, fetched at first
    use, of a `flavour`: "amd64", "cloud-amd64", or of 32 bits "686-pae", "686". `cmdline` replaces the
    kernel's default command line; `append` is added to it, and its words replace default ones of the same
    names. `modules` are those of Multiboot: paths, bytes, or pairs of one of these and a text. `unpack` lets
    the host unpack a bzImage, which saves the guest seconds and costs it the random address of its kernel
    (KASLR). With `bios` it begins in a firmware instead, which boots a disk, a CD-ROM, or the bzImage that
    `kernel` gives: True takes Debian's SeaBIOS, a path or bytes another one. `boot` is what it tries first:
    "cdrom,disk", or "disk1" for the second of `disks`. A guest's reset restarts the machine; without
    `reboot` it ends it, as power-off does.

    **Devices.** `disks` are paths of images, texts as of ``--disk``, or :class:`Disk`; `cdrom` is a CD
    image. `net` are network cards: texts as of ``--net``, or :class:`Network`. `console` is 'serial' or
    'virtio', which is faster: a text as of ``--console``, or :class:`ConsoleDevice`. `folders` are shared
    folders: paths, texts as of ``--share``, or :class:`Folder`. `rng` is a source of random bytes: True, or
    how many a second it gives.

    **Hosts.** `hosts` is a number of hosts over which the vCPUs are spread, or the vCPUs of each: ``[6, 2]``
    or ``[{"vcpus": 6}, {"vcpus": 2}]``. `device_host` is the number of the one that has the devices; it may
    have nothing else, as the first of ``[0, 4, 4]``. Without `vcpus` each host of a number has one. All run
    on this computer unless `address` names a Ray cluster, "host:port", or "auto" for the cluster of which
    this computer is a node; there each host gets a node of its own if there are enough (:attr:`warning` says
    when not). `wire` carries the messages between hosts: 'shm' (shared memory) for hosts on one computer,
    'tcp' or 'zmq' for a network; 'auto' chooses, and :attr:`facts` tells which and why. What passes over a
    network is encrypted and authenticated; `curve` turns that off for 'zmq', only to measure its cost.
    `policy` says when a locked operation goes to its page instead of the page to the operation: 'never',
    'always' or 'adaptive'.

    **The rest.** `prompt` is a regular expression (bytes, or text) for the prompt of the guest's shell.
    `protection` is how guest memory is guarded: 'auto', 'userfaultfd' or 'mprotect'. `progress` is a
    function that is told about a fetch: what is done, and how much of it (0..1), on the calling thread.

    Raises :class:`ConfigurationError` for options that cannot be, :class:`GuestImageError`,
    :class:`ImageFetchError`, :class:`DiskError` and :class:`NetworkError` for what it needs and does not
    get, :class:`PlatformError` for a computer that lacks something, and :class:`HostLostError` when a host
    has gone or does not answer. Then nothing is left running.

    Any thread may call any method. A method of a machine that was stopped raises :class:`MachineStateError`,
    one of a machine whose host was lost raises :class:`HostLostError`. A machine that is no longer referred
    to is stopped, and so are all at the end of the process, however it ends.

    Attributes, set once: `vcpus` and `shares` (vCPUs in all, and by host), `memory` in bytes, `cmdline` as
    the kernel got it, and `console`, the guest's :class:`Console`.
    """

    def __init__(
        self,
        vcpus: int | None = None,
        memory: int | str = "1G",
        kernel: Image | None = None,
        initrd: Image | None = None,
        cmdline: str | None = None,
        modules: Sequence[Image | tuple[Image, str]] = (),
        *,
        hosts: HostsWanted = 1,
        device_host: int = 0,
        policy: str = "adaptive",
        curve: bool = True,
        wire: str = "auto",
        append: str = "",
        address: str | None = None,
        prompt: str | bytes | re.Pattern[bytes] = PROMPT,
        protection: str = "auto",
        unpack: bool = True,
        flavour: str = "amd64",
        bios: Image | bool | None = None,
        boot: str | Sequence[str] = (),
        reboot: bool = True,
        disks: Sequence[Disk | str | os.PathLike[str]] = (),
        cdrom: str | os.PathLike[str] | None = None,
        net: str | Network | Sequence[str | Network] = (),
        console: str | ConsoleDevice = "serial",
        folders: Sequence[Folder | str | os.PathLike[str]] = (),
        rng: bool | int | str | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name in OPTIONS}
        address = check("address", options.pop("address"))
        # One host here needs no Ray. Its process gets ready while the images are read.
        child = start_child() if address is None and isinstance(hosts, int) and hosts == 1 else None
        try:
            build = own_build()
            self._description = describe(**options)
            if child is not None:
                preflight.require_threads(preflight.threads_of(self._description.vcpus, 1))
        except BaseException:
            if child is not None:
                child.kill()
            raise
        self.shares = self._description.shares
        self.vcpus = self._description.vcpus
        self.memory = self._description.ram_bytes
        self.cmdline = self._description.cmdline
        self._end: MachineEnd | None = None
        self._paused = False
        self._shell = threading.Lock()  # one command at a time
        self._timings: dict[str, float | None] = {
            "ray_start": 0.0 if child is not None else session.ensure(address, self.vcpus, len(self.shares))
        }

        begin = time.monotonic()
        self._hosts = Hosts(self._description, child)
        self._finalizer = weakref.finalize(self, self._hosts.close)
        try:
            self._hosts.await_processes(build)
            self._timings["actor_start"] = time.monotonic() - begin
            begin = time.monotonic()
            self._facts: dict[str, Any] = self._hosts.prepare()
            self._timings["load"] = time.monotonic() - begin
            self._hosts.start()
        except BaseException:
            self._finalizer()
            raise
        self.console = Console(self._hosts, lambda: self.wait(0), self._told)
        telemetry.show(self)

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
        command, timeout = check("command", command), check("timeout", timeout)
        on_output = check("on_output", on_output)
        if self._paused:
            raise MachineStateError("the machine is paused: call resume() first.")
        with self._shell:
            self.wait_shell(timeout)
            console = Console(self._hosts, lambda: self.wait(0), self._told)
            console.skip()
            before = self.restarts

            def alive() -> None:
                if self.restarts != before:
                    raise MachineStateError("the guest restarted before the command ended.")

            console.watch = alive
            left = None if timeout is None else max(0.1, timeout - (time.monotonic() - begin))
            return run_command(console, command, left, on_output)

    async def run_async(
        self,
        command: str,
        timeout: float | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> CommandResult:
        """As :meth:`run`, for an event loop, as a notebook's; `on_output` is called on another thread.

        `timeout` is in seconds. Raises what :meth:`run` raises, :class:`ConsoleTimeoutError` among it.
        """
        return await asyncio.to_thread(self.run, command, timeout, on_output)

    async def wait_shell_async(self, timeout: float | None = None) -> float:
        """As :meth:`wait_shell`, for an event loop; `timeout` is in seconds.

        Raises what :meth:`wait_shell` raises, :class:`ConsoleTimeoutError` among it.
        """
        return await asyncio.to_thread(self.wait_shell, timeout)

    async def wait_async(self, timeout: float | None = None) -> MachineEnd | None:
        """As :meth:`wait`, for an event loop; `timeout` is in seconds.

        Raises what :meth:`wait` raises, :class:`HostLostError` among it.
        """
        return await asyncio.to_thread(self.wait, timeout)

    def wait_shell(self, timeout: float | None = None) -> float:
        """Wait until a shell has shown its prompt; return when that was, in seconds of emulation.

        After a restart that is the next shell's.

        Raises :class:`ConsoleTimeoutError` after `timeout` seconds (None: never), :class:`GuestCrashError` or
        :class:`MachineStateError` when the machine ends before.
        """
        begin, timeout = time.monotonic(), check("timeout", timeout)
        while (ready := self._call("wait_shell", 0.0)) is None:
            left = _WAIT_SLICE if timeout is None else min(_WAIT_SLICE, timeout - (time.monotonic() - begin))
            if left <= 0:
                tail = self._tail()
                raise ConsoleTimeoutError(
                    f"no shell prompt on the console in {timeout:g} s; its last bytes: {tail[-200:]!r}",
                    tail,
                    self._told(),
                )
            ready = self._call("wait_shell", left)
            if ready is not None:
                break
            if (end := self.wait(0)) is not None:
                raise end.error() if end.crashed else MachineStateError(f"{end} before a shell was ready.")
        if self._timings.get("boot") is None:
            self._timings["boot"] = ready
        return float(ready)

    def pause(self) -> None:
        """Park all vCPUs, on all hosts; return when none of them runs. Guest time goes on.

        Raises :class:`MachineStateError` when the machine has ended.
        """
        self._require_alive()
        self._hosts.all("pause")
        self._paused = True

    def resume(self) -> None:
        """Let parked vCPUs go on. Raises :class:`MachineStateError` when the machine has ended."""
        self._require_alive()
        self._hosts.all("resume")
        self._paused = False

    def wait(self, timeout: float | None = None) -> MachineEnd | None:
        """Wait for the machine's end and return it; None if it still runs after `timeout` seconds.

        Without `timeout` it waits for ever; 0 only looks. Raises :class:`HostLostError`.
        """
        begin, timeout = time.monotonic(), check("timeout", timeout)
        while self._end is None:
            left = _WAIT_SLICE if timeout is None else min(_WAIT_SLICE, timeout - (time.monotonic() - begin))
            self._require_alive()
            self._end = self._hosts.wait(max(0.0, left))
            if timeout is not None and time.monotonic() - begin >= timeout:
                break
        return self._end

    def stop(self) -> MachineEnd:
        """Switch the machine off if it still runs, free all it holds, and return how it ended.

        The guest is not asked to shut down. To call it again does nothing.
        """
        if self._finalizer.alive:
            try:
                self._end = self._end or self._hosts.stop()
            except HostLostError:
                self._end = MachineEnd("stopped", detail="its host process had gone")
            self._finalizer()
            telemetry.hide(self)
        return self._end or MachineEnd("stopped")

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- reaching into it ---------------------------------------------------------------------------------

    def transact(
        self, operation: str, gpa: int, size: int, operand: int = 0, expected: int = 0, *, host: int = 0
    ) -> int:
        """Execute one memory transaction and return the value that was there before it.

        `operation` is 'load', 'store', 'compare_swap' (stores `operand` if the value is `expected`),
        'exchange', 'add', 'and', 'or', 'xor', 'min', 'max', 'min_signed' or 'max_signed', on `size` bytes (1,
        2, 4, 8, 16) at guest-physical address `gpa`, within one page. It is asked for by `host` and executed
        where the page is, beside running vCPUs. Raises ConfigurationError for what is no such operation,
        MachineStateError on a machine of one host.
        """
        given = {"operation": operation, "gpa": gpa, "size": size, "operand": operand, "expected": expected}
        checked = [check(name, value) for name, value in given.items()]
        host = check("host", host)
        self._require_several()
        if host >= len(self._hosts):
            raise ConfigurationError(f"there is no host {host}; they count from 0.")
        return int(self._hosts.call("transact", *checked, host=host))

    def forward(self, port: str, *, card: int = 0) -> int:
        """Lead a port of the host to the guest's from now on: ``tcp:2222:22``, the host's before the guest's.

        The host is the one with the devices, and by default only its own programs reach the port;
        ``tcp:*:2222:22`` lets others. Port 0 lets the host choose. `card` counts the network cards. Returns
        the host's port. Raises :class:`NetworkError` for one that is taken, ConfigurationError for a card
        that is not on a 'user' network.
        """
        forward, card = check("port", port), check("card", card)
        return int(self._call("forward", forward, card))

    def capture(self, path: str | os.PathLike[str], *, card: int = 0) -> None:
        """Write what passes a network card from now on into a pcap file on the host with the devices.

        `card` counts the network cards from 0. The file is complete when the machine has ended. A full disk,
        or a pipe whose reader stands still, ends it behind a whole frame, and the network goes on. Raises
        :class:`NetworkError` for a file that cannot be written, ConfigurationError for a card that there is
        not.
        """
        place, card = check("path", path), check("card", card)
        self._call("capture", place.absolute(), card)

    def type(self, text: str) -> None:
        """Type on the PS/2 keyboard, as on a US one; control characters are their keys. Returns at once.

        Raises :class:`ConfigurationError` for a character that has no key.
        """
        from coremesh.hw.backend.keys import text_keys

        self._call("press_keys", text_keys(check("text", text)))

    def press(self, keys: str) -> None:
        """Press keys of the PS/2 keyboard, one after the other or held together: ``"up up ctrl-alt-delete"``.

        The keyboard holds them until the guest takes them. A BIOS takes each at once, and keeps only fifteen
        that its program has not read: press long lines in parts there, and look for each on :meth:`screen`.
        Raises :class:`ConfigurationError`, with the names that there are, for a key that there is not.
        """
        from coremesh.hw.backend.keys import combination_keys

        self._call(
            "press_keys", [key for name in check("keys", keys).split() for key in combination_keys(name)]
        )

    def interact_on_screen(self) -> bool:
        """Join this terminal to screen and keyboard until the machine ends (False) or Ctrl-] is typed (True).

        Raises :class:`MachineStateError` where there is no terminal.
        """
        from coremesh.cluster.machine import screen

        self._require_alive()
        return screen.interact(self._hosts)

    def attach(
        self,
        device: Any,
        *,
        mmio: Place | None = None,
        ports: Place | None = None,
        irq: int | None = None,
        name: str | None = None,
        timeout: float = 2.0,
    ) -> Attachment:
        """Let the guest use a device that is written in Python: an object with methods `read` and `write`.

        It answers at the guest-physical addresses `mmio` and at the I/O `ports`: a first address, a pair
        (first, length in bytes) or a range; of a first address alone 4096 bytes, or 8 ports. With both, its
        offsets count through `mmio` and go on with `ports`. `irq` is a free ISA interrupt, 0 to 15, for its
        line. Derive its class from :class:`PythonDevice`, which also reaches guest memory. `name` is its row
        of :meth:`device_stats`.

        Its methods are called in this process. One that does not answer a guest's read within `timeout`
        seconds lets it read all ones, and so does one that raises; :attr:`Attachment.error` is the
        :class:`DeviceError` then. The vCPU that reads waits meanwhile, so do not call methods of the
        machine there that wait for the guest, such as :meth:`run` and :meth:`pause`.

        Raises :class:`ConfigurationError` for a place or an interrupt that is taken, with free ones.
        """
        self._require_alive()
        return Attachment(self._hosts, device, wanted_of(device, mmio, ports, irq, name, timeout))

    # --- looking at it -----------------------------------------------------------------------------------

    @property
    def boot_seconds(self) -> float | None:
        """Seconds from the start of emulation to the first prompt; None while there was none."""
        if self._timings.get("boot") is None and self._finalizer.alive:
            self._timings["boot"] = self._hosts.call("wait_shell", 0.0)
        return self._timings["boot"]

    @property
    def timings(self) -> dict[str, float | None]:
        """Seconds spent: 'ray_start', 'actor_start', 'load' (RAM, devices, images) and 'boot' (emulation).

        Without Ray the first is 0, and the second is the process's start beyond the reading of the images.
        """
        return {**self._timings, "boot": self.boot_seconds}

    @property
    def state(self) -> str:
        """'running', 'paused', 'lost', or the kind of :class:`MachineEnd`."""
        if not self._finalizer.alive:
            return self._end.kind if self._end is not None else "stopped"
        try:
            end = self.wait(0)
        except HostLostError:
            return "lost"
        if end is not None:
            return end.kind
        return "paused" if self._paused else "running"

    def _told(self) -> str:
        with contextlib.suppress(CoremeshError):  # it has ended meanwhile
            return self.report()
        return ""

    def __repr__(self) -> str:
        hosts = f" on {len(self._hosts)} hosts" if len(self._hosts) > 1 else ""
        return f"<Machine: {self.vcpus} vCPUs{hosts}, {self.memory >> 20} MiB, {self.state}>"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        from coremesh.cluster.launch.report import machine_bundle

        return machine_bundle(self)

    def _repr_html_(self) -> str:
        from coremesh.cluster.launch.report import machine_html

        return machine_html(self)

    def _tail(self) -> bytes:
        data: bytes = self._call("read_console", max(0, self._call("console_end") - 2000), 0.0)[0]
        return data
