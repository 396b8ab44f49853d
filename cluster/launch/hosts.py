# SPDX-License-Identifier: GPL-2.0-or-later
"""The host processes of one machine, driven as one: placed, started in step, watched, ended together.

They are brought up in step, as :mod:`coremesh.cluster.machine.bring_up` says. A machine of one host on this
computer is a child process (child.py), without Ray; on a cluster it is one actor and nothing else. With
several, a *watch* thread in this process then waits for the first host that ends, decides what the machine
ended with, and stops the others.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar, TypeVarTuple

from coremesh.cluster.launch import metrics, session
from coremesh.cluster.launch.child import Child, ChildCall
from coremesh.cluster.launch.observation import Observation
from coremesh.cluster.launch.placement import Placement, place
from coremesh.cluster.machine import bring_up, log
from coremesh.cluster.machine.attachments import MOST_ATTACHED
from coremesh.cluster.machine.build import Build
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.device_host import DeviceHost
from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.host import Examined, HostProcess
from coremesh.cluster.machine.lifeline import ProcessIdentity
from coremesh.core.errors import HostLostError

Given = TypeVarTuple("Given")
Argument = TypeVar("Argument")
Result = TypeVar("Result")

# A blocking method of each kind has threads of its own, so that a long wait never keeps a short call waiting.
# The code of each attached device has a call that waits, and may make one more.
_GROUPS = {
    "console": 8,
    "waiting": 8,
    "control": 4,
    "telling": 2,
    "devices": MOST_ATTACHED,
    "device calls": 4,
}
_GROUP_OF = {
    "read_console": "console",
    "feed_console": "control",
    "press_keys": "control",
    "watch_screen": "console",
    "resize_console": "control",
    "wait": "waiting",
    "wait_shell": "waiting",
    "pause": "control",
    "resume": "control",
    "stop": "control",
    "take_events": "telling",
    "sample": "telling",
    "exchange_device": "devices",
    "set_device_irq": "device calls",
    "dma_read": "device calls",
    "dma_write": "device calls",
}
_WATCH_SECONDS = 10.0  # a remote wait of the watch; it returns at once when the host ends
_VERDICT_SECONDS = 0.8  # for the device host to say which host is lost, after another one was cut off
_REPORT_SECONDS = 0.3  # for the others to say what they did, before the loss is told
_STOP_SECONDS = 2.0  # for the other hosts to stop after a loss; one that takes longer is killed
_LOOK_SECONDS = 0.5  # between looks whether the machine is to end
_LEAVE_SECONDS = 2.0  # for the watch to notice that the machine ends
_STOPPING = bring_up.Step("stopping the vCPUs", 25.0)


class _Actor:
    """The actor of one host as it is brought up: :class:`bring_up.SteppedHost`."""

    def __init__(self, remote: session.Remote | Child, name: str, interface: str) -> None:
        self.name = name
        self.interface = interface
        self._remote = remote

    def begin(self, step: Callable[[Any, *Given], Result], /, *arguments: *Given) -> bring_up.Pending[Result]:
        return self._remote.begin(step.__name__, *arguments)

    def begin_with(
        self, step: Callable[[Any, Argument], Result], argument: bring_up.Pending[Argument], /
    ) -> bring_up.Pending[Result]:
        # Ray brings a result from one actor to the other, without a stay in this process.
        return self._remote.begin(step.__name__, argument)


class Hosts:
    """The actors of one machine, by number. Any thread may call."""

    def __init__(self, description: MachineDescription, child: Child | None = None) -> None:
        """Start the actors' processes, in the Ray that this process uses; or use `child` as the only host."""
        self._description = description
        self._placement: Placement | None = None
        self._remotes: list[session.Remote | Child] = []
        self._found: list[Examined] = []
        self._identities: list[ProcessIdentity] = []
        self._condemned: set[int] = set()  # hosts whose processes are to end
        self._watch: threading.Thread | None = None
        self._observation: Observation | None = None
        self._closing = threading.Event()
        self._decided = threading.Event()
        self._lock = threading.Lock()  # the next two, set once, before _decided
        self._end: MachineEnd | None = None
        self._loss: HostLostError | None = None
        self.warning = ""  #: a word for the person about where the hosts run; often empty
        try:
            if child is not None:
                self._remotes = [child]
                begun = bring_up.STEPS["examine"]
                made = child.begin("__init__", description, ProcessIdentity.current())
                made.result(begun.seconds, begun.doing)
                self._observe()
                return
            if description.hosts > 1:
                self._placement = place(description.hosts)
                # Without a cluster, hosts that share this computer are what was asked for.
                self.warning = "" if session.is_own() else self._placement.warning
            self._remotes = _start_actors(description, self._placement)
            self._observe()
        except BaseException:
            self.close()
            raise

    def _observe(self) -> None:
        self._observation = Observation(self._remotes)
        size = {"vcpus": self._description.vcpus, "hosts": len(self), "memory": self._description.ram_bytes}
        log.event("info", "machine-starting", machine=self._description.name, **size)

    def __len__(self) -> int:
        return self._description.hosts

    @property
    def device_host(self) -> int:
        """Which of them has the devices."""
        return self._description.device_host

    def __getitem__(self, host: int) -> session.Remote | Child:
        return self._remotes[host]

    # --- up ----------------------------------------------------------------------------------------------

    def await_processes(self, build: Build) -> None:
        """Wait until all processes run, and see that they run `build`, the driver's own.

        Raises :class:`PlatformError` with the node that has another one.
        """
        with self._loss_of_all():
            self._found = bring_up.examine(self._actors(), build)
        self._identities = [facts.identity for facts in self._found]

    def prepare(self) -> dict[str, Any]:
        """Lay out the machine and return what was chosen; its images are laid, its links run.

        Keys are 'pid', 'protection' and 'tsc_hz' of host 0, and with several hosts also 'placement',
        'warning', 'wire' (which, and why) and 'hosts', a list of such dictionaries with 'host', 'node',
        'vcpus' and 'link' (the address that its peers connect to) beside.
        """
        with self._loss_of_all():
            chosen = bring_up.prepare(self._description, self._actors(), self._found)
        facts = [asdict(host) for host in chosen.hosts]
        if self._placement is None:
            return facts[0]
        rows = [
            {
                "host": host,
                "node": self._placement.nodes[host],
                "vcpus": self._description.vcpus_of(host),
                "link": chosen.ends[host].endpoint,
                **facts[host],
            }
            for host in range(len(self))
        ]
        return {
            **facts[0],
            "placement": self._placement.strategy,
            "warning": self.warning,
            "wire": f"{chosen.wire}: {chosen.why}",
            "hosts": rows,
        }

    def start(self) -> None:
        """Start the vCPUs: the host whose first one boots the guest last."""
        with self._loss_of_all():
            bring_up.start(self._description, self._actors())
        if isinstance(self[0], Child):
            name = self._description.name
            metrics.follow(lambda: self[0].begin("sample").result(), name)
        if len(self) > 1:
            self._watch = threading.Thread(target=self._watch_hosts, name="hosts watch", daemon=True)
            self._watch.start()

    def _actors(self) -> list[_Actor]:
        interfaces = ("",) if self._placement is None else self._placement.interfaces
        return [
            _Actor(remote, f"host {host}{self._on_node(host)}", interface)
            for host, (remote, interface) in enumerate(zip(self._remotes, interfaces, strict=True))
        ]

    # --- calls -------------------------------------------------------------------------------------------

    def call(self, method: str, *arguments: Any, host: int | None = None) -> Any:
        """Call a method of a host, by default of the one with the devices, and return its result.

        :class:`HostLostError` once a host was lost.
        """
        with self._loss_of_all():
            called = self[self.device_host if host is None else host]
            return _result(method, called.begin(method, *arguments))

    def all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every host at the same time; return the results in the hosts' order."""
        with self._loss_of_all():
            calls = [remote.begin(method, *arguments) for remote in self._remotes]
            return [_result(method, call) for call in calls]

    @contextlib.contextmanager
    def _loss_of_all(self) -> Iterator[None]:
        """Whatever host is lost in here, the error is the first loss of the machine."""
        self._require_no_loss()
        try:
            yield
        except HostLostError as error:
            raise copy.copy(self._first_loss(error)) from None

    def _require_no_loss(self) -> None:
        """Raise the machine's loss, a new copy each time.

        An exception that is raised keeps the frames that it passes, and what their variables refer to. The
        one that is kept here would keep all of them, as long as the machine lives.
        """
        if self._loss is not None:
            raise copy.copy(self._loss)

    # --- down --------------------------------------------------------------------------------------------

    def wait(self, timeout: float) -> MachineEnd | None:
        """Return how the machine ended, None if it runs on after `timeout` seconds; raises its loss."""
        if self._watch is None:
            end: MachineEnd | None = self.call("wait", timeout)
            return end
        self._decided.wait(timeout)
        self._require_no_loss()
        return self._end

    def stop(self) -> MachineEnd:
        """Stop all vCPUs if they still run; return how the machine ended."""
        if self._watch is None or self._loss is not None:
            end: MachineEnd = self.call("stop")
            return end
        if not self._decided.is_set():
            self._decide(MachineEnd("stopped"))
        end = self.all("stop")[self.device_host]
        return self._end if self._end is not None and self._end.kind != "stopped" else end

    def close(self) -> None:
        """End all processes and give their places back. Harmless when they have gone already."""
        if self._observation is not None:
            self._observation.close()
        self._closing.set()
        session.attempt(self._end_with_ray)
        self._condemned.update(range(len(self._remotes)))
        self._kill_visible()
        if self._watch is not None and self._watch is not threading.current_thread():
            self._watch.join(_LEAVE_SECONDS)

    def _end_with_ray(self) -> None:
        for remote in self._remotes:
            with contextlib.suppress(Exception):
                remote.kill()
        if self._placement is not None:
            self._placement.release()

    def _kill(self, host: int) -> None:
        self._condemned.add(host)
        session.attempt(self[host].kill)
        self._kill_visible()

    def _kill_visible(self) -> None:
        """A process that is stopped or hangs does not hear Ray; where we can see it, the kernel ends it."""
        for host, identity in enumerate(self._identities):
            if host in self._condemned and identity.is_visible():
                with contextlib.suppress(OSError):
                    os.kill(identity.pid, signal.SIGKILL)

    # --- the watch ---------------------------------------------------------------------------------------

    def _watch_hosts(self) -> None:
        try:
            self._watch_until_one_ends()
        except HostLostError as loss:
            if not self._closing.is_set():
                self._first_loss(loss)
        except Exception as error:  # Ray itself was shut down, or lost
            if not self._closing.is_set():
                self._first_loss(
                    HostLostError(f"Ray no longer tells of the hosts ({error}). Start the machine again.")
                )

    def _watch_until_one_ends(self) -> None:
        calls = {host: self[host].begin("wait", _WATCH_SECONDS) for host in range(len(self))}
        while not self._closing.is_set():
            host = session.first_done(calls, _LOOK_SECONDS)
            if host is None:
                session.require_ray()
                continue
            try:
                end = calls[host].result()
            except Exception as error:
                if not self._closing.is_set():
                    self._lose(host, self._process_lost(host, error))
                return
            if end is None:
                calls[host] = self[host].begin("wait", _WATCH_SECONDS)
                continue
            end = self._judge(end)
            if end.lost:
                lost = end.host or 0
                self._lose(lost, self._link_lost(lost, end.state))
            else:
                self._decide(end)
                with contextlib.suppress(Exception):
                    self.all("stop")
            return

    def _judge(self, end: MachineEnd) -> MachineEnd:
        """The machine's end, when `end` is the first that a host told of.

        A host that was cut off knows only that it was. Host 0 knows best, for all leases are its own: is it
        silent, then it is the lost one. An orderly end there came before the silence and explains it.
        """
        if end.kind != "fenced":
            return end
        call = self[0].begin("wait", _VERDICT_SECONDS)
        silent = session.first_done({0: call}, _VERDICT_SECONDS + 0.2) is None
        said: MachineEnd | None = None
        try:
            said = None if silent else call.result()
        except HostLostError:
            silent = True
        if silent:
            return MachineEnd("host-lost", host=0)
        return said if said is not None else MachineEnd("host-lost", host=end.host)

    def _lose(self, lost: int, loss: HostLostError) -> None:
        loss.state = loss.state or self._reports(lost)
        self._first_loss(loss)
        self._kill(lost)  # it may stand still, and a call wait for its answer
        # What still runs is of no use without the lost host's memory: first the vCPUs, then the processes.
        calls = {host: remote.begin("stop") for host, remote in enumerate(self._remotes) if host != lost}
        deadline = time.monotonic() + _STOP_SECONDS
        while calls and (left := deadline - time.monotonic()) > 0:
            host = session.first_done(calls, left)
            if host is not None:
                del calls[host]
        self.close()

    def _reports(self, lost: int) -> str:
        """What the other hosts say of themselves, as far as they answer at once."""
        calls = {host: remote.begin("report") for host, remote in enumerate(self._remotes) if host != lost}
        texts: dict[int, str] = {}
        deadline = time.monotonic() + _REPORT_SECONDS
        while calls and (left := deadline - time.monotonic()) > 0:
            host = session.first_done(calls, left)
            if host is not None:
                with contextlib.suppress(Exception):
                    texts[host] = calls[host].result()
                del calls[host]
        return "\n".join(texts[host] for host in sorted(texts) if texts[host])

    def _process_lost(self, host: int, error: Exception) -> HostLostError:
        if self._loss is not None:
            return self._loss
        if isinstance(error, HostLostError):
            return error
        return HostLostError(f"host {host}{self._on_node(host)} failed: {error}. Start the machine again.")

    def _link_lost(self, host: int, state: str) -> HostLostError:
        return HostLostError(
            f"host {host}{self._on_node(host)} no longer answers the other hosts, and all have stopped. See "
            "that its node runs and that the network lets the hosts reach each other, then start the machine "
            "again.",
            state,
        )

    def _on_node(self, host: int) -> str:
        return f" (node {self._placement.nodes[host]})" if self._placement is not None else ""

    def _first_loss(self, loss: HostLostError) -> HostLostError:
        with self._lock:
            if self._loss is None and (self._end is None or self._end.kind == "stopped"):
                self._loss = loss
            kept = self._loss or loss
        log.event("error", "host-lost", machine=self._description.name, reason=str(kept))
        self._decided.set()
        return kept

    def _decide(self, end: MachineEnd) -> None:
        with self._lock:
            if self._end is None and self._loss is None:
                self._end = end
        self._decided.set()


def _result(method: str, call: session.Call | ChildCall) -> Any:
    if method == "stop":
        return call.result(_STOPPING.seconds, _STOPPING.doing)
    return call.result()


def start_child() -> Child:
    """Start the process of the only host of a machine on this computer; it gets ready meanwhile."""
    return Child(_GROUPS, _GROUP_OF, others=4)


def _start_actors(
    description: MachineDescription, placement: Placement | None
) -> list[session.Remote | Child]:
    import ray

    remote: Any = ray.remote  # its annotations do not know concurrency groups
    driver = ProcessIdentity.current()
    actors: list[session.Remote | Child] = []
    classes = (
        (metrics.MeteredDeviceHost, metrics.MeteredHost) if metrics.wanted() else (DeviceHost, HostProcess)
    )
    for host in range(description.hosts):
        actor_class = remote(
            num_cpus=0, max_restarts=0, max_task_retries=0, concurrency_groups=_GROUPS, max_concurrency=4
        )(classes[host != description.device_host])
        # The images go to the host that reads them.
        own = description if host == description.device_host else description.without_images()
        if placement is None:
            actors.append(session.Remote(actor_class.remote(own, driver), _GROUP_OF))
        else:
            actor = actor_class.options(**placement.options(host)).remote(own, driver)
            actors.append(session.Remote(actor, _GROUP_OF, f"host {host} (node {placement.nodes[host]})"))
    return actors
