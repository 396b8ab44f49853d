# SPDX-License-Identifier: GPL-2.0-or-later
"""The product's sentences name the thread, the host and the number, and each term is the field's own.

Given every text of the product, when it is read, then it has no word of ``UNCLEAR`` (a reader cannot know
which thread "nobody" is) and no name of ``PRIVATE`` (names of our own for what has a name already).
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("core", "hw", "cluster", "deploy")
TEXTS = {".py", ".c", ".h", ".cpp", ".hpp", ".S", ".md", ".txt", ".cmake", ".toml", ".yaml", ".sbatch", ""}
PRIVATE = ("Bed", "Casualty", "VcpuSurroundings", "Nonsense", "FoughtPages", "DeviceLink", "cm_engine_place")
UNCLEAR = re.compile(
    r"\b([Ww]hoever|[Nn]obody|[Ss]omebody|[Ee]verybody|himself|[Ss]o many|is none|are none|"
    r"changes? of threads)\b"
)
#: "there is none" and the like say what they mean; `nobody` and `everybody()` are names in programs.
CLEAR = re.compile(
    r"\bthere (is|are) none\b|everybody\(\)|`nobody`|\bof (?:it|them|which|these) (?:is|are) none\b"
)
NAMES = re.compile(rf"\b({'|'.join(PRIVATE)})\b")


def found(words: re.Pattern[str], texts: Mapping[str, str]) -> Iterator[str]:
    """Yield each of the words with its place."""
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            for word in words.findall(CLEAR.sub("", line)):
                yield f"{name}:{number}: {word}"


def product_texts() -> dict[str, str]:
    """Every text of the product that git knows, by its path."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS, "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: what belongs to the product is not known")
    files = [ROOT / name for name in listed.stdout.splitlines() if not name.startswith("tests/")]
    return {
        str(file.relative_to(ROOT)): file.read_text(errors="replace")
        for file in files
        if file.suffix in TEXTS and file.is_file()
    }


def test_given_the_products_texts_when_they_are_read_then_no_name_is_of_our_own_making() -> None:
    texts = product_texts()
    assert len(texts) > 400
    assert list(found(NAMES, texts)) == []


@pytest.mark.slow  # sentences are mended before a release; a new one stops no other change
def test_given_the_products_texts_when_they_are_read_then_each_sentence_says_what_it_is_about() -> None:
    assert list(found(UNCLEAR, product_texts())) == []


@pytest.mark.parametrize(
    ("words", "line", "word"),
    [
        (UNCLEAR, "// Whoever waits is on its way.", "Whoever"),
        (UNCLEAR, "A page that came for nobody.", "nobody"),
        (UNCLEAR, "Run on so many hosts.", "so many"),
        (UNCLEAR, "Ours is none that a guest can reach.", "is none"),
        (NAMES, "class Casualty:", "Casualty"),
    ],
)
def test_given_a_sentence_that_does_not_when_it_is_read_then_it_is_found(
    words: re.Pattern[str], line: str, word: str
) -> None:
    assert list(found(words, {"core/a.cpp": line})) == [f"core/a.cpp:1: {word}"]
    assert list(found(words, {"core/a.cpp": "A store on a hole: there is none."})) == []
