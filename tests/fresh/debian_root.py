# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare Debian in a folder: made by debootstrap, entered by chroot in namespaces of its own.

It has what debootstrap's `minbase` has: apt, dpkg and the essential packages; no Python, compiler or sudo.
What it takes from this machine is the way to the package registries, in a form that names none: the mirror
and `Acquire` options of apt, pip's options on how to reach its index, proxies, and name resolution.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RELEASES = ("bookworm", "trixie")
PERSON = "person"  # the ordinary user, who has sudo

# In namespaces of their own, so that mounts and processes end with the command, however it ends. Devices are
# the host's, /dev/shm is not.
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
_ENTER = """\
set -e
root=$1 user=$2 folder=$3
shift 3
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t sysfs -o ro sys "$root/sys"
mount -t proc proc "$root/proc"
exec chroot "$root" /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$folder" \\
    $([ "$user" = root ] || echo setpriv --reuid "$user" --regid "$user" --init-groups) "$@"
"""

_PIP_OPTIONS = (
    "index-url",
    "extra-index-url",
    "trusted-host",
    "cert",
    "client-cert",
    "proxy",
    "default-timeout",
    "timeout",
)
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class RootError(Exception):
    """The root could not be made or entered; the text says what to do."""


def unavailable() -> str | None:
    """Return why no root can be made here, or None."""
    if os.getuid() != 0:
        return "needs root: debootstrap and chroot do"
    missing = [tool for tool in ("debootstrap", "unshare", "chroot", "git") if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}: apt-get install debootstrap util-linux git" if missing else None


class DebianRoot:
    """A root in `folder`, which must not exist yet. Not for several threads."""

    def __init__(self, folder: Path, release: str, mirror: str | None = None) -> None:
        self.folder = folder
        self.release = release
        self._mirror = mirror or apt_mirror()

    def make(self, log: Path) -> None:
        """Run debootstrap, half a minute and 250 MB; its words go to `log`. Raises RootError."""
        # In namespaces, too: it mounts /proc in the folder, and has children.
        command = [
            *_NAMESPACES,
            "--mount-proc",
            "debootstrap",
            "--variant=minbase",
            self.release,
            str(self.folder),
        ]
        with log.open("w") as words:
            done = subprocess.run(
                [*command, *([self._mirror] if self._mirror else [])], stdout=words, stderr=subprocess.STDOUT
            )
        if done.returncode != 0:
            raise RootError(f"debootstrap failed: {last_line(log)}; all its words are in {log}")
        self._share_registries()

    def add_person(self) -> None:
        """Add an ordinary user with sudo, as an installer makes one. Raises RootError."""
        script = (
            "apt-get update -q; "
            "DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends sudo && "
            f"useradd --create-home --shell /bin/bash {PERSON} && "
            f"echo '{PERSON} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/{PERSON}"
        )
        done = self.run(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise RootError(f"no ordinary user could be added: {done.stdout[-1000:]}")

    def home(self, user: str) -> Path:
        """Return the user's home, as seen inside."""
        return Path("/root") if user == "root" else Path("/home", user)

    def put(self, paths: Sequence[Path], base: Path, inside: Path, user: str) -> None:
        """Copy files below `base` to the folder `inside`, and give them to `user`."""
        target = self.folder / inside.relative_to("/")
        for path in paths:
            copy = target / path.relative_to(base)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy, follow_symlinks=False)
        if user != "root":
            self.run(["chown", "-R", f"{user}:{user}", str(inside)], check=True)

    def run(
        self,
        command: Sequence[str],
        user: str = "root",
        inside: str = "/",
        timeout: float | None = None,
        **options: object,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the root, in the folder `inside`; options are those of subprocess.run.

        Nothing that it starts outlives it. Raises subprocess.TimeoutExpired.
        """
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home(user)),
            "USER": user,
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
        } | {name: os.environ[name] for name in _PROXIES if name in os.environ}
        enter = ["sh", "-c", _ENTER, "enter", str(self.folder), user, inside]
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            [*_NAMESPACES, *enter, *command], env=environment, timeout=timeout, **options
        )

    def remove(self) -> None:
        """Remove it. The mounts went with the namespaces; nothing is removed below one that is left."""
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        left = [place for place in mounted if place.startswith(f"{self.folder}/")]
        if left:
            raise RootError(f"still mounted, so nothing was removed: {', '.join(left)}; umount them")
        shutil.rmtree(self.folder)

    def _share_registries(self) -> None:
        etc = self.folder / "etc"
        for name in ("resolv.conf", "hosts"):
            with_host = Path("/etc", name)
            if with_host.exists():
                (etc / name).write_text(with_host.read_text())
        (etc / "apt/apt.conf.d/90host").write_text("".join(f"{line}\n" for line in apt_options()))
        settings = pip_settings()
        for name in ("cert", "client-cert"):
            if name in settings:
                # Not where it lies on this machine: a package of the system may own that place.
                shutil.copy(settings[name], etc / f"pip-{name}.pem")
                settings[name] = f"/etc/pip-{name}.pem"
        lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
        (etc / "pip.conf").write_text("".join(f"{line}\n" for line in lines))


def apt_mirror() -> str | None:
    """Return the archive that this machine's apt gets Debian from, or None: debootstrap's own default."""
    form = "$(ORIGIN)|$(COMPONENT)|$(REPO_URI)|$(SUITE)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    for line in listed.splitlines():
        origin, component, uri, suite = (*line.split("|"), "", "", "")[:4]
        if origin == "Debian" and component == "main" and "security" not in f"{uri}{suite}":
            return uri
    return None


def apt_options() -> list[str]:
    """Return apt's options on how to fetch, as apt-config prints them: proxies, checks, time-outs."""
    printed = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    kept = re.compile(r'Acquire::(?!IndexTargets|Changelogs|Languages)[\w:.-]+ "[^"]+";')
    return [line for line in printed.splitlines() if kept.fullmatch(line)]


def pip_settings() -> dict[str, str]:
    """Return pip's options on how to reach its index; those of the environment go before its files."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    found: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in _PIP_OPTIONS and "file:" not in value:
            found[name] = value.strip("'")
    return found


def last_line(log: Path) -> str:
    """Return the last line of a log that says anything."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
