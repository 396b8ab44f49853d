# SPDX-License-Identifier: GPL-2.0-or-later
"""Which folder of core/native may use which: the table in its README, and no circles.

Given the sources, when their includes are read, then each folder includes only what its row of the table
names, the folders are in an order, and no two files need each other. Folders of no architecture name none,
and the engine's functions are called by the table of the target, since each target has its own.
"""

import posixpath
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "core/native"
SUFFIXES = {".c", ".h", ".cpp", ".hpp"}
ROW = re.compile(r"^\| `([\w/]+)` \|.*\| ([^|]*) \|$", re.MULTILINE)
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
#: The engine's neutral files and those of the guest's architecture are one library, and need each other.
ONE_PART = {"tcg/x86": "tcg"}
#: Headers that C files of tcg share with each other and with no other folder, and whose functions many of
#: these files define.
PRIVATE = {"tcg/internals", "tcg/x86/translator"}

#: A folder of a guest's architecture, below a neutral one of the same subject.
ARCHITECTURES = {"x86"}
#: The one neutral file that lists the architectures.
LISTS_ARCHITECTURES = "python/architectures.cpp"
NAMESPACE = re.compile(r"\b(\w+)::")
ENGINE_CALL = re.compile(r"\bcm_engine_\w+\s*\(")

Graph = dict[str, set[str]]


def included_by(source: str, text: str, files: Set[str]) -> set[str]:
    """Return the files of `files` that `source` includes; what is not of ours is left out."""
    found = set()
    for name in INCLUDE.findall(text):
        for folder in (posixpath.dirname(source), "", "tcg"):
            path = posixpath.normpath(posixpath.join(folder, name))
            if path in files:
                found.add(path)
                break
    return found


def includes(texts: Mapping[str, str]) -> Graph:
    """Return, for each file, those of ours that it includes."""
    return {source: included_by(source, text, texts.keys()) for source, text in texts.items()}


def grouped(graph: Graph, group: Mapping[str, str]) -> Graph:
    """Return the same between groups of files."""
    result: Graph = {}
    for source, targets in graph.items():
        own = result.setdefault(group[source], set())
        own |= {group[target] for target in targets if group[target] != group[source]}
    return result


def circles(graph: Graph) -> Iterator[list[str]]:
    """Yield the ways from a node back to itself, one for each node that has any."""
    for start in sorted(graph):
        ways, seen = [[start]], set()
        while ways:
            way = ways.pop()
            for following in graph.get(way[-1], ()):
                if following == start:
                    yield [*way, start]
                    ways.clear()
                    break
                if following not in seen:
                    seen.add(following)
                    ways.append([*way, following])


def table() -> dict[str, set[str]]:
    """Return the README's table: a folder and those it may include."""
    rows = dict(ROW.findall((NATIVE / "README.md").read_text()))
    every = set(rows)
    return {
        folder: every if words == "all" else set(re.findall(r"`([\w/]+)`", words))
        for folder, words in rows.items()
    }


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Each source file of core/native by its path."""
    files = sorted(path for path in NATIVE.rglob("*") if path.suffix in SUFFIXES)
    return {path.relative_to(NATIVE).as_posix(): path.read_text() for path in files}


def broken_rules(texts: Mapping[str, str], allowed: Mapping[str, Set[str]]) -> list[str]:
    """Return what is wrong with the includes, as sentences."""
    graph = includes(texts)
    folder = {source: posixpath.dirname(source) for source in texts}
    wrong = [
        f"{source} includes {target}, but the README's row of {folder[source]} does not name {folder[target]}"
        for source, targets in graph.items()
        for target in targets
        if folder[target] not in allowed.get(folder[source], set()) | {folder[source]}
    ]
    parts = {source: ONE_PART.get(folder[source], folder[source]) for source in texts}
    wrong += [f"folders in a circle: {' -> '.join(circle)}" for circle in circles(grouped(graph, parts))]
    unit = {source: posixpath.splitext(source)[0] for source in texts}
    units = {name: targets - PRIVATE for name, targets in grouped(graph, unit).items() if name not in PRIVATE}
    wrong += [f"files in a circle: {' -> '.join(circle)}" for circle in circles(units)]
    return wrong


def architecture_names(texts: Mapping[str, str]) -> list[str]:
    """Return where C++ of a neutral folder names an architecture, or calls the engine but by its table."""
    wrong = []
    for source, text in texts.items():
        folder = posixpath.dirname(source)
        if not source.endswith("pp"):
            continue
        neutral = posixpath.basename(folder) not in ARCHITECTURES and source != LISTS_ARCHITECTURES
        if neutral and ARCHITECTURES & set(NAMESPACE.findall(text)):
            wrong.append(f"{source} names an architecture")
        code = "\n".join(line.split("//")[0] for line in text.splitlines())
        wrong += [f"{source} calls {call}) of no target" for call in ENGINE_CALL.findall(code)]
    return wrong


def test_given_the_native_sources_when_they_are_read_then_no_neutral_file_names_an_architecture(
    texts: dict[str, str],
) -> None:
    assert architecture_names(texts) == []


@pytest.mark.parametrize(
    ("source", "line", "complaint"),
    [
        ("host/host.cpp", "x86::Fabric fabric;", "host/host.cpp names an architecture"),
        ("vcpu/vcpu.cpp", "cm_engine_kick(engine_);", "vcpu/vcpu.cpp calls cm_engine_kick() of no target"),
        ("guest/x86/core.cpp", "cm_engine_init(engine_);", "calls cm_engine_init() of no target"),
    ],
)
def test_given_a_neutral_file_that_names_an_architecture_when_it_is_read_then_it_is_found(
    texts: dict[str, str], source: str, line: str, complaint: str
) -> None:
    changed = texts | {source: f"{texts[source]}\n{line}\n"}
    assert any(complaint in sentence for sentence in architecture_names(changed))


def test_given_the_native_folders_when_they_are_listed_then_each_has_its_page_and_its_row(
    texts: dict[str, str],
) -> None:
    folders = {posixpath.dirname(source) for source in texts}
    assert folders == set(table())
    assert [name for name in sorted(folders) if not (NATIVE / name / "README.md").is_file()] == []


def test_given_the_native_sources_when_their_includes_are_read_then_no_folder_uses_one_that_it_may_not(
    texts: dict[str, str],
) -> None:
    assert broken_rules(texts, table()) == []


@pytest.mark.parametrize(
    ("source", "line", "complaint"),
    [
        ("coherence/agent.hpp", '#include "ram/page_table.hpp"', "row of coherence does not name ram"),
        ("base/clock.hpp", '#include "host/mesh.hpp"', "folders in a circle: base -> "),
        ("coherence/homes.hpp", '#include "coherence/agent.hpp"', "files in a circle: coherence/agent -> "),
        ("host/host.hpp", '#include "guest/x86/core.hpp"', "row of host does not name guest/x86"),
        ("python/module.hpp", '#include "tcg/x86/engine.h"', "row of python does not name tcg/x86"),
        ("link/libzmq.cpp", '#include "link/zmq.hpp"', "files in a circle: link/libzmq -> link/zmq"),
    ],
)
def test_given_an_include_that_is_wrong_when_it_is_read_then_it_is_found(
    texts: dict[str, str], source: str, line: str, complaint: str
) -> None:
    changed = texts | {source: f"{texts[source]}\n{line}\n"}
    assert any(complaint in sentence for sentence in broken_rules(changed, table()))
