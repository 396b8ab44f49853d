# SPDX-License-Identifier: GPL-2.0-or-later
"""A person's first hour: the README's commands, as printed there, on a Debian where nothing is installed.

    python3 tests/fresh/first_hour.py                          # Debian 12 and 13, each in some minutes
    python3 tests/fresh/first_hour.py --release trixie --keep
    python3 tests/fresh/first_hour.py --wheel dist/coremesh-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl

Runs on any Python of version 3.11 or newer, without the package. debian_root.py makes the system.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

sys.path.append(str(Path(__file__).parent))

from debian_root import PERSON, RELEASES, DebianRoot, RootError, last_line, unavailable

REPOSITORY = Path(__file__).resolve().parents[2]
SHORT_TESTS = ("tests/unit/boot", "tests/unit/engine/test_host.py", "tests/cluster/test_cli.py")
_STEP_SECONDS = 3600.0
_TELL_SECONDS = 20.0


class StepError(Exception):
    """A step of the first hour failed; the text has the end of what it said."""


@dataclass
class FirstHour:
    """The steps, in a root, as `user`. Each writes its words to a log of its own in `logs`."""

    root: DebianRoot
    user: str
    logs: Path
    say: Callable[[str], None] = print
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the person works, as seen inside the root."""
        return self.root.home(self.user) / "coremesh"

    def from_source(self, all_tests: bool) -> None:
        """Both commands of README.md. Raises StepError."""
        boot, test = readme_commands((REPOSITORY / "README.md").read_text())
        self._copy(source_files())
        # A person types at the shell that the first command ends in.
        self.command("boot", boot, typed="nproc; poweroff -f\n", expect=r"^8\r?$")
        self.boots()
        self.command("test", test if all_tests else f"{test} {' '.join(SHORT_TESTS)}", expect=r"\d+ passed")

    def from_wheel(self, wheel: Path) -> None:
        """The command that deploy/README.md prints for a wheel. Raises StepError."""
        self._copy([wheel])
        self.command("install", wheel_command((REPOSITORY / "deploy/README.md").read_text()))
        compilers = self._run("compilers", "command -v cc c++ gcc g++ || true", None).read_text().strip()
        if compilers:
            raise StepError(f"a compiler was installed, so the wheel was not put to the test: {compilers}")
        self.boots()

    def boots(self) -> None:
        """Guests boot, and doctor finds nothing bad. Raises StepError."""
        self.command("boot 2", ".venv/bin/coremesh boot --vcpus 2 --run nproc", expect=r"\A2\r?\n\Z")
        self.command(
            "boot 2 hosts", ".venv/bin/coremesh boot --hosts 2 --vcpus 4 --run nproc", expect=r"^4\r?$"
        )
        self.command("doctor", ".venv/bin/coremesh doctor", expect="self-check: ok")

    def command(self, name: str, line: str, typed: str | None = None, expect: str = "") -> None:
        """Run one line in a shell; `expect` must be found in its output. Raises StepError."""
        self.say(f"  $ {line}")
        begin = time.monotonic()
        path = self._run(name, line, typed)
        output = path.read_text(errors="replace")
        self.seconds[name] = time.monotonic() - begin
        if re.search(expect, output, re.MULTILINE) is None:
            raise StepError(
                f"{name}: {expect!r} is not in its output; {_end(path, path.with_suffix('.log'))}"
            )
        self.say(f"    {_result(output, expect)}  ({self.seconds[name]:.0f} s)")

    def _run(self, name: str, line: str, typed: str | None) -> Path:
        log = self.logs / f"{name.replace(' ', '-')}.log"
        output = log.with_suffix(".out")
        with log.open("w") as words, output.open("w") as out, _telling((log, output), self.say):
            try:
                done = self.root.run(
                    ["sh", "-c", line],
                    user=self.user,
                    inside=str(self.folder),
                    timeout=_STEP_SECONDS,
                    input=typed or "",
                    text=True,
                    stdout=out,
                    stderr=words,
                )
            except subprocess.TimeoutExpired:
                raise StepError(
                    f"{name}: not done after {_STEP_SECONDS:.0f} s; {_end(output, log)}"
                ) from None
        if done.returncode != 0:
            raise StepError(f"{name}: exit status {done.returncode}; {_end(output, log)}")
        return output

    def _copy(self, files: list[Path]) -> None:
        base = REPOSITORY if files[0].is_relative_to(REPOSITORY) and len(files) > 1 else files[0].parent
        self.root.put(files, base, self.folder, self.user)


class _telling:
    """Says every 20 seconds what the newest of some logs ends with: some steps take minutes."""

    def __init__(self, logs: tuple[Path, ...], say: Callable[[str], None]) -> None:
        self._logs = logs
        self._say = say
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _tell(self) -> None:
        begin = time.monotonic()
        while not self._over.wait(_TELL_SECONDS):
            newest = max(self._logs, key=lambda log: log.stat().st_mtime)
            self._say(f"    {time.monotonic() - begin:4.0f} s  {last_line(newest)[:100]}")


def readme_commands(text: str) -> tuple[str, str]:
    """Return the first two commands of README.md: the one that boots and the one that tests."""
    printed = re.findall(r"^    (\S.*)$", text, re.MULTILINE)[:2]
    if len(printed) < 2 or "coremesh boot" not in printed[0] or "pytest" not in printed[1]:
        raise StepError(f"README.md does not begin with a command that boots and one that tests: {printed}")
    return printed[0], printed[1]


def wheel_command(text: str) -> str:
    """Return the command of deploy/README.md that installs a wheel."""
    found = re.search(r"^    (\S.*coremesh-\*\.whl.*)$", text, re.MULTILINE)
    if found is None:
        raise StepError("deploy/README.md prints no command that installs coremesh-*.whl")
    return found[1]


def source_files() -> list[Path]:
    """Return the repository's files, as git would take them into a commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := REPOSITORY / name).exists()]


def first_hour(release: str, options: argparse.Namespace, say: Callable[[str], None] = print) -> FirstHour:
    """Make the root, go through the steps, remove the root. Raises RootError and StepError."""
    folder = Path(tempfile.mkdtemp(prefix=f"fresh-{release}-", dir=options.folder))
    folder.chmod(0o755)  # the ordinary user's home is below it
    root = DebianRoot(folder / "root", release, options.mirror)
    begin = time.monotonic()
    good = False
    try:
        say(f"{release}: debootstrap into {root.folder}")
        root.make(folder / "debootstrap.log")
        hour = FirstHour(root, PERSON if options.sudo else "root", folder, say)
        if options.sudo:
            root.add_person()
        say(f"    done  ({time.monotonic() - begin:.0f} s)")
        if options.wheel is not None:
            hour.from_wheel(options.wheel)
        else:
            hour.from_source(options.all_tests)
        good = True
    finally:
        if options.keep:
            say(f"{release}: kept in {root.folder}; enter it with 'chroot {root.folder}'")
        else:
            root.remove()
            if good:
                shutil.rmtree(folder)
            else:
                say(f"{release}: the words of each step are in {folder}")
    say(f"{release}: passed in {time.monotonic() - begin:.0f} s")
    return hour


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Run the README's commands, as printed, on a bare Debian made for it (debootstrap, "
        "chroot). Needs root, 3 GB below --folder, and the package registries that this machine reaches.",
        epilog="examples: first_hour.py --release trixie --keep;  first_hour.py --sudo --all-tests;  "
        "first_hour.py --release bookworm --wheel dist/coremesh-*-cp311-*.whl",
    )
    parser.add_argument(
        "--release", action="append", metavar="NAME",
        help=f"Debian's release, may be repeated; by default {' and '.join(RELEASES)}",
    )  # fmt: skip
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="install this instead, and no compiler")
    parser.add_argument("--sudo", action="store_true", help="as an ordinary user who has sudo, not as root")
    parser.add_argument(
        "--all-tests", action="store_true",
        help=f"the whole fast set, half an hour; by default the test command gets {' '.join(SHORT_TESTS)}",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="leave the root behind, to look around in it")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where roots are made"
    )
    parser.add_argument(
        "--mirror", metavar="URL", help="Debian's archive; by default the one of this machine's apt"
    )
    options = parser.parse_args(words)
    options.release = options.release or list(RELEASES)
    if options.wheel is not None:
        options.wheel = options.wheel.resolve()
        if not options.wheel.is_file():
            parser.error(f"there is no {options.wheel}; deploy/wheel builds one")
    return options


def main(words: list[str] | None = None) -> int:
    """Return 0 if all releases passed."""
    options = parse(words)
    reason = unavailable()
    if reason is not None:
        print(f"first_hour: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _terminate)
    try:
        for release in options.release:
            first_hour(release, options)
    except (RootError, StepError) as error:
        print(f"first_hour: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # an exception, so that the root is removed


def _end(*logs: Path) -> str:
    text = ""
    for log in logs:
        lines = log.read_text(errors="replace").splitlines()[-25:]
        text += f"{log} ends with\n" + "".join(f"    | {line}\n" for line in lines)
    return text.rstrip()


def _result(output: str, expect: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    hits = [line for line in lines if expect and re.search(expect, f"{line}\n")]
    return (hits or lines or [""])[-1][:100]


if __name__ == "__main__":
    sys.exit(main())
