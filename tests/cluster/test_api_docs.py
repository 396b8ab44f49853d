# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``help()`` says of the public names: numbers have units, errors are named, and the example runs."""

import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import coremesh
import pytest
from coremesh.cluster.api import __all__ as NAMES
from coremesh.cluster.machine.images.debian_image import DebianImage

UNITS = re.compile(
    r"second|byte|MiB|GiB|power of|counts? |number of|from 0|[01] to|0\.\.1|at most|guest-physical|seed",
)
ERROR = re.compile(r"\b[A-Z]\w*Error\b")


def documented(doc: str | None, takes: dict[str, str], *, raises: bool) -> list[str]:
    """What a docstring lacks, of a callable that takes the parameters ``takes``, name -> annotation."""
    if not doc or len(doc) < 8:
        return ["no docstring"]
    numbers = [name for name, kind in takes.items() if re.search(r"\b(int|float)\b", kind)]
    lacks = [f"`{name}` is not named" for name in numbers if f"`{name}`" not in doc]
    if numbers and not UNITS.search(doc):
        lacks.append("no unit")
    if numbers and raises and not ERROR.search(doc):
        lacks.append("no error")
    return lacks


def parameters(function: Callable[..., Any]) -> dict[str, str]:
    taken = inspect.signature(function).parameters.values()
    return {p.name: str(p.annotation) for p in taken if p.name not in ("self", "cls")}


def public() -> Iterator[tuple[str, list[str]]]:
    """Each public name, class, method and property with what its docstring lacks."""
    for name in NAMES:
        found = getattr(coremesh, name)
        if inspect.ismodule(found):
            yield name, documented(found.__doc__, {}, raises=False)
        elif not inspect.isclass(found):
            yield name, documented(found.__doc__, parameters(found), raises=True)
        elif issubclass(found, Exception):
            yield name, documented(found.__doc__, {}, raises=False)
        else:
            yield name, documented(found.__doc__, parameters(found), raises=name == "Machine")
            for member, value in vars(found).items():
                where = f"{name}.{member}"
                if member.startswith("_"):
                    continue
                if isinstance(value, property):
                    yield where, documented(value.__doc__, {}, raises=False)
                elif inspect.isfunction(value):
                    yield where, documented(value.__doc__, parameters(value), raises=True)


def test_given_each_public_name_when_its_help_is_read_then_numbers_have_units_and_errors_are_named() -> None:
    assert {where: lacks for where, lacks in public() if lacks} == {}


@pytest.mark.parametrize(
    "doc",
    [
        None,
        "Short.",
        "Wait for the end.",
        "Wait `timeout` for the end.",
        "Wait `timeout` seconds for the end.",
    ],
)
def test_given_a_docstring_that_leaves_out_what_a_number_is_when_it_is_read_then_that_is_found(
    doc: str | None,
) -> None:
    """Controls. With the error in the last one, all is there."""
    assert documented(doc, {"timeout": "float | None"}, raises=True)
    assert not documented("Wait `timeout` seconds; HostLostError.", {"timeout": "float | None"}, raises=True)


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("one_ray")
def test_given_the_example_of_machine_when_it_is_typed_then_it_prints_what_it_says(
    debian: DebianImage,
) -> None:
    pytest.importorskip("coremesh.core._native", reason="the engine is not built")
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(coremesh.Machine) or "", {}, "coremesh.Machine", None, 0
    )
    assert len(example.examples) == 3
    told: list[str] = []
    outcome = doctest.DocTestRunner().run(example, out=told.append)
    assert outcome.failed == 0, "".join(told)
