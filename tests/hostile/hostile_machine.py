# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine full of hostile code, run on the native host in this process, and stopped.

``Plan`` is everything that is drawn from a seed: how many vCPUs and hosts, where page tables lead, and the
blocks.
``run`` runs it, with a watch over time, memory and threads, and says how it went. See README.md.
"""

import gc
import os
import random
import resource
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import hostile_code
from coremesh.core._native import InProcessSwitch, host_tsc_hz
from coremesh.core.engine import Host
from coremesh.core.memory_layout import MemoryLayout, Region
from coremesh.core.mesh import Mesh
from coremesh.core.x86 import cpuid
from coremesh.hw.backend.console import ConsolePort
from coremesh.hw.board.pc import build_pc

HERE = Path(__file__).parent
PAGE = 0x1000

# Guest-physical addresses; supervisor.S has them by -D.
SUPERVISOR = 0x8000
TABLES = 0x1_0000  # PML4, PDPT, page directories, page table
TABLES32 = 0x1_6000
IDT64 = 0x1_8000
IDT32 = 0x1_9000
VALUES = 0x1_A000
PROGRESS = 0x1_B000
RECORDS = 0x2_0000
CODE = 0x8_0000
CODE_END = 0xF_0000
PERCPU = 0x10_0000
PERCPU_BYTES = 0x2000
GDT = 0x200
SPACE = 0x20_0000  # what blocks read and write
LOW_RAM = 0x80_0000
HIGH_RAM = 0x20_0000  # above 4 GiB
MEMORY = MemoryLayout.of([Region(0, LOW_RAM), Region(1 << 32, HIGH_RAM)])

MOST_VCPUS = 48
BLOCKS_EACH = 160
MOST_BLOCKS = (CODE - RECORDS) // 32 - 64
DONE = 1 << 63
STALLED_SECONDS = 0.01  # without a new block: an NMI
LOST_SECONDS = 0.15  # after that the machine is stopped
STOP_SECONDS = 1.0
ENDLESS_SECONDS = (
    2.0  # and 50 ms for each vCPU: a supervisor whose counters were overwritten runs blocks for ever
)


@cache
def supervisor() -> tuple[bytes, dict[str, int]]:
    """The supervisor's bytes, and the addresses of its entries."""
    names = {"SUPERVISOR": SUPERVISOR, "PERCPU": PERCPU, "PERCPU_BYTES": PERCPU_BYTES, "TABLES": TABLES,
             "TABLES32": TABLES32, "VALUES": VALUES, "PROGRESS": PROGRESS,
             "TIMER_COUNT": cpuid.core_crystal(host_tsc_hz()).hz // 500}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        made, elf, binary = (Path(folder) / f"supervisor.{end}" for end in ("o", "elf", "bin"))
        options = [f"-D{name}={value:#x}" for name, value in names.items()]
        subprocess.run(["gcc", "-m64", "-c", *options, "-o", made, HERE / "supervisor.S"], check=True)
        subprocess.run(["ld", f"-Ttext={SUPERVISOR:#x}", "-o", elf, made], check=True)
        subprocess.run(["objcopy", "-O", "binary", elf, binary], check=True)
        symbols = subprocess.run(["nm", elf], check=True, capture_output=True, text=True).stdout
        entries = {line.split()[2]: int(line.split()[0], 16) for line in symbols.splitlines()}
        return binary.read_bytes(), entries


def descriptor(base: int, limit: int, access: int, flags: int) -> bytes:
    """A segment descriptor (SDM vol. 3A 3.4.5)."""
    return struct.pack("<HHBBBB", limit & 0xFFFF, base & 0xFFFF, base >> 16 & 0xFF, access,
    flags << 4 | limit >> 16 & 0xF,
                       base >> 24)  # fmt: skip


def gdt(area: int, entries: dict[str, int]) -> bytes:
    """A vCPU's descriptor table: flat segments, task states, an LDT, gates, and some to be refused."""
    handler = entries["trap64"]
    table = [
        bytes(8), descriptor(0, 0xFFFFF, 0x9B, 0xA), descriptor(0, 0xFFFFF, 0x93, 0xC), descriptor(0,
        0xFFFFF, 0x9B, 0xC),
        bytes(8), descriptor(0, 0xFFFFF, 0xFB, 0xA), descriptor(0, 0xFFFFF, 0xF3, 0xC), descriptor(0,
        0xFFFFF, 0xFB, 0xC),
        descriptor(area + 0x300, 0x67, 0x89, 0) + bytes(8), descriptor(area + 0x400, 0x67, 0x89, 0),
        descriptor(0, 0xFFFFF, 0x9B, 0x8), descriptor(0, 0xFFFF, 0x93, 0), descriptor(area + 0x500, 0x67,
        0x89, 0),
        descriptor(SPACE, 0xFFF, 0x82, 0) + bytes(8),
        struct.pack("<HHBBHII", handler & 0xFFFF, 0x08, 0, 0xEC, handler >> 16, 0, 0),  # 80: a call gate
        descriptor(0, 0xFFFFF, 0x9E, 0xA), descriptor(0, 0xFFF, 0xF7, 0xC), descriptor(0, 0xFFFFF, 0x72, 0xC),
        struct.pack("<HHBBH", SUPERVISOR, 0x18, 3, 0xEC, 0), descriptor(SPACE, 0xFF, 0x89, 0),
    ]  # fmt: skip
    return b"".join(table).ljust(0x100, b"\0")


def percpu(number: int, entries: dict[str, int], first: int, end: int) -> bytes:
    """A vCPU's area: which records are its own, its tables and its stacks."""
    area = PERCPU + number * PERCPU_BYTES
    top = area + PERCPU_BYTES
    head = struct.pack("<QQ", first, end)
    for limit, base in ((0xFFF, IDT64), (0x7FF, IDT32), (0x3FF, 0), (0xFF, area + GDT)):
        head += struct.pack("<HQ6x", limit, base)
    stack = top - 0x400
    task64 = struct.pack("<I3QQ7QQHH", 0, top, top, top, 0, *[stack - 0x80 * i for i in range(7)], 0, 0, 0x68)
    task32 = struct.pack("<IIIIIII", 0, top - 0x200, 0x10, top - 0x200, 0x10, top - 0x200, 0x10).ljust(
        0x68, b"\0"
    )
    fault = bytearray(0x68)
    fields = {0x1C: TABLES32, 0x20: entries["trap32"], 0x24: 2, 0x38: top - 0x300, 0x48: 0x10, 0x4C: 0x18,
    0x50: 0x10,
              0x54: 0x10, 0x58: 0x10, 0x5C: 0x10, 0x64: 0x68_0000}  # fmt: skip
    for where, value in fields.items():
        struct.pack_into("<I", fault, where, value)
    image = bytearray(0x600)
    for where, part in (
        (0, head),
        (GDT, gdt(area, entries)),
        (0x300, task64),
        (0x400, task32),
        (0x500, bytes(fault)),
    ):
        image[where : where + len(part)] = part
    return bytes(image)


def interrupt_tables(entries: dict[str, int]) -> list[tuple[int, bytes]]:
    """The real-mode vectors and both IDTs: everything leads to the supervisor."""
    long, short, real = entries["trap64"], entries["trap32"], entries["real_trap"]
    idt64 = b"".join(
        struct.pack("<HHBBHII", long & 0xFFFF, 0x08, 1 + vector % 7, 0xEE, long >> 16, 0, 0)
        for vector in range(256)
    )
    gate = struct.pack("<HHBBH", short & 0xFFFF, 0x18, 0, 0xEE, short >> 16)
    task = struct.pack("<HHBBH", 0, 0x68, 0, 0xE5, 0)
    idt32 = b"".join(task if vector in (8, 10, 12) else gate for vector in range(256))
    return [(0, struct.pack("<HH", real, 0) * 256), (IDT64, idt64), (IDT32, idt32)]


def page_tables(rng: random.Random) -> list[tuple[int, bytes]]:
    """The first GiB one to one, and page tables in odd places everywhere else."""
    low = []
    for frame in range(512):
        at = frame * PAGE
        kept = at < RECORDS or PERCPU <= at < SPACE
        # The supervisor and the tables can be read only, its counters and its stacks be written by ring 0.
        writable = not kept or at == PROGRESS or at >= PERCPU or at < SUPERVISOR
        low.append(at | 0x21 | (2 if writable else 0) | (0 if kept else 4))
    directory = [TABLES + 0x3007] + [frame << 21 | 0xE7 for frame in range(1, 512)]
    apic = [(3 << 30 | frame << 21) | 0xF7 for frame in range(512)]
    odd = (
        TABLES | 5,  # itself
        TABLES | 7,
        LOW_RAM + 0x40_0007,  # a hole
        0xFEE0_0007,  # the local APIC
        0xFEC0_0007,
        CODE | 7,  # code is its page table
        SPACE | 7,
        (1 << 32) + 7,
        (1 << 32) + HIGH_RAM - 0x0FF9,  # the last page of RAM
        (1 << 32) + HIGH_RAM + 7,  # above RAM
        (1 << 39) + 7,
        0xF_FFFF_F000 | 7,
        1 << 51 | 7,  # reserved bits
        SPACE | 0x87,
        SPACE | 1 << 63 | 7,
        rng.getrandbits(64) | 1,
    )  # fmt: skip
    top = [TABLES + 0x1007] + [odd[slot % len(odd)] for slot in range(1, 512)]
    pointers = [TABLES + 0x2007, 0x8000_0087, SPACE | 7, TABLES + 0x4007] + [
        rng.choice(odd) for _ in range(508)
    ]
    words = [
        (TABLES, top), (TABLES + 0x1000, pointers), (TABLES + 0x2000, directory), (TABLES + 0x3000, low),
        (TABLES + 0x4000, apic),
    ]  # fmt: skip
    places = [(at, struct.pack("<512Q", *(word & (1 << 64) - 1 for word in table))) for at, table in words]
    short = [frame << 22 | 0xE7 for frame in range(1024)]
    for slot in range(8, 0x3F0):
        short[slot] = rng.choice(
            (SPACE | 7, TABLES32 | 7, 0xFEE0_0007, LOW_RAM + 0x1007, CODE | 7, short[slot])
        )
    return [*places, (TABLES32, struct.pack("<1024I", *short))]


def interesting_values(rng: random.Random) -> list[int]:
    """256 operands: addresses that are mapped, odd or not there, and numbers at the edges."""
    values = [0, 1, 2, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF,
    1 << 32, (1 << 63) - 1,
              1 << 63, (1 << 64) - 1, 0x8000_0000_0000, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000,
              0xFFFF_7FFF_FFFF_FFFF,
              0xFEE0_0300, 0xFEE0_0310, 0xFEE0_0380, 0xFEC0_0000, 0xFEE0_0FF8, LOW_RAM, LOW_RAM - 1,
              LOW_RAM - 8,
              1 << 32, (1 << 32) + HIGH_RAM - 4, (1 << 32) + HIGH_RAM, 0xFFFF_FFF8, TABLES, CODE, CODE_END,
              IDT64,
              PERCPU, VALUES, 0xD01, 0x8001_0033, 0x6B0, 0xFEE0_0800, 0xFEE0_0C00, 0xFEE0_0900, 0x1F80,
              0xFFFF_0000]  # fmt: skip
    while len(values) < 160:
        values.append(SPACE + rng.getrandbits(20))
    while len(values) < 190:
        values.append((SPACE + rng.getrandbits(20) | 0xFFF) - rng.getrandbits(4))
    while len(values) < 210:
        values.append(rng.randrange(CODE, CODE_END))
    while len(values) < 240:
        slot = rng.randrange(1, 512)
        values.append(
            (slot << 39 | rng.getrandbits(39) | (0xFFFF << 48 if slot >= 256 else 0))
            & ~rng.choice((0, 7, 0xFFF))
        )
    while len(values) < 256:
        values.append(rng.getrandbits(64))
    return values


@dataclass(frozen=True)
class Plan:
    """A machine drawn from its seed. ``only``: the numbers of the blocks that are kept, for shrinking.

    ``listed`` takes the place of the blocks that would be drawn: for each its mode and its bytes.
    """

    seed: int
    shares: tuple[int, ...]
    protection: str
    blocks: int = 0
    only: frozenset[int] | None = None
    board: bool = False
    listed: tuple[tuple[int, bytes], ...] = ()

    @property
    def vcpus(self) -> int:
        return sum(self.shares)


@dataclass
class Result:
    """How a machine went. ``ended``: 'done', 'stalled', 'endless', or what ``Host.wait`` says."""

    ended: str
    blocks: int
    seconds: float
    stop_seconds: float
    complaints: list[str] = field(default_factory=list)
    detail: str = ""


def draw(seed: int, protection: str, hosts: int, vcpus: int = 0, blocks: int = 0) -> Plan:
    """The machine of a seed: 1 to 48 vCPUs, the larger ones rarer."""
    rng = random.Random(seed)
    wide = vcpus or rng.choice((1, 1, 1, 2, 2, 3, 4, 4, 8, 16, 48))
    wide = max(wide, hosts)
    shares = (wide,) if hosts == 1 else (wide - wide // 2, wide // 2)
    return Plan(
        seed, shares, protection, blocks or min(BLOCKS_EACH * wide, 1536), None, rng.getrandbits(3) == 0
    )


def contents(plan: Plan) -> list[tuple[int, bytes]]:
    """What is in memory before the machine starts."""
    rng = random.Random(plan.seed ^ 0x5EED)
    code, entries = supervisor()
    values = interesting_values(rng)
    places = [
        (SUPERVISOR, code),
        *interrupt_tables(entries),
        *page_tables(rng),
        (VALUES, struct.pack("<256Q", *values)),
    ]
    image = bytearray(b"\xcc" * (CODE_END - CODE))
    records = bytearray()
    at = 0
    drawn = min(plan.blocks, MOST_BLOCKS)
    kept = 0
    for number in range(drawn):
        if plan.listed:
            mode, bytes_ = plan.listed[number]
        else:
            mode = rng.choices(hostile_code.MODES, hostile_code.MODE_WEIGHTS)[0]
            bytes_ = hostile_code.block(rng, mode, CODE + at, values)
        if at + len(bytes_) + 32 > len(image):
            break
        flags = 2 | (rng.getrandbits(2) != 0) << 9
        extra = rng.getrandbits(6)
        if extra < 6:
            flags |= (0x100, 0x400, 0x4_0000, 0x1_0000, 0x3000, 0x4000)[extra]
        stack = rng.randrange(48, 240) if rng.getrandbits(2) else rng.getrandbits(8)
        registers = rng.randbytes(16)
        if plan.only is None or number in plan.only:
            image[at : at + len(bytes_)] = bytes_
            records += struct.pack("<IIIB3x16s", CODE + at, mode, flags, stack, registers)
            kept += 1
        at += len(bytes_) + 4 + (rng.getrandbits(6) if rng.getrandbits(3) == 0 else 0)
    places += [(CODE, bytes(image)), (RECORDS, bytes(records))]
    each, more = divmod(kept, plan.vcpus)
    first = RECORDS
    for number in range(plan.vcpus):
        end = first + 32 * (each + (number < more))
        places.append((PERCPU + number * PERCPU_BYTES, percpu(number, entries, first, end)))
        first = end
    # Entries of page tables, descriptors and addresses, so that whatever is loaded from here makes some
    # sense.
    space = [
        values[rng.getrandbits(8)]
        if rng.getrandbits(1)
        else (rng.choice(values) & ~0xFFF) | rng.getrandbits(12)
        for _ in range(2048)
    ]
    table = gdt(PERCPU, entries)
    places.append((SPACE, table + struct.pack("<2048Q", *space)))
    places.append((1 << 32, struct.pack("<512Q", *space[:512])))
    return places


def registers() -> dict[str, object]:
    """The bootstrap processor begins where a start-up IPI would send it."""
    data = dict.fromkeys(("ds", "es", "fs", "gs", "ss"), (0, 0, 0xFFFF, 0x93))
    return {"cs": (SUPERVISOR >> 4, SUPERVISOR, 0xFFFF, 0x9B), "cr0": 0x10, "rip": 0, "rsp": 0x7000, **data}


def resident_bytes() -> int:
    """Memory of this process that is not shared with files, plus the guest's."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def thread_count() -> int:
    """Threads of this process."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def build(plan: Plan) -> tuple[list[Host], list[object]]:
    """The hosts of the machine, joined and loaded, and what has to live as long as they do."""
    ram = LOW_RAM + HIGH_RAM
    ids = list(range(plan.vcpus))
    if len(plan.shares) == 1:
        hosts = [
            Host(
                memory=MEMORY,
                apic_ids=ids,
                total_vcpus=plan.vcpus,
                protection=plan.protection,
            )
        ]
        kept: list[object] = []
    else:
        pages, first = ram // PAGE, plan.shares[0]
        # Both hosts have a part of each thing: the border lies in what blocks read and write.
        border = (SPACE + 0x8000) // PAGE if plan.seed & 1 else CODE // PAGE + 0x20
        switch = InProcessSwitch(
            2, machine_id=plan.seed & 0xFFFF_FFFF | 1, epoch=1, seed=plan.seed & 0xFFFF_FFFF
        )
        hosts = [
            Host(
                memory=MEMORY,
                apic_ids=ids[:first] if number == 0 else ids[first:],
                total_vcpus=plan.vcpus,
                protection=plan.protection,
                mesh=Mesh(
                    host=number,
                    hosts=2,
                    homes=[(0, border, 0), (border, pages, 1)],
                    vcpu_hosts={apic_id: int(apic_id >= first) for apic_id in ids},
                    machine_id=plan.seed & 0xFFFF_FFFF | 1,
                ),
            )
            for number in range(2)
        ]
        kept = [switch]
    if plan.board:
        node = build_pc(
            hosts[0], console=ConsolePort(), on_power=lambda _event: None, ram_bytes=ram, vcpus=plan.vcpus
        )
        hosts[0].connect(node)
        for space, start, last in node.claims():
            for host in hosts:
                host.claim(space, start, last)
        node.start()
        kept.append(node)
    if len(hosts) > 1:
        for number, host in enumerate(hosts):
            host.start_link(switch.link(number))
        for host in hosts:
            if not host.joined(10.0):
                raise RuntimeError("the hosts do not hear each other")
    for gpa, data in contents(plan):
        for host in hosts:
            if len(hosts) > 1:
                host.load(gpa, data)
            else:
                host.ram_write(gpa, data)
    hosts[0].set_registers(0, registers())
    return hosts, kept


def _progress(host: Host, vcpus: int) -> tuple[int, ...]:
    return struct.unpack(f"<{vcpus}Q", host.ram_read(PROGRESS, 8 * vcpus))


def _watch(hosts: Sequence[Host], vcpus: int) -> tuple[str, str, tuple[int, ...]]:
    """Wait until all has run, the machine has ended, or nothing moves: how, the detail, the counters."""
    counts = (0,) * vcpus
    moved = [time.monotonic()] * vcpus
    deadline = moved[0] + ENDLESS_SECONDS + 0.05 * vcpus
    while True:
        time.sleep(0.001)
        ends: list[Any] = [end for host in hosts if (end := host.wait(0.0))]
        try:
            now = _progress(hosts[0], vcpus)
        except IndexError:  # of several hosts: the page of the counters does not come any more
            now = counts
        if ends:
            return str(ends[0]["kind"]), str(ends[0]["detail"]), now
        moment = time.monotonic()
        lost = 0
        for number, (before, after) in enumerate(zip(counts, now, strict=True)):
            if after != before:
                moved[number] = moment
            still = 0.0 if after & DONE else moment - moved[number]
            if still > LOST_SECONDS:
                lost += 1
            elif still > STALLED_SECONDS:
                hosts[0].msi(0xFEE0_0000 | number << 12, 0x400)
        counts = now
        running = sum(not count & DONE for count in now)
        if running == 0:
            return "done", "", now
        if lost == running:
            return "stalled", f"{lost} of {vcpus} vCPUs", now
        if moment > deadline:
            return "endless", f"{running} of {vcpus} vCPUs", now


def stop(hosts: Sequence[Host], kept: Sequence[object]) -> float:
    """Stop the machine; how many seconds that took."""
    began = time.monotonic()
    threads = [threading.Thread(target=host.stop) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    for each in kept:
        if hasattr(each, "stop"):
            each.stop()
    return took


def run(plan: Plan) -> Result:
    """Run a machine to its end and look whether it hurt its host: time to stop, threads that stay."""
    threads = thread_count()
    began = time.monotonic()
    hosts, kept = build(plan)
    for host in reversed(hosts):
        host.start()
    ended, detail, counts = _watch(hosts, plan.vcpus)
    took = stop(hosts, kept)
    seconds = time.monotonic() - began
    # Each vCPU counts the starts of its blocks, and one more at the end; what is beyond its share was
    # overwritten.
    blocks = sum(min(count & ~DONE, plan.blocks // plan.vcpus + 1) for count in counts)
    result = Result(ended, min(blocks, plan.blocks), seconds, took, [], detail)
    # On a busy host a second of its cores takes longer.
    if took > STOP_SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)):
        result.complaints.append(f"stopping took {took:.2f} s")
    del hosts, kept, host
    if plan.board:
        gc.collect()  # the board and its host know each other
    deadline = time.monotonic() + 1.0
    while thread_count() > threads and time.monotonic() < deadline:
        time.sleep(0.001)
    if thread_count() > threads:
        names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        result.complaints.append(f"{thread_count() - threads} threads stay: {' '.join(names)}")
    return result


def run_sweep(protection: str) -> int:
    """Run each kind of instruction once, on as many machines as that takes; how many blocks there were."""
    left = hostile_code.sweep()
    total = len(left)
    while left:
        part = tuple(left[:2000])
        result = run(Plan(total - len(left) + 1, (1,), protection, len(part), listed=part))
        left = left[max(result.blocks, 1) :]
    return total
