# SPDX-License-Identifier: GPL-2.0-or-later
"""A tap interface: in a name space of the test's own the kernel answers the guest; and what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from coremesh.core.errors import ConfigurationError, NetworkError
from coremesh.hw.backend.network.tap import TapPort, check_name

# In the name space: a guest asks for the hardware address of the interface.
TALK = """
import subprocess, threading
from coremesh.hw.backend.network.tap import TapPort
from coremesh.core.errors import NetworkError
run = lambda text: subprocess.run(text.split(), check=True)
run("ip tuntap add dev tap7 mode tap")
run("ip address add 10.7.0.1/24 dev tap7")
port, frames, came = TapPort("tap7"), [], threading.Event()
def receive(some):
    for frame in some:
        if frame[12:14] == b"\\x08\\x06" and frame[:6] == GUEST:
            frames.append(frame); came.set()
GUEST = bytes.fromhex("525400000001")
port.send([b"lost"])  # the interface is down
port.start(receive)
run("ip link set tap7 up")
who_has = (b"\\xff" * 6 + GUEST + bytes.fromhex("0806" "0001080006040001") + GUEST + bytes([10, 7, 0, 2])
           + bytes(6) + bytes([10, 7, 0, 1]))
for _ in range(50):
    port.send([who_has])
    if came.wait(0.2):
        break
assert frames[0][28:32] == bytes([10, 7, 0, 1]), frames
try:
    TapPort("tap7")
except NetworkError as error:
    print(error)
print("dropped", port.counts()["frames_dropped"])
port.stop(); port.start(receive); port.close(); port.close()
"""


def test_the_kernel_answers_on_a_tap_interface() -> None:
    """Given a tap interface, when a guest asks who has its address, then the host's kernel answers.

    A frame while it is down is dropped and counted; a second program is told that it is taken.
    """
    apart = ["unshare", "-rn"]
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK) or shutil.which("ip") is None:
        pytest.skip("no tap driver, or no 'ip': apt install iproute2")
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("no network name space for this user")
    found = subprocess.run(
        [*apart, sys.executable, "-c", TALK], capture_output=True, text=True, check=False, timeout=60
    )
    assert found.returncode == 0, found.stderr
    assert "another program has it" in found.stdout
    assert "dropped 1\n" in found.stdout


def test_without_permission_the_way_out_is_told(tmp_path: Path) -> None:
    """Given a user that may make no interface, then the error has the command that root gives."""
    script = "from coremesh.hw.backend.network.tap import TapPort; TapPort('tap99')"
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if os.getuid() != 0:
        with pytest.raises(NetworkError, match=r"ip tuntap add|modprobe tun"):
            TapPort("tap99")
        return
    if (
        shutil.which("setpriv") is None
        or subprocess.run([*nobody, sys.executable, "-c", ""], check=False).returncode
    ):
        pytest.skip("no other user can run this Python")
    found = subprocess.run(
        [*nobody, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "NetworkError" in found.stderr and (
        "ip tuntap add" in found.stderr or "modprobe tun" in found.stderr
    )


@pytest.mark.parametrize("name", ["", "a/b", "x" * 16, "tap%d", "a b", "..", "é", "a:b", "\0"])
def test_what_is_no_name_of_an_interface_is_refused(name: str) -> None:
    """Given a text that no interface is called, then it is refused before anything is opened."""
    with pytest.raises(ConfigurationError, match="no name"):
        check_name(name)
