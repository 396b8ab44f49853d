# SPDX-License-Identifier: GPL-2.0-or-later
"""A package archive of this computer, for a guest that reaches it through its gateway."""

import functools
import hashlib
import http.server
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONTROL = """\
Package: from-the-host
Version: 1.0
Architecture: all
Maintainer: x <x@example.org>
Description: a file of random bytes
"""


@dataclass(frozen=True)
class Archive:
    """A line for the guest's sources.list, and the checksum of the file that its package installs."""

    line: str
    sha256: str


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served_archive(folder: Path, content: bytes) -> Iterator[Archive]:
    """Serve an archive with one package, 'from-the-host', which installs `content` as /srv/content."""
    root = folder / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "srv").mkdir()
    (root / "DEBIAN/control").write_text(_CONTROL)
    (root / "srv/content").write_bytes(content)
    served = folder / "archive"
    served.mkdir()
    package = served / "from-the-host_1.0_all.deb"
    command: list[str | Path] = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", root, package]
    subprocess.run(command, check=True, capture_output=True)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    place = f"Filename: {package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n"
    (served / "Packages").write_text(_CONTROL.rstrip() + "\n" + place)
    handler = functools.partial(_Silent, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        line = f"deb [trusted=yes] http://10.0.2.2:{server.server_port}/ ./"
        yield Archive(line, hashlib.sha256(content).hexdigest())
        server.shutdown()
