# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices saved and loaded: a second PC that was given the first one's state goes on as the first does."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from coremesh.core.state import StateError
from coremesh.hw.backend.keys import text_keys
from coremesh.hw.board.pc import PC
from coremesh.hw.decode import MMIO, PORT
from coremesh.hw.state import plain

DEVICES = sorted(chip.name for chip in PC.chips)


def program(pc: Any, seed: int, accesses: int = 400) -> None:
    """A guest that programs everything, at random, while time passes and a person types."""
    r = random.Random(seed)
    ports = [
        port
        for chip in PC.chips
        for place in chip.ranges
        if place.space == PORT and chip.name not in ("debug-exit",)
        for port in range(place.base, place.base + place.length)
    ]
    for _ in range(accesses):
        kind = r.random()
        if kind < 0.6:
            pc.node.access(PORT, r.choice(ports), r.choice([1, 1, 1, 2, 4]), True, r.getrandbits(32))
        elif kind < 0.75:
            pc.node.access(PORT, r.choice(ports), 1, False, 0)
        elif kind < 0.85:
            pc.ioapic_write(r.randrange(0x40), r.getrandbits(32))
        elif kind < 0.9:
            pc.console.feed(bytes([r.randrange(256)]))
            pc.node.devices["i8042"].press(text_keys(chr(r.randrange(0x20, 0x7F))))
        else:
            pc.clock.advance(r.randrange(3_000_000))


def observed(pc: Any, seed: int) -> list[object]:
    """What a guest sees of a PC: answers to random accesses, and every interrupt that comes."""
    r = random.Random(seed)
    pc.fabric.messages.clear()
    pc.fabric.extints.clear()
    seen: list[object] = []
    for _ in range(300):
        chip = r.choice(PC.chips)
        place = r.choice(chip.ranges)
        address = place.base + r.randrange(place.length)
        size = 4 if place.space == MMIO else 1
        write = chip.name != "debug-exit" and r.random() < 0.4
        seen.append(pc.node.access(place.space, address & -size, size, write, r.getrandbits(8 * size)))
        if r.random() < 0.2:
            pc.clock.advance(r.randrange(2_000_000))
    return [seen, list(pc.fabric.messages), list(pc.fabric.extints)]


@pytest.mark.parametrize("seed", range(12))
def test_a_pc_that_was_saved_and_loaded_goes_on_as_the_first(make_pc: Any, seed: int) -> None:
    """Given a PC that a guest has programmed, when its state goes through JSON into a PC just built.

    Then both answer every further access alike, and raise the same interrupts at the same times.
    """
    first, second = make_pc(), make_pc()
    program(first, seed)
    first.console.take(1 << 20)  # what was typed and not yet received stays with the person's terminal
    saved = json.loads(json.dumps(first.node.save()))
    second.clock.time, second.clock.base = first.clock.time, first.clock.base
    second.node.load(saved)
    assert observed(second, seed) == observed(first, seed)


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_forgets_nothing_that_it_changes(make_pc: Any, name: str) -> None:
    """Given each device in a random state, when another takes its state.

    Then no attribute of data differs between the two: a new one that is not declared as state is found here.
    """
    for seed in range(6):
        first, second = make_pc(), make_pc()
        program(first, seed)
        second.clock.time, second.clock.base = first.clock.time, first.clock.base
        second.node.devices[name].load(first.node.devices[name].save())
        assert data_of(second.node.devices[name]) == data_of(first.node.devices[name])


COUNTED = {"accesses", "contended", "waited_ns", "faults"}  # of this run of the emulator, not of the machine


def data_of(part: Any) -> dict[str, Any]:
    """The attributes that are data, of a device and of the parts in it."""
    found: dict[str, Any] = {}
    for name, value in vars(part).items():
        if name in COUNTED:
            continue
        try:
            found[name] = plain(value)
        except TypeError:
            continue  # wiring: lines, clocks, methods
    return found


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("pit"),
        lambda state: state["uart"].update(version=99),
        lambda state: state["uart"].pop("divisor"),
        lambda state: state["uart"].update(colour=1),
        lambda state: state["uart"].update(divisor="fast"),
        lambda state: state["uart"]["registers"].pop("IER"),
        lambda state: state["uart"]["registers"].update(IER="1"),
        lambda state: state["uart"]["registers"].update(IER=None),
        lambda state: state["uart"]["registers"].update(IER=-1),
        lambda state: state["uart"].update(lines=1),
        lambda state: state["uart"].update(lines=[2]),
        lambda state: state["i8042"].update(ram={"hex": "00"}),
        lambda state: state["pit"]["counters"].pop(),
        lambda state: state["rtc"].update(lines=[]),
        lambda state: state.update(uart=None),
    ],
)
def test_a_state_that_does_not_fit_is_refused(pc: Any, damage: Callable[[dict[str, Any]], object]) -> None:
    """When a state lacks a part, has one too many, or another version, then that is a StateError."""
    state = json.loads(json.dumps(pc.node.save()))
    damage(state)
    with pytest.raises(StateError):
        pc.node.load(state)
