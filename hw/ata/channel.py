# SPDX-License-Identifier: GPL-2.0-or-later
"""One channel of an IDE controller, as the device node and a person see it.

Its registers, its drives' registers, the bus master and the worker are native (``hw/native/ata``): a vCPU's
access does not come here, but for one that a bus would split.

Offsets: 0-7 command block, 8 device control (written) and alternate status (read), 16-23 bus master.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from coremesh.core._native import BusMaster, NativeIdeChannel
from coremesh.core.state import State, StateError, check_keys, check_shape, check_version
from coremesh.hw.ata.drive import Drive
from coremesh.hw.ata.registers import BMICOM, BMIDTP, BMISTA, CONTROL, DEVICE, ERROR, STATUS
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.state import plain

DRIVES: Final = 2
_HEAD: Final = 6  # among the task file's bytes
_OWN: Final = {"channel", "units"}


class IdeChannel(Device):
    """A channel with up to two ``drives``, device 0 first; None where there is none."""

    VERSION = 2
    STATE = ("_drives",)
    widths = (1, 2, 4)

    def __init__(
        self,
        irq: IrqLine,
        memory: BusMaster,
        drives: Sequence[Drive | None],
        name: str,
        on_bus_error: Callable[[], object] = lambda: None,
    ) -> None:
        """``memory`` is where the bus master goes; ``on_bus_error`` is told when it found no RAM there."""
        super().__init__(name)
        self.lines.append(irq)
        self._drives = [drive for drive in drives if drive is not None]
        places = [None if drive is None else drive.native for drive in drives]
        self.native = NativeIdeChannel(memory, places, irq.set, on_bus_error)

    def read(self, offset: int, size: int) -> int:
        """See the offsets above."""
        return self.native.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """See the offsets above. What stops a transfer returns when nothing is moved any more."""
        self.native.write(offset, size, value)

    def reset(self) -> None:
        """RESET-: to the drives as well."""
        self.native.reset()
        for drive in self._drives:
            drive.reset()

    def use_bus(self, allowed: bool) -> None:
        """Let the bus master use the bus, or not. Then it does not any more when this returns. Any thread."""
        self.native.allow(allowed)

    def start(self) -> None:
        """Let the worker run."""
        self.native.start(self.name)

    def stop(self) -> None:
        """Returns when it does not run any more."""
        self.native.stop()

    def counts(self) -> dict[str, int]:
        """Also commands, bytes that the bus master or the medium moved, and the time that took, ns."""
        found = super().counts()
        return found | {name: found.get(name, 0) + n for name, n in self.native.counters().items()}

    # --- state

    def _native_state(self) -> State:
        registers, units = self.native.save()
        return {
            "channel": registers,
            "units": [{name: plain(value) for name, value in unit.items()} for unit in units],
        }

    def save(self) -> State:
        """See :class:`Device`."""
        return super().save() | self._native_state()

    def load(self, state: Mapping[str, Any]) -> None:
        """See :class:`Device`. A drive that was at work goes on when the worker is started."""
        check_version(state, self.VERSION, self.name)
        check_keys(state, {"version", "registers", "lines", "drives"} | _OWN, self.name)
        pattern = self._native_state()
        for name in _OWN:
            check_shape(state[name], pattern[name], f"{self.name}.{name}")
        super().load({name: value for name, value in state.items() if name not in _OWN})
        try:
            units = [{name: _native(value) for name, value in unit.items()} for unit in state["units"]]
            loaded = self.native.load(state["channel"], units, self.lines[0].level)
        except (ValueError, TypeError, OverflowError, RuntimeError):  # a number that fits no register
            loaded = False
        if not loaded:
            raise StateError(f"the saved state of {self.name} is damaged; load another copy of it")

    def show(self) -> dict[str, dict[str, int]]:
        """The channel's registers, and those of each drive."""
        registers, units = self.native.save()
        shown = {}
        for register in (CONTROL, BMICOM, BMISTA, BMIDTP):
            value = registers[register.__name__.lower()]
            shown[register.__name__] = {"value": value, **register.decode(value)}
        for number, unit in enumerate(units):
            for drive_register, value in (
                (STATUS, unit["status"]),
                (ERROR, unit["error"]),
                (DEVICE, unit["last"][_HEAD]),
            ):
                shown[f"{drive_register.__name__}{number}"] = {
                    "value": value,
                    **drive_register.decode(value),
                }
        return shown


def _native(value: Any) -> Any:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
