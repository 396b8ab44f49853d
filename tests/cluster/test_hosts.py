# SPDX-License-Identifier: GPL-2.0-or-later
"""Several hosts driven as one: what is asked of whom in which order, and which end is the machine's.

The actors are played: their answers and deaths come when the story says so. No Ray, no engine.
"""

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from coremesh.cluster.launch import hosts as module
from coremesh.cluster.launch import session
from coremesh.cluster.launch.hosts import Hosts
from coremesh.cluster.launch.placement import Placement
from coremesh.cluster.machine.build import Build
from coremesh.cluster.machine.description import MachineDescription
from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.host import Examined, Prepared
from coremesh.cluster.machine.lifeline import ProcessIdentity
from coremesh.core.errors import HostLostError, PlatformError
from coremesh.core.links.door import LinkEnd

BUILD = Build("1.0", "a" * 64)
NOBODY = ProcessIdentity(1, 0, "another boot", "")


class PlayedCall:
    """A call of a played actor: `answer` blocks as the real one would."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._done = threading.Event()
        self._outcome: Any = None
        threading.Thread(target=self._run, args=(answer,), daemon=True).start()

    def _run(self, answer: Callable[[], Any]) -> None:
        try:
            self._outcome = answer()
        except Exception as error:
            self._outcome = error
        self._done.set()

    def done(self) -> bool:
        return self._done.is_set()

    def result(self, seconds: float | None = None, step: str = "") -> Any:
        if not self._done.wait(20 if seconds is None else seconds):
            raise HostLostError(f"no answer while {step}")
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def end_of(host: int) -> LinkEnd:
    return LinkEnd(f"tcp://10.0.0.{host}:1", bytes([host]), f"10.0.0.{host}:2")


class PlayedActor:
    """One host. `end` ends it by itself, `die` kills its process, `hang` stops it as SIGSTOP does."""

    def __init__(self, number: int, log: list[tuple[int, str]]) -> None:
        self.number = number
        self.log = log
        self.build = BUILD
        self.given: dict[str, tuple[Any, ...]] = {}
        self.reachable = True
        self.cores = f"n{number}"
        self.killed = False
        self._ended = threading.Event()
        self._dead = threading.Event()
        self._hanging = False
        self._end: MachineEnd | None = None

    def end(self, end: MachineEnd) -> None:
        if self._end is None:
            self._end = end
        self._ended.set()

    def die(self) -> None:
        self._dead.set()
        self._ended.set()

    def hang(self) -> None:
        self._hanging = True

    def begin(self, method: str, *arguments: Any) -> PlayedCall:
        resolved = tuple(a.result() if isinstance(a, PlayedCall) else a for a in arguments)
        if method != "wait":
            self.log.append((self.number, method))
        self.given[method] = resolved
        return PlayedCall(lambda: self._answer(method, resolved))

    def call(self, method: str, *arguments: Any) -> Any:
        return self.begin(method, *arguments).result()

    def kill(self) -> None:
        self.killed = True
        self.die()

    def _answer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if self._hanging:
            self._dead.wait(20)
        if method == "wait":
            self._ended.wait(arguments[0])
        if self._dead.is_set():
            raise HostLostError(f"host {self.number} has gone.")
        if method == "stop":
            self.end(MachineEnd("stopped"))
        answers: dict[str, Any] = {
            "examine": Examined(self.build, NOBODY, f"n{self.number}", 2_000, f"n{self.number}", self.cores),
            "prepare": Prepared(self.number, "userfaultfd", 2_000),
            "portion_of": "a portion",
            "open_link": end_of(self.number),
            "join": self.reachable,
            "wait": self._end,
            "stop": self._end,
        }
        return answers.get(method)


class PlayedGroup:
    """A placement that remembers whether it was given back."""

    def __init__(self) -> None:
        self.released = False


@pytest.fixture
def group() -> PlayedGroup:
    return PlayedGroup()


@pytest.fixture
def actors() -> list[PlayedActor]:
    log: list[tuple[int, str]] = []
    return [PlayedActor(number, log) for number in range(3)]


@pytest.fixture
def hosts(actors: list[PlayedActor], group: PlayedGroup, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Three hosts on nodes 10.0.0.0 to 10.0.0.2, actors made, nothing prepared."""

    class Given(Placement):
        def release(self) -> None:
            group.released = True

    def first_done(calls: Mapping[int, PlayedCall], timeout: float) -> int | None:
        deadline = time.monotonic() + timeout
        while True:
            done = next((key for key, call in calls.items() if call.done()), None)
            if done is not None or time.monotonic() >= deadline:
                return done
            time.sleep(0.005)

    nodes = tuple(f"10.0.0.{host}" for host in range(3))
    monkeypatch.setattr(module, "place", lambda count: Given("STRICT_SPREAD", nodes, None, "a word"))
    monkeypatch.setattr(module, "_start_actors", lambda description, placement: actors)
    monkeypatch.setattr(session, "first_done", first_done)
    monkeypatch.setattr(session, "is_own", lambda: False)  # whatever Ray earlier tests have left here
    monkeypatch.setattr(session, "require_ray", lambda: None)
    description = MachineDescription(vcpus=6, ram_bytes=1 << 24, kernel=b"kernel", shares=(2, 2, 2))
    made = Hosts(description)
    yield made
    made.close()


@pytest.fixture
def running(hosts: Hosts) -> Hosts:
    hosts.await_processes(BUILD)
    hosts.prepare()
    hosts.start()
    return hosts


def ended(hosts: Hosts) -> MachineEnd | None:
    """The end as a person gets it, within the three seconds that a loss may take."""
    begin = time.monotonic()
    try:
        return hosts.wait(10)
    finally:
        assert time.monotonic() - begin < 3


# --- up --------------------------------------------------------------------------------------------------


def test_each_step_is_made_on_all_hosts_before_the_next(hosts: Hosts, actors: list[PlayedActor]) -> None:
    hosts.await_processes(BUILD)
    facts = hosts.prepare()
    hosts.start()
    steps = [method for _, method in actors[0].log]
    order = [method for number, method in enumerate(steps) if method not in steps[:number]]
    assert order == [
        "examine", "prepare", "portion_of", "lay", "open_link", "admit", "connect", "start_link", "join",
        "start",
    ]  # fmt: skip
    for step in ("examine", "prepare", "open_link", "admit", "connect", "start_link", "join", "start"):
        first, last = steps.index(step), len(steps) - 1 - steps[::-1].index(step)
        assert set(steps[first : last + 1]) == {step}
        assert {number for number, method in actors[0].log if method == step} == {0, 1, 2}
    assert actors[0].log[-1] == (0, "start"), "the guest's first vCPU runs when all others can"
    assert [row["node"] for row in facts["hosts"]] == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]
    assert (facts["placement"], facts["warning"]) == ("STRICT_SPREAD", "a word")


def test_given_hosts_on_one_computer_when_they_are_prepared_then_each_knows_all_that_share_its_cores(
    hosts: Hosts, actors: list[PlayedActor]
) -> None:
    """Hosts 0 and 2, of two vCPUs each, share the cores of one computer; host 1 has its own."""
    actors[2].cores = actors[0].cores
    hosts.await_processes(BUILD)
    hosts.prepare()
    assert [actor.given["prepare"][0].neighbours for actor in actors] == [4, 2, 4]


def test_hosts_get_each_others_public_keys_one_machine_and_one_clock(
    running: Hosts, actors: list[PlayedActor]
) -> None:
    for actor in actors:
        (peers,) = actor.given["connect"]
        assert peers == {other.number: end_of(other.number) for other in actors if other is not actor}
    members = [actor.given["prepare"][0] for actor in actors]
    assert [member.host for member in members] == [0, 1, 2]
    assert [member.interface for member in members] == ["10.0.0.0", "10.0.0.1", "10.0.0.2"]
    assert len({(member.machine_id, member.epoch, member.tsc_hz) for member in members}) == 1


def test_images_are_read_on_host_0_and_handed_to_those_that_keep_them(
    running: Hosts, actors: list[PlayedActor]
) -> None:
    assert (0, "lay") not in actors[0].log
    assert actors[1].given["lay"] == actors[2].given["lay"] == ("a portion",)


def test_a_node_with_another_build_is_named_and_nothing_starts(
    hosts: Hosts, actors: list[PlayedActor]
) -> None:
    actors[2].build = Build("0.9", "b" * 64)
    with pytest.raises(PlatformError, match="node n2"):
        hosts.await_processes(BUILD)
    assert {method for _, method in actors[0].log} == {"examine"}


def test_a_process_that_dies_before_the_start_is_a_loss(hosts: Hosts, actors: list[PlayedActor]) -> None:
    hosts.await_processes(BUILD)
    actors[1].die()
    with pytest.raises(HostLostError, match="host 1"):
        hosts.prepare()


def test_hosts_that_do_not_find_each_other_are_told_and_nothing_starts(
    hosts: Hosts, actors: list[PlayedActor]
) -> None:
    hosts.await_processes(BUILD)
    actors[1].reachable = False
    with pytest.raises(PlatformError, match=r"host 1 \(node 10.0.0.1\).*firewall"):
        hosts.prepare()
    assert "start" not in {method for _, method in actors[0].log}


# --- orderly ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [0, 1])
def test_what_ends_one_host_ends_all_and_is_told_once(
    running: Hosts, actors: list[PlayedActor], host: int
) -> None:
    end = MachineEnd("power-off") if host == 0 else MachineEnd("triple-fault", vcpu=2, host=1)
    actors[host].end(end)
    assert ended(running) == end
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and any(actor.begin("wait", 0).result() is None for actor in actors):
        time.sleep(0.01)
    assert all(actor.begin("wait", 0).result() is not None for actor in actors)
    assert running.stop() == end


def test_a_machine_stopped_by_its_person_is_no_loss(running: Hosts, actors: list[PlayedActor]) -> None:
    assert running.stop().kind == "stopped"
    running.close()
    assert all(actor.killed for actor in actors)


# --- losses ----------------------------------------------------------------------------------------------


def loss(hosts: Hosts) -> str:
    with pytest.raises(HostLostError) as caught:
        ended(hosts)
    return str(caught.value)


def all_gone(actors: list[PlayedActor], group: PlayedGroup) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if group.released and all(actor.killed for actor in actors):
            return True
        time.sleep(0.01)
    return False


def test_a_killed_process_is_a_loss_that_ends_all(
    running: Hosts, actors: list[PlayedActor], group: PlayedGroup
) -> None:
    actors[1].die()
    assert "host 1" in loss(running)
    assert all_gone(actors, group)
    assert (2, "stop") in actors[0].log, "what was left was stopped before it was killed"
    with pytest.raises(HostLostError, match="host 1"):
        running.call("stats")


def test_given_a_loss_when_it_is_told_again_and_again_then_it_keeps_nothing_of_who_asked(
    running: Hosts, actors: list[PlayedActor], group: PlayedGroup
) -> None:
    class Asking:
        """Something that the caller's frame refers to."""

    def ask() -> weakref.ref[Asking]:
        asking = Asking()
        for question in (
            lambda: running.call("stats"),
            lambda: running.all("stats"),
            lambda: running.wait(0),
        ):
            with contextlib.suppress(HostLostError):
                question()
        return weakref.ref(asking)

    actors[1].die()
    assert "host 1" in loss(running)
    assert ask()() is None
    assert all_gone(actors, group)


def test_a_host_that_host_0_no_longer_hears_is_the_lost_one(
    running: Hosts, actors: list[PlayedActor], group: PlayedGroup
) -> None:
    actors[2].hang()
    actors[0].end(MachineEnd("host-lost", host=2))
    assert "host 2 (node 10.0.0.2)" in loss(running)
    assert all_gone(actors, group)


def test_a_host_that_was_cut_off_asks_host_0_who_is_lost(running: Hosts, actors: list[PlayedActor]) -> None:
    threading.Timer(0.3, actors[0].end, [MachineEnd("host-lost", host=1)]).start()
    actors[2].end(MachineEnd("fenced", host=2))
    assert "host 1" in loss(running)


def test_a_host_that_was_cut_off_is_lost_itself_when_host_0_is_well(
    running: Hosts, actors: list[PlayedActor]
) -> None:
    actors[2].end(MachineEnd("fenced", host=2))
    assert "host 2" in loss(running)


def test_when_host_0_stands_still_it_is_the_lost_one(
    running: Hosts, actors: list[PlayedActor], group: PlayedGroup
) -> None:
    actors[0].hang()
    for number in (1, 2):
        actors[number].end(MachineEnd("fenced", host=number))
    assert "host 0" in loss(running)
    assert all_gone(actors, group)


def test_an_orderly_end_explains_why_others_were_cut_off(running: Hosts, actors: list[PlayedActor]) -> None:
    threading.Timer(0.1, actors[0].end, [MachineEnd("power-off")]).start()
    actors[1].end(MachineEnd("fenced", host=1))
    assert ended(running) == MachineEnd("power-off")


def test_a_call_under_way_when_a_host_stands_still_comes_back_with_the_loss(
    running: Hosts, actors: list[PlayedActor]
) -> None:
    actors[1].hang()
    threading.Timer(0.2, actors[0].end, [MachineEnd("host-lost", host=1)]).start()
    begin = time.monotonic()
    with pytest.raises(HostLostError, match="host 1"):
        running.all("stats")
    assert time.monotonic() - begin < 3.5
