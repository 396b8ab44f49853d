# SPDX-License-Identifier: GPL-2.0-or-later
"""Given guests that run whatever hurts, when they have run, then the host lives and nothing of them is left.

Each machine ends by itself or is stopped within a second; its threads are gone, the memory of the process
stays
bounded, and the process is alive. COREMESH_HOSTILE_SEED sets the first seed, which is printed, and
COREMESH_HOSTILE_BLOCKS the length of the long runs.
"""

import os
import secrets
import signal
import subprocess
import sys

import campaign
import hostile_machine
import pytest
from coremesh.core._native import doctor

SEED = int(os.environ.get("COREMESH_HOSTILE_SEED", "0")) or secrets.randbelow(1 << 30) + 1
BLOCKS = int(os.environ.get("COREMESH_HOSTILE_BLOCKS", "1000000"))
FAST_SECONDS = 3.0


def need(protection: str) -> None:
    if not doctor()[protection]:
        pytest.skip(f"this host has no {protection}")


def story(report: campaign.Report) -> str:
    """What a failure shows: the findings with their seeds."""
    return "\n".join([str(report), *map(str, report.findings)])


@pytest.mark.parametrize("hosts", [1, 2], ids=["1-host", "2-hosts"])
@pytest.mark.parametrize("protection", ["userfaultfd", "mprotect"])
def test_given_hostile_guests_when_they_run_then_their_host_lives(protection: str, hosts: int) -> None:
    need(protection)
    print(f"seed {SEED}")
    report = campaign.run(seed=SEED, protection=protection, hosts=hosts, seconds=FAST_SECONDS)
    assert not report.findings, story(report)
    assert report.blocks > 100, story(report)


def test_given_each_kind_of_instruction_when_it_runs_then_the_host_lives() -> None:
    """In 64-bit and in 32-bit code; what translates is what a long run can be measured by."""
    known, finding = campaign.kinds_of_instructions("auto")
    assert not finding, finding
    assert len(known) > 1000


def test_given_a_machine_that_ends_its_process_when_it_is_found_then_the_blocks_that_matter_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: a runner that dies of one block is noticed, with its seed, and shrunk to that block."""
    monkeypatch.setattr(campaign, "SHRINK_TRIES", 1)
    culprit = 77
    environment = os.environ | {"COREMESH_HOSTILE_DIES_OF": str(culprit)}
    seed = next(n for n in range(1, 1000) if hostile_machine.draw(n, "auto", 1).vcpus == 1)
    report = campaign.run(seed=seed, protection="auto", machines=1, shrinks=True, environment=environment)
    assert report.findings, story(report)
    found = report.findings[0]
    assert found.seed == seed
    assert signal.SIGSEGV.name in found.what
    assert found.blocks == (culprit,)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("hosts", [1, 2], ids=["1-host", "2-hosts"])
@pytest.mark.parametrize("protection", ["userfaultfd", "mprotect"])
def test_given_a_million_hostile_blocks_when_they_run_then_their_host_lives(
    protection: str, hosts: int
) -> None:
    """Half an hour each; one host runs all of COREMESH_HOSTILE_BLOCKS, two hosts a tenth."""
    need(protection)
    print(f"seed {SEED}")
    blocks = BLOCKS if hosts == 1 else BLOCKS // 10
    report = campaign.run(
        seed=SEED, protection=protection, hosts=hosts, blocks=blocks, coverage=True, shrinks=True
    )
    known, _ = campaign.kinds_of_instructions(protection)
    share = len(report.opcodes & known) / len(known)
    print(f"{report}; {100 * share:.1f} % of {len(known)} kinds of instructions translated")
    assert not report.findings, story(report)
    assert hosts == 2 or BLOCKS < 100_000 or share > 0.9


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("protection", ["userfaultfd", "mprotect"])
def test_given_our_native_code_under_address_sanitizer_when_hostile_guests_run_then_it_is_silent(
    protection: str, address_sanitizer: dict[str, str]
) -> None:
    """Our own objects are instrumented, the engine's are not (README.md)."""
    need(protection)
    report = campaign.run(seed=SEED, protection=protection, seconds=120.0, environment=address_sanitizer)
    report.findings += campaign.run(
        seed=SEED, protection=protection, hosts=2, seconds=60.0, environment=address_sanitizer
    ).findings
    assert not report.findings, story(report)
    assert report.blocks > 1000, story(report)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_given_the_build_under_address_sanitizer_when_it_is_loaded_then_it_is_the_instrumented_one(
    address_sanitizer: dict[str, str],
) -> None:
    """The control: without it, silence would say nothing."""
    words = [sys.executable, "-c", "from coremesh.core import _native; print(_native.__file__)"]
    done = subprocess.run(words, env=address_sanitizer, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    module = done.stdout.strip()
    assert module.startswith(address_sanitizer["PYTHONPATH"])
    symbols = subprocess.run(["nm", "-D", module], capture_output=True, text=True, check=True).stdout
    assert "__asan_report_store" in symbols
