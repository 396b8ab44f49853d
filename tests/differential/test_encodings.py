# SPDX-License-Identifier: GPL-2.0-or-later
"""What the bare processor refuses the guest's refuses too, and the other way round but for what is listed.

Every opcode of four maps runs with every form of operand and many prefixes. VEX and EVEX are another test's.
"""

import platform
import re
from collections.abc import Iterator

import pytest
from block_layout import Outcome
from block_runners import GuestRunner, NativeRunner, build_block_guest, build_native
from every_encoding import EMPTY_DATA, Encoding, encodings, lay_out

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host is another")

UNDEFINED = 6
BATCH = 1500

REFUSED_BY_THE_GUEST_ALONE = (
    # CPUID does not announce them.
    r"0f01(d[0-7]|c[0-f]|[ef].|d[89a-f])",  # XGETBV, VMX, SVM, SMAP, RDPKRU, MONITORX, CLZERO, SEV
    r"0f0[de]",  # 3DNow
    r"f[23](66|4.)*0f2b",  # SSE4A: MOVNTSD, MOVNTSS
    r"0f7[89]",  # SSE4A, VMX
    r"0fae(2.|3.|[ef].)",  # XSAVE, CLWB, CLFLUSHOPT, CET, WAITPKG
    r"0fc7(1.|2.|3.|[def].)",  # XSAVES, VMX, RDSEED, RDPID
    r"0f38(8[0-2]|c.|f[5689a-f])",  # EPT, INVPCID, SHA, ADX, CET
    r"0f3a(c[cef]|f0)",  # SHA, GFNI, HRESET
    r"0f37|0f1[ab]",  # GETSEC, MPX
    # AMD's processors have them and Intel's have not: LOCK MOV CR0 is CR8; SYSRET in 32-bit code.
    r"^f0(66|f2|48)*0f2[02]",
    r"0f07$",
    r"^f0(66|f2|48)*0f0028",  # and these take LOCK VERW for VERW
)


def allowed(encoding: Encoding) -> bool:
    return any(re.search(pattern, encoding.hex()) for pattern in REFUSED_BY_THE_GUEST_ALONE)


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NativeRunner, GuestRunner]]:
    """The bare processor, and a guest."""
    folder = tmp_path_factory.mktemp("encodings")
    with (
        NativeRunner(build_native(folder), folder) as native,
        GuestRunner(build_block_guest(folder)) as guest,
    ):
        yield native, guest


def refused(outcome: Outcome, address: int) -> bool:
    return outcome.vector == UNDEFINED and outcome.rip == address


def compare(runners: tuple[NativeRunner, GuestRunner], prefix: bytes, bits: int) -> tuple[set[str], set[str]]:
    """Encodings that the bare processor alone refuses, and those that the guest's alone does."""
    theirs_alone, ours_alone = set(), set()
    everything = list(encodings(prefix, bits))
    for start in range(0, len(everything), BATCH):
        some = everything[start : start + BATCH]
        blocks, code = lay_out(some, bits)
        theirs, ours = (runner.run(blocks, code, EMPTY_DATA) for runner in runners)
        for encoding, block, native, guest in zip(some, blocks, theirs, ours, strict=True):
            native_refuses, guest_refuses = (refused(outcome, block.address) for outcome in (native, guest))
            if native_refuses and not guest_refuses:
                theirs_alone.add(encoding.hex())
            if guest_refuses and not native_refuses and not allowed(encoding):
                ours_alone.add(encoding.hex())
    return theirs_alone, ours_alone


def expect_the_same_refusals(runners: tuple[NativeRunner, GuestRunner], prefix: bytes, bits: int) -> None:
    """Given encodings with `prefix`, when each runs, then the guest refuses what the processor refuses."""
    theirs_alone, ours_alone = compare(runners, prefix, bits)
    assert not theirs_alone, f"executed, though undefined: {sorted(theirs_alone)}"
    assert not ours_alone, f"refused, though defined: {sorted(ours_alone)}"


@pytest.mark.parametrize(
    ("prefix", "bits"),
    [
        *((prefix, 64) for prefix in ("", "66", "f3", "f2", "f0")),
        ("", 32),
        *(pytest.param(prefix, 32, marks=pytest.mark.slow) for prefix in ("66", "f3", "f2", "f0")),
    ],
)
def test_given_every_encoding_when_it_runs_then_the_guest_refuses_what_the_processor_refuses(
    runners: tuple[NativeRunner, GuestRunner], prefix: str, bits: int
) -> None:
    expect_the_same_refusals(runners, bytes.fromhex(prefix), bits)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize(
    "prefix", ["66f2", "66f3", "f266", "f366", "f2f3", "f3f2", "67", "f066", "f0f2", "2e65"]
)
def test_given_prefixes_that_exclude_each_other_when_an_encoding_runs_then_the_one_that_counts_decides(
    runners: tuple[NativeRunner, GuestRunner], prefix: str, bits: int
) -> None:
    expect_the_same_refusals(runners, bytes.fromhex(prefix), bits)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["48", "41", "4f", "6648", "f348", "f248", "f048", "4066"])
def test_given_a_rex_prefix_when_an_encoding_runs_then_the_guest_refuses_what_the_processor_refuses(
    runners: tuple[NativeRunner, GuestRunner], prefix: str
) -> None:
    expect_the_same_refusals(runners, bytes.fromhex(prefix), 64)


@pytest.mark.parametrize(
    "code",
    [
        "c5f858c1",  # vaddps
        "c4e27918c0",  # vbroadcastss
        "c4e270f2c0",  # andn
        "c4e278f5c0",  # bzhi
        "c5f877",  # vzeroupper
        "62f17c4858c0",  # vaddps with ZMM registers
        "8fe97812c0",  # XOP: llwpcb
        "0fc7f8",  # rdseed
        "0f01c1",  # vmcall
        "0f01d9",  # vmmcall
        "0f01cb",  # stac
        "0f0f00bf",  # pavgusb
        "f30fc7f8",  # rdpid
        "660faef8",  # pcommit
        "c7f800000000",  # xbegin
    ],
)
def test_given_an_instruction_that_cpuid_does_not_announce_when_it_runs_in_a_guest_then_it_is_undefined(
    runners: tuple[NativeRunner, GuestRunner], code: str
) -> None:
    blocks, pages = lay_out([bytes.fromhex(code)], 64)
    outcome = runners[1].run(blocks, pages, EMPTY_DATA)[0]
    assert refused(outcome, blocks[0].address), f"vector {outcome.vector}"
