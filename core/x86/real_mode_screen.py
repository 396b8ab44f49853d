# SPDX-License-Identifier: GPL-2.0-or-later
"""INT 10h for real-mode code where no video firmware runs: teletype output, the cursor, the mode.

Functions 0Eh, 02h, 03h and 0Fh of the IBM PS/2 and PC BIOS Interface Technical Reference, section 2, on the
screen of 80 columns and 25 rows; others return with the carry flag set. Cursor and mode are in the BIOS data
area, at segment 40h.
"""

from typing import Final

_DISPATCH: Final = (
    "80fc0e 7437"  # cmp ah,0Eh; je teletype
    "80fc0f 7413"  # cmp ah,0Fh; je mode
    "80fc03 7414"  # cmp ah,3; je where
    "80fc02 741d"  # cmp ah,2; je set
    "55 89e5 834e0601 5d cf"  # push bp; mov bp,sp; or word [bp+6],1; pop bp; iret: the caller's carry flag
)
_MODE: Final = "b80350 b700 cf"  # mov ax,5003h; mov bh,0; iret: 80 columns, mode 3, page 0
_WHERE: Final = "1e 6a40 1f 8b165000 8b0e6000 1f cf"  # with ds=40h: mov dx,[50h]; mov cx,[60h]; iret
_SET: Final = "60 1e 6a40 1f e87100 1f 61 cf"  # pusha; with ds=40h: call cursor; popa; iret
_TELETYPE: Final = (
    "60 1e 06 6a40 1f 6800b8 07 8b165000"  # pusha; ds=40h; es=B800h; mov dx,[50h]: row and column
    "3c0d 7504 b200 eb51"  # cmp al,13; jne +4; mov dl,0; jmp done
    "3c0a 742d"  # cmp al,10; je line
    "3c07 7449"  # cmp al,7; je done: a bell that makes no sound
    "3c08 7508 80ea01 80d200 eb3d"  # cmp al,8; jne +8; sub dl,1; adc dl,0; jmp done
    "e85600 d1e3 268807"  # call cell; shl bx,1; mov es:[bx],al
    "26807f0100 7505 26c6470107"  # cmp byte es:[bx+1],0; jne +5; mov byte es:[bx+1],7: black becomes grey
    "fec2 80fa50 7222 b200"  # inc dl; cmp dl,80; jb done; mov dl,0
    "fec6 80fe19 7219 fece"  # line: inc dh; cmp dh,25; jb done; dec dh
    "1e 06 1f fc 31ff bea000 b98007 f3a5"  # push ds; ds=es; xor di,di; mov si,160; mov cx,1920; rep movsw
    "b82007 b95000 f3ab 1f"  # mov ax,720h; mov cx,80; rep stosw; pop ds: a blank line at the bottom
    "e80400 07 1f 61 cf"  # done: call cursor; pop es; pop ds; popa; iret
)
_CURSOR: Final = (
    "89165000 e80e00 bad403"  # mov [50h],dx; call cell; mov dx,3D4h
    "b00e 88fc ef b00f 88dc ef c3"  # mov al,0Eh; mov ah,bh; out dx,ax; mov al,0Fh; mov ah,bl; out dx,ax; ret
)
_CELL: Final = "50 b050 f6e6 89c3 00d3 80d700 58 c3"  # bx = 80 * dh + dl; ret

INT_10H: Final = bytes.fromhex(_DISPATCH + _MODE + _WHERE + _SET + _TELETYPE + _CURSOR + _CELL)
