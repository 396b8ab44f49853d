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

    // --- operands of 16 bytes (SDM 2A, 2.4.3)
#define MISALIGNED_AT(name, text...) \
    CASE name, 13, 0, BOTH+IS_FAULT+STRICT; mov $USER_DATA_PAGE+0x108, %eax; text; END
#define MISALIGNED(name, text...) MISALIGNED_AT(name, 9: text)
#define ANY_ALIGNMENT(name, text...) \
    CASE name, 0x80, 0, BOTH+STRICT; mov $USER_DATA_PAGE+0x109, %eax; text; int $0x80; 9: END
    MISALIGNED("movaps from memory", movaps (%rax), %xmm0)
    MISALIGNED("movaps to memory", movaps %xmm0, (%rax))
    MISALIGNED("movapd to memory, off by one", movapd %xmm0, 1(%rax))
    MISALIGNED("movdqa from memory", movdqa (%rax), %xmm0)
    MISALIGNED("movdqa to memory", movdqa %xmm0, (%rax))
    MISALIGNED("movntps", movntps %xmm0, (%rax))
    MISALIGNED("movntdq", movntdq %xmm0, (%rax))
    MISALIGNED("movntdqa", movntdqa (%rax), %xmm0)
    MISALIGNED("addps with memory", addps (%rax), %xmm0)
    MISALIGNED("andpd with memory", andpd (%rax), %xmm0)
    MISALIGNED("pxor with memory", pxor (%rax), %xmm0)
    MISALIGNED("pshufb with memory", pshufb (%rax), %xmm0)
    MISALIGNED("palignr with memory", palignr $3, (%rax), %xmm0)
    MISALIGNED("cvtdq2ps with memory", cvtdq2ps (%rax), %xmm0)
    MISALIGNED("cvtpd2dq with memory", cvtpd2dq (%rax), %xmm0)
    MISALIGNED("sqrtps with memory", sqrtps (%rax), %xmm0)
    MISALIGNED("aesenc with memory", aesenc (%rax), %xmm0)
    MISALIGNED("pclmulqdq with memory", pclmulqdq $1, (%rax), %xmm0)
    MISALIGNED("roundps with memory", roundps $1, (%rax), %xmm0)
    MISALIGNED_AT("movaps next to movups", movups 16(%rax), %xmm1; 9: movaps (%rax), %xmm0)
    MISALIGNED_AT("movaps behind a look-up of the same page", mov 24(%rax), %ecx; 9: movaps (%rax), %xmm0)
    MISALIGNED_AT("movaps between two that are aligned", movaps 8(%rax), %xmm1; 9: movaps 32(%rax), %xmm2; \
               movaps 24(%rax), %xmm1)
    MISALIGNED_AT("movaps of a missing page", mov $MISSING_PAGE+8, %eax; 9: movaps (%rax), %xmm0)
    MISALIGNED("fxsave", fxsave (%rax))
    ANY_ALIGNMENT("movups and movupd", movups (%rax), %xmm0; movupd %xmm0, (%rax))
    ANY_ALIGNMENT("movdqu and lddqu", movdqu (%rax), %xmm0; movdqu %xmm0, (%rax); lddqu (%rax), %xmm0)
    ANY_ALIGNMENT("pcmpistri and pcmpestrm", pcmpistri $1, (%rax), %xmm0; pcmpestrm $1, (%rax), %xmm0)
    ANY_ALIGNMENT("scalars", addss (%rax), %xmm0; addsd (%rax), %xmm0; movhps (%rax), %xmm0; movq (%rax), %xmm0)
    ANY_ALIGNMENT("half operands", cvtps2pd (%rax), %xmm0; cvtdq2pd (%rax), %xmm0; pmovzxbw (%rax), %xmm0)
    ANY_ALIGNMENT("rounded scalars", roundss $1, (%rax), %xmm0; roundsd $1, (%rax), %xmm0)
    ANY_ALIGNMENT("mmx operands", cvtpi2ps (%rax), %xmm0; cvtpi2pd (%rax), %xmm0; emms)
    CASE "aligned next to misaligned accesses", 0x80, 0, BOTH+STRICT
    mov $USER_DATA_PAGE+0x108, %eax
    movups 1(%rax), %xmm1
    movaps 8(%rax), %xmm0
    mov %ecx, 3(%rax)
    movaps %xmm0, -8(%rax)
    movdqa 24(%rax), %xmm2
    int $0x80
9:  END

    // --- what is read and then written faults as a write (SDM 3A, 4.7)
#define READ_AND_WRITTEN(missing, read_only, text...) \
    PAGE_CASE(missing, 2, BOTH+STRICT, MISSING_PAGE+0x128, text); \
    PAGE_CASE(read_only, 3, BOTH, READ_ONLY_PAGE+0x128, text)
    READ_AND_WRITTEN("add on a missing page", "add on a read-only page", add %ecx, (%rax))
    READ_AND_WRITTEN("adc on a missing page", "adc on a read-only page", adc %rcx, (%rax))
    READ_AND_WRITTEN("or with a number on a missing page", "or with a number on a read-only page", orb $1, (%rax))
    READ_AND_WRITTEN("inc on a missing page", "inc on a read-only page", incw (%rax))
    READ_AND_WRITTEN("neg on a missing page", "neg on a read-only page", negq (%rax))
    READ_AND_WRITTEN("not on a missing page", "not on a read-only page", notl (%rax))
    READ_AND_WRITTEN("shl on a missing page", "shl on a read-only page", shll $3, (%rax))
    READ_AND_WRITTEN("sar by cl on a missing page", "sar by cl on a read-only page", sarq %cl, (%rax))
    READ_AND_WRITTEN("rol on a missing page", "rol on a read-only page", rolb $1, (%rax))
    READ_AND_WRITTEN("rcr on a missing page", "rcr on a read-only page", rcrl $1, (%rax))
    READ_AND_WRITTEN("shld on a missing page", "shld on a read-only page", shld $3, %ecx, (%rax))
    READ_AND_WRITTEN("shrd by cl on a missing page", "shrd by cl on a read-only page", shrd %cl, %rcx, (%rax))
    READ_AND_WRITTEN("btc on a missing page", "btc on a read-only page", btcl $3, (%rax))
    READ_AND_WRITTEN("xadd on a missing page", "xadd on a read-only page", xadd %cl, (%rax))
    READ_AND_WRITTEN("cmpxchg on a missing page", "cmpxchg on a read-only page", cmpxchg %cx, (%rax))
    READ_AND_WRITTEN("cmpxchg8b on a missing page", "cmpxchg8b on a read-only page", cmpxchg8b (%rax))
    READ_AND_WRITTEN("locked cmpxchg8b on a missing page", "locked cmpxchg8b on a read-only page", lock cmpxchg8b (%rax))
    CROSS_CASE("add into a missing page", 2, BOTH+STRICT, 3, add %rcx, (%rax))
    CROSS_CASE("movups from a missing page", 0, BOTH, 5, movups (%rax), %xmm0)

    // --- near branches to addresses that are not canonical: RIP is the branch's, RSP as before
#define TO_NOWHERE(name, stack, address, text...) \
    CASE name, 13, 0, BOTH+IS_FAULT+STRICT+stack; mov $(address), %rax; text; END
    TO_NOWHERE("jmp to 2^47", KEEPS_RSP, 0x800000000000, 9: jmp *%rax)
    TO_NOWHERE("jmp to 2^63", KEEPS_RSP, 0x8000000000000000, 9: jmp *%rax)
    TO_NOWHERE("call of 2^63", KEEPS_RSP, 0x8000000000000000, 9: call *%rax)
    TO_NOWHERE("call of what is not canonical", KEEPS_RSP, 0xffff7fffffffffff, 9: call *%rax)
    TO_NOWHERE("call through memory", KEEPS_RSP, 0x800000000000, mov %rax, -64(%rsp); 9: call *-64(%rsp))
    TO_NOWHERE("jmp through memory", KEEPS_RSP, 0x7f00000000000000, mov %rax, -64(%rsp); 9: jmp *-64(%rsp))
    TO_NOWHERE("ret", KEEPS_RSP+PUSHED, 0x800000000000, push %rax; 9: ret)
    TO_NOWHERE("ret with a number", KEEPS_RSP+PUSHED, 0xfffeffffffffffff, push %rax; 9: ret $24)

    // --- the end of the canonical addresses within an operand
    CASE "load over the end of the canonical addresses", 13, 0, BOTH+IS_FAULT+STRICT
    mov $0x7fffffffffff, %rax
9:  mov (%rax), %rcx
    END
    CASE "store over the end of the canonical addresses", 13, 0, BOTH+IS_FAULT+STRICT
    mov $0x7ffffffffffd, %rax
9:  mov %ecx, (%rax)
    END

    .section .data.cases, "aw"
    .globl encoding_cases_end
encoding_cases_end:
    .section .note.GNU-stack, "", @progbits
