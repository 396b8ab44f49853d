# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that ends badly shows what its hosts did last."""

import time
from collections.abc import Callable
from pathlib import Path

from coremesh.cluster.machine import post_mortem
from mesh_machine import MeshMachine


def test_given_two_hosts_when_the_guest_triple_faults_then_each_has_its_vcpus_and_its_last_messages(
    guest: Callable[[str], Path],
) -> None:
    with MeshMachine(guest("triple").read_bytes(), shares=(1, 1), cmdline="other") as machine:
        machine.start()
        machine.wait_for("triple fault next")
        endings = [host.wait(20.0 if host is machine.hosts[1] else 0.0) for host in machine.hosts]
        assert isinstance(endings[1], dict)
        assert endings[1]["kind"] == "triple-fault"
        assert [vcpu["state"] for vcpu in endings[1]["vcpus"]] == ["stopped"]
        traces = [host.trace() for host in machine.hosts]
        for own, other in ((0, 1), (1, 0)):
            kinds = {entry["kind"] for entry in traces[own] if entry["sent"]}
            assert kinds & {"GetS", "GetM", "DataS", "DataM", "FwdS", "FwdM"}, kinds
            assert {entry["peer"] for entry in traces[own]} == {other}
            assert not any(entry["rejected"] for entry in traces[own])
            # What one host sent to the other is what that one received, in the same order.
            sent = [(e["kind"], e["page"], e["serial"]) for e in traces[own] if e["sent"]]
            received = [(e["kind"], e["page"], e["serial"]) for e in traces[other] if not e["sent"]]
            length = min(len(sent), len(received)) - 2  # some may be under way
            assert length > 5
            assert any(sent[shift : shift + length] == received[:length] for shift in range(3)) or any(
                received[shift : shift + length] == sent[:length] for shift in range(3)
            )
        text = post_mortem.format_trace(traces[1])
        assert "messages of the page protocol" in text
        assert "<- host 0" in text
        machine.stop()
        registers = {0: machine.hosts[1].registers(0)}
        line = post_mortem.format_vcpus(endings[1]["vcpus"], registers, first_vcpu=1)
        assert line.startswith("  vCPU 1: stopped")
        assert "rip=" in line


def test_given_a_machine_that_runs_when_it_is_asked_from_another_thread_then_it_answers_at_once(
    guest: Callable[[str], Path],
) -> None:
    with MeshMachine(guest("mesh_atomics").read_bytes(), shares=(1, 1), cmdline="ms=20") as machine:
        machine.start()
        machine.wait_for("mesh hosts=2")
        newest: list[int] = []
        deadline = time.monotonic() + 20
        while len(set(newest)) < 10 and time.monotonic() < deadline:
            entries = machine.hosts[0].trace(8)
            assert len(entries) <= 8
            assert [e["time_ns"] for e in entries] == sorted(e["time_ns"] for e in entries)
            newest += [e["time_ns"] for e in entries[-1:]]
            assert {vcpu["state"] for vcpu in machine.hosts[0].glances()} <= {"running", "halted"}
        assert len(set(newest)) == 10, "the ring stands still while hosts share words"
        assert len(machine.hosts[0].trace()) <= 1024
