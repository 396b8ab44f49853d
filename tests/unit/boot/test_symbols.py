# SPDX-License-Identifier: GPL-2.0-or-later
"""Names for a Linux guest's memory, from files that a kernel's build or a running kernel leaves."""

from pathlib import Path

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.core.symbols import KERNEL_MAPPING, SymbolTable
from hypothesis import given
from hypothesis import strategies as st

SYSTEM_MAP = """\
0000000000000000 A fixed_percpu_data
000000000001fb40 A runqueues
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81001000 t early_setup
ffffffff82a05000 D init_task
ffffffff82a06100 d tick_broadcast_lock
ffffffff82a06140 D jiffies_lock
ffffffff82a06180 D xtime_lock
ffffffff82a061c0 D a_lock
ffffffff82a06200 D b_lock
ffffffff82a06240 D c_lock
ffffffff82c00000 B _end
"""
KALLSYMS = SYSTEM_MAP + "ffffffffc0001000 t ext4_do\t[ext4]\n"


@pytest.fixture
def table(tmp_path: Path) -> SymbolTable:
    file = tmp_path / "System.map"
    file.write_text(SYSTEM_MAP)
    return SymbolTable.read(file)


def test_a_virtual_address_is_told_by_the_symbol_before_it(table: SymbolTable) -> None:
    assert table.at(0xFFFF_FFFF_8100_1000) == "early_setup"
    assert table.at(0xFFFF_FFFF_8100_1234) == "early_setup+0x234"
    assert table.at(0x1234) == "0x1234"


def test_a_physical_page_has_the_names_that_lie_in_it_and_of_many_the_first(table: SymbolTable) -> None:
    assert table.within(0x2A0_5000, 4096) == ["init_task"]
    assert table.within(0x2A0_6000, 4096) == [
        "init_task+0x1000",
        "tick_broadcast_lock",
        "jiffies_lock",
        "xtime_lock",
        "and 3 more",
    ]


def test_a_page_inside_something_large_is_told_by_where_that_begins(table: SymbolTable) -> None:
    assert table.within(0x100_5000, 4096) == ["early_setup+0x4000"]


def test_what_is_no_part_of_the_kernels_image_has_no_name(table: SymbolTable) -> None:
    assert table.within(0x10_0000, 4096) == []  # below it
    assert table.within(0x3000_0000, 4096) == []  # behind its end
    assert table.within(0x2_0000_0000, 4096) == []  # outside the mapping
    assert table.within(0x1_F000, 4096) == []  # offsets into per-CPU areas are no addresses


def test_a_kernel_that_moved_itself_is_found_by_how_far(tmp_path: Path) -> None:
    file = tmp_path / "System.map"
    file.write_text(SYSTEM_MAP)
    assert SymbolTable.read(file, phys_base=0x1000_0000).within(0x12A0_5000, 4096) == ["init_task"]
    assert SymbolTable.read(file, phys_base=0x1000_0000).within(0x2A0_5000, 4096) == []


def test_kallsyms_has_modules_too(tmp_path: Path) -> None:
    file = tmp_path / "kallsyms"
    file.write_text(KALLSYMS)
    table = SymbolTable.read(file)
    assert table.at(0xFFFF_FFFF_C000_1010) == "ext4_do+0x10"
    assert table.within(0x100_0000, 4096) == ["_text", "startup_64"]
    assert table.within(0x3000_0000, 4096) == []  # between the image's end and the first module


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "no symbols at"),
        ("", "no kernel symbols"),
        ("hello, world\n", "no kernel symbols"),
        ("0000000000000000 T _text\n0000000000000000 D jiffies\n", "hidden"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path: Path, text: str | None, word: str) -> None:
    file = tmp_path / "file"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match=word):
        SymbolTable.read(file)


@given(st.text())
def test_no_text_makes_the_reader_fail_in_another_way(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.mktemp("symbols") / "map"
    file.write_text(text)
    try:
        table = SymbolTable.read(file)
    except ConfigurationError:
        return
    assert len(table) >= 0


def test_addresses_of_the_mapping_begin_at_physical_zero(table: SymbolTable) -> None:
    assert table.at(KERNEL_MAPPING + 0x100_0000) in ("_text", "startup_64")
