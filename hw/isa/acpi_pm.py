# SPDX-License-Identifier: GPL-2.0-or-later
"""ACPI fixed hardware: the PM1a event and control blocks and the power management timer.

Reference: ACPI 6.4, sections 4.8.3.1-4.8.3.3. Offsets: 0 PM1_STS, 2 PM1_EN, 4 PM1_CNT, 8 PM_TMR.

There is no system management mode, so ACPI is always on: SCI_EN reads as one.
"""

from coremesh.hw.clock import Clock
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.power import PowerEvent, PowerSink
from coremesh.hw.registers import Bit, Bits, Register

PM_TIMER_HZ = 3_579_545
NS = 1_000_000_000
SLEEP_TYPE_S5 = 5  # what the DSDT's \\_S5 package says


class PM1_STS(Register):
    """Fixed event status; writing one clears."""

    offset = 0
    TMR = Bit(0)  # the timer's highest bit has changed
    BM = Bit(4)
    GBL = Bit(5)
    PWRBTN = Bit(8)
    SLPBTN = Bit(9)
    RTC = Bit(10)
    WAK = Bit(15)


class PM1_EN(Register):
    """Which of them raise the system control interrupt."""

    offset = 2
    writable = 0x0721
    TMR = Bit(0)
    GBL = Bit(5)
    PWRBTN = Bit(8)
    SLPBTN = Bit(9)
    RTC = Bit(10)


class PM1_CNT(Register):
    """Control."""

    offset = 4
    reset = 0x0001
    writable = 0x1C02
    SCI_EN = Bit(0)
    BM_RLD = Bit(1)
    GBL_RLS = Bit(2)  # write only
    SLP_TYP = Bits(12, 10)
    SLP_EN = Bit(13)  # write only: enter the sleep state


class PM_TMR(Register):
    """Free-running counter at 3.579545 MHz."""

    offset = 8
    writable = 0


class AcpiPm(Device):
    """``sci`` is level, active high. ``press_power_button`` is the person's finger."""

    REGISTERS = (PM1_STS, PM1_EN, PM1_CNT)
    STATE = ("_halves",)
    widths = (1, 2, 4)
    pm1_sts: int
    pm1_en: int
    pm1_cnt: int

    def __init__(
        self, clock: Clock, sci: IrqLine, on_power: PowerSink, timer_bits: int = 24, name: str = "acpi-pm"
    ) -> None:
        super().__init__(name)
        self._now = clock.now
        self._sci = sci
        self.lines.append(sci)
        self._on_power = on_power
        self._timer_mask = (1 << timer_bits) - 1
        self._half = 1 << (timer_bits - 1)
        self._alarm = clock.alarm(name, self.lock, self._settle)
        self.alarms.append(self._alarm)
        self._halves = 0  # half turns of the timer that PM1_STS knows of
        self.reset()

    def reset(self) -> None:
        """Nothing pending, nothing enabled. The timer runs on."""
        super().reset()
        self._halves = self._ticks() // self._half
        self._settle()

    def resume(self) -> None:
        """What the timer did meanwhile is noticed, and its next change awaited."""
        self._settle()

    def press_power_button(self) -> None:
        """Ask the guest to shut down. Any thread."""
        with self.lock:
            self.pm1_sts |= PM1_STS.PWRBTN
            self._settle()

    def _ticks(self) -> int:
        return self._now() * PM_TIMER_HZ // NS

    def _settle(self) -> None:
        """Work out TMR, then the SCI, then when TMR changes next if an interrupt of it is enabled."""
        halves = self._ticks() // self._half
        if halves != self._halves:
            self._halves = halves
            self.pm1_sts |= PM1_STS.TMR
        pending = self.pm1_sts & self.pm1_en & PM1_EN.writable
        if self.pm1_en & PM1_EN.TMR and not pending & PM1_STS.TMR:
            self._alarm.arm(-(-(halves + 1) * self._half * NS // PM_TIMER_HZ))
        else:
            self._alarm.cancel()
        self._sci.set(bool(pending))

    def read(self, offset: int, size: int) -> int:
        """Any byte, word or double word of the twelve bytes."""
        if offset == PM_TMR.offset and size == 4:
            return self._ticks() & self._timer_mask
        if offset >= PM_TMR.offset:
            block, start = self._ticks() & self._timer_mask, PM_TMR.offset
        else:
            self._settle()
            block, start = self.pm1_sts | self.pm1_en << 16 | self.pm1_cnt << 32, 0
        return block >> 8 * (offset - start) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Bytes that a narrow access does not touch keep their value."""
        if offset >= PM_TMR.offset:
            return
        self._settle()
        shift = 8 * offset
        written = value << shift
        touched = ((1 << 8 * size) - 1) << shift
        self.pm1_sts &= ~written
        enable = touched >> 16 & PM1_EN.writable
        self.pm1_en = self.pm1_en & ~enable | written >> 16 & enable
        control = touched >> 32 & PM1_CNT.writable
        self.pm1_cnt = self.pm1_cnt & ~control | written >> 32 & control
        self._settle()
        if written >> 32 & PM1_CNT.SLP_EN:
            self._sleep(PM1_CNT.SLP_TYP.of(self.pm1_cnt))

    def _sleep(self, sleep_type: int) -> None:
        """Only soft off is offered; the DSDT names no other state, so any other type is ignored."""
        if sleep_type == SLEEP_TYPE_S5:
            self._on_power(PowerEvent("power-off", sleep_type, self.name))
