# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of a Python process whose machine still runs."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

#: A guest that asks a Python device without pause, threads that wait for its end, and then the process ends.
PROGRAM = f"""
import sys, threading
sys.path.append({str(HERE)!r})
from raw_host import raw_host, until

class Node:
    asked = 0
    def access(self, space, address, size, is_write, value):
        Node.asked += 1
        return 0
    def eoi(self, vector): pass
    def acknowledge(self): return -1

host = raw_host(b"\\xe4\\x60\\xeb\\xfc")  # in al, 0x60; jmp to it
host.connect(Node())
host.claim(0, 0x60, 0x60)

def watch():
    while host.wait(0.002) is None:
        pass

for _ in range(8):
    threading.Thread(target=watch, daemon=True).start()
host.start()
until(lambda: Node.asked > 100, "the device is not asked")
"""


def test_given_a_running_machine_when_the_interpreter_ends_then_the_process_ends_well() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
