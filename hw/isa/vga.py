# SPDX-License-Identifier: GPL-2.0-or-later
"""VGA, as far as text needs it: the registers, and what they say of the text on the screen.

References: IBM PS/2 Hardware Interface Technical Reference (1988), section "Video Subsystem"; Motorola MC6845
datasheet, whose cursor and start address registers the CRT controller keeps. Offset 0 is port 3B0h; what lies
at 3Dxh with a colour monitor lies at 3Bxh with a monochrome one (MISC.IOAS).

The display memory is no part of this device. The guest writes characters as plain RAM, at the full speed of
RAM and coherent between hosts; `machine.screen()` reads them there. So planes, write modes and fonts
have no effect, and a graphics mode shows nothing.

Without a video card's firmware the registers hold out of reset what it would leave: mode 3, which is 80
columns and 25 rows of text in 16 colours.
"""

from dataclasses import dataclass
from typing import Final

from coremesh.hw.clock import Clock
from coremesh.hw.device import Device
from coremesh.hw.registers import Bit, Bits, Register

COLOUR_TEXT: Final = 0xB_8000
MONOCHROME_TEXT: Final = 0xB_0000
WINDOW_BYTES: Final = 0x8000
"""Display memory that text wraps round in."""
CELL_BYTES: Final = 2
"""A character, and its attribute."""

_MONOCHROME: Final = range(0x00, 0x10)
_COLOUR: Final = range(0x20, 0x30)
# Where a port is within its sixteen, or within 3C0h to 3CFh.
_CRTC_INDEX, _CRTC_DATA, _STATUS_1 = 0x4, 0x5, 0xA
_ATTRIBUTE, _ATTRIBUTE_READ, _MISC, _ENABLE = 0x10, 0x11, 0x12, 0x13
_SEQUENCER_INDEX, _SEQUENCER_DATA = 0x14, 0x15
_DAC_MASK, _DAC_READ, _DAC_WRITE, _DAC_DATA = 0x16, 0x17, 0x18, 0x19
_FEATURE_READ, _MISC_READ = 0x1A, 0x1C
_GRAPHICS_INDEX, _GRAPHICS_DATA = 0x1E, 0x1F

# 400 lines at 70 Hz: 449 lines of 31.8 us, of which the beam shows something for 25.4 us.
_LINE_NS: Final = 31_778
_SHOWN_NS: Final = 25_422
_LINES: Final = 449
_SHOWN_LINES: Final = 400
_RETRACE: Final = range(412, 414)


class MISC(Register):
    """Miscellaneous output register (written at 3C2h, read at 3CCh)."""

    reset = 0x67
    IOAS = Bit(0)  # 1: CRT controller at 3D4h, input status 1 at 3DAh; 0: at 3B4h and 3BAh
    ERAM = Bit(1)  # the display memory answers the processor
    CS = Bits(3, 2)
    PAGE = Bit(5)
    HSP = Bit(6)
    VSP = Bit(7)


class STATUS1(Register):
    """Input status register 1 (3DAh): computed when it is read."""

    writable = 0
    DD = Bit(0)  # the beam is outside of the picture
    VR = Bit(3)  # vertical retrace


class FEATURE(Register):
    """Feature control register (written at 3DAh, read at 3CAh)."""

    FC = Bits(1, 0)


class Crtc:
    """CRT controller registers, by index."""

    HORIZONTAL_DISPLAY_END = 0x01
    OVERFLOW = 0x07
    MAXIMUM_SCAN_LINE = 0x09
    CURSOR_START, CURSOR_END = 0x0A, 0x0B
    START_HIGH, START_LOW = 0x0C, 0x0D
    CURSOR_HIGH, CURSOR_LOW = 0x0E, 0x0F
    VERTICAL_RETRACE_END = 0x11
    VERTICAL_DISPLAY_END = 0x12
    OFFSET = 0x13
    LINE_COMPARE = 0x18

    COUNT = 0x19
    PROTECT = Bit(7)  # of VERTICAL_RETRACE_END: registers 0 to 7 are read only, but for LINE_COMPARE_8
    LINE_COMPARE_8 = Bit(4)  # of OVERFLOW
    CURSOR_OFF = Bit(5)  # of CURSOR_START


# What the datasheet's mode 3 has, colour, 400 lines, characters of 9 by 16.
_MODE_3_CRTC: Final = bytes.fromhex("5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff")
_MODE_3_SEQUENCER: Final = bytes.fromhex("0300030002")
_MODE_3_GRAPHICS: Final = bytes.fromhex("0000000000100e00ff")
_MODE_3_ATTRIBUTES: Final = bytes.fromhex("000102030405140738393a3b3c3d3e3f0c000f0800")
_ATTRIBUTE_MODE: Final = 0x10
_GRAPHICS_MODE: Final = Bit(
    0
)  # of the attribute controller's mode, and of the graphics controller's register 6
_BLINK: Final = Bit(3)  # of the attribute controller's mode
_GRAPHICS_MISC: Final = 0x06
_MEMORY_MAP: Final = Bits(3, 2)  # of the graphics controller's register 6
_CLOCKING: Final = 0x01
_SCREEN_OFF: Final = Bit(5)  # of the sequencer's register 1
_PALETTE_SOURCE: Final = Bit(5)  # of the attribute index: 0 while the processor loads the palette, 1 to show


def _mode_3_dac() -> bytes:
    """The 64 colours of a palette register: one bit gives two thirds of a component, another one a third."""
    levels = (0x00, 0x2A, 0x15, 0x3F)
    colours = bytearray()
    for colour in range(64):
        for bit in (2, 1, 0):
            colours.append(levels[(colour >> bit & 1) | (colour >> (bit + 3) & 1) << 1])
    return bytes(colours).ljust(768, b"\0")


@dataclass(frozen=True)
class TextMode:
    """What the registers say of the text on the screen.

    `memory` is the guest-physical address of the display memory. A row of `columns` cells begins every
    `pitch` cells, the first at cell `start`; from row `split` on (`rows` when the screen is not split) the
    rows come from cell 0 on. `cursor` is the cursor's cell, None while it is off. `blinks` says what the
    attribute's highest bit is: blinking, or a bright background. `shown` is False while the guest has the
    screen switched off, `graphics` True in a graphics mode, whose picture this machine does not have.
    """

    memory: int
    columns: int
    rows: int
    pitch: int
    start: int
    split: int
    cursor: int | None
    blinks: bool
    shown: bool
    graphics: bool


class Vga(Device):
    """The registers. Any guest that prints text uses few of them; the others hold what is written."""

    REGISTERS = (MISC, FEATURE)
    STATE = (
        "crtc", "sequencer", "graphics", "attributes", "dac",
        "_crtc_index", "_sequencer_index", "_graphics_index", "_attribute_index", "_attribute_data",
        "_dac_mask", "_dac_at", "_dac_reads", "_dac_latch",
    )  # fmt: skip
    misc: int
    feature: int

    def __init__(self, clock: Clock, name: str = "vga") -> None:
        super().__init__(name)
        self._now = clock.now
        self.reset()

    def reset(self) -> None:
        """Mode 3, as the card's firmware leaves it."""
        super().reset()
        self.crtc = bytearray(_MODE_3_CRTC)
        self.sequencer = bytearray(_MODE_3_SEQUENCER)
        self.graphics = bytearray(_MODE_3_GRAPHICS)
        self.attributes = bytearray(_MODE_3_ATTRIBUTES)
        self.dac = bytearray(_mode_3_dac())
        self._crtc_index = self._sequencer_index = self._graphics_index = 0
        self._attribute_index = int(_PALETTE_SOURCE)
        self._attribute_data = False  # the flip-flop: whether the next write to 3C0h is data
        self._dac_mask = 0xFF
        self._dac_at = 0  # the next component, 3 a colour
        self._dac_reads = False
        self._dac_latch = bytearray(2)  # red and green, until blue comes

    # --- what a person sees ------------------------------------------------------------------------------

    def text_mode(self) -> TextMode:
        """Where the text is and how it is shown. Takes the lock; any thread."""
        with self.lock:
            crtc = self.crtc
            overflow = crtc[Crtc.OVERFLOW]
            scan = crtc[Crtc.MAXIMUM_SCAN_LINE]
            lines = 1 + (crtc[Crtc.VERTICAL_DISPLAY_END] | (overflow & 0x02) << 7 | (overflow & 0x40) << 3)
            compare = crtc[Crtc.LINE_COMPARE] | (overflow & 0x10) << 4 | (scan & 0x40) << 3
            height = (scan & 0x1F) + 1 << (scan >> 7)  # bit 7 shows each line twice
            rows = lines // height
            cursor: int | None = crtc[Crtc.CURSOR_HIGH] << 8 | crtc[Crtc.CURSOR_LOW]
            first, last = crtc[Crtc.CURSOR_START], crtc[Crtc.CURSOR_END] & 0x1F
            if first & Crtc.CURSOR_OFF or first & 0x1F > last or first & 0x1F >= height:
                cursor = None
            mode = self.attributes[_ATTRIBUTE_MODE]
            select = _MEMORY_MAP.of(self.graphics[_GRAPHICS_MISC])
            # Map 2 and 3 are the windows of text. With another one, which drivers choose while they load a
            # font, the text is where it was.
            colour = select == 3 or (select != 2 and self.misc & MISC.IOAS)
            return TextMode(
                memory=COLOUR_TEXT if colour else MONOCHROME_TEXT,
                columns=crtc[Crtc.HORIZONTAL_DISPLAY_END] + 1,
                rows=rows,
                pitch=2 * crtc[Crtc.OFFSET],
                start=crtc[Crtc.START_HIGH] << 8 | crtc[Crtc.START_LOW],
                split=min(rows, (compare + height) // height),
                cursor=cursor,
                blinks=bool(mode & _BLINK),
                shown=bool(self._attribute_index & _PALETTE_SOURCE)
                and not self.sequencer[_CLOCKING] & _SCREEN_OFF,
                graphics=bool((mode | self.graphics[_GRAPHICS_MISC]) & _GRAPHICS_MODE),
            )

    # --- what the guest sees ------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A register; what no chip drives reads as ones."""
        if offset in _MONOCHROME or offset in _COLOUR:
            return self._read_moving(offset & 0xF) if self._selected(offset) else 0xFF
        if offset == _ATTRIBUTE:
            return self._attribute_index
        if offset == _ATTRIBUTE_READ:
            return _at(self.attributes, self._attribute_index & 0x1F)
        if offset == _MISC:
            return 0x10  # input status 0: the switch says that there is a colour monitor
        if offset == _ENABLE:
            return 0x01
        if offset == _SEQUENCER_INDEX:
            return self._sequencer_index
        if offset == _SEQUENCER_DATA:
            return _at(self.sequencer, self._sequencer_index)
        if offset == _DAC_MASK:
            return self._dac_mask
        if offset == _DAC_READ:
            return 0x03 if self._dac_reads else 0x00
        if offset == _DAC_WRITE:
            return self._dac_at // 3
        if offset == _DAC_DATA:
            return self._read_dac()
        if offset == _FEATURE_READ:
            return self.feature
        if offset == _MISC_READ:
            return self.misc
        if offset == _GRAPHICS_INDEX:
            return self._graphics_index
        if offset == _GRAPHICS_DATA:
            return _at(self.graphics, self._graphics_index)
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """A register; what there is not takes nothing."""
        if offset in _MONOCHROME or offset in _COLOUR:
            if self._selected(offset):
                self._write_moving(offset & 0xF, value)
        elif offset == _ATTRIBUTE:
            if self._attribute_data:
                _put(self.attributes, self._attribute_index & 0x1F, value)
            else:
                self._attribute_index = value & 0x3F
            self._attribute_data = not self._attribute_data
        elif offset == _MISC:
            self.misc = value
        elif offset == _SEQUENCER_INDEX:
            self._sequencer_index = value & 0x07
        elif offset == _SEQUENCER_DATA:
            _put(self.sequencer, self._sequencer_index, value)
        elif offset == _DAC_MASK:
            self._dac_mask = value
        elif offset in (_DAC_READ, _DAC_WRITE):
            self._dac_at = 3 * value
            self._dac_reads = offset == _DAC_READ
        elif offset == _DAC_DATA:
            self._write_dac(value & 0x3F)
        elif offset == _GRAPHICS_INDEX:
            self._graphics_index = value & 0x0F
        elif offset == _GRAPHICS_DATA:
            _put(self.graphics, self._graphics_index, value)

    def _selected(self, offset: int) -> bool:
        return bool(self.misc & MISC.IOAS) is (offset in _COLOUR)

    def _read_moving(self, port: int) -> int:
        if port == _CRTC_INDEX:
            return self._crtc_index
        if port == _CRTC_DATA:
            return _at(self.crtc, self._crtc_index)
        if port == _STATUS_1:
            self._attribute_data = False
            return self._status_1()
        return 0xFF

    def _write_moving(self, port: int, value: int) -> None:
        if port == _CRTC_INDEX:
            self._crtc_index = value & 0x1F
        elif port == _CRTC_DATA:
            self._write_crtc(self._crtc_index, value)
        elif port == _STATUS_1:
            self.feature = value

    def _write_crtc(self, index: int, value: int) -> None:
        if index <= Crtc.OVERFLOW and self.crtc[Crtc.VERTICAL_RETRACE_END] & Crtc.PROTECT:
            if index != Crtc.OVERFLOW:
                return
            value = self.crtc[index] & ~Crtc.LINE_COMPARE_8 | value & Crtc.LINE_COMPARE_8
        _put(self.crtc, index, value)

    def _status_1(self) -> int:
        line, within = divmod(self._now() % (_LINES * _LINE_NS), _LINE_NS)
        status = STATUS1.DD if line >= _SHOWN_LINES or within >= _SHOWN_NS else 0
        return status | (STATUS1.VR if line in _RETRACE else 0)

    def _read_dac(self) -> int:
        value = self.dac[self._dac_at]
        self._dac_at = (self._dac_at + 1) % len(self.dac)
        return value

    def _write_dac(self, value: int) -> None:
        colour, component = divmod(self._dac_at, 3)
        if component < 2:
            self._dac_latch[component] = value
        else:
            self.dac[3 * colour : 3 * colour + 3] = (*self._dac_latch, value)
        self._dac_at = (self._dac_at + 1) % len(self.dac)


def _at(registers: bytearray, index: int) -> int:
    return registers[index] if index < len(registers) else 0


def _put(registers: bytearray, index: int, value: int) -> None:
    if index < len(registers):
        registers[index] = value
