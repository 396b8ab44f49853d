# SPDX-License-Identifier: GPL-2.0-or-later
"""PS/2 keyboard: its commands, its scan codes, and what a person types on it."""

import pytest
from coremesh.core.errors import ConfigurationError
from coremesh.hw.backend.keys import KEYS, combination_keys, text_keys
from coremesh.hw.isa.ps2_keyboard import RELEASE, Ps2Keyboard, set_1

ACK, RESEND = 0xFA, 0xFE

# Scan codes of set 1 as the PC/AT reference prints them by key position, not made from those of set 2.
SET_1 = {
    "esc": 0x01, "1": 0x02, "0": 0x0B, "-": 0x0C, "=": 0x0D, "backspace": 0x0E, "tab": 0x0F, "q": 0x10,
    "w": 0x11, "e": 0x12, "r": 0x13, "t": 0x14, "y": 0x15, "u": 0x16, "i": 0x17, "o": 0x18, "p": 0x19,
    "[": 0x1A, "]": 0x1B, "enter": 0x1C, "ctrl": 0x1D, "a": 0x1E, "s": 0x1F, "d": 0x20, "f": 0x21,
    "g": 0x22, "h": 0x23, "j": 0x24, "k": 0x25, "l": 0x26, ";": 0x27, "'": 0x28, "`": 0x29,
    "shift": 0x2A, "\\": 0x2B, "z": 0x2C, "x": 0x2D, "c": 0x2E, "v": 0x2F, "b": 0x30, "n": 0x31,
    "m": 0x32, ",": 0x33, ".": 0x34, "/": 0x35, "rightshift": 0x36, "kp*": 0x37, "alt": 0x38,
    "space": 0x39, "capslock": 0x3A, "f1": 0x3B, "f2": 0x3C, "f7": 0x41, "f10": 0x44, "numlock": 0x45,
    "scrolllock": 0x46, "f11": 0x57, "f12": 0x58, "kp7": 0x47, "kp8": 0x48, "kp9": 0x49, "kp-": 0x4A,
    "kp4": 0x4B, "kp5": 0x4C, "kp6": 0x4D, "kp+": 0x4E, "kp1": 0x4F, "kp2": 0x50, "kp3": 0x51,
    "kp0": 0x52, "kp.": 0x53, "up": 0xE048, "down": 0xE050, "left": 0xE04B, "right": 0xE04D,
    "home": 0xE047, "end": 0xE04F, "pageup": 0xE049, "pagedown": 0xE051, "insert": 0xE052,
    "delete": 0xE053, "kpenter": 0xE01C, "kp/": 0xE035, "rightctrl": 0xE01D, "altgr": 0xE038,
    "meta": 0xE05B, "rightmeta": 0xE05C, "menu": 0xE05D,
}  # fmt: skip


@pytest.fixture
def keyboard() -> Ps2Keyboard:
    return Ps2Keyboard()


def bytes_of(keyboard: Ps2Keyboard) -> list[int]:
    found = []
    while keyboard.waiting:
        found.append(keyboard.take())
    return found


def answer(keyboard: Ps2Keyboard, *sent: int) -> list[int]:
    for byte in sent:
        keyboard.receive(byte)
    return bytes_of(keyboard)


@pytest.mark.parametrize("name", sorted(SET_1))
def test_set_2_translates_to_set_1(name: str) -> None:
    """Given each key's code of set 2, when the controller translates it, then it is that of set 1."""
    prefix, code = divmod(KEYS[name], 256)
    assert prefix << 8 | set_1(code) == SET_1[name]


def test_each_key_has_a_code_of_its_own() -> None:
    """No two keys are one, in either set."""
    assert len(set(KEYS.values())) == len(KEYS)
    assert len({(code >> 8, set_1(code & 0xFF)) for code in KEYS.values()}) == len(KEYS)


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ([0xFF], [ACK, 0xAA]),
        ([0xF2], [ACK, 0xAB, 0x83]),
        ([0xEE], [0xEE]),
        ([0xED, 0x07], [ACK, ACK]),
        ([0xF3, 0x00], [ACK, ACK]),
        ([0xF0, 0x00], [ACK, ACK, 2]),
        ([0xF0, 0x01, 0xF0, 0x00], [ACK, ACK, ACK, ACK, 1]),
        ([0xF0, 0x03], [ACK, RESEND]),
        ([0xF4], [ACK]),
        ([0xF5], [ACK]),
        ([0xF8], [ACK]),
        ([0x10], [RESEND]),
        ([0xED, 0xEE], [ACK, 0xEE]),  # a command instead of the parameter is a command
    ],
)
def test_commands_are_answered(keyboard: Ps2Keyboard, sent: list[int], answered: list[int]) -> None:
    """When a driver sends a command, then the keyboard answers as its reference says."""
    assert answer(keyboard, *sent) == answered


def test_the_lights_are_remembered(keyboard: Ps2Keyboard) -> None:
    """When the driver sets NumLock's and CapsLock's lights, then they are on until a reset."""
    answer(keyboard, 0xED, 0x06)
    assert keyboard.leds == 6
    answer(keyboard, 0xFF)
    assert keyboard.leds == 0


def test_the_last_byte_comes_again_when_asked_for(keyboard: Ps2Keyboard) -> None:
    """When the controller says that a byte was damaged, then it is sent again."""
    keyboard.press([KEYS["a"]])
    assert bytes_of(keyboard) == [0x1C]
    assert answer(keyboard, 0xFE) == [0x1C]


def test_keys_wait_while_scanning_is_off(keyboard: Ps2Keyboard) -> None:
    """Given a keyboard that its driver has disabled, when a person types, then that comes later."""
    answer(keyboard, 0xF5)
    keyboard.press(text_keys("a"))
    assert not keyboard.waiting and keyboard.keys_left == 2
    assert answer(keyboard, 0xF4) == [ACK, 0x1C, 0xF0, 0x1C]


def test_the_queue_has_16_bytes_and_no_key_is_lost(keyboard: Ps2Keyboard) -> None:
    """Given a guest that reads nothing, when a person types, then 16 bytes wait, and all come in order."""
    keyboard.press(text_keys("ab" * 500))
    assert len(keyboard._out) <= 16
    pair = [0x1C, 0xF0, 0x1C, 0x32, 0xF0, 0x32]
    assert bytes_of(keyboard) == pair * 500


def test_keys_with_sequences_of_their_own(keyboard: Ps2Keyboard) -> None:
    """Print Screen and Pause, and a key with a prefix, in set 2 and in set 1."""
    keyboard.press(combination_keys("pause"))
    assert bytes(bytes_of(keyboard)).hex() == "e11477e1f014f077"
    keyboard.press(combination_keys("printscreen"))
    assert bytes(bytes_of(keyboard)).hex() == "e012e07ce0f07ce0f012"
    keyboard.press(combination_keys("up"))
    assert bytes(bytes_of(keyboard)).hex() == "e075e0f075"
    answer(keyboard, 0xF0, 0x01)
    for name, codes in (("pause", "e11d45e19dc5"), ("up", "e048e0c8"), ("printscreen", "e02ae037e0b7e0aa")):
        keyboard.press(combination_keys(name))
        assert bytes(bytes_of(keyboard)).hex() == codes


def test_text_is_typed_with_shift_where_it_needs_it() -> None:
    """When text is typed, then a capital or a sign has Shift held around it, and a control character Ctrl."""
    shift, ctrl = KEYS["shift"], KEYS["ctrl"]
    a, one, c = KEYS["a"], KEYS["1"], KEYS["c"]
    assert text_keys("aA") == [a, a | RELEASE, shift, a, a | RELEASE, shift | RELEASE]
    assert text_keys("!") == [shift, one, one | RELEASE, shift | RELEASE]
    assert text_keys("\x03") == [ctrl, c, c | RELEASE, ctrl | RELEASE]
    assert text_keys("\n") == [KEYS["enter"], KEYS["enter"] | RELEASE]
    assert len(text_keys(bytes(range(0x20, 0x7F)).decode())) == 2 * 95 + 2 * (26 + 21)


def test_combinations() -> None:
    """When keys are named together, then all are held at once; '-' itself can be one of them."""
    ctrl, alt, delete, minus = (KEYS[name] for name in ("ctrl", "alt", "delete", "-"))
    held = [ctrl, alt, delete, delete | RELEASE, alt | RELEASE, ctrl | RELEASE]
    assert combination_keys("Ctrl-Alt-Delete") == held
    assert combination_keys("ctrl--") == [ctrl, minus, minus | RELEASE, ctrl | RELEASE]
    assert combination_keys("-") == [minus, minus | RELEASE]


@pytest.mark.parametrize("text", ["ö", "€", "\x1c", "\0"])
def test_a_character_without_a_key_is_refused(text: str) -> None:
    """When text has a character that is on no US keyboard, then the error says so, and nothing was typed."""
    with pytest.raises(ConfigurationError, match="US keyboard"):
        text_keys("fine" + text)


@pytest.mark.parametrize("name", ["hyper", "f13", "", "ctrl-any"])
def test_a_key_that_there_is_not_is_refused(name: str) -> None:
    """When a key is named that there is not, then the error lists those that there are."""
    with pytest.raises(ConfigurationError, match="pageup"):
        combination_keys(name)
