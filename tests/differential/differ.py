# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare random blocks on the bare processor and in a guest, from the command line.

python tests/differential/differ.py --blocks 20000 --seed 7
python tests/differential/differ.py --groups x87 --names fsin,fcos --shrink 20
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "guest")]
sys.path.append(str(Path(__file__).parents[1] / "guest" / "mesh"))

from block_differences import Differ, story
from block_draft import Options
from block_generator import Generator
from block_runners import GuestRunner, NativeRunner, build_block_guest, build_native
from instruction_table import GROUPS


def main() -> int:
    """Run, print each kind of difference once, shrunk; the status is 1 when there was one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of the first batch; the next is one more")
    parser.add_argument("--batch", type=int, default=2000, help="blocks in a batch")
    parser.add_argument("--groups", default=",".join(GROUPS), help="of the instruction table")
    parser.add_argument("--names", default="", help="mnemonics, all if not given")
    parser.add_argument("--skip", default="", help="mnemonics to leave out")
    parser.add_argument("--shrink", type=int, default=15, help="kinds of difference to shrink and print")
    parser.add_argument("--ignore", default="", help="fields not to compare, such as fop,fip,fdp")
    parser.add_argument("--hosts", type=int, default=1, choices=(1, 2), help="of the guest's machine")
    parser.add_argument("--longest", type=int, default=4, help="instructions in a block")
    words = parser.parse_args()
    options = Options(
        groups=tuple(words.groups.split(",")),
        names=frozenset(name for name in words.names.split(",") if name),
        without=frozenset(words.skip.split(",")),
        longest=words.longest,
    )
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with (
            NativeRunner(build_native(place), place) as native,
            GuestRunner(build_block_guest(place), words.hosts) as guest,
        ):
            differ, done, seed = Differ(native, guest, frozenset(words.ignore.split(","))), 0, words.seed
            spent = 0.0
            while done < words.blocks:
                generator = Generator(seed, options)
                blocks = generator.blocks(min(words.batch, words.blocks - done))
                print(f"seed {seed}: {len(blocks)} blocks", file=sys.stderr, flush=True)
                started = time.monotonic()
                found = differ.differences(blocks, bytes(generator.code), generator.image)
                spent += time.monotonic() - started
                for difference in found:
                    kind = difference.signature()
                    if len(difference.block.instructions) > 1 and len(kinds) < words.shrink:
                        difference = differ.shrink(difference, generator.image)
                        kind = difference.signature()
                    kinds[kind] += 1
                    if "does not end" in kind:
                        print(story(difference, generator.image), flush=True)
                    if kinds[kind] == 1 and len(kinds) <= words.shrink:
                        print(story(differ.shrink(difference, generator.image), generator.image), flush=True)
                done += len(blocks)
                seed += 1
    print(f"{done} blocks, {done / spent:.0f} a second; {sum(kinds.values())} differ, in {len(kinds)} ways")
    for kind, count in kinds.most_common():
        print(f"{count:6} {kind}")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
