# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's floating point against the bare host's: values, MXCSR, and #XM through the guest's IDT."""

import platform
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from baremetal_machine import PASSED, build_float_guest, run_on_coremesh

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="the host must have the instructions to compare with",
)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest with this host's answers built in."""
    return build_float_guest(tmp_path_factory.mktemp("float-guest"))


def test_given_the_hosts_answers_when_a_guest_computes_the_same_rows_then_it_sees_the_same(
    guest: Path,
) -> None:
    """SSE arithmetic, conversions, compares; #UD without OSXMMEXCPT; operands at the end of a page."""
    result = run_on_coremesh(guest, vcpus=1)
    assert result.status == PASSED, result.story()


@pytest.mark.parametrize("protection", ["userfaultfd", "mprotect"])
def test_given_a_store_into_running_code_when_pages_are_guarded_either_way_then_mxcsr_survives(
    guest: Path, protection: str
) -> None:
    """The store's fault leaves the host's signal handler by a jump, which must not take MXCSR with it."""
    result = run_on_coremesh(guest, vcpus=1, protection=protection, cmdline="store")
    assert result.status == PASSED, result.story()
