# SPDX-License-Identifier: GPL-2.0-or-later
"""Neutral folders of the native core do not name what only the x86 guest has."""

import re
from pathlib import Path

NATIVE = Path(__file__).parents[2] / "core/native"
NEUTRAL = (
    "base", "ram", "link", "coherence", "memory", "bus", "guest", "tcg", "tcg/codegen", "vcpu", "host",
    "probe", "python",
)  # fmt: skip
WORD = re.compile(
    r"(?<![a-z])(l?apic|x2apic|ioapic|msrs?|cpuid|sipi|rflags|eflags|rip|cr[0-48]|rdtsc)(?![a-z0-9])", re.I
)
#: (file, word): host code, or a sentence that gives x86 as the example.
ALLOWED = {
    ("base/clock.cpp", "cpuid"),  # of the host
    ("base/clock.cpp", "rdtsc"),
    ("base/clock.hpp", "cpuid"),
    ("base/clock.hpp", "rdtsc"),
    ("guest/core.hpp", "sipi"),  # "on x86 ..."
    ("ram/fault_cause.hpp", "rip"),
    ("tcg/own_code.c", "rip"),
    ("tcg/codegen/memory.c", "rflags"),  # why the engine's helpers are told of no alignment
    ("tcg/codegen/memory.c", "cr0"),
    ("tcg/codegen/ops.c", "rip"),  # an instruction of the host
    ("python/counters.cpp", "apic"),  # the name of a column that people's programs read
    ("python/counters.cpp", "sipi"),  # "on x86 ..."
    ("vcpu/counters.hpp", "apic"),  # what a counter counts
}


def words_in(texts: dict[str, str]) -> set[tuple[str, str]]:
    """Each (file, word) that names the x86 guest's."""
    return {(name, word.lower()) for name, text in texts.items() for word in WORD.findall(text)}


def neutral_texts() -> dict[str, str]:
    """The sources of the neutral folders by path."""
    files = [file for folder in NEUTRAL for file in (NATIVE / folder).iterdir()]
    return {
        file.relative_to(NATIVE).as_posix(): file.read_text()
        for file in files
        if file.suffix in {".c", ".h", ".cpp", ".hpp"}
    }


def test_given_the_neutral_folders_when_they_are_read_then_no_word_is_the_x86_guests_alone() -> None:
    found = words_in(neutral_texts())
    assert sorted(found - ALLOWED) == []
    assert sorted(ALLOWED - found) == []  # the list shrinks with the code


def test_given_a_file_that_names_a_local_apic_when_it_is_read_then_it_is_found() -> None:
    """The control."""
    text = "x86::Lapic lapic_; if (index == kMsrX) post_sipi(cr3);"
    found = words_in({"vcpu/a.cpp": text})
    assert {("vcpu/a.cpp", "lapic"), ("vcpu/a.cpp", "sipi"), ("vcpu/a.cpp", "cr3")} <= found
