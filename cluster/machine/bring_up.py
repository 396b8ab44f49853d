# SPDX-License-Identifier: GPL-2.0-or-later
"""The hosts of one machine brought up in step: each step is made on all hosts before the next one on any.

The order is: :func:`examine` (the same build everywhere); :func:`prepare` (memory and vCPUs, the images
handed out, links opened, the hosts let in and connected, their links started, one time found); :func:`start`.
A machine of one host has no links, and the same order without them.

Nothing here knows what a host is: an actor of Ray, a process in a network of its own, an object of this
process. Each of them is a :class:`SteppedHost`. Every step has a deadline, because a process that stands
still (SIGSTOP, a frozen container) answers nothing and does not end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple

from coremesh.cluster.machine.build import Build
from coremesh.cluster.machine.description import MachineDescription, Membership
from coremesh.cluster.machine.device_host import DeviceHost
from coremesh.cluster.machine.host import Examined, HostProcess, Prepared
from coremesh.core.errors import HostLostError, PlatformError
from coremesh.core.links import choose_wire
from coremesh.core.links.door import LinkEnd

Given = TypeVarTuple("Given")
Argument = TypeVar("Argument")
Result = TypeVar("Result")
Answer = TypeVar("Answer", covariant=True)

#: Seconds in which the hosts must have heard each other once their links run.
JOIN_SECONDS: Final = 15.0
#: Goes into every message between the hosts; a machine that is brought up again gets another.
EPOCH: Final = 1


@dataclass(frozen=True)
class Step:
    """What a host does in a step, in words that follow 'while', and how many seconds it may take."""

    doing: str
    seconds: float


#: Each step, by the name of the method of :class:`HostProcess` that makes it.
STEPS: Final[dict[str, Step]] = {
    "examine": Step("starting its process", 120.0),
    "prepare": Step("laying out memory and vCPUs", 120.0),
    "portion_of": Step("handing out the images", 120.0),
    "lay": Step("handing out the images", 120.0),
    "open_link": Step("opening its link", 30.0),
    "admit": Step("letting the other hosts connect", 30.0),
    "connect": Step("connecting to the other hosts", 30.0),
    "start_link": Step("starting its link", 30.0),
    "join": Step("finding the other hosts", JOIN_SECONDS + 15.0),
    "start": Step("starting the vCPUs", 30.0),
}


class Pending(Protocol[Answer]):
    """A step that a host has begun."""

    def result(self, seconds: float, step: str) -> Answer:
        """Wait for the step's result, `seconds` at most; `step` says what the host does in it.

        Raises what the step raised, and :class:`HostLostError`, with the name of the host, when that has gone
        or has not answered in time (:func:`unanswered`).
        """


class SteppedHost(Protocol):
    """A host as it is brought up. It makes the steps of :class:`HostProcess`, or of :class:`DeviceHost`."""

    @property
    def name(self) -> str:
        """How messages name it: 'host 1 (node 10.0.0.2)'."""

    @property
    def interface(self) -> str:
        """The address on which its links listen."""

    def begin(self, step: Callable[[Any, *Given], Result], /, *arguments: *Given) -> Pending[Result]:
        """Begin a step, given as the method that makes it; return without waiting for it."""

    def begin_with(
        self, step: Callable[[Any, Argument], Result], argument: Pending[Argument], /
    ) -> Pending[Result]:
        """The same with what another host's step results in, which need not come through this process."""


@dataclass(frozen=True)
class BroughtUp:
    """What :func:`prepare` has chosen: each host's own facts; `wire`, `why` it, and the `ends` of the links.

    A machine of one host has an empty `wire` and no ends.
    """

    hosts: tuple[Prepared, ...]
    wire: str = ""
    why: str = ""
    ends: tuple[LinkEnd, ...] = ()


def unanswered(host: str, seconds: float, step: str) -> HostLostError:
    """The error for a `host` that has not answered for `seconds` in a step."""
    return HostLostError(
        f"{host} has not answered for {seconds:.0f} s while {step}. It stands still or is overloaded; look "
        "at its computer, then start the machine again."
    )


def examine(hosts: Sequence[SteppedHost], build: Build) -> list[Examined]:
    """Wait until all hosts are there, and see that they run `build`, the caller's own.

    Raises :class:`PlatformError` with the node that has another one, :class:`HostLostError`.
    """
    found = _all(hosts, HostProcess.examine)
    for facts in found:
        build.require(facts.build, facts.name)
    return found


def prepare(
    description: MachineDescription, hosts: Sequence[SteppedHost], found: Sequence[Examined]
) -> BroughtUp:
    """Lay out the machine on `hosts`, which were examined with `found`, to where its links run.

    Raises what the steps raise; :class:`HostLostError` and, for hosts that do not find each other,
    :class:`PlatformError` name the host.
    """
    if len(hosts) == 1:
        return BroughtUp((_result(HostProcess.prepare, hosts[0].begin(HostProcess.prepare, None)),))

    # One rate of the guest's clock for all: host 0's.
    members = [
        Membership(
            number,
            description.machine_id,
            EPOCH,
            found[0].tsc_hz,
            host.interface,
            _neighbours(description, found, number),
        )
        for number, host in enumerate(hosts)
    ]
    prepared = _each(hosts, HostProcess.prepare, members)
    _hand_out_portions(hosts, description.device_host)
    wire, why = choose_wire(description.wire, [facts.computer for facts in found])
    ends = _all(hosts, HostProcess.open_link, wire)
    others = [{peer: end for peer, end in enumerate(ends) if peer != number} for number in range(len(hosts))]
    _each(hosts, HostProcess.admit, others)
    _each(hosts, HostProcess.connect, others)
    _all(hosts, HostProcess.start_link)
    _join(hosts)
    return BroughtUp(tuple(prepared), wire, why, tuple(ends))


def _neighbours(description: MachineDescription, found: Sequence[Examined], host: int) -> int:
    """The vCPUs that share the cores of `host`, on this host and on others of the same computer."""
    return sum(
        description.vcpus_of(number) for number, facts in enumerate(found) if facts.cores == found[host].cores
    )


def start(description: MachineDescription, hosts: Sequence[SteppedHost]) -> None:
    """Start the devices and the vCPUs: those of the host that boots the guest when all others can run."""
    last = description.boot_host
    _all([host for number, host in enumerate(hosts) if number != last], HostProcess.start)
    _all([hosts[last]], HostProcess.start)


def _hand_out_portions(hosts: Sequence[SteppedHost], reader: int) -> None:
    """From the host that read the images to those that keep them."""
    calls = []
    for number, host in enumerate(hosts):
        if number != reader:
            portion = hosts[reader].begin(DeviceHost.portion_of, number)
            calls.append(host.begin_with(HostProcess.lay, portion))
    for call in calls:
        _result(HostProcess.lay, call)


def _join(hosts: Sequence[SteppedHost]) -> None:
    for host, joined in zip(hosts, _all(hosts, HostProcess.join, JOIN_SECONDS), strict=True):
        if not joined:
            raise PlatformError(
                f"{host.name} and the others have not found each other in {JOIN_SECONDS:.0f} s. Let the "
                "nodes reach each other on any TCP port (a firewall?)."
            )


def _all(
    hosts: Sequence[SteppedHost], step: Callable[[Any, *Given], Result], *arguments: *Given
) -> list[Result]:
    """Make a step on all hosts at the same time; return the results in the hosts' order."""
    calls = [host.begin(step, *arguments) for host in hosts]
    return [_result(step, call) for call in calls]


def _each(
    hosts: Sequence[SteppedHost], step: Callable[[Any, Argument], Result], arguments: Sequence[Argument]
) -> list[Result]:
    """The same with an argument of its own for each host."""
    calls = [host.begin(step, argument) for host, argument in zip(hosts, arguments, strict=True)]
    return [_result(step, call) for call in calls]


def _result(step: Callable[..., Result], call: Pending[Result]) -> Result:
    limit = STEPS[step.__name__]
    return call.result(limit.seconds, limit.doing)
