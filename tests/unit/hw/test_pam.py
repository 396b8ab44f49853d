# SPDX-License-Identifier: GPL-2.0-or-later
"""The attribute registers of the 82441FX: what a guest writes is what memory is told, when it changes."""

from coremesh.hw.pci.config_space import SUBSYSTEM
from coremesh.hw.pci.host import PAM, PAM_REGISTERS, HostBridge440Fx, steering
from hypothesis import given, settings
from hypothesis import strategies as st

SEGMENTS = [*range(0xC_0000, 0xF_0000, 0x4000), 0xF_0000]


def read_write(word: int, address: int) -> int:
    return word >> 2 * SEGMENTS.index(address) & 3


def test_each_register_steers_the_segments_of_the_datasheet() -> None:
    told: list[int] = []
    bridge = HostBridge440Fx(told.append)
    bridge.write(0x5E, 1, 0x13)  # PAM5: E0000 read and write, E4000 read
    assert read_write(told[-1], 0xE_0000) == 3 and read_write(told[-1], 0xE_4000) == 1
    bridge.write(0x59, 1, 0x20)  # PAM0: F0000 write
    assert read_write(told[-1], 0xF_0000) == 2
    bridge.write(0x58, 4, 0x0200_0000)  # a wide write: PAM0 and PAM1 are cleared, PAM2 is C8000 write
    assert read_write(told[-1], 0xF_0000) == 0 and read_write(told[-1], 0xC_8000) == 2
    assert read_write(told[-1], 0xE_0000) == 3


def test_memory_is_told_of_changes_alone_and_reset_is_one() -> None:
    told: list[int] = []
    bridge = HostBridge440Fx(told.append)
    bridge.write(0x5A, 1, 0x33)
    bridge.write(0x5A, 1, 0xFF)  # the other bits are not there
    bridge.write(0x72, 1, 0x1A)
    assert len(told) == 1 and bridge.read(0x5A, 1) == 0x33
    bridge.reset()
    assert told == [told[0], 0]


def test_a_bridge_whose_state_is_loaded_steers_as_the_saved_one() -> None:
    told: list[int] = []
    first = HostBridge440Fx()
    first.write(0x59, 1, 0x30)
    second = HostBridge440Fx(told.append)
    second.load_fields(first.save_fields(), "i440fx")
    second.resume()
    assert told == [steering(first.config.data[PAM.offset : PAM.offset + PAM_REGISTERS])]


def test_only_a_machine_with_firmware_shows_the_ids_that_firmware_looks_for() -> None:
    assert HostBridge440Fx(virtual=True).read(SUBSYSTEM, 4) == 0x1100_1AF4
    assert HostBridge440Fx().read(SUBSYSTEM, 4) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0x50, 0x74), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))))
def test_whatever_is_written_memory_and_registers_agree(writes: list[tuple[int, int, int]]) -> None:
    told = [0]
    bridge = HostBridge440Fx(told.append)
    for at, size, value in writes:
        bridge.write(at & -size, size, value & (1 << 8 * size) - 1)
        pam = bridge.config.data[PAM.offset : PAM.offset + PAM_REGISTERS]
        assert told[-1] == steering(pam) and not any(byte & ~PAM.writable for byte in pam)
