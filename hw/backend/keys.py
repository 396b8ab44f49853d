# SPDX-License-Identifier: GPL-2.0-or-later
"""Text and names of keys as movements of the keys of a US keyboard, for a PS/2 keyboard."""

import re
from collections.abc import Iterable
from typing import Final

from coremesh.core.errors import ConfigurationError, shown
from coremesh.hw.isa.ps2_keyboard import PAUSE, PRINT_SCREEN, RELEASE

_ROWS: Final = (
    ("`1234567890-=", (0x0E, 0x16, 0x1E, 0x26, 0x25, 0x2E, 0x36, 0x3D, 0x3E, 0x46, 0x45, 0x4E, 0x55)),
    ("qwertyuiop[]\\", (0x15, 0x1D, 0x24, 0x2D, 0x2C, 0x35, 0x3C, 0x43, 0x44, 0x4D, 0x54, 0x5B, 0x5D)),
    ("asdfghjkl;'", (0x1C, 0x1B, 0x23, 0x2B, 0x34, 0x33, 0x3B, 0x42, 0x4B, 0x4C, 0x52)),
    ("zxcvbnm,./", (0x1A, 0x22, 0x21, 0x2A, 0x32, 0x31, 0x3A, 0x41, 0x49, 0x4A)),
)
_SHIFTED: Final = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))

#: The keys by name: scan codes of set 2.
KEYS: Final[dict[str, int]] = {
    **{name: code for names, codes in _ROWS for name, code in zip(names, codes, strict=True)},
    "esc": 0x76, "backspace": 0x66, "tab": 0x0D, "enter": 0x5A, "space": 0x29,
    "capslock": 0x58, "numlock": 0x77, "scrolllock": 0x7E,
    "shift": 0x12, "rightshift": 0x59, "ctrl": 0x14, "rightctrl": 0xE014, "alt": 0x11, "altgr": 0xE011,
    "meta": 0xE01F, "rightmeta": 0xE027, "menu": 0xE02F,
    **{f"f{number}": code for number, code in enumerate(
        (0x05, 0x06, 0x04, 0x0C, 0x03, 0x0B, 0x83, 0x0A, 0x01, 0x09, 0x78, 0x07), 1)},
    "insert": 0xE070, "delete": 0xE071, "home": 0xE06C, "end": 0xE069, "pageup": 0xE07D, "pagedown": 0xE07A,
    "up": 0xE075, "down": 0xE072, "left": 0xE06B, "right": 0xE074,
    "printscreen": PRINT_SCREEN, "pause": PAUSE,
    "kp0": 0x70, "kp1": 0x69, "kp2": 0x72, "kp3": 0x7A, "kp4": 0x6B, "kp5": 0x73, "kp6": 0x74, "kp7": 0x6C,
    "kp8": 0x75, "kp9": 0x7D, "kp.": 0x71, "kp+": 0x79, "kp-": 0x7B, "kp*": 0x7C, "kp/": 0xE04A,
    "kpenter": 0xE05A,
}  # fmt: skip
_CHARACTERS: Final = {" ": "space", "\n": "enter", "\r": "enter", "\t": "tab", "\b": "backspace",
                      "\x7f": "backspace", "\x1b": "esc"}  # fmt: skip


def text_keys(text: str) -> list[int]:
    """The movements that type ``text``. Raises :class:`ConfigurationError` for what is on no US keyboard.

    Control characters are their keys: ``\\n`` is Enter, ``\\x03`` is Ctrl-C.
    """
    keys: list[int] = []
    for character in text:
        keys += _character_keys(character)
    return keys


def combination_keys(combination: str) -> list[int]:
    """The movements of a key by name, or of several held together: ``f1``, ``ctrl-alt-delete``.

    Raises :class:`ConfigurationError` for a key that there is not.
    """
    names = re.findall("[^-]+|-$", combination.lower())  # '-' is a key too, and then comes last
    try:
        return _held([KEYS[name] for name in names or [""]])
    except KeyError as error:
        raise ConfigurationError(
            f"{shown(combination)} has no key {error}; there are letters, digits, and {', '.join(_NAMED)}."
        ) from None


_NAMED: Final = tuple(name for name in KEYS if len(name) > 1)


def _character_keys(character: str) -> list[int]:
    if (name := _CHARACTERS.get(character)) is not None:
        return _held([KEYS[name]])
    if character in KEYS:
        return _held([KEYS[character]])
    plain = _SHIFTED.get(character) or (character.lower() if "A" <= character <= "Z" else "")
    if plain:
        return _held([KEYS["shift"], KEYS[plain]])
    if "\x01" <= character <= "\x1a":
        return _held([KEYS["ctrl"], KEYS[chr(ord(character) + 0x60)]])
    raise ConfigurationError(
        f"{shown(character)} is on no key of a US keyboard: write it to the serial console, or press the "
        "keys that the guest's own layout has for it."
    )


def _held(keys: Iterable[int]) -> list[int]:
    """All go down in order, and up in the reverse order."""
    down = list(keys)
    return [*down, *(key | RELEASE for key in reversed(down))]
