# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices written in Python, attached to a running machine: Linux uses them, and no mistake stops it."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.attached import PythonDevice
from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_image import DebianImage
from coremesh.core.errors import ConfigurationError, DeviceError, MachineStateError
from coremesh.hw.backend.console import ConsolePort
from coremesh.hw.clock import HostClock
from coremesh.hw.irq import IrqLine
from coremesh.hw.isa.uart16550 import Uart16550A

pytestmark = pytest.mark.timeout(300)

BASE = 0xFED0_0000
COM2 = range(0x2F8, 0x300)


class Adder(PythonDevice):
    """Adds what is written. Offset 8 copies 16 bytes of memory from the address written to 64 bytes later."""

    def __init__(self) -> None:
        self.total = 0
        self.stall = threading.Event()

    def read(self, offset: int, size: int) -> int:
        if offset == 0x10:
            self.stall.wait(20)
        return self.total if offset == 0 else self.undefined  # type: ignore[attr-defined]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 8:
            self.dma_write(value + 64, self.dma_read(value, 16).swapcase())
        else:
            self.total += value


class SerialPort(PythonDevice):
    """The UART of a PC, its model running in this process."""

    def __init__(self) -> None:
        self.console = ConsolePort()
        self.uart = Uart16550A(HostClock(), IrqLine(self.set_irq), self.console)
        self.interrupts = 0

    def set_irq(self, level: bool) -> None:
        self.interrupts += level
        super().set_irq(level)

    def read(self, offset: int, size: int) -> int:
        with self.uart.lock:
            return self.uart.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        with self.uart.lock:
            self.uart.write(offset, size, value)


@pytest.fixture(scope="module")
def serial() -> Iterator[SerialPort]:
    port = SerialPort()
    for alarm in port.uart.alarms:
        alarm.start()
    yield port
    for alarm in port.uart.alarms:
        alarm.stop()


@pytest.fixture(scope="module")
def linux(debian: DebianImage, serial: SerialPort) -> Iterator[Machine]:
    """Linux, with a second serial port that was attached before the kernel has looked for one."""
    with Machine(2, "256M", debian.kernel, debian.initramfs()) as machine:
        machine.attach(serial, ports=COM2, irq=3)
        machine.wait_shell(200)
        yield machine


def devmem(machine: Machine, offset: int, value: int | None = None) -> int | None:
    """Read or write a register of 32 bits from the guest."""
    given = "" if value is None else f" {value:#x}"
    output = machine.run(f"devmem {BASE + offset:#x} 32{given}", 60).output
    return int(output, 16) if value is None else None


def test_linux_reads_and_writes_registers_and_attributes_change_live(linux: Machine) -> None:
    adder = Adder()
    with linux.attach(adder, mmio=(BASE, 0x1000), ports=range(0x240, 0x244)) as attachment:
        devmem(linux, 0, 40)
        devmem(linux, 0, 2)
        assert devmem(linux, 0) == 42
        adder.total = 7
        assert devmem(linux, 0) == 7
        counts = linux.device_stats().loc[attachment.name]
        assert (counts["reads"], counts["writes"], counts["bytes_read"]) == (2, 2, 8)
        assert attachment.error is None
    assert devmem(linux, 0) == 0xFFFF_FFFF, "nothing is left there"
    assert attachment.name not in linux.device_stats().index
    with pytest.raises(MachineStateError):
        adder.set_irq(True)


def test_accesses_are_counted_for_each_device_and_each_vcpu(linux: Machine) -> None:
    """Given a device that vCPU 1 reads alone, then its row counts them, and so does vCPU 1's."""
    with linux.attach(Adder(), mmio=BASE) as attachment:
        before: Any = linux.stats()
        for _ in range(3):
            linux.run(f"taskset -c 1 devmem {BASE:#x} 64", 60)
        after: Any = linux.stats()
        device: Any = linux.device_stats().loc[attachment.name]
        uses: Any = linux.device_stats(by_vcpu=True).loc[attachment.name]
    assert list(uses.index) == [1]
    assert (uses.loc[1, "accesses"], uses.loc[1, "access_bytes"]) == (3, 24)
    assert (device["accesses"], device["access_bytes"], device["vcpus"]) == (3, 24, 1)
    assert device["access_ns"] == uses.loc[1, "access_ns"] >= device["service_ns"] > 0
    assert (device["at_once"], device["most_at_once"]) == (0, 1)
    grown = {name: after.loc[1, name] - before.loc[1, name] for name in ("device_accesses", "device_ns")}
    assert grown["device_accesses"] >= 3 and grown["device_ns"] >= device["access_ns"]


def test_a_device_reads_and_writes_guest_memory(linux: Machine) -> None:
    """Given a word in an unused part of the first megabyte, when the guest asks for it, then it is copied."""
    place = 0x500  # of the BIOS data area, which Linux leaves alone
    with linux.attach(adder := Adder(), mmio=BASE):
        adder.dma_write(place, b"Coremesh at work")
        devmem(linux, 8, place)
        assert devmem(linux, 0) == 0, "a read comes after what was written before it, which nobody waits for"
        assert linux.read_memory(place + 64, 16) == b"cOREMESH AT WORK"
        with pytest.raises(ConfigurationError, match="not all RAM"):
            adder.dma_read(BASE, 4)


def test_linux_drives_a_uart_whose_model_runs_here_by_its_interrupts(
    linux: Machine, serial: SerialPort
) -> None:
    """Given COM2, attached while the kernel booted, then both directions work, by interrupts."""
    found = linux.run(
        "dmesg | grep 'ttyS1.*16550A' | wc -l; (head -n 1 /dev/ttyS1 >/tmp/got; echo done >>/tmp/got) & "
        "sleep 0.3; echo from the guest >/dev/ttyS1", 60
    )  # fmt: skip
    assert found.output == "1\n"
    assert serial.console.read(0, 30)[0].startswith(b"from the guest")
    serial.console.feed(b"typed in Python\n")
    until = "until grep -q done /tmp/got; do sleep 0.1; done; cat /tmp/got"
    assert linux.run(until, 60).output == "typed in Python\ndone\n"
    assert serial.interrupts > 3


def test_an_exception_is_told_counted_and_read_as_all_ones(
    linux: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    with linux.attach(Adder(), mmio=BASE) as attachment:
        assert devmem(linux, 0x20) == 0xFFFF_FFFF
        assert devmem(linux, 0x20) == 0xFFFF_FFFF
        assert isinstance(attachment.error, DeviceError)
        assert isinstance(attachment.error.__cause__, AttributeError)
        assert linux.device_stats().loc[attachment.name, "faults"] == 2
        assert devmem(linux, 0) == 0, "the device goes on"
    told = capsys.readouterr().err
    assert told.count("Traceback") == 1 and "undefined" in told


def test_a_method_that_ends_its_program_is_told_as_any_that_fails(linux: Machine) -> None:
    """Given a read that calls sys.exit, as code from a script does, then the device answers on."""

    class Leaving(PythonDevice):
        def read(self, offset: int, size: int) -> int:
            return sys.exit(3) if offset else 7

    with linux.attach(Leaving(), mmio=BASE) as attachment:
        assert devmem(linux, 4) == 0xFFFF_FFFF
        assert isinstance(attachment.error, DeviceError)
        assert isinstance(attachment.error.__cause__, SystemExit)
        assert devmem(linux, 0) == 7


def test_a_read_that_hangs_ends_after_the_timeout_with_a_typed_error(linux: Machine) -> None:
    """Given a method that does not return, when the guest reads, then it goes on with all ones."""
    adder = Adder()
    with linux.attach(adder, mmio=BASE, timeout=0.5) as attachment:
        begin = time.monotonic()
        assert devmem(linux, 0x10) == 0xFFFF_FFFF
        assert devmem(linux, 0) == 0xFFFF_FFFF, "the code still hangs"
        assert isinstance(attachment.error, DeviceError) and "has not answered" in str(attachment.error)
        assert time.monotonic() - begin < 15
        adder.stall.set()
        until = time.monotonic() + 10
        while devmem(linux, 0) != 0 and time.monotonic() < until:
            pass
        assert devmem(linux, 0) == 0
        assert isinstance(attachment.error, DeviceError) and "0.5 s" in str(attachment.error)
        assert linux.device_stats().loc[attachment.name, "timeouts"] == 1


def test_what_is_taken_is_refused_with_what_is_free(linux: Machine) -> None:
    with linux.attach(Adder(), mmio=BASE, irq=5, name="first") as first:
        assert first.name == "first"
        for place, words in [
            ({"mmio": 0x1000}, "RAM"),
            ({"mmio": BASE + 0xFF0}, "first"),
            ({"mmio": 0xFEC0_0000}, "ioapic"),
            ({"mmio": 0xFEE0_0000}, "local APIC"),
            ({"mmio": 0xC000_0000}, "ecam"),
            ({"mmio": 0xD000_0000}, "PCI"),
            ({"mmio": 1 << 40}, "0xffffffffff"),
            ({"mmio": "0x1000"}, "a first address"),
            ({"ports": 0x3F8}, "uart"),
            ({"ports": 0xFFFF}, "0xffff"),
            ({"mmio": BASE + 0x1000, "irq": 5}, "free are 6, 7"),
            ({"mmio": BASE + 0x1000, "irq": 4}, "is taken"),
            ({"mmio": BASE + 0x1000, "name": "uart"}, "another name"),
            ({}, "say where"),
        ]:
            with pytest.raises(ConfigurationError, match=words):
                linux.attach(Adder(), **place)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="attached already"):
            linux.attach(first.device, mmio=BASE + 0x1000)
        with pytest.raises(ConfigurationError, match="read"):
            linux.attach(object(), mmio=BASE + 0x1000)
        with linux.attach(first_again := Adder(), mmio=BASE + 0x1000) as second:
            assert second.name == "Adder"
            with pytest.raises(ConfigurationError, match="no interrupt line"):
                first_again.set_irq(True)


def test_a_machine_stops_at_once_while_its_vcpu_waits_for_a_device(
    tiny_guest: Callable[[bytes], bytes],
) -> None:
    """Given a guest that reads a device whose code hangs, when the machine is stopped, then that is quick."""
    read_for_ever = bytes.fromhex("66ba4002") + b"\xec\xeb\xfd"  # mov dx, 0x240; in al, dx; jmp
    adder = Adder()
    with Machine(1, "16M", tiny_guest(read_for_ever)) as machine:
        attachment = machine.attach(adder, ports=range(0x230, 0x248), timeout=60)
        until = time.monotonic() + 20
        while not machine.device_stats().loc[attachment.name, "reads"] and time.monotonic() < until:
            time.sleep(0.01)
        begin = time.monotonic()
        machine.stop()
        assert time.monotonic() - begin < 8
    adder.stall.set()
    attachment.detach()
    with pytest.raises(MachineStateError):
        machine.attach(Adder(), mmio=BASE)
