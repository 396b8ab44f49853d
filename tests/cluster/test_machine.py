# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines on a real Ray: a Linux guest handled as a person would, and tiny guests that end in every way."""

import asyncio
import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch import session
from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.images.debian_image import DebianImage
from coremesh.core.errors import (
    ConfigurationError,
    ConsoleTimeoutError,
    GuestCrashError,
    GuestImageError,
    HostLostError,
    InternalError,
    MachineStateError,
    PlatformError,
)

pytestmark = [pytest.mark.usefixtures("one_ray"), pytest.mark.timeout(300)]

SERIAL = bytes.fromhex("66baf803")  # mov dx, 0x3f8
HANG = b"\xeb\xfe"  # jmp $


def put(text: bytes) -> bytes:
    """Machine code that sends `text` to COM1."""
    return SERIAL + b"".join(b"\xb0" + bytes([letter]) + b"\xee" for letter in text)


def out(port: int, value: int) -> bytes:
    """Machine code for ``out port, value`` of 32 bits."""
    return b"\x66\xba" + port.to_bytes(2, "little") + b"\xb8" + value.to_bytes(4, "little") + b"\xef"


def out8(port: int, value: int) -> bytes:
    """Machine code for ``out port, value`` of 8 bits."""
    return b"\x66\xba" + port.to_bytes(2, "little") + b"\xb0" + bytes([value]) + b"\xee"


@pytest.fixture(scope="module")
def linux(debian: DebianImage) -> Iterator[Machine]:
    """A Linux guest of two vCPUs that the stories below share."""
    with Machine(2, "512M", debian.kernel, debian.initramfs()) as machine:
        machine.wait_shell(200)
        yield machine


@pytest.fixture
def tiny(tiny_guest: Callable[[bytes], bytes]) -> Iterator[Callable[..., Machine]]:
    """Start machines of a few bytes of code; all are stopped at the end."""
    machines: list[Machine] = []

    def start(code: bytes, vcpus: int = 1, *, reboot: bool = True) -> Machine:
        machines.append(Machine(vcpus, "16M", tiny_guest(code), reboot=reboot))
        return machines[-1]

    yield start
    for machine in machines:
        machine.stop()


# --- a Linux guest ---------------------------------------------------------------------------------------


def test_a_command_gives_its_output_and_status(linux: Machine) -> None:
    result = linux.run("nproc; echo problem >&2; exit 3", 60)
    assert (result.output, result.status, result.ok) == ("2\nproblem\n", 3, False)


def test_large_output_and_a_long_command_pass_the_serial_port_whole(linux: Machine) -> None:
    assert linux.run("seq 5000", 120).output == "".join(f"{n}\n" for n in range(1, 5001))
    assert linux.run("printf %s '" + "y" * 6000 + "' | wc -c", 120).output == "6000\n"


def test_messages_of_the_kernel_do_not_get_into_the_output(linux: Machine) -> None:
    result = linux.run("for i in 1 2 3; do echo '<2>noise' >/dev/kmsg; echo $i; done", 60)
    assert result.output == "1\n2\n3\n"


def test_output_is_passed_on_while_the_command_runs(linux: Machine) -> None:
    times: list[float] = []
    linux.run("echo one; sleep 1; echo two", 60, on_output=lambda data: times.append(time.monotonic()))
    assert times[-1] - times[0] > 0.5


def test_a_command_that_takes_too_long_is_interrupted_and_the_guest_goes_on(linux: Machine) -> None:
    with pytest.raises(ConsoleTimeoutError) as caught:
        linux.run("echo begun; sleep 1000", 3)
    assert caught.value.tail == b"begun\n"
    assert linux.run("echo on; ps | grep -c 'slee[p]'", 60).output == "on\n0\n"


def test_one_that_ignores_every_key_is_put_aside_and_killed(linux: Machine) -> None:
    with pytest.raises(ConsoleTimeoutError):
        linux.run("trap '' INT QUIT; while :; do sleep 1; done", 2)
    assert linux.run("echo on", 60).output == "on\n"


def test_a_person_reads_writes_and_waits_for_text_on_the_console(linux: Machine) -> None:
    console = linux.console
    console.skip()
    console.write("echo $((6 * 7))x\n")
    assert console.expect(r"\n(\d+)x\r", 20)[1] == b"42"
    console.expect("# ", 20)
    with pytest.raises(ConsoleTimeoutError, match="its last bytes"):
        console.expect("never", 0.5)


def test_a_paused_guest_stands_still_and_then_goes_on(linux: Machine) -> None:
    linux.run("(while :; do echo tick; sleep 0.1; done) >/dev/null & echo $! >/tmp/pid", 60)
    linux.pause()
    assert linux.state == "paused"
    before = linux.stats()["interrupts"].tolist()
    time.sleep(0.5)
    assert linux.stats()["interrupts"].tolist() == before
    assert linux.registers(0)["rip"] > 0
    with pytest.raises(ConfigurationError):
        linux.registers(2)
    with pytest.raises(MachineStateError, match="resume"):
        linux.run("true", 5)
    linux.resume()
    assert linux.run("kill $(cat /tmp/pid); echo on", 60).output == "on\n"
    with pytest.raises(MachineStateError, match="pause"):
        linux.registers(0)


def test_statistics_are_a_table_of_the_vcpus(linux: Machine) -> None:
    table = linux.stats()
    assert list(table["apic_id"]) == [0, 1]
    assert (table["translations"] > 100).all()
    assert {"exits_io", "interrupts", "kicks", "halted_ns", "atomics_8"} <= set(table.columns)
    assert linux.device_stats().loc["uart", "accesses"] > 0


def test_times_are_told_apart(linux: Machine) -> None:
    assert set(linux.timings) == {"ray_start", "actor_start", "load", "boot"}
    assert linux.boot_seconds is not None
    assert 0.2 < linux.boot_seconds < 200


def test_a_notebook_shows_the_machine(linux: Machine) -> None:
    html = linux._repr_html_()
    assert "<table" in html
    assert "512 MiB" in html
    assert "running" in html


def test_many_threads_may_use_one_machine(linux: Machine) -> None:
    outputs: dict[int, str] = {}

    def work(number: int) -> None:
        outputs[number] = linux.run(f"echo {number}", 120).output

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {number: f"{number}\n" for number in range(4)}


# --- ends ------------------------------------------------------------------------------------------------


def ended(machine: Machine) -> MachineEnd:
    end = machine.wait(60)
    assert end is not None, "the guest did not end"
    return end


def test_what_a_guest_writes_to_debug_exit_is_its_status(tiny: Callable[..., Machine]) -> None:
    machine = tiny(put(b"hello") + out(0xF4, 5) + HANG)
    assert b"".join(machine.console.follow()) == b"hello"
    end = ended(machine)
    assert (end.kind, end.value, end.exit_status) == ("debug-exit", 5, 11)
    assert machine.state == "debug-exit"


def test_power_off_ends_the_machine_and_so_does_a_reset_where_asked_for(
    tiny: Callable[..., Machine],
) -> None:
    sleep_type = 5 << 10 | 1 << 13  # SLP_TYP of S5 in our DSDT, and SLP_EN (ACPI 6.4, 4.8.3.2.1)
    assert (
        ended(tiny(b"\x66\xba\x04\x06\x66\xb8" + sleep_type.to_bytes(2, "little") + b"\x66\xef" + HANG)).kind
        == "power-off"
    )
    assert ended(tiny(out8(0xCF9, 6) + HANG, reboot=False)).kind == "reset"


def test_a_reset_restarts_the_machine_and_is_counted(tiny: Callable[..., Machine]) -> None:
    """Given a guest that resets at its first two starts, which it counts in a CMOS cell."""
    # mov al, 60h; out 70h, al; in al, 71h; inc al; out 71h, al; cmp al, 3; jae past the reset
    count = b"\xb0\x60\xe6\x70\xe4\x71\xfe\xc0\xe6\x71\x3c\x03\x73"
    reset = out8(0xCF9, 6) + HANG
    machine = tiny(put(b"x") + count + bytes((len(reset),)) + reset + HANG)
    deadline = time.monotonic() + 30
    while machine.restarts < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert machine.restarts == 2 and machine.state == "running"
    assert machine.snapshot()["restarts"] == 2
    assert machine.stats()["resets"].tolist() == [2]
    assert machine.console.expect(b"xxx", 10)


def test_a_triple_fault_is_a_crash_that_shows_the_vcpus_state(tiny: Callable[..., Machine]) -> None:
    # lidt of six zero bytes on the stack leaves no vector: the breakpoint's fault has no handler, nor has
    # its.
    machine = tiny(b"\xbc\x00\x00\x20\x00\x6a\x00\x6a\x00\x0f\x01\x1c\x24\xcc")
    end = ended(machine)
    assert (end.kind, end.vcpu, end.exit_status) == ("triple-fault", 0, 70)
    assert "rip=" in end.state
    assert "vCPU 0: stopped, 32-bit" in end.state
    with pytest.raises(GuestCrashError, match="triple-faulted"):
        machine.console.expect("anything", 5)


def test_a_guest_that_only_spins_runs_until_it_is_stopped(tiny: Callable[..., Machine]) -> None:
    machine = tiny(HANG)
    assert machine.wait(0.5) is None
    assert machine.state == "running"
    assert machine.stop().kind == "stopped"
    assert machine.stop().kind == "stopped"
    with pytest.raises(MachineStateError, match="stopped"):
        machine.stats()


def test_a_run_on_a_guest_without_a_shell_says_so(tiny: Callable[..., Machine]) -> None:
    with pytest.raises(ConsoleTimeoutError, match="no shell prompt"):
        tiny(HANG).run("true", 1)
    with pytest.raises(MachineStateError, match="before a shell"):
        tiny(out(0xF4, 0) + HANG).run("true", 30)


def test_a_kernel_panic_is_a_crash(debian: DebianImage) -> None:
    with Machine(1, "256M", debian.kernel, append="quiet") as machine:  # no initramfs: no root file system
        end = machine.wait(200)
    assert end is not None
    assert (end.kind, end.exit_status) == ("panic", 70)
    assert "VFS" in end.detail or "root" in end.detail


def test_a_kernel_panic_while_a_command_runs_is_a_crash_and_no_restart(debian: DebianImage) -> None:
    """Given a command that makes the kernel panic, then the caller is told of the panic."""
    with Machine(2, "256M", debian.kernel, debian.initramfs()) as machine:
        with pytest.raises(GuestCrashError, match="panicked: sysrq"):
            machine.run("echo c >/proc/sysrq-trigger", 200)
        end = machine.wait(60)
    assert end is not None
    assert (end.kind, end.exit_status) == ("panic", 70)


def test_a_killed_host_process_is_told_as_such(tiny: Callable[..., Machine]) -> None:
    import os
    import signal

    machine = tiny(HANG)
    os.kill(machine.facts["pid"], signal.SIGKILL)
    with pytest.raises(HostLostError, match="has gone"):
        machine.wait(30)

    class Asking:
        """Something that a caller's frame refers to: an exception that is kept would keep it."""

    def ask() -> weakref.ref[Asking]:
        asking = Asking()
        for _ in range(2):
            with contextlib.suppress(HostLostError):
                machine.snapshot()
        return weakref.ref(asking)

    assert ask()() is None
    machine.stop()


def test_given_machines_of_one_host_here_when_they_start_then_none_needs_ray(
    tiny: Callable[..., Machine],
) -> None:
    machines = [tiny(put(b"%d" % number) + HANG) for number in range(2)]
    assert [machine.timings["ray_start"] for machine in machines] == [0.0, 0.0]
    programs = [Path(f"/proc/{machine.facts['pid']}/cmdline").read_bytes() for machine in machines]
    assert all(b"coremesh.cluster.machine.host_server" in program for program in programs)
    for number, machine in enumerate(machines):
        machine.console.expect(str(number), 20)


def test_a_machine_nobody_refers_to_is_stopped(tiny_guest: Callable[[bytes], bytes]) -> None:
    import gc
    import os

    machine = Machine(1, "16M", tiny_guest(HANG))
    pid = machine.facts["pid"]
    del machine
    gc.collect()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("its process still lives")


# --- what cannot be --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [b"junk", b"\x7fELF" + bytes(60), b"MZ" + bytes(1000), bytes(100)])
def test_what_is_no_kernel_is_refused_before_anything_starts(kernel: bytes) -> None:
    with pytest.raises(GuestImageError):
        Machine(kernel=kernel)


def test_a_truncated_kernel_is_refused(debian: DebianImage) -> None:
    with pytest.raises(GuestImageError):
        Machine(kernel=debian.kernel.read_bytes()[: 1 << 20])


def test_too_little_and_too_much_memory_are_refused(
    debian: DebianImage, tiny_guest: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(ConfigurationError, match="memory"):
        Machine(memory="4M", kernel=debian.kernel)
    with pytest.raises(ConfigurationError, match="do not fit this host"):
        Machine(memory="512G", kernel=tiny_guest(HANG))


def test_another_cluster_than_the_one_in_use_is_refused(
    one_ray: None, tiny_guest: Callable[[bytes], bytes]
) -> None:
    session.ensure()
    with pytest.raises(MachineStateError, match="shutdown"):
        Machine(kernel=tiny_guest(HANG), address="127.0.0.1:1")


class Failing:
    """An actor whose methods fail as a host's do when the system refuses something, or by a fault of ours."""

    def threads(self) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    def memory(self) -> None:
        raise MemoryError

    def fault(self) -> None:
        raise KeyError("a fault of ours")


@pytest.mark.parametrize(
    ("method", "kind", "words"),
    [
        ("threads", PlatformError, "Resource temporarily unavailable"),
        ("memory", PlatformError, "MemoryError"),
        ("fault", InternalError, "a fault of ours"),
    ],
)
def test_what_fails_in_a_host_process_arrives_as_an_error_of_ours(
    one_ray: None, method: str, kind: type[Exception], words: str
) -> None:
    import ray
    from coremesh.cluster.launch import session

    session.ensure()
    remote: Any = ray.remote
    actor = session.Remote(remote(num_cpus=0)(Failing).remote(), {})
    with pytest.raises(kind, match=words):
        actor.begin(method).result()
    actor.kill()


@pytest.mark.linux
def test_given_an_interrupt_while_a_command_runs_when_the_next_is_run_then_the_machine_serves_it(
    linux: Machine,
) -> None:
    """As a notebook's kernel is interrupted, in the main thread."""
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        linux.run("sleep 60")
    assert time.monotonic() - begin < 30
    assert linux.run("echo again").output == "again\n"


@pytest.mark.linux
def test_given_an_event_loop_when_a_command_runs_then_the_loop_goes_on(linux: Machine) -> None:
    async def story() -> tuple[str, int]:
        work = asyncio.create_task(linux.run_async("sleep 0.5; echo done"))
        turns = 0
        while not work.done():
            await asyncio.sleep(0.05)
            turns += 1
        assert await linux.wait_shell_async() == linux.boot_seconds
        assert await linux.wait_async(0) is None
        return (await work).output, turns

    output, turns = asyncio.run(story())
    assert output == "done\n"
    assert turns >= 5
