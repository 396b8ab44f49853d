# SPDX-License-Identifier: GPL-2.0-or-later
"""Which room may import which: imports run one way, and a machine can be put together where Ray is absent."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each room, and the rooms that it may use. A file that stands in none of them is the face of its folder.
ROOMS = {
    "core": {"core"},
    "hw": {"core", "hw"},
    "cluster.machine": {"core", "hw", "cluster.machine"},
    "cluster.launch": {"core", "hw", "cluster.machine", "cluster.launch"},
    "cluster.experiments": {"core", "hw", "cluster.machine", "cluster.launch", "cluster.experiments"},
    "cluster.cli": {
        "core",
        "hw",
        "cluster.machine",
        "cluster.launch",
        "cluster.experiments",
        "cluster.cli",
    },
}
RAY = "cluster.launch"  # the only room that may import Ray


def imported(source: str) -> Iterator[tuple[int, str]]:
    """The (line, dotted name) of each import of `source`, those inside functions and for types too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{name.name}") for name in node.names)


def room_of(module: str) -> str:
    """The room of a dotted name below ``coremesh``; what is none of the rooms is named as it is."""
    return next((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), module)


def wrong_imports(room: str, source: str) -> list[str]:
    """What `source`, a file of `room`, imports though it may not."""
    wrong = []
    for line, name in imported(source):
        top, _, inside = name.partition(".")
        relative = name.startswith(".")  # nothing here imports so; a reader would have to count dots
        upwards = top == "coremesh" and room_of(inside) not in ROOMS[room]
        if relative or upwards or (top == "ray" and room != RAY):
            wrong.append(f"{line}: {name}")
    return wrong


@pytest.mark.parametrize("room", ROOMS)
def test_given_a_room_when_its_imports_are_read_then_they_lead_to_rooms_below_it(room: str) -> None:
    files = sorted((ROOT / room.replace(".", "/")).rglob("*.py"))
    assert files
    found = {str(file.relative_to(ROOT)): wrong_imports(room, file.read_text()) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("core", "from coremesh.hw.device import Device"),
        ("hw", "import coremesh.cluster.machine.host"),
        ("cluster.machine", "def later():\n    import ray"),
        ("cluster.machine", "from ray.util import metrics"),
        ("cluster.machine", "from coremesh.cluster.launch import session"),
        ("cluster.machine", "from coremesh.cluster import api"),
        ("cluster.machine", "from coremesh import Machine"),
        ("cluster.machine", "from ..launch import session"),
        ("cluster.launch", "from coremesh.cluster.cli.process import say"),
        ("cluster.experiments", "import ray"),
        ("cluster.launch", "from coremesh.cluster.experiments.plan import Trial"),
        ("cluster.cli", "import ray"),
    ],
)
def test_given_an_import_against_the_direction_when_it_is_read_then_it_is_found(room: str, line: str) -> None:
    assert wrong_imports(room, line)


def test_given_a_file_of_the_product_when_it_is_looked_for_then_it_stands_in_a_room() -> None:
    """So that a new folder cannot escape the rules above: it has to be added to them."""
    faces = {"cluster/__init__.py", "cluster/api.py"}
    stray = [
        name
        for folder in ("core", "hw", "cluster")
        for file in (ROOT / folder).rglob("*.py")
        if (name := str(file.relative_to(ROOT))) not in faces
        and room_of(name.removesuffix(".py").replace("/", ".")) not in ROOMS
    ]
    assert stray == []


def folders_without_a_page(root: Path) -> list[str]:
    """The folders of Python files that have no README.md; the native tree has a test of its own."""
    sources = [
        path for path in root.rglob("*.py") if not {"native", "guests", "__pycache__"} & set(path.parts)
    ]
    return sorted({str(path.parent) for path in sources if not (path.parent / "README.md").is_file()})


@pytest.mark.parametrize("top", ["core", "hw", "cluster", "deploy"])
def test_given_a_folder_of_the_product_when_a_newcomer_opens_it_then_a_page_tells_what_is_there(
    top: str,
) -> None:
    assert folders_without_a_page(ROOT / top) == []


def test_given_a_folder_without_a_page_when_it_is_looked_for_then_it_is_found(tmp_path: Path) -> None:
    for room in ("told", "untold"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "module.py").write_text("")
    (tmp_path / "told" / "README.md").write_text("# Told")
    assert folders_without_a_page(tmp_path) == [str(tmp_path / "untold")]
