# SPDX-License-Identifier: GPL-2.0-or-later
"""A boot sector that says hello through the firmware's screen and passes, or resets the machine first."""

HELLO = "Hello from the boot sector"
_MESSAGE_AT = 0x80
_COUNT_CELL = 0x60  # of the CMOS RAM, which a reset leaves alone

# xor ax, ax; mov ds, ax; mov si, message; next: lodsb; test al, al; jz end; mov ah, 0eh; int 10h; jmp next;
# end: mov al, 16; out 0f4h, al; hlt; jmp -3
_SAY_AND_PASS = bytes.fromhex("31c0 8ed8 be807c ac 84c0 7406 b40e cd10 ebf5 b010 e6f4 f4 ebfd")


# xor ax, ax; mov ds, ax; mov si, first; call say; xor ah, ah; int 16h; mov si, second; call say; mov al, 16;
# out 0f4h, al; hlt; jmp -3; say: lodsb; test al, al; jz end; mov ah, 0eh; int 10h; jmp say; end: ret
_SAY_WAIT_SAY = bytes.fromhex(
    "31c0 8ed8 be407c e81100 30e4 cd16 be807c e80700 b010 e6f4 f4 ebfd ac 84c0 7406 b40e cd10 ebf5 c3"
)


def waiting_sector(before: str, after: str) -> bytes:
    """512 bytes: code that says `before`, waits for a key, says `after` and passes; all by the firmware."""
    sector = _SAY_WAIT_SAY.ljust(0x40, b"\x90") + f"{before}..\0".encode()
    sector = sector.ljust(_MESSAGE_AT, b"\0") + f"{after}..\0".encode()
    return sector.ljust(510, b"\0") + b"\x55\xaa"


def boot_sector(reset: bytes = b"") -> bytes:
    """512 bytes. With ``reset``, code that resets the machine: it runs at the first start, not at the second.

    A CMOS cell counts the starts; the firmware's tests of memory do not touch it.
    """
    # mov al, cell; out 70h, al; in al, 71h; inc al; out 71h, al; cmp al, 2; jae past the reset
    count = bytes((0xB0, _COUNT_CELL, 0xE6, 0x70, 0xE4, 0x71, 0xFE, 0xC0, 0xE6, 0x71, 0x3C, 0x02, 0x73))
    code = count + bytes((len(reset) + 3,)) + reset + b"\xf4\xeb\xfd" if reset else b""
    code += _SAY_AND_PASS
    # SeaBIOS's serial screen keeps the last letter until the next one comes: dots follow.
    assert len(code) <= _MESSAGE_AT
    sector = code.ljust(_MESSAGE_AT, b"\x90") + HELLO.encode() + b"..\0"
    return sector.ljust(510, b"\0") + b"\x55\xaa"
