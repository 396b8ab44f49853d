# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's TCP through user-mode NAT beside QEMU: the same program in the guest, one server here, one run.

    python tests/bench/nat.py [--rounds N] [--vcpus N] [--mib N] [--apart]

A sweep over the two engines, one trial at a time: microseconds for a MiB received, a MiB sent, and for a
round trip of one byte, to a server on this computer that the guest reaches as 10.0.2.2. With --apart Coremesh
has its devices on another host than the vCPUs, linked by shared memory.
"""

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from figures import engines, engines_apart, options, reported, trials
from guest_image import initramfs_with

TARGET = "ratio >= 1.0"
_PIECE = bytes(1 << 20)


class Server(socketserver.BaseRequestHandler):
    """Sends, takes, or returns as many bytes as the guest's program asks for."""

    def handle(self) -> None:
        """One connection."""
        command, count = struct.unpack("<cQ", self._exactly(9))
        if command == b"r":
            for at in range(0, count, len(_PIECE)):
                self.request.sendall(_PIECE[: count - at])
        elif command == b"s":
            while count:
                part = self.request.recv(min(count, 1 << 18))
                if not part:
                    return
                count -= len(part)
            self.request.sendall(b"!")
        else:
            for _ in range(count):
                self.request.sendall(self._exactly(1))

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.request.recv(length - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return data


@contextmanager
def served() -> Iterator[int]:
    """The port of a server that runs meanwhile."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def main() -> None:
    """Sweep the engines and print ratios."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--mib", type=int, default=32, help="what is received, and what is sent")
    parser.add_argument("--apart", action="store_true", help="the devices on a host of their own")
    arguments = parser.parse_args()
    title = f"TCP through user NAT, {arguments.vcpus} vCPU"
    parameters: dict[str, Any] = {"engine": engines()}
    if arguments.apart:
        title += ", its host without vCPUs"
        parameters = engines_apart(arguments.vcpus)
    with reported(title, arguments) as figures, served() as port:
        for row in trials(
            f"tcp 10.0.2.2 {port} {arguments.mib}", parameters, arguments.rounds,
            vcpus=arguments.vcpus, memory="256M", append="quiet", collect=["marks"], timeout=300,
            net="user", initrd=initramfs_with("tcp", network="dhcp"),
        ):  # fmt: skip
            figures.add_marked(row, "" if arguments.apart else TARGET)


if __name__ == "__main__":
    main()
