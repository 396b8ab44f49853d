# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of a machine, one row each: the default, and how the command line spells and explains it.

The description of a machine and the command ``coremesh boot`` are made from these rows. What each option may
be is in options.py, by the same name, because ``--help`` must not wait for what the checks import. Python
needs two lists of names for people and type checkers to read: the parameters of `Machine` and those of the
command. A test holds both equal to this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Option:
    """One option. `default` is what a machine gets without it; `text` is its line of ``--help``.

    `alone` is the value of an option that is written without one. `flag` is empty where the command line
    makes it from the name, as ``--unpack / --no-unpack``. An option without `text` is for programs alone.
    """

    default: Any
    flag: str = ""
    metavar: str | None = None
    text: str = ""
    alone: str = ""


#: A shell's prompt at the end of what the console printed: not a line of the kernel's log (which begins with
#: its time stamp), and perhaps followed by a line editor's control sequences (colours, cursor query).
PROMPT: Final = rb"(?:^|[\r\n])(?!\[ *\d+\.\d+\])[^\r\n]{0,120}[#$%>](?: |\x1b\[[0-9;?]*[A-Za-z])*$"

OPTIONS: Final[Mapping[str, Option]] = {
    "vcpus": Option(
        None, "--vcpus", metavar="N", text="Cores of the guest, 1 to 255; by default one a host."
    ),
    "memory": Option("1G", "--memory", metavar="SIZE", text="RAM, as 512M or 4G."),
    "kernel": Option(
        None,
        "--kernel",
        metavar="FILE",
        text="bzImage, vmlinux, or a kernel of Multiboot, Multiboot 2 or PVH.",
    ),
    "initrd": Option(None, "--initrd", metavar="FILE", text="Initial RAM file system."),
    "cmdline": Option(
        None, "--cmdline", metavar="TEXT", text="Given to the kernel instead of the default command line."
    ),
    "modules": Option(
        (), "--module", metavar="'FILE TEXT'", text="A Multiboot module and its text; may be repeated."
    ),
    "hosts": Option(
        1,
        "--hosts",
        metavar="N|N,N..",
        text="Number of hosts, or vCPUs per host, as 6,2.",
    ),
    "device_host": Option(
        0,
        "--device-host",
        metavar="N",
        text="Which of the hosts has the devices, counted from 0; it may have no vCPUs.",
    ),
    "policy": Option(
        "adaptive",
        "--policy",
        metavar="POLICY",
        text="Between hosts a locked operation goes to its page: never, always or adaptive.",
    ),
    "curve": Option(True),
    "wire": Option(
        "auto",
        "--wire",
        metavar="WIRE",
        text="What carries messages between hosts: shm (one computer), tcp or zmq (a network), or auto.",
    ),
    "append": Option(
        "",
        "--append",
        metavar="TEXT",
        text="Added to the kernel's default command line; replaces its words of the same names.",
    ),
    "address": Option(
        None,
        "--address",
        metavar="ADDRESS",
        text="Run on this Ray cluster, 'auto' or host:port, each host on a node of its own.",
    ),
    "prompt": Option(PROMPT),
    "protection": Option("auto"),
    "unpack": Option(
        True, text="Unpack a bzImage on the host: seconds faster, but the kernel is not relocated."
    ),
    "flavour": Option(
        "amd64",
        "--flavour",
        metavar="NAME",
        text="Which of Debian's kernels, where none is given: amd64, cloud-amd64; of 32 bits 686-pae, 686.",
    ),
    "bios": Option(
        None,
        "--bios",
        metavar="[FILE]",
        alone="debian",
        text="Begin with firmware, which boots a disk, CD-ROM or --kernel: Debian's SeaBIOS, or this image.",
    ),
    "boot": Option(
        (),
        "--boot",
        metavar="DEVICE,..",
        text="What firmware boots from first: cdrom, disk, or disk0, disk1 .. in the order of --disk.",
    ),
    "reboot": Option(
        True, text="A guest's reset restarts the machine; without, it ends it, and so does a triple fault."
    ),
    "disks": Option(
        (),
        "--disk",
        metavar="FILE[,OPTION..]",
        text="A disk; may be repeated. Options: if=ide|virtio, format=F, readonly, snapshot.",
    ),
    "cdrom": Option(None, "--cdrom", metavar="FILE", text="A CD-ROM drive with this image in it."),
    "net": Option(
        (),
        "--net",
        metavar="NETWORK",
        text="A network card: user[,forward=tcp:2222:22], tap=NAME, socket=ADDRESS, switch=ADDRESS, none.",
    ),
    "console": Option(
        "serial",
        "--console",
        metavar="KIND[,OPTION..]",
        text="serial (ttyS0) or virtio (hvc0, for guests that print much); log=FILE, socket=PATH.",
    ),
    "folders": Option(
        (),
        "--share",
        metavar="DIR[,OPTION..]",
        text="A folder for 'mount -t 9p -o trans=virtio TAG'; tag=NAME, readonly, security=none|mapped.",
    ),
    "rng": Option(
        None, "--rng", metavar="max|RATE", text="A source of random bytes; at most RATE a second, as 64K."
    ),
    "progress": Option(None),
}
