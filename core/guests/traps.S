// SPDX-License-Identifier: GPL-2.0-or-later
// 256 entries of 16 bytes, one for each vector; each makes a struct trap_frame and calls trap_dispatch.
#define CORE_BLOCK 0x8000

    .text
    .align 16
    .globl trap_entries
trap_entries:
vector = 0
    .rept 256
    .align 16
    // Vectors with an error code: SDM 3A, table 6-1.
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
vector = vector + 1
    .endr

    .align 16
trap_common:
    push %rax
    push %rbx
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %rbp
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    cld
    mov %rsp, %rdi
    mov %rsp, %rbp
    and $-16, %rsp
    call trap_dispatch
    mov %rbp, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rbp
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rbx
    pop %rax
    add $16, %rsp
    iretq

// int trap_catch(void (*body)(void *), void *argument)
    .globl trap_catch, trap_caught
trap_catch:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushfq
    mov %rsp, %rax
    and $-CORE_BLOCK, %rax
    push (%rax)
    mov %rsp, (%rax)
    mov %rdi, %rax
    mov %rsi, %rdi
    mov %rsp, %rbp
    and $-16, %rsp
    call *%rax
    mov %rbp, %rsp
    mov $-1, %eax
trap_caught:                    // trap_dispatch returns here with RSP = catch_rsp and RAX = the vector
    mov %rsp, %rcx
    and $-CORE_BLOCK, %rcx
    pop (%rcx)
    popfq
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .section .note.GNU-stack, "", @progbits
