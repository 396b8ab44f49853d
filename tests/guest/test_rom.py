# SPDX-License-Identifier: GPL-2.0-or-later
"""ROM: executed and read like RAM; what a guest or a bus master writes to it is dropped."""

from collections.abc import Callable
from pathlib import Path

import pytest
from baremetal_machine import PASSED, BaremetalMachine, run_on_coremesh
from coremesh.hw.memory import BusMasterError, GuestMemory, Segment
from rom_image import ROM_BASE, rom, rom_image


def test_given_a_guest_that_writes_to_rom_in_every_way_when_it_runs_from_it_then_nothing_of_it_changes(
    guest: Callable[[str], Path], vcpus: int, protection: str
) -> None:
    result = run_on_coremesh(
        guest("rom"),
        vcpus=vcpus,
        cmdline=f"rom={ROM_BASE} rounds={40 // vcpus + 1}",
        protection=protection,
        roms=[rom()],
    )
    assert result.status == PASSED, result.story()
    assert result.total("atomics_crossing") > 0


def test_given_the_same_bytes_in_ram_when_the_guest_writes_to_them_then_its_checks_notice(
    guest: Callable[[str], Path],
) -> None:
    """The control: what the guest does to ROM changes RAM."""
    ram = 0x400_0000
    modules = [(rom_image(), "ram")]
    with BaremetalMachine(guest("rom"), vcpus=1, cmdline=f"rom={ram} rounds=1", modules=modules) as machine:
        machine.host.load(ram, rom_image())
        machine.start()
        result = machine.finish()
    assert result.status != PASSED
    for way in ("MOV", "PUSH", "a string instruction", "a locked operation", "SSE or x87"):
        assert f"FAIL {way} changed" in result.output, result.story()


def test_given_a_bus_master_when_it_writes_to_rom_then_it_is_refused_and_reading_works(
    guest: Callable[[str], Path],
) -> None:
    image = rom_image()
    with BaremetalMachine(guest("rom"), vcpus=1, roms=[rom()]) as machine:
        dma = GuestMemory(machine.host)
        with pytest.raises(BusMasterError):
            dma.scatter([Segment(0x5000, 4), Segment(ROM_BASE + 0x1000, 4)], b"RAM ROM ")
        assert dma.gather([Segment(0x5000, 4)]) == b"RAM "
        assert dma.gather([Segment(ROM_BASE, len(image))]) == image
        with pytest.raises(IndexError):
            machine.host.transact("add", ROM_BASE + 0x1000, 8, 1)
        assert machine.host.transact("load", ROM_BASE, 4) == int.from_bytes(image[:4], "little")
