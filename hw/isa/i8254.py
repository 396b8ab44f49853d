# SPDX-License-Identifier: GPL-2.0-or-later
"""8254 programmable interval timer with the PC's system control port B (0x61) around its counter 2.

Reference: Intel 8254 datasheet; port B: IBM PC/AT Technical Reference.

Offsets: 0-2 the counters, 3 the control word, 4 port B. Nothing ticks: the count and OUT follow from the
time since the count was loaded, and an alarm wakes the device only for a rising OUT of counter 0, the timer
interrupt.
"""

from coremesh.hw.clock import Clock
from coremesh.hw.device import Device
from coremesh.hw.irq import IrqLine
from coremesh.hw.registers import Bit, Bits, Register
from coremesh.hw.state import Stateful

PIT_HZ = 1_193_182
NS = 1_000_000_000
REFRESH_TICKS = 18  # counter 1 asks for a DRAM refresh about every 15 us
# Rises of OUT closer than 100 us become one interrupt: a guest that loads a tiny count gets as many as a
# thread can send without taking a host core for it.
COALESCED_TICKS = 119


class CW(Register):
    """Control word."""

    BCD = Bit(0)
    M = Bits(3, 1)  # mode; 6 and 7 are 2 and 3
    RW = Bits(5, 4)  # 0 latch, 1 low byte, 2 high byte, 3 low then high
    SC = Bits(7, 6)  # counter; 3 is the read-back command


class READBACK(Register):
    """Read-back command (SC = 3). STATUS and COUNT are active low."""

    CNT0 = Bit(1)
    STATUS = Bit(4)
    COUNT = Bit(5)


class STATUS(Register):
    """Status byte of a counter; the lower six bits are those of its control word."""

    NULL_COUNT = Bit(6)  # the count written last is not loaded yet
    OUT = Bit(7)


class PORTB(Register):
    """System control port B."""

    writable = 0x0F
    TIM2_GATE = Bit(0)
    SPKR_DAT = Bit(1)
    ENB_RAM_PCK = Bit(2)
    ENB_IO_CK = Bit(3)
    REFRESH = Bit(4)  # toggles with every refresh
    OUT2 = Bit(5)


def to_ticks(now: int) -> int:
    """Input clocks since the clock's zero."""
    return now * PIT_HZ // NS


def to_ns(tick: int) -> int:
    """The first nanosecond of a tick."""
    return -(-tick * NS // PIT_HZ)


class Counter(Stateful):
    """One of the three. All times are in input clocks (ticks); no lock, the chip has it."""

    STATE = (
        "gate",
        "mode",
        "access",
        "bcd",
        "count",
        "start",
        "_held",
        "_next",
        "_waiting",
        "_low_byte",
        "_read_high",
        "_latched",
        "_status",
    )

    def __init__(self) -> None:
        self.gate = True
        self.reset()

    def reset(self) -> None:
        """Undefined by the datasheet: here not counting, OUT low."""
        self.mode = 0
        self.access = 3
        self.bcd = False
        self.count = 0x10000  # the loaded initial count N
        self.start: int | None = None  # tick of the load, None: not counting
        self._held: int | None = None  # ticks that had passed when GATE went low
        self._next: tuple[int, int] | None = None  # (count, tick at which it replaces the present one)
        self._waiting: int | None = None  # count that a trigger will load (modes 1 and 5)
        self._low_byte: int | None = None  # first byte of two is written
        self._read_high = False
        self._latched: list[int] = []  # bytes of a latched count still to be read
        self._status: int | None = None

    def control(self, word: int) -> None:
        """A control word for this counter: OUT takes the mode's initial level, a new count is awaited."""
        mode = CW.M.of(word)
        gate = self.gate
        self.reset()
        self.gate = gate
        self.mode = mode - 4 if mode > 5 else mode
        self.access = CW.RW.of(word)
        self.bcd = bool(word & CW.BCD)

    def _decode(self, raw: int) -> int:
        if self.bcd:
            return int(f"{raw:04x}") if all(c < "a" for c in f"{raw:04x}") and raw else 10_000
        return raw or 0x10000

    def write(self, byte: int, tick: int) -> None:
        """A byte of the count."""
        self.settle(tick)
        if self.access == 1:
            raw = byte
        elif self.access == 2:
            raw = byte << 8
        elif self._low_byte is None:
            self._low_byte = byte
            if self.mode == 0:
                self.start = None  # the first byte stops the count, OUT goes low
            return
        else:
            raw = byte << 8 | self._low_byte
            self._low_byte = None
        self._load(self._decode(raw), tick)

    def _load(self, count: int, tick: int) -> None:
        if self.mode in (1, 5):
            self._waiting = count
        elif self.mode in (2, 3) and self.start is not None and self._held is None:
            self._next = (count, self._boundary(tick))
        else:
            self._begin(count, tick)

    def _begin(self, count: int, tick: int) -> None:
        self.count = count
        self.start = tick
        self._next = None
        self._held = None if self.gate or self.mode in (1, 5) else 0

    def _boundary(self, tick: int) -> int:
        """Where a new count takes over: the end of the period, or of the half period in mode 3."""
        assert self.start is not None
        periods, phase = divmod(tick - self.start, self.count)
        high = (self.count + 1) // 2
        return self.start + periods * self.count + (high if self.mode == 3 and phase < high else self.count)

    def settle(self, tick: int) -> None:
        """Let a count that was waiting for the end of a period take over."""
        if self._next is not None and tick >= self._next[1]:
            count, boundary = self._next
            assert self.start is not None
            in_low_half = self.mode == 3 and (boundary - self.start) % self.count != 0
            self._begin(count, boundary - ((count + 1) // 2 if in_low_half else 0))

    def set_gate(self, level: bool, tick: int) -> None:
        """GATE: low holds modes 0, 2, 3, 4; a rising edge triggers modes 1 and 5 and restarts 2 and 3."""
        self.settle(tick)
        if level is self.gate:
            return
        self.gate = level
        if self.mode in (1, 5):
            if level and (self._waiting is not None or self.start is not None):
                self._begin(self.count if self._waiting is None else self._waiting, tick)
                self._waiting = None
        elif self.start is None:
            return
        elif not level:
            self._held = tick - self.start
        elif self.mode in (2, 3):
            self._begin(self._next[0] if self._next else self.count, tick)
        else:
            self.start = tick - (self._held or 0)
            self._held = None

    def _elapsed(self, tick: int) -> int | None:
        if self.start is None:
            return None
        return tick - self.start if self._held is None else self._held

    def out(self, tick: int) -> bool:
        """The OUT pin."""
        self.settle(tick)
        elapsed = self._elapsed(tick)
        if self.mode == 0:
            return elapsed is not None and elapsed >= self.count
        if elapsed is None or (self.mode in (2, 3) and self._held is not None):
            return True
        if self.mode == 1:
            return elapsed >= self.count
        if self.mode == 2:
            return elapsed % self.count != self.count - 1
        if self.mode == 3:
            return elapsed % self.count < (self.count + 1) // 2
        return elapsed != self.count  # 4 and 5: a strobe of one clock

    def value(self, tick: int) -> int:
        """The counting element, encoded as it is read."""
        self.settle(tick)
        elapsed = self._elapsed(tick)
        modulus = 10_000 if self.bcd else 0x10000
        if elapsed is None:
            left = self.count
        elif self.mode == 2:
            left = self.count - elapsed % self.count
        elif self.mode == 3:
            high = (self.count + 1) // 2
            phase = elapsed % self.count
            left = (self.count & ~1) - 2 * (phase if phase < high else phase - high)
        else:
            left = self.count - elapsed
        left %= modulus
        return int(str(left), 16) if self.bcd else left

    def latch_count(self, tick: int) -> None:
        """Counter latch command; a second one before the first is read has no effect."""
        if not self._latched:
            value = self.value(tick)
            self._latched = {1: [value & 0xFF], 2: [value >> 8]}.get(self.access, [value & 0xFF, value >> 8])

    def latch_status(self, tick: int) -> None:
        """Read-back of the status byte; the same rule."""
        if self._status is None:
            null = self._next is not None or self._waiting is not None or self.start is None
            self._status = self.access << 4 | self.mode << 1 | self.bcd
            self._status |= STATUS.NULL_COUNT * null | STATUS.OUT * self.out(tick)

    def read(self, tick: int) -> int:
        """A byte of: the latched status, else the latched count, else the running count."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        if self._latched:
            return self._latched.pop(0)
        value = self.value(tick)
        high = self.access == 2 or (self.access == 3 and self._read_high)
        if self.access == 3:
            self._read_high = not self._read_high
        return value >> 8 if high else value & 0xFF

    def next_rise(self, tick: int) -> int | None:
        """The first tick after ``tick`` at which OUT goes high, None when it will not by itself."""
        self.settle(tick)
        if self.start is None or self._held is not None:
            return None
        if self.mode in (2, 3):
            if self._next is not None:
                count, boundary = self._next
                at_period = (boundary - self.start) % self.count == 0
                return boundary if at_period else boundary + count // 2  # the low half of the new count
            return self.start + ((tick - self.start) // self.count + 1) * self.count
        rise = self.start + self.count + (1 if self.mode in (4, 5) else 0)
        return rise if rise > tick else None


class Pit8254(Device):
    """Three counters; counter 0 drives ``irq``, counter 2 a speaker that makes no sound."""

    REGISTERS = (PORTB,)
    STATE = ("counters", "_rise")
    portb: int

    def __init__(self, clock: Clock, irq: IrqLine, name: str = "pit") -> None:
        super().__init__(name)
        self._now = clock.now
        self._irq = irq
        self.lines.append(irq)
        self.counters = [Counter(), Counter(), Counter()]
        self._alarm = clock.alarm(name, self.lock, self._expire)
        self.alarms.append(self._alarm)
        self._rise: int | None = None  # the tick that the alarm is set to
        self.reset()

    def reset(self) -> None:
        """Nothing counts; the speaker's gate is closed."""
        super().reset()
        for counter in self.counters:
            counter.gate = True
            counter.reset()
        self.counters[2].gate = False
        self._schedule(to_ticks(self._now()))
        self._irq.set(False)

    def read(self, offset: int, size: int) -> int:
        """A counter or port B; the control word cannot be read."""
        tick = to_ticks(self._now())
        if offset < 3:
            return self.counters[offset].read(tick)
        if offset == 4:
            refresh = PORTB.REFRESH if tick // REFRESH_TICKS & 1 else 0
            out = PORTB.OUT2 if self.counters[2].out(tick) else 0
            return self.portb | refresh | out
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """A count, a control word, port B."""
        tick = to_ticks(self._now())
        if offset == 4:
            self.portb = value & PORTB.writable
            self.counters[2].set_gate(bool(value & PORTB.TIM2_GATE), tick)
        elif offset < 3:
            self.counters[offset].write(value, tick)
            if offset == 0:
                self._schedule(tick)
                if self.counters[0].mode == 0:
                    self._irq.set(False)
        elif CW.SC.of(value) == 3:
            self._read_back(value, tick)
        elif CW.RW.of(value) == 0:
            self.counters[CW.SC.of(value)].latch_count(tick)
        else:
            counter = self.counters[CW.SC.of(value)]
            counter.control(value)
            if counter is self.counters[0]:
                self._schedule(tick)
                self._irq.set(counter.mode != 0)

    def _read_back(self, command: int, tick: int) -> None:
        for number, counter in enumerate(self.counters):
            if command & READBACK.CNT0 << number:
                if not command & READBACK.COUNT:
                    counter.latch_count(tick)
                if not command & READBACK.STATUS:
                    counter.latch_status(tick)

    def resume(self) -> None:
        """The rise of OUT that was awaited is awaited again."""
        if self._rise is not None:
            self._alarm.arm(to_ns(self._rise))

    def _schedule(self, tick: int) -> None:
        self._rise = self.counters[0].next_rise(tick)
        if self._rise is None:
            self._alarm.cancel()
        else:
            self._alarm.arm(to_ns(self._rise))

    def _expire(self) -> None:
        """OUT of counter 0 has risen: an edge, however late, then the next one in step with the clock.

        The low phase of modes 2 to 5 is passed in no time, so that a late interrupt is not withdrawn from
        the 8259A.
        """
        tick = to_ticks(self._now())
        if self._rise is not None and tick >= self._rise:
            self._schedule(tick + COALESCED_TICKS)
            self._irq.pulse()
        elif self._rise is not None:
            self._alarm.arm(to_ns(self._rise))
