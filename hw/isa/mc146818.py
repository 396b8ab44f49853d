# SPDX-License-Identifier: GPL-2.0-or-later
"""MC146818 real-time clock with 128 bytes of CMOS RAM, as the PC has it behind ports 0x70 and 0x71.

Reference: Motorola MC146818 datasheet; CMOS map: IBM PC/AT Technical Reference, and for memory
above 16 MiB the bytes that firmware for virtual machines agreed on (0x34, 0x5B). Offset 0 is the index,
offset 1 the data.

The calendar is the host's UTC plus an offset that setting the clock changes; it is worked out when it is
looked at. An alarm runs only while an interrupt is enabled and not yet raised.
"""

from datetime import UTC, datetime, timedelta

from coremesh.hw.clock import Clock
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.registers import Bit, Bits, Register

SECOND = 1_000_000_000
OSCILLATOR_HZ = 32_768
UIP_NS = 244_000 + 1_984_000  # warning time plus update time at 32.768 kHz (datasheet, "update cycle")
FIRST_UPDATE_NS = SECOND // 2  # after the divider chain is released (datasheet, "divider control")
DONT_CARE = 0xC0

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
DAY_OF_WEEK, DAY, MONTH, YEAR = range(6, 10)
CENTURY = 0x32
CALENDAR = (SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY, MONTH, YEAR, CENTURY)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RA(Register):
    """Register A."""

    offset = 0x0A
    reset = 0x26
    writable = 0x7F
    RS = Bits(3, 0)  # rate of the periodic interrupt
    DV = Bits(6, 4)  # divider: 2 runs at 32.768 kHz, 6 and 7 hold it in reset
    UIP = Bit(7)  # an update is near or going on


class RB(Register):
    """Register B."""

    offset = 0x0B
    reset = 0x02
    DSE = Bit(0)
    H24 = Bit(1)
    DM = Bit(2)  # 1: binary, 0: BCD
    SQWE = Bit(3)
    UIE = Bit(4)
    AIE = Bit(5)
    PIE = Bit(6)
    SET = Bit(7)  # holds the calendar so that it can be written


class RC(Register):
    """Register C: reading clears it."""

    offset = 0x0C
    writable = 0
    UF = Bit(4)
    AF = Bit(5)
    PF = Bit(6)
    IRQF = Bit(7)


class RD(Register):
    """Register D."""

    offset = 0x0D
    reset = 0x80
    writable = 0
    VRT = Bit(7)  # the battery is good


ENABLES = RB.UIE | RB.AIE | RB.PIE  # the same bits as UF, AF, PF


def cmos_configuration(ram_bytes: int, low_ram_bytes: int, vcpus: int) -> dict[int, int]:
    """What firmware leaves in CMOS RAM about the machine: memory sizes, equipment, processors."""
    above_1m = min(max(low_ram_bytes - (1 << 20), 0) >> 10, 0xFFFF)
    above_16m = min(max(low_ram_bytes - (16 << 20), 0) >> 16, 0xFFFF)
    above_4g = min(max(ram_bytes - low_ram_bytes, 0) >> 16, 0xFFFFFF)
    base = min(ram_bytes >> 10, 640)
    cells = {
        0x14: 0x06,  # equipment: coprocessor, no diskette drive
        0x15: base & 0xFF,  # base memory, KiB
        0x16: base >> 8,
        0x17: above_1m & 0xFF,  # memory above 1 MiB, KiB, as configured
        0x18: above_1m >> 8,
        0x30: above_1m & 0xFF,  # and as found
        0x31: above_1m >> 8,
        0x34: above_16m & 0xFF,  # memory between 16 MiB and 4 GiB, 64 KiB
        0x35: above_16m >> 8,
        0x5B: above_4g & 0xFF,  # memory above 4 GiB, 64 KiB
        0x5C: above_4g >> 8 & 0xFF,
        0x5D: above_4g >> 16,
        0x5F: (vcpus - 1) & 0xFF,
    }
    checksum = sum(value for index, value in cells.items() if 0x10 <= index <= 0x2D)
    return cells | {0x2E: checksum >> 8 & 0xFF, 0x2F: checksum & 0xFF}


class Rtc146818(Device):
    """Index and data ports. The IRQ output goes to IRQ 8."""

    REGISTERS = (RA, RB, RC, RD)
    STATE = ("index", "cells", "_offset", "_frozen_at", "_filled", "_seen", "_tick")
    ra: int
    rb: int
    rc: int
    rd: int

    def __init__(
        self, clock: Clock, irq: IrqLine, configuration: dict[int, int] | None = None, name: str = "rtc"
    ) -> None:
        super().__init__(name)
        self._now = clock.now
        self._irq = irq
        self.lines.append(irq)
        self._alarm = clock.alarm(name, self.lock, self._expire)
        self.alarms.append(self._alarm)
        self.index = 0
        self.cells = bytearray(128)
        for cell, value in (configuration or {}).items():
            self.cells[cell] = value
        # Calendar time in ns since 1970 is now() + _offset. Its whole seconds are the updates.
        self._offset = clock.wall() - clock.now()
        self._frozen_at: int | None = None  # SET or a divider in reset: calendar ns that it stopped at
        self._filled: tuple[int, int] | None = None  # the second and the format that the cells hold
        self._seen = 0  # calendar second up to which UF and AF are worked out
        self._tick = 0  # periodic tick up to which PF is worked out
        super().reset()
        self._restart_flags()

    def reset(self) -> None:
        """The RESET pin leaves the calendar and the RAM alone.

        It clears enables and flags (datasheet, "RESET").
        """
        self.rb &= ~(ENABLES | RB.SQWE)
        self.rc = 0
        self.index = 0
        self._restart_flags()
        self._settle()

    def resume(self) -> None:
        """What time has set meanwhile is noticed, and the next change awaited."""
        self._settle()

    # --- time

    def _calendar(self) -> int:
        return self._now() + self._offset if self._frozen_at is None else self._frozen_at

    def _stopped(self) -> bool:
        return bool(self.rb & RB.SET) or RA.DV.of(self.ra) != 2

    def _period(self) -> int:
        """Ns between periodic interrupts, 0 for none (datasheet, "periodic interrupt selection")."""
        rate = RA.RS.of(self.ra)
        if not rate or RA.DV.of(self.ra) in (6, 7):
            return 0
        shift = rate + 6 if rate < 3 else rate - 1
        return (SECOND << shift) // OSCILLATOR_HZ

    def _restart_flags(self) -> None:
        self._seen = self._calendar() // SECOND
        period = self._period()
        self._tick = self._now() // period if period else 0

    def _encode(self, value: int) -> int:
        return value if self.rb & RB.DM else value // 10 << 4 | value % 10

    def _decode(self, raw: int) -> int:
        return raw if self.rb & RB.DM else (raw >> 4) * 10 + (raw & 15)

    def _encode_hour(self, hour: int) -> int:
        if self.rb & RB.H24:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, raw: int) -> int:
        if self.rb & RB.H24:
            return self._decode(raw)
        return self._decode(raw & 0x7F) % 12 + (12 if raw & 0x80 else 0)

    def _fill_calendar(self, second: int) -> None:
        """Lay the calendar of ``second`` into its cells. A guest reads seven of them in a row."""
        if self._filled == (second, self.rb):
            return
        self._filled = (second, self.rb)
        moment = EPOCH + timedelta(seconds=max(second, 0))
        self.cells[SECONDS] = self._encode(moment.second)
        self.cells[MINUTES] = self._encode(moment.minute)
        self.cells[HOURS] = self._encode_hour(moment.hour)
        self.cells[DAY_OF_WEEK] = self._encode(moment.isoweekday() % 7 + 1)
        self.cells[DAY] = self._encode(moment.day)
        self.cells[MONTH] = self._encode(moment.month)
        self.cells[YEAR] = self._encode(moment.year % 100)
        self.cells[CENTURY] = self._encode(moment.year // 100)

    def _cells_to_second(self) -> int:
        """The calendar that the cells hold; what no calendar has counts on from the nearest that it has."""
        year = self._decode(self.cells[CENTURY]) * 100 + self._decode(self.cells[YEAR])
        month = self._decode(self.cells[MONTH])
        moment = datetime(min(max(year, 1970), 9000), min(max(month, 1), 12), 1, tzinfo=UTC) + timedelta(
            days=max(self._decode(self.cells[DAY]), 1) - 1,
            hours=self._decode_hour(self.cells[HOURS]),
            minutes=self._decode(self.cells[MINUTES]),
            seconds=self._decode(self.cells[SECONDS]),
        )
        return int((moment - EPOCH).total_seconds())

    def _next_alarm(self, after: int) -> int | None:
        """The first second later than ``after`` that the alarm cells match, within a day."""

        def differs(cell: int, now: int) -> bool:
            return self.cells[cell] < DONT_CARE and self.cells[cell] != now

        second = after + 1
        while second <= after + 86_400:
            if differs(HOURS_ALARM, self._encode_hour(second // 3600 % 24)):
                second += 3600 - second % 3600
            elif differs(MINUTES_ALARM, self._encode(second // 60 % 60)):
                second += 60 - second % 60
            elif differs(SECONDS_ALARM, self._encode(second % 60)):
                second += 1
            else:
                return second
        return None

    # --- interrupt

    def _catch_up(self) -> None:
        """Work out which flags time has set since they were looked at."""
        if not self._stopped():
            second = self._calendar() // SECOND
            if second > self._seen:
                self.rc |= RC.UF
                matched = self._next_alarm(self._seen)
                if matched is not None and matched <= second:
                    self.rc |= RC.AF
                self._seen = second
        period = self._period()
        if period:
            tick = self._now() // period
            if tick > self._tick:
                self.rc |= RC.PF
                self._tick = tick

    def _settle(self) -> None:
        """Bring IRQF, the line and the alarm in agreement with flags and enables."""
        self._catch_up()
        if self.rc & self.rb & ENABLES:
            self.rc |= RC.IRQF
            self._alarm.cancel()
            self._irq.set(True)
            return
        self.rc &= ~RC.IRQF
        self._irq.set(False)
        deadlines = []
        period = self._period()
        if self.rb & RB.PIE and period:
            deadlines.append((self._tick + 1) * period)
        if self.rb & RB.UIE and not self._stopped():
            deadlines.append((self._seen + 1) * SECOND - self._offset)
        if self.rb & RB.AIE and not self._stopped():
            # Without a match within a day look again in a day: the cells may hold what no time matches.
            matched = self._next_alarm(self._seen) or self._seen + 86_400
            deadlines.append(matched * SECOND - self._offset)
        if deadlines:
            self._alarm.arm(min(deadlines))
        else:
            self._alarm.cancel()

    def _expire(self) -> None:
        self._settle()

    # --- registers

    def read(self, offset: int, size: int) -> int:
        """The index port cannot be read (all ones); the data port gives the chosen cell."""
        if offset == 0:
            return 0xFF
        index = self.index
        if index == RC.offset:
            self._settle()
            value, self.rc = self.rc, 0
            # The line falls whatever time has set since: an edge-triggered input must see the next rise.
            self._irq.set(False)
            self._settle()
            return value
        if index == RA.offset:
            return self.ra | self._uip()
        if index == RB.offset:
            return self.rb
        if index == RD.offset:
            return self.rd
        if index in CALENDAR and not self._stopped():
            self._fill_calendar(self._calendar() // SECOND)
        return self.cells[index]

    def _uip(self) -> int:
        if self._stopped():
            return 0
        return RA.UIP if self._calendar() % SECOND >= SECOND - UIP_NS else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose a cell (bit 7 masks NMI, which nothing here raises) or write it."""
        if offset == 0:
            self.index = value & 0x7F
        elif self.index == RA.offset:
            self._control(RA.merge(self.ra, value), self.rb)
        elif self.index == RB.offset:
            # Setting SET clears UIE (datasheet, "SET").
            self._control(self.ra, value & ~RB.UIE if value & RB.SET else value)
        elif self.index in (RC.offset, RD.offset):
            pass
        elif self.index in CALENDAR and not self._stopped():
            self._fill_calendar(self._calendar() // SECOND)
            self.cells[self.index] = value
            self._set_calendar(self._calendar() % SECOND)
        else:
            self.cells[self.index] = value
            if self.index in (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM):
                self._settle()

    def _set_calendar(self, phase: int) -> None:
        """The cells become the time; the next update comes ``SECOND - phase`` from now."""
        self._filled = None
        self._offset = self._cells_to_second() * SECOND + phase - self._now()
        self._seen = self._calendar() // SECOND

    def _control(self, ra: int, rb: int) -> None:
        """Registers A and B together decide whether the calendar runs and which flags interrupt."""
        self._catch_up()
        was_stopped, released = self._stopped(), RA.DV.of(self.ra) != 2
        phase = (self._now() + self._offset) % SECOND
        if not was_stopped:
            self._fill_calendar(self._calendar() // SECOND)
        period = self._period()
        self.ra, self.rb = ra, rb
        if self._period() != period:
            self._tick = self._now() // self._period() if self._period() else 0
        if self._stopped() and not was_stopped:
            self._frozen_at = self._calendar()
        elif was_stopped and not self._stopped():
            self._frozen_at = None
            self._set_calendar(SECOND - FIRST_UPDATE_NS if released else phase)
        self._settle()
