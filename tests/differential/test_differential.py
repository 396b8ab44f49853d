# SPDX-License-Identifier: GPL-2.0-or-later
"""Random blocks leave the same state in a guest as on the bare processor.

The seed of a run is printed; COREMESH_DIFFERENTIAL_SEED sets it, COREMESH_DIFFERENTIAL_BLOCKS how many.
"""

import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from block_differences import Differ, place, story
from block_draft import Options
from block_generator import Generator
from block_layout import CODE_BASE, CODE_PAGES, PAGE, Block, Instruction, Outcome
from block_runners import GuestRunner, NativeRunner, build_block_guest, build_native
from found_blocks import FOUND
from instruction_table import GROUPS, NOT_ANNOUNCED

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host is another")

SEED = int(os.environ.get("COREMESH_DIFFERENTIAL_SEED", "1"))
BLOCKS = int(os.environ.get("COREMESH_DIFFERENTIAL_BLOCKS", "0"))
SHOWN = 5
OPTIONS = Options()


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeRunner]:
    """The bare processor."""
    folder = tmp_path_factory.mktemp("native")
    with NativeRunner(build_native(folder), folder) as runner:
        yield runner


@pytest.fixture(scope="session")
def guest_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest that runs blocks."""
    return build_block_guest(tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="session")
def in_guest(guest_program: Path) -> Iterator[GuestRunner]:
    """That guest on one host."""
    with GuestRunner(guest_program) as runner:
        yield runner


def run(differ: Differ, seed: int, count: int, options: Options) -> None:
    """Batches from ``seed`` on; fails with the first differences, each shrunk."""
    done = 0
    while done < count:
        generator = Generator(seed, options)
        blocks = generator.blocks(min(2000, count - done))
        found = differ.differences(blocks, bytes(generator.code), generator.image)
        stories = [
            story(differ.shrink(difference, generator.image), generator.image) for difference in found[:SHOWN]
        ]
        assert not found, f"seed {seed}: {len(found)} of {len(blocks)} differ\n" + "\n\n".join(stories)
        done += len(blocks)
        seed += 1


def test_given_random_blocks_when_a_guest_runs_them_then_it_leaves_what_the_processor_leaves(
    native: NativeRunner, in_guest: GuestRunner
) -> None:
    print(f"seed {SEED}")
    run(Differ(native, in_guest), SEED, BLOCKS or 4000, OPTIONS)


def test_given_data_at_home_on_another_host_when_random_blocks_run_then_they_leave_what_the_processor_leaves(
    native: NativeRunner, guest_program: Path
) -> None:
    """The other host's core puts the data back after each block, so that each finds it elsewhere."""
    print(f"seed {SEED}")
    blocks = BLOCKS or 600
    with GuestRunner(guest_program, hosts=2) as on_two_hosts:
        run(Differ(native, on_two_hosts), SEED, blocks, OPTIONS)
        assert on_two_hosts.between_hosts > blocks


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_given_100000_random_blocks_when_a_guest_runs_them_then_it_leaves_what_the_processor_leaves(
    native: NativeRunner, in_guest: GuestRunner
) -> None:
    print(f"seed {SEED}")
    run(Differ(native, in_guest), SEED, BLOCKS or 100_000, OPTIONS)


def test_given_blocks_that_once_differed_when_both_run_them_then_they_do_not_differ_any_more(
    native: NativeRunner, in_guest: GuestRunner
) -> None:
    """Each alone, and its name in the failure: what was mended stays mended."""
    differ = Differ(native, in_guest)
    image = Generator(1).image
    code, blocks = bytearray(CODE_PAGES * PAGE), []
    for number, found in enumerate(FOUND):
        block = found.block_at(CODE_BASE + 32 * number)
        code[32 * number : 32 * number + len(block.code)] = block.code
        blocks.append(block)
    stories = [story(difference, image) for difference in differ.differences(blocks, bytes(code), image)]
    assert not stories, "\n\n".join(stories)


class Wrong:
    """A processor whose ADD forgets to carry from bit 7 to bit 8."""

    def __init__(self, right: NativeRunner) -> None:
        self.right = right

    def run(self, blocks: list[Block], code: bytes, image: bytes) -> list[Outcome]:
        outcomes = self.right.run(blocks, code, image)
        return [
            replace(outcome, gpr=(outcome.gpr[0] ^ 0x100, *outcome.gpr[1:]))
            if any(i.name == "add" for i in block.instructions)
            else outcome
            for block, outcome in zip(blocks, outcomes, strict=True)
        ]


def test_given_a_processor_that_adds_wrongly_when_blocks_are_compared_then_the_addition_alone_is_shown(
    native: NativeRunner,
) -> None:
    """The control: what differs is found, and shrunk to one instruction and a plain state."""
    generator = Generator(5, Options(("integer",), trap=0, unannounced=0))
    blocks = [b for b in generator.blocks(600) if len(b.instructions) > 2]
    differ = Differ(native, Wrong(native))  # type: ignore[arg-type]
    found = differ.differences(blocks, bytes(generator.code), generator.image)
    guilty = {id(block) for block in blocks if any(i.name == "add" for i in block.instructions)}
    assert {id(difference.block) for difference in found} == guilty
    assert guilty
    shrunk = differ.shrink(found[0], generator.image)
    assert [instruction.name for instruction in shrunk.block.instructions] == ["add"]
    assert "rax" in story(shrunk, generator.image)


def test_given_a_block_whose_page_is_missing_when_it_runs_bare_then_the_fault_is_that_of_the_manual(
    native: NativeRunner,
) -> None:
    """The bare processor's own record: vector, error code, address and all registers at the fault."""
    store = Instruction(bytes.fromhex("48890c2500500050"), "mov")  # mov [50005000h], rcx
    block = Block(0x4000_0000, [store], list(range(16)), 0x202, Generator(1).float_state())
    outcome = native.run([block], place(block), bytes(8 * 4096))[0]
    assert (outcome.vector, outcome.error, outcome.cr2) == (14, 6, 0x5000_5000)
    assert outcome.gpr == tuple(range(16))
    assert outcome.rip == block.address


def test_given_the_table_when_it_is_read_then_no_form_is_there_twice() -> None:
    forms = [
        (row.prefix, row.opcode, row.digit, row.operands, row.attributes & {"only32", "only64"})
        for rows in GROUPS.values()
        for row in rows
    ]
    assert len(forms) == len(set(forms))
    assert all(bytes.fromhex(code.removesuffix("/nop")) for code in NOT_ANNOUNCED.values())
