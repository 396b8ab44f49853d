# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's package tools, driven without privileges: apt resolves, downloads and verifies; dpkg-deb unpacks.

apt works here on a state directory of our own, made for one fetch and dropped after it, but with the system's
sources and archive keys. So it needs no root, neither trusts nor touches the system's package lists, and what
it downloads has passed the same check of signatures and hashes as any package on this host (apt-secure(8)).
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias, cast

from coremesh.core.errors import ImageFetchError

#: Called with what is being done and how much of it is done (0..1), from the fetching thread.
Progress: TypeAlias = Callable[[str, float], None]

TOOLS = ("apt-get", "apt-cache", "dpkg-deb")

WAY_OUT = (
    "Give a kernel of your own with --kernel FILE (and --initrd FILE), or install the tools and "
    "run 'coremesh fetch' again where the package archive can be reached."
)

# Hooks that images of containers add to `apt-get update` clean directories that only root may touch.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::State "{root}/state";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
"""

_STATUS = re.compile(r"^dlstatus:\d+:([0-9.]+):")


def missing_tools() -> list[str]:
    """Return the names of the tools that this host lacks."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


class Apt:
    """apt on a private state under `root` (an existing, empty directory the caller owns and removes).

    `architecture` is Debian's name of the packages'.
    `source_list`, if given, replaces the system's sources (a file in sources.list(5) or deb822 form). One
    thread at a time. Every method raises :class:`ImageFetchError` with apt's own words.
    """

    def __init__(self, root: Path, source_list: Path | None = None, architecture: str = "amd64") -> None:
        missing = missing_tools()
        if missing:
            raise ImageFetchError(f"Debian's package tools are missing: {', '.join(missing)}. {WAY_OUT}")
        self._root = root
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True)
        (root / "state/status").touch()
        text = _CONFIGURATION.format(root=root, architecture=architecture)
        if source_list is not None:
            text += f'Dir::Etc::sourcelist "{source_list.absolute()}";\nDir::Etc::sourceparts "-";\n'
        self._warnings: list[str] = []
        self._configuration = root / "apt.conf"
        self._configuration.write_text(text)

    def update(self, progress: Progress) -> None:
        """Get the signed package lists."""
        self._warnings = self._get(["update"], "package lists", progress)

    def dependency(self, package: str, pattern: str) -> str:
        """Return the name of the first direct dependency of `package` that matches `pattern` fully."""
        command = ["apt-cache", "-c", str(self._configuration), "depends", "--no-recommends", package]
        result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        for line in result.stdout.splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and re.fullmatch(pattern, name):
                return name
        # A source that cannot be reached is only a warning to apt, since another may do.
        reason = f" ({self._warnings[0].partition(': ')[2]})" if self._warnings else ""
        raise ImageFetchError(f"the package sources of this host gave no {package}{reason}. {WAY_OUT}")

    def download(self, package: str, progress: Progress) -> Path:
        """Return the downloaded and verified .deb of `package`'s candidate version."""
        folder = self._root / package
        folder.mkdir()
        self._get(["download", package], package, progress, folder)
        archives = list(folder.glob("*.deb"))
        if len(archives) != 1:
            raise ImageFetchError(f"apt-get download {package} left no package behind. {WAY_OUT}")
        return archives[0]

    def required(self) -> list[str]:
        """Return the names of the packages that no Debian system is without."""
        command = ["apt-cache", "-c", str(self._configuration), "dumpavail"]
        result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        found = set()
        for paragraph in result.stdout.split("\n\n"):
            if re.search(r"^(Essential: yes|Priority: required)$", paragraph, re.MULTILINE) and (
                match := re.search(r"^Package: (\S+)$", paragraph, re.MULTILINE)
            ):
                found.add(match[1])
        return sorted(found)

    def download_all(self, packages: Sequence[str], what: str, progress: Progress) -> list[Path]:
        """Return the downloaded and verified .debs of `packages` and of all that they depend on."""
        arguments = ["install", "--yes", "--no-install-recommends", "--download-only", *packages]
        self._get(arguments, what, progress)
        archives = sorted((self._root / "cache/archives").glob("*.deb"))
        if not archives:
            raise ImageFetchError(f"apt-get install left no package behind. {WAY_OUT}")
        return archives

    def sources(self) -> list[str]:
        """Return Debian's own sources of this host, as lines of sources.list(5)."""
        form = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
        command = ["apt-get", "-c", str(self._configuration), "indextargets", "--format", form]
        command.append("Created-By: Packages")
        result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
        lines: dict[str, None] = {}
        for line in result.stdout.splitlines():
            origin, uri, release, component = [*line.split("|"), "", "", ""][:4]
            if origin == "Debian" and uri and component:
                lines[f"deb {uri.rstrip('/')} {release} {component}"] = None
        return list(lines)

    def _get(
        self, arguments: list[str], what: str, progress: Progress, folder: Path | None = None
    ) -> list[str]:
        progress(what, 0.0)
        reader, writer = os.pipe()
        command = [
            "apt-get",
            "-c",
            str(self._configuration),
            "-q",
            "-o",
            f"APT::Status-Fd={writer}",
            *arguments,
        ]
        try:
            process = subprocess.Popen(
                command,
                cwd=folder or self._root,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                pass_fds=(writer,),
            )
        finally:
            os.close(writer)
        complaints: list[str] = []
        listener = threading.Thread(target=_listen, args=(process.stderr, complaints), daemon=True)
        listener.start()
        try:
            with os.fdopen(reader, errors="replace") as status:
                for line in status:
                    if match := _STATUS.match(line):
                        progress(what, min(1.0, float(match[1]) / 100))
            code = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            listener.join(timeout=5)
        if code != 0:
            errors = (
                [line[3:] for line in complaints if line.startswith("E: ")]
                or complaints
                or [f"status {code}"]
            )
            raise ImageFetchError(f"apt-get could not get the {what}: {errors[0].strip()}. {WAY_OUT}")
        progress(what, 1.0)
        return [line for line in complaints if line.startswith(("E: ", "W: "))]


def version(archive: Path) -> str:
    """Return the version field of a .deb."""
    command = ["dpkg-deb", "--field", str(archive), "Version"]
    result = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    if result.returncode != 0:
        raise ImageFetchError(f"{archive.name} is no Debian package: {result.stderr.strip()}. {WAY_OUT}")
    return result.stdout.strip()


def extract(archive: Path, pattern: str) -> tuple[str, bytes]:
    """Return (path, content) of the first regular file of a .deb whose path matches `pattern` fully.

    The package is unpacked as a stream and only as far as needed; nothing of it is written to disk.
    """
    with contents(archive) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as members:
                for member in members:
                    path = member.name.removeprefix("./")
                    if member.isreg() and re.fullmatch(pattern, path):
                        content = members.extractfile(member)
                        assert content is not None  # a regular file always has one
                        return path, content.read()
        except tarfile.TarError as error:
            raise ImageFetchError(f"{archive.name} is damaged: {error}. {WAY_OUT}") from error
    raise ImageFetchError(f"{archive.name} holds no file like {pattern}. {WAY_OUT}")


def extract_all(archive: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of each regular file of a .deb whose path matches `pattern` fully, in its order.

    Raises :class:`ImageFetchError` for a damaged package.
    """
    with contents(archive) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as members:
                for member in members:
                    path = member.name.removeprefix("./")
                    if member.isreg() and pattern.fullmatch(path):
                        content = members.extractfile(member)
                        assert content is not None  # a regular file always has one
                        yield path, content.read()
        except tarfile.TarError as error:
            raise ImageFetchError(f"{archive.name} is damaged: {error}. {WAY_OUT}") from error


def control(archive: Path) -> dict[str, bytes]:
    """Return the control files of a .deb by name. Raises :class:`ImageFetchError`."""
    command = ["dpkg-deb", "--ctrl-tarfile", str(archive)]
    done = subprocess.run(command, capture_output=True, env=_environment(), check=False)
    try:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as members:
            return {
                member.name.removeprefix("./"): cast(IO[bytes], members.extractfile(member)).read()
                for member in members
                if member.isreg()
            }
    except tarfile.TarError as error:
        raise ImageFetchError(f"{archive.name} is no Debian package: {error}. {WAY_OUT}") from error


@contextmanager
def contents(archive: Path) -> Iterator[IO[bytes]]:
    """Give the tar stream of a .deb's files."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment())
    stream = cast(IO[bytes], process.stdout)
    try:
        yield stream
    finally:
        stream.close()
        process.kill()
        process.wait()


def _listen(stream: IO[str] | None, lines: list[str]) -> None:
    if stream is not None:
        lines.extend(line.rstrip() for line in stream if line.strip())


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}
