# SPDX-License-Identifier: GPL-2.0-or-later
"""The page that teaches how to add a device is run, so that it cannot go stale."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from coremesh.hw.board.board import Board
from coremesh.hw.board.pc import PC
from coremesh.hw.node import DeviceNode

PAGE = Path(__file__).parents[3] / "hw" / "ADDING_A_DEVICE.md"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The names that the page's code defines."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


@pytest.fixture
def with_watchdog(pc: Any, example: dict[str, Any]) -> Any:
    """The PC of the tests, with one chip more on its board."""
    watchdog = example["Watchdog"](pc.clock, pc.power.append)
    board = Board((*PC.chips, example["PLACE"]), PC.pins, PC.levels)
    devices = pc.node.devices
    pc.node = DeviceNode(board.mappings([*devices.values(), watchdog]), devices["ioapic"], devices["pic"])
    return pc


def test_given_the_page_when_its_device_is_on_the_board_then_its_story_holds(
    with_watchdog: Any, example: dict[str, Any]
) -> None:
    example["story"](with_watchdog, with_watchdog.clock)


def test_given_the_page_when_its_device_is_saved_and_loaded_then_it_barks_at_the_same_time(
    with_watchdog: Any, make_pc: Any, example: dict[str, Any]
) -> None:
    first, second = with_watchdog, make_pc()
    first.outb(0x240, 0x0B)
    first.clock.advance(1_000_000_000)
    state = json.loads(json.dumps(first.node.devices["watchdog"].save()))
    second.clock.time, second.clock.base = first.clock.time, first.clock.base
    loaded = example["Watchdog"](second.clock, second.power.append)
    loaded.load(state)
    with loaded.lock:
        loaded.resume()
    second.clock.advance(1_999_999_999)
    assert second.power == []
    second.clock.advance(1)
    assert [event.kind for event in second.power] == ["reset"]


def test_given_the_page_when_its_device_is_a_pci_function_then_it_answers_in_its_base_address(
    make_pc: Any, clock: Any, example: dict[str, Any]
) -> None:
    function = example["pci_watchdog"](example["Watchdog"](clock, lambda event: None))
    pc = make_pc(functions=[function])
    base = function.base(function.bars[0])
    pc.node.access(1, base, 1, True, 0x0B)
    assert pc.node.access(1, base, 1, False, 0) == 0x0B
    assert pc.node.devices["watchdog"].accesses == 2
