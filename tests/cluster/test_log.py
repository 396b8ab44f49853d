# SPDX-License-Identifier: GPL-2.0-or-later
"""What processes tell when a person asks for a log: a line an event, of every process, and else nothing."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from coremesh.cluster.machine import log
from coremesh.core.errors import ConfigurationError

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

ORDER = ["machine-starting", "prepared", "vcpus-started", "shell-ready", "ended"]


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing of a test's log stays."""
    yield
    log.silence()


def boot(*options: str, command: str = "true") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "coremesh.cluster.cli",
            "boot",
            "--memory",
            "256M",
            "--run",
            command,
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.linux
@pytest.mark.usefixtures("debian")
def test_given_json_is_asked_for_when_a_machine_runs_then_each_line_is_an_event_of_driver_or_host() -> None:
    told = events(boot("--log", "json"))
    assert [event["event"] for event in told] == ORDER
    assert {event["process"] for event in told} == {"driver", "host"}
    assert len({event["machine"] for event in told}) == 1
    for event in told[1:]:
        assert (event["process"], event["host"], event["epoch"]) == ("host", 0, 1)
        assert event["level"] == "info"
    assert told[3]["seconds"] > 0
    assert told[4]["kind"] == "power-off"
    assert [event["time"] for event in told] == sorted(event["time"] for event in told)


@pytest.mark.linux
@pytest.mark.usefixtures("debian")
def test_given_no_log_is_asked_for_when_a_machine_runs_then_nothing_is_told() -> None:
    done = boot(command="echo heard")
    assert (done.stdout, done.stderr, done.returncode) == ("heard\n", "", 0)


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.usefixtures("debian")
def test_given_two_hosts_when_a_machine_runs_then_both_tell_under_their_numbers() -> None:
    told = events(boot("--log", "json", "--hosts", "2"))
    assert "ray-joined" in [event["event"] for event in told]
    for name in ("prepared", "vcpus-started", "ended"):
        assert {event["host"] for event in told if event["event"] == name} == {0, 1}
    assert len({event["pid"] for event in told}) == 3
    assert len({event["machine"] for event in told if "machine" in event}) == 1


def test_given_a_level_when_events_are_told_then_those_below_it_are_not(
    quiet: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log.VARIABLE, "text:warning")
    log.begin()
    log.event("info", "small")
    log.event("warning", "large", reason="a b\nc", count=2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, "a newline in a field would be another event"
    assert " warning large " in said[0]
    assert said[0].endswith(r'reason="a b\nc" count=2')


def test_given_a_handler_of_a_programs_own_when_a_host_has_told_then_it_gets_the_event(
    quiet: None, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"level": "info", "event": "prepared", "machine": "12", "host": 3, "time": "then", "pid": 4}
    with caplog.at_level(logging.INFO, logger="coremesh"):
        log.replay([entry])
        (record,) = caplog.records
    assert log.entry_of(record) == {**log.entry_of(record), **entry}


def test_given_many_events_that_none_asks_for_when_they_are_taken_then_the_newest_are_there(
    quiet: None,
) -> None:
    keeper = log.keep(log.Wanted("json"), aloud=False)
    for number in range(3000):
        log.event("info", "counted", number=number)
    taken = keeper.take(0.0)
    assert [entry["number"] for entry in taken] == list(range(2000, 3000))
    assert keeper.take(0.0) == []


@pytest.mark.parametrize("text", ["xml", "json:loud", ":info", ""])
def test_given_a_log_that_there_is_not_when_it_is_asked_for_then_the_error_lists_what_there_is(
    text: str,
) -> None:
    with pytest.raises(ConfigurationError, match=r"text or json.*debug, info, warning, error"):
        log.Wanted.read(text)
