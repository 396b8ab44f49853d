// SPDX-License-Identifier: GPL-2.0-or-later
// What a core finds at its first instruction after a start-up IPI: copied to a page of its own, stored at its end.
    .text
    .code16
    .globl probe_begin, probe_end
probe_begin:
    // A near call pushes the IP after it: 3 when the first instruction was at IP 0. SP is 0 after INIT.
    call 1f
1:  mov %cs, %cs:0xf00
    mov %ds, %cs:0xf02
    mov %es, %cs:0xf04
    mov %ss, %cs:0xf06
    mov %fs, %cs:0xf08
    mov %gs, %cs:0xf0a
    mov %edx, %cs:0xf10
    pop %ax
    mov %ax, %cs:0xf0c
    mov %sp, %cs:0xf0e
    mov %cr0, %eax
    mov %eax, %cs:0xf14
    pushfl
    pop %eax
    mov %eax, %cs:0xf18
    mov %cr4, %eax
    mov %eax, %cs:0xf1c
    sidtl %cs:0xf20
    sgdtl %cs:0xf28
    mov %ebx, %cs:0xf30
    ljmp $0x800, $0
probe_end:

    // For the second start-up page: a core that comes here was started when it should not have been.
    .globl wrong_begin, wrong_end
wrong_begin:
    lock incl %cs:0xf00
2:  cli
    hlt
    jmp 2b
wrong_end:
    .section .note.GNU-stack, "", @progbits
