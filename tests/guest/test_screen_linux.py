# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux on the VGA text screen, as ``machine.screen()`` shows it."""

import pytest

pytest.importorskip("coremesh.core._native", reason="the engine is not built")

from coremesh.cluster.launch.machine import Machine
from coremesh.cluster.machine.images.debian_image import DebianImage
from patience import until

pytestmark = [pytest.mark.linux, pytest.mark.timeout(300)]

BOTH_CONSOLES = "console=tty0 console=ttyS0,115200"


def printed_before_the_prompt(machine: Machine, line: str) -> bool:
    """Whether a command has printed the line and the shell is back: before, keys are the kernel's to edit."""
    *above, last = str(machine.screen()).split("\n")
    return line in above and last.endswith("#")


@pytest.mark.parametrize("hosts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_given_linux_on_the_screen_when_it_prints_and_a_person_types_then_all_is_seen_there(
    debian: DebianImage, hosts: int
) -> None:
    """The kernel's messages, colours, the cursor; then a shell, whose line the arrows edit."""
    with Machine(
        hosts, "512M", debian.kernel, debian.initramfs(), append=f"loglevel=7 {BOTH_CONSOLES}", hosts=hosts
    ) as machine:
        machine.wait_shell(120)
        assert "Run /init as init process" in machine.screen()
        found = machine.run("dmesg | grep -E 'Console: colour|i8042|AT Translated'").output
        assert "Console: colour VGA+ 80x25" in found
        assert "serio: i8042 KBD port at 0x60,0x64 irq 1" in found and "AT Translated Set 2 keyboard" in found
        assert "probe" not in found and "timeout" not in found.lower()
        machine.run(r"printf '\033[2J\033[5;11H\033[1;33;44mK\303\266ln\033[0m\033[7;3H' >/dev/tty1")
        assert until(lambda: machine.screen().cursor == (6, 2))
        screen = machine.screen()
        assert screen.rows[4] == " " * 10 + "Köln" + " " * 66
        assert screen.attributes[4][9:15] == b"\x07" + b"\x1e" * 4 + b"\x07"
        machine.run("seq 100 >/dev/tty1")
        assert until(lambda: str(machine.screen()).split("\n")[-2:] == ["99", "100"])
        machine.run(r"printf '\033[?25l' >/dev/tty1")
        assert until(lambda: machine.screen().cursor is None)

        machine.run(
            r"printf '\033[2J\033[?25h' >/dev/tty1; setsid sh -c 'exec sh -i </dev/tty1 >/dev/tty1 2>&1' &"
        )
        assert until(lambda: str(machine.screen()).endswith("#"))
        machine.type('echo "Hello, $((6*7)) ~{World}!" | tr a-z A-Z\n')
        assert until(lambda: printed_before_the_prompt(machine, "HELLO, 42 ~{WORLD}!"))
        machine.type("echo axc")
        machine.press("left backspace")
        machine.type("b\n")
        assert until(lambda: printed_before_the_prompt(machine, "abc"))
        machine.type(f"echo {'0123456789' * 40} | wc -c\n")
        assert until(lambda: "401" in str(machine.screen()).split("\n"))
