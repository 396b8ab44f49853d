# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine may be, how its end is told, and how text is made plain: no machine needed."""

import contextlib
import os
import pickle
import struct
import threading
from pathlib import Path

import pytest
from coremesh.cluster.cli.boot import _tell_of_words
from coremesh.cluster.machine.cmdline import command_line
from coremesh.cluster.machine.ending import MachineEnd
from coremesh.cluster.machine.lifeline import ProcessIdentity, watch
from coremesh.cluster.machine.options import check_vcpus, parse_memory
from coremesh.cluster.machine.registers import format_registers
from coremesh.cluster.machine.terminal import PlainText
from coremesh.core.errors import ConfigurationError, GuestCrashError
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("1G", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("65536k", 64 << 20),
        (" 2g ", 2 << 30),
        (1 << 28, 1 << 28),
    ],
)
def test_memory_sizes_are_understood(text: int | str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "1Q", "-1G", "1,5G", "0", "0G", "1K", "9999999T", -1, 0, 5000, True, "nan"]
)
def test_absurd_memory_sizes_are_refused(text: int | str) -> None:
    with pytest.raises(ConfigurationError):
        parse_memory(text)


@pytest.mark.parametrize("vcpus", [0, 256, -1, True, 1.5, "4", None])
def test_absurd_numbers_of_vcpus_are_refused(vcpus: int) -> None:
    with pytest.raises(ConfigurationError, match="1 to 255"):
        check_vcpus(vcpus)


@given(st.text(max_size=12))
def test_no_text_makes_the_memory_parser_fail_in_another_way(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        assert parse_memory(text) > 0


#: A header: magic, no flags, and what makes the sum of the three nought (Multiboot 0.6.96, section 3.1.2).
MULTIBOOT = bytes(16) + struct.pack("<3I", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF) + bytes(100)
COMPACT = "sysctl.vm.compaction_proactiveness=0 sysctl.kernel.watchdog_cpumask=0,1"
GRACE = "rcutree.jiffies_till_first_fqs=8 rcutree.jiffies_till_next_fqs=8"
TUNED = f"rcu_nocbs=all rcutree.rcu_nocb_gp_stride=1 {GRACE} skew_tick=1 {COMPACT} nohz_full=1-N"


def test_linux_gets_a_serial_console_and_multiboot_kernels_an_empty_line() -> None:
    linux = bytes(0x202) + b"HdrS" + bytes(100)
    assert command_line(linux) == "console=ttyS0,115200 panic=-1"
    several = f"tsc=reliable quiet {TUNED}"
    assert command_line(linux, shares=(1, 1)) == f"console=ttyS0,115200 panic=-1 {several}"
    for shares in ((1,), (1, 1)):
        assert command_line(MULTIBOOT, shares=shares, append="a b", quiet=True) == "a b"


@pytest.mark.parametrize(("shares", "stride"), [((4, 4), 4), ((1, 1, 1), 1), ((6, 2), 2), ((3, 2), 1)])
def test_no_queue_of_callbacks_is_shared_by_cores_of_two_hosts(shares: tuple[int, ...], stride: int) -> None:
    """Each group of so many cores in a row lies on one host."""
    assert f"rcutree.rcu_nocb_gp_stride={stride}" in command_line(bytes(0x202) + b"HdrS", shares=shares)
    borders = [sum(shares[:host]) for host in range(len(shares))]
    assert all(border % stride == 0 for border in borders)


@pytest.mark.parametrize(
    ("append", "line"),
    [
        ("", f"panic=-1 tsc=reliable quiet {TUNED}"),
        ("loglevel=7", f"panic=-1 tsc=reliable {TUNED} loglevel=7"),
        ("debug", f"panic=-1 tsc=reliable {TUNED} debug"),
        ("ignore-loglevel", f"panic=-1 tsc=reliable {TUNED} ignore-loglevel"),
        ("quiet x", f"panic=-1 tsc=reliable {TUNED} quiet x"),
        ("panic=5 tsc=unstable", f"quiet {TUNED} panic=5 tsc=unstable"),
        ("console=tty0", f"panic=-1 tsc=reliable quiet {TUNED} console=tty0"),
        (
            "nohz_full=3 relax-domain-level=-1 rcu_nocbs=1 skew_tick=0",
            f"panic=-1 tsc=reliable quiet rcutree.rcu_nocb_gp_stride=1 {GRACE} {COMPACT} nohz_full=3 "
            "relax-domain-level=-1 rcu_nocbs=1 skew_tick=0",
        ),
        (
            "isolcpus=domain,2",
            f"panic=-1 tsc=reliable quiet {TUNED.replace('nohz_full=1-N', 'isolcpus=domain,2')}",
        ),
    ],
)
def test_a_persons_words_replace_the_default_words_of_their_names(append: str, line: str) -> None:
    linux = bytes(0x202) + b"HdrS" + bytes(100)
    assert command_line(linux, shares=(1, 1), append=append) == f"console=ttyS0,115200 {line}"


def test_a_person_is_told_which_words_the_kernel_gets_for_several_hosts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    linux = bytes(0x202) + b"HdrS" + bytes(100)
    _tell_of_words(linux, (4, 4), "loglevel=7 skew_tick=0")
    told = capsys.readouterr().err
    left = TUNED.replace(" skew_tick=1", "").replace("stride=1", "stride=4").replace("=0,1", "=0,4")
    assert f"'tsc=reliable {left}'" in told and "--append" in told
    _tell_of_words(linux, (8,), "")
    _tell_of_words(MULTIBOOT, (4, 4), "")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (MachineEnd("power-off"), 0),
        (MachineEnd("reset"), 0),
        (MachineEnd("stopped"), 0),
        (MachineEnd("debug-exit", value=0), 1),
        (MachineEnd("debug-exit", value=3), 7),
        (MachineEnd("debug-exit", value=0x10), 0x21),
        (MachineEnd("debug-exit", value=0x1FF), 0xFF),
        (MachineEnd("triple-fault", vcpu=2), 70),
        (MachineEnd("internal-error"), 70),
        (MachineEnd("panic"), 70),
    ],
)
def test_every_end_has_its_exit_status(end: MachineEnd, status: int) -> None:
    assert end.exit_status == status


def test_a_crash_becomes_an_error_that_carries_the_state_and_travels() -> None:
    end = MachineEnd("triple-fault", vcpu=3, state="vCPU 3: ...")
    error = pickle.loads(pickle.dumps(end.error()))
    assert isinstance(error, GuestCrashError)
    assert error.state == "vCPU 3: ..."
    assert "triple-faulted on vCPU 3" in str(error)


def test_registers_are_shown_in_lines_a_terminal_holds() -> None:
    registers = {
        "rip": 0xFFFF_FFFF_8100_0000,
        "rax": 1,
        "r15": 2,
        "cs": (0x10, 0, 0xFFFF_FFFF, 0xA9B),
        "idtr": (0xFFFF_FE00_0000_0000, 0xFFF),
    }
    text = format_registers(1, registers)
    assert "rip=ffffffff81000000" in text
    assert "idtr" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_plain_text_has_no_control_sequences() -> None:
    data = b"a\r\n\x1b[1;31mred\x1b[0m ~ # \x1b[6n\x1b]0;title\x07\x1b(Bend\r\n"
    assert PlainText().feed(data) == b"a\nred ~ # end\n"


@given(st.lists(st.integers(1, 9), max_size=30))
def test_plain_text_does_not_care_how_the_bytes_are_cut(cuts: list[int]) -> None:
    data = b"x\x1b[6n\r\n\x1b[?2004hy\x1b]0;t\x1b\\z\n"
    plain, out = PlainText(), b""
    while data:
        size = cuts.pop() if cuts else len(data)
        out, data = out + plain.feed(data[:size]), data[size:]
    assert out == b"x\nyz\n"


def test_a_process_is_recognised_and_its_end_noticed() -> None:
    """Given a watched child, when it ends, then the watcher is called; another boot's pid is nobody."""
    assert ProcessIdentity.current().is_visible()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    here = ProcessIdentity.current()
    ended = threading.Event()
    assert watch(ProcessIdentity(pid, ticks, here.boot, here.namespace), ended.set)
    assert not ended.wait(0.1)
    os.close(writer)
    assert ended.wait(5)
    os.waitpid(pid, 0)
    assert not watch(ProcessIdentity(pid, ticks, "another boot", here.namespace), ended.set)


def test_a_process_that_ended_before_the_watch_is_noticed_at_once() -> None:
    here = ProcessIdentity.current()
    ended = threading.Event()
    assert watch(ProcessIdentity(here.pid, here.start_ticks - 1, here.boot, here.namespace), ended.set)
    assert ended.wait(5)
