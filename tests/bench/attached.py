# SPDX-License-Identifier: GPL-2.0-or-later
"""Accesses a second of a device written in Python: attached to the machine, and on the device node.

python tests/bench/attached.py [--hosts N] [--seconds S]

A guest of a few bytes on one vCPU reads, or writes, one port for ever. With two hosts they are actors of Ray.
"""

import argparse
import os
import struct
import time

from coremesh import Machine, PythonDevice

PORT, POST = 0x240, 0x80
TEXT = 0x10_0000


class Register(PythonDevice):
    """One register, and nothing to do."""

    def read(self, offset: int, size: int) -> int:
        """Zero."""
        return 0


def guest(port: int, *, write: bool) -> bytes:
    """A Multiboot kernel: mov dx, port; again: in al, dx, or out dx, al; jmp again."""
    code = b"\x66\xba" + port.to_bytes(2, "little") + (b"\xee" if write else b"\xec") + b"\xeb\xfd"
    magic, flags = 0x1BADB002, 1 << 16
    end = TEXT + 32 + len(code)
    head = struct.pack("<8I", magic, flags, -(magic + flags) & 0xFFFF_FFFF, TEXT, TEXT, end, end, TEXT + 32)
    return head + code


def rate(port: int, *, write: bool, hosts: int, seconds: float) -> tuple[float, float]:
    """Accesses a second, and the microseconds that each takes a vCPU, of which Python's wait is a part."""
    with Machine(hosts, "16M", guest(port, write=write), hosts=hosts) as machine:
        name = "post"
        if port == PORT:
            name = machine.attach(Register(), ports=(PORT, 4)).name
        time.sleep(0.5)
        before, begin = machine.snapshot()["devices"][name], time.monotonic()
        time.sleep(seconds)
        after, took = machine.snapshot()["devices"][name], time.monotonic() - begin
    accesses = after["accesses"] - before["accesses"]
    return accesses / took, (after["access_ns"] - before["access_ns"]) / max(accesses, 1) / 1000


def main() -> None:
    """One line for each way, and the load of the computer meanwhile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    for title, port, write in [
        ("attached, read", PORT, False),
        ("attached, written", PORT, True),
        ("on the device node, read", POST, False),
    ]:
        a_second, microseconds = rate(port, write=write, hosts=given.hosts, seconds=given.seconds)
        print(f"{title:28} {a_second:12,.0f} a second  {microseconds:8.2f} us each")
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
