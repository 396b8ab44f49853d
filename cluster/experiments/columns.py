# SPDX-License-Identifier: GPL-2.0-or-later
"""Which counters a sweep can collect, known before a machine runs: a misspelt one must not cost a night."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from coremesh.core.counters import counters
from coremesh.core.errors import ConfigurationError, near, shown
from coremesh.hw.board.pc import PC_WITH_FIRMWARE

#: Tables of a machine's counters that a result may have the sums of, and those that it has unless told.
TABLES: Final = ("stats", "mesh_stats", "device_stats")
COLLECTED: Final = ("stats", "mesh_stats")
#: What each number of a command took, beside the tables.
MARKS: Final = "marks"

_LISTED = "core/native/COUNTERS.md lists them, and so does 'python -m coremesh.core.counters'"
_LISTED_OF_DEVICES = "Machine.device_stats() of a machine with the device shows them"

# A vCPU's accesses are counted by the devices, and added to its row.
_OF_VCPUS_BY_DEVICES = ("device_accesses", "device_bytes", "device_ns")
#: Sums over devices. Each model counts what it likes; a machine with all of them is compared with this.
DEVICE_COLUMNS: Final = frozenset({
    "accesses", "access_bytes", "access_ns", "contended", "waited_ns", "faults",
    "interrupts", "kicks", "messages", "messages_held", "pin_interrupts", "queue_faults", "requests",
    "resets_needed", "reads", "writes", "flushes", "discards", "other_requests", "errors", "malformed",
    "bytes_read", "bytes_written", "service_ns", "commands", "bytes_moved", "busy_ns",
    "bytes_sent", "bytes_received", "frames_sent", "frames_received", "frames_lost", "frames_dropped",
    "connections_lost", "pairs_used", "bytes_given", "waits", "transfers",
})  # fmt: skip
_ON_THE_BUS = ("ide", "virtio-blk", "virtio-net", "virtio-9p", "virtio-console", "virtio-rng")


def sums_of(table: str) -> frozenset[str]:
    """Return the columns of a table that have a sum; of 'device_stats' those over all devices."""
    if table == "device_stats":
        return DEVICE_COLUMNS
    places = {"stats": {"stats": ""}, "mesh_stats": {"mesh_stats": "", "links": "links_"}}[table]
    names = {
        places[counter.place] + counter.name
        for counter in counters()
        if counter.place in places and counter.unit
    }
    return frozenset(names | set(_OF_VCPUS_BY_DEVICES if table == "stats" else ()))


def require_collect(collect: Any) -> tuple[str, ...]:
    """Return what `collect` names, or raise :class:`ConfigurationError`."""
    if isinstance(collect, str) or not isinstance(collect, Sequence):
        raise ConfigurationError(
            f"collect is a list such as ['stats', 'mesh_stats.page_bytes'], not {shown(collect)}."
        )
    for name in collect:
        if name == MARKS:
            continue
        table = name.partition(".")[0] if isinstance(name, str) else ""
        if table not in TABLES:
            raise ConfigurationError(
                f"collect: {shown(name)} is no table of counters; there are {', '.join(TABLES)}, and "
                "their columns as stats.interrupts or device_stats.uart.accesses; and 'marks', of a command."
            )
        _require_column(name, table)
    return tuple(collect)


def _require_column(name: str, table: str) -> None:
    column = name.partition(".")[2]
    listed = _LISTED
    if table == "device_stats":
        listed = _LISTED_OF_DEVICES
        device, dot, column = column.rpartition(".")
        if dot and not _may_be_device(device):
            chips = [chip.name for chip in PC_WITH_FIRMWARE.chips]
            raise ConfigurationError(
                f"collect: {shown(name)}: no machine has such a device."
                f"{near(device, [*chips, *_numbered()])} {listed}."
            )
    if name != table and column not in sums_of(table):
        raise ConfigurationError(
            f"collect: {shown(name)} is no counter that has a sum.{near(column, sums_of(table))} {listed}."
        )


def _may_be_device(name: str) -> bool:
    on_board = any(chip.name == name for chip in PC_WITH_FIRMWARE.chips)
    return on_board or re.sub(r"\d{0,3}$", "", name) in _ON_THE_BUS


def _numbered() -> list[str]:
    return [name if name.endswith(("console", "rng")) else f"{name}0" for name in _ON_THE_BUS]
