// SPDX-License-Identifier: GPL-2.0-or-later
// Encodings: what the processor refuses, and what it takes in another way than its neighbours. One case each, as
// in exceptions_cases.S.
#include "exceptions.h"

    .section .data.cases, "aw"
    .align 8
    .globl encoding_cases
encoding_cases:
    .section .user, "ax"
    .code64

    CASE "int1", 1, 0, BOTH+STRICT
    .byte 0xf1
9:  END
    CASE "int1 with lock", 6, 0, BOTH+IS_FAULT+STRICT
9:  .byte 0xf0, 0xf1
    END
    CASE "movbe with two registers", 6, 0, BOTH+IS_FAULT+STRICT
9:  .byte 0x0f, 0x38, 0xf0, 0xc1
    END
    CASE "movbe with two registers, 16 bits, to the second", 6, 0, BOTH+IS_FAULT+STRICT
9:  .byte 0x66, 0x0f, 0x38, 0xf1, 0xc1
    END
    CASE "movbe and crc32 as they should be", 0x80, 0, BOTH
    movbe -64(%rsp), %eax
    movbe %rax, -64(%rsp)
    crc32b %cl, %eax
    crc32w %cx, %eax
    int $0x80
9:  END
    // The instruction before the page's end is executed before the fetch of the next one faults.
    CASE "code that goes on into a missing page", 14, 0x10, IN_RING3+IS_FAULT, CODE_PAGE+0x1000
    mov $CODE_PAGE+0x1000-4, %eax  // inc %ecx; b8 imm32: the first is whole
    jmp *%rax
9:  END

    .section .data.cases, "aw"
    .globl encoding_cases_end
encoding_cases_end:
    .section .note.GNU-stack, "", @progbits
