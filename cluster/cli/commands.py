# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: ``coremesh boot | sweep | top | fetch | doctor | bench``.

What a command needs is imported when it runs, so that ``--help`` answers at once; only then may a signal no
longer end the process in the middle (cli.py). The commands' work is in boot.py, top.py, doctor.py and
benchmark.py; here are options, help and exit statuses.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from coremesh.cluster.cli.process import raise_on_signals
from coremesh.cluster.machine.option_table import OPTIONS
from typer.core import TyperCommand

app = typer.Typer(
    name="coremesh",
    help="A distributed full-system emulator: one guest computer of up to 255 cores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_BOOT_HELP = """
Boot a guest: Debian's kernel with a busybox shell, or a kernel of your own.

In a terminal the guest's console is yours; [bold]Ctrl-][/bold] leaves and switches the machine off. With
'--screen text' the terminal is the guest's screen and keyboard instead. Without a terminal the console
goes to standard output as plain text, and standard input to the guest's shell.

[bold]Examples[/bold]

  coremesh boot --vcpus 4                        a shell on four cores
  coremesh boot --vcpus 8 --run 'nproc; uname -a'
  coremesh boot --hosts 2 --vcpus 8              the same on two hosts, here on this machine
  coremesh boot --flavour 686-pae --vcpus 2      Debian's kernel of 32 bits
  coremesh boot --hosts 6,2 --address auto       6 and 2 cores on nodes of this machine's Ray cluster
  coremesh boot --kernel vmlinuz --initrd initrd.img --append 'quiet'
  coremesh boot --kernel test.elf --timeout 10   a Multiboot kernel
  coremesh boot --kernel kernel.elf --screen text   one that prints on the VGA screen; keys go to its keyboard
  coremesh boot --log json --run true            what its processes do, an event a line, on standard error
  coremesh boot --disk debian                    the system of 'coremesh fetch debian --disk 4G'
  coremesh boot --disk data.img --disk base.qcow2,snapshot --cdrom install.iso
  coremesh boot --hosts 2 --console virtio,log=guest.log
  coremesh boot --share ~/work,readonly,tag=work   in the guest: mount -t 9p -o trans=virtio work /mnt
  coremesh boot --bios --cdrom grub.iso          SeaBIOS, and what it boots: a disk, else the CD
  coremesh boot --no-reboot --kernel test.elf    a reset or a triple fault ends it at once
  coremesh boot --bios my-bios.bin --disk a.img  a firmware of your own

[bold]The kernel's command line[/bold]

  Linux gets 'console=ttyS0,115200 panic=-1', and on several hosts 'tsc=reliable quiet rcu_nocbs=all
  rcutree.rcu_nocb_gp_stride=K rcutree.jiffies_till_first_fqs=8 rcutree.jiffies_till_next_fqs=8
  skew_tick=1 sysctl.vm.compaction_proactiveness=0 sysctl.kernel.watchdog_cpumask=F nohz_full=1-N'
  besides, where K cores never lie on two hosts and F are the first cores of the hosts: it then
  looks less often at what other hosts do, and prints errors only, since the serial port of another
  host is slow. Programs still run on all hosts: where taskset, a cpuset or a NUMA policy puts them,
  and where a host has more to do than cores. A word of --append replaces the default word of its
  name; with loglevel=7, debug or ignore_loglevel there, 'quiet' is left out. --cmdline replaces the
  whole line. All this goes for Linux kernels of your own as well; a Multiboot kernel gets --append
  alone.

[bold]Exit status[/bold]

  With --run, the command's. Otherwise
    0   the guest switched itself off, or you left it; with --no-reboot also: it asked for a reset
  n*2+1 the guest wrote n to the debug-exit port 0xf4
   70   the guest crashed: triple fault, kernel panic (then with --run, too)
   69   a host was lost: the process that ran its vCPUs, or the link to it
  124   the time of --timeout was over (with --run, too)
    1   it could not be started; 2 wrong options
   74   standard output could not be written, as on a full disk; 141 its reader has gone
  130   Ctrl-C; 143 SIGTERM; 129 the terminal hung up
"""


def _tell(form: str | None) -> None:
    """Let this process and those that it starts tell their events."""
    if form is not None:
        from coremesh.cluster.machine import log

        os.environ[log.VARIABLE] = str(log.Wanted.read(form))


_Log = Annotated[
    str | None,
    typer.Option(
        "--log",
        metavar="FORM[:LEVEL]",
        help="Tell events on standard error, a line each: 'text' or 'json', as json:debug.",
    ),
]


def _option(name: str) -> Any:
    """The machine's option `name` as the command line has it."""
    option = OPTIONS[name]
    flags = (option.flag,) if option.flag else ()
    return typer.Option(*flags, metavar=option.metavar, help=option.text)


class _BootCommand(TyperCommand):
    """A command whose options may stand without their value, where the table says so."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        alone = {option.flag: option.alone for option in OPTIONS.values() if option.alone}
        given: list[str] = []
        for number, word in enumerate(args):
            given.append(word)
            if word in alone and (number + 1 == len(args) or args[number + 1].startswith("-")):
                given.append(alone[word])
        return list(super().parse_args(ctx, given))


@app.command(help=_BOOT_HELP, cls=_BootCommand)
def boot(
    vcpus: Annotated[
        int | None,
        _option("vcpus"),
    ] = None,
    hosts: Annotated[
        str,
        _option("hosts"),
    ] = "1",
    device_host: Annotated[int, _option("device_host")] = 0,
    memory: Annotated[str, _option("memory")] = "1G",
    kernel: Annotated[Path | None, _option("kernel")] = None,
    flavour: Annotated[str, _option("flavour")] = "amd64",
    initrd: Annotated[Path | None, _option("initrd")] = None,
    append: Annotated[
        str,
        _option("append"),
    ] = "",
    cmdline: Annotated[
        str | None,
        _option("cmdline"),
    ] = None,
    module: Annotated[
        list[str] | None,
        _option("modules"),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="COMMAND", help="Run it in the guest's shell, print its output alone, power off."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Stop SECONDS after emulation starts.", min=0),
    ] = None,
    builtin: Annotated[
        bool, typer.Option("--builtin", help="Boot the built-in bare-metal guest that shows cores at work.")
    ] = False,
    unpack: Annotated[
        bool,
        _option("unpack"),
    ] = True,
    address: Annotated[
        str | None,
        _option("address"),
    ] = None,
    bios: Annotated[
        str | None,
        _option("bios"),
    ] = None,
    boot: Annotated[str | None, _option("boot")] = None,
    reboot: Annotated[
        bool,
        _option("reboot"),
    ] = True,
    disk: Annotated[
        list[str] | None,
        _option("disks"),
    ] = None,
    cdrom: Annotated[Path | None, _option("cdrom")] = None,
    net: Annotated[
        list[str] | None,
        _option("net"),
    ] = None,
    screen: Annotated[
        str,
        typer.Option(
            "--screen",
            metavar="serial|text",
            help="What the terminal is: the serial console, or the VGA text screen and its keyboard.",
        ),
    ] = "serial",
    console: Annotated[str, _option("console")] = "serial",
    share: Annotated[list[str] | None, _option("folders")] = None,
    rng: Annotated[str | None, _option("rng")] = None,
    policy: Annotated[
        str,
        _option("policy"),
    ] = "adaptive",
    wire: Annotated[
        str,
        _option("wire"),
    ] = "auto",
    log: _Log = None,
) -> None:
    """Boot a guest."""
    from coremesh.cluster.cli.boot import BootOptions, boot_guest
    from coremesh.cluster.machine.options import parse_hosts

    raise_on_signals()
    _tell(log)
    options = BootOptions(
        vcpus=vcpus,
        hosts=parse_hosts(hosts),
        device_host=device_host,
        policy=policy,
        wire=wire,
        memory=memory,
        kernel=kernel,
        flavour=flavour,
        initrd=initrd,
        append=append,
        cmdline=cmdline,
        modules=tuple(module or ()),
        command=run,
        timeout=timeout,
        builtin=builtin,
        unpack=unpack,
        address=address,
        bios=bios,
        boot=boot,
        reboot=reboot,
        disks=tuple(disk or ()),
        cdrom=cdrom,
        net=tuple(net or ()),
        screen=screen,
        console=console,
        folders=tuple(share or ()),
        rng=rng,
    )
    raise typer.Exit(boot_guest(options))


@app.command()
def top(
    pid: Annotated[
        int | None, typer.Argument(metavar="[PID]", help="The process that drives the machine; default: all.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print it once, also in a terminal.")] = False,
) -> None:
    """Show what running machines do: vCPUs, pages between hosts, contended pages, links. Ctrl-C ends it."""
    from coremesh.cluster.cli.top import show

    raise_on_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = show(pid, once=once)
    except KeyboardInterrupt:  # not in the live view, which it ends
        status = 128 + signal.SIGINT
    raise typer.Exit(status)


@app.command()
def fetch(
    what: Annotated[
        str, typer.Argument(metavar="[debian]", help="Which system; Debian is the one there is.")
    ] = "debian",
    flavour: Annotated[
        str,
        typer.Option("--flavour", help="Debian's kernel: amd64, cloud-amd64, or of 32 bits 686-pae, 686."),
    ] = "amd64",
    refresh: Annotated[bool, typer.Option("--refresh", help="Get the newest even if one is cached.")] = False,
    disk: Annotated[
        str | None,
        typer.Option("--disk", metavar="SIZE", help="Also make a bootable root disk of that size, as 4G."),
    ] = None,
    ssh: Annotated[
        bool, typer.Option("--ssh", help="On the disk an SSH server, which lets in the keys of ~/.ssh.")
    ] = False,
) -> None:
    """Get Debian's kernel and busybox with Debian's package tools, verified, into the user's cache.

    With --disk also a whole Debian of Debian's own packages, without root: 'coremesh boot --disk debian'
    boots it. The packages are unpacked here, and set up by a machine that boots the new disk: some minutes.
    """
    from coremesh.cluster.cli.fetch import fetch_images

    raise_on_signals()
    fetch_images(what, flavour, refresh=refresh, disk=disk, ssh=ssh)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what this host offers, what will be used and why. Exit status 1 if a guest cannot run."""
    from coremesh.cluster.cli.doctor import print_findings

    raise_on_signals()
    raise typer.Exit(print_findings(as_json=json))


_SWEEP_HELP = """
Run a machine for each combination of parameters, and put all numbers in one table.

[bold]Examples[/bold]

  coremesh sweep hashing.toml --dry-run          the trials that would run
  coremesh sweep hashing.toml                    run them; the table goes to the file's 'out'
  coremesh sweep hashing.toml --resume           after Ctrl-C, a crash, or with more values in the file
  coremesh sweep hashing.toml --repeats 5 --report hashing.html

[bold]The file[/bold]

  out = "hashing.csv"
  repeats = 3
  \\[trial]
  command = "head -c 16777216 /dev/zero | sha256sum >/dev/null; echo bytes=16777216"
  \\[parameters]
  vcpus = [1, 2, 4]
  \\[machine]
  memory = "512M"

  Instead of command: load = "hashing" (coremesh.loads has the list), or function = "module:name", a
  function of the machine in a module beside the file. Each line name=number that a command prints is a number
  of the table; numbers = { name = 'regular expression with a (group)' } finds others. A parameter that is an
  option of the machine sets it, engine = ["coremesh", "qemu"] compares, and any other is a variable of the
  shell.

[bold]Exit status[/bold]

    0   every trial gave its numbers
    1   a trial failed: its row has the error, and --resume tries it again
    2   the file is wrong; 130 Ctrl-C: what was done is on disk
"""


@app.command(help=_SWEEP_HELP)
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="What to run; see below.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials that would run, and start nothing.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the rows that are there, and run what is missing or failed."),
    ] = False,
    repeats: Annotated[
        int | None, typer.Option("--repeats", metavar="N", help="Run each combination N times.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The table, .csv or .parquet.")
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", metavar="N", help="Run at most N trials at the same time."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="ADDRESS", help="Run on this Ray cluster, 'auto' or host:port."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Also write a report.")
    ] = None,
    log: _Log = None,
) -> None:
    """Run a machine for each combination of parameters."""
    from coremesh.cluster.cli.sweep import run_sweep

    raise_on_signals()
    _tell(log)
    raise typer.Exit(
        run_sweep(
            file,
            resume=resume,
            only_list=dry_run,
            repeats=repeats,
            out=out,
            at_once=at_once,
            address=address,
            report=report,
        )
    )


@app.command()
def bench(
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    vcpus: Annotated[
        list[int] | None,
        typer.Option("--vcpus", metavar="N", help="Number of vCPUs to boot with; may be repeated."),
    ] = None,
    qemu: Annotated[
        bool, typer.Option("--qemu/--no-qemu", help="Also measure qemu-system-x86_64, if it is installed.")
    ] = True,
) -> None:
    """Measure boot time, guest speed and scaling on this host, beside QEMU where there is one."""
    from coremesh.cluster.cli.benchmark import print_benchmark

    raise_on_signals()
    raise typer.Exit(print_benchmark(tuple(vcpus or (1, 2)), with_qemu=qemu, as_json=json))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """A distributed full-system emulator: one guest computer of up to 255 cores."""
    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            typer.echo(installed("coremesh"))
        except PackageNotFoundError:
            typer.echo("not installed")
        raise typer.Exit
