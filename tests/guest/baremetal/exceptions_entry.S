// SPDX-License-Identifier: GPL-2.0-or-later
// The way into ring 3, the system call entries, and ring-3 code that more than one test uses.
#include "exceptions.h"

    .text
    .code64
    // void enter_user(struct user_state *)
    .globl enter_user
enter_user:
    push 32(%rdi)       // SS
    push 24(%rdi)       // RSP
    push 16(%rdi)       // RFLAGS
    push 8(%rdi)        // CS
    push 0(%rdi)        // RIP
    mov 40(%rdi), %rax
    mov 48(%rdi), %rcx
    mov 56(%rdi), %rdx
    mov 64(%rdi), %rdi
    iretq

    // What SYSCALL and SYSENTER bring: stored, then an interrupt in ring 0 ends the test or SYSRET goes back.
    .globl syscall_entry, sysenter_entry, entry_seen, entry_back
syscall_entry:
    mov %rsp, entry_seen+16(%rip)
    mov $(CORE_BLOCK_0 + 0x6000), %esp
    mov %rax, entry_seen+48(%rip)
    pushfq
    pop entry_seen+24(%rip)
    mov %rcx, entry_seen(%rip)
    mov %r11, entry_seen+8(%rip)
    mov %cs, entry_seen+32(%rip)
    mov %ss, entry_seen+40(%rip)
    mov entry_back(%rip), %rax
    test %rax, %rax
    jz 1f
    movq $0, entry_back(%rip)
    mov entry_seen+16(%rip), %rsp
    jmp *%rax
1:  int $0x82
sysenter_entry:
    mov %rsp, entry_seen+16(%rip)
    mov %rax, entry_seen+48(%rip)
    pushfq
    pop entry_seen+24(%rip)
    mov %cs, entry_seen+32(%rip)
    mov %ss, entry_seen+40(%rip)
    mov entry_back(%rip), %rax
    test %rax, %rax
    jz 1f
    movq $0, entry_back(%rip)
    jmp *%rax
1:  int $0x82

    .globl back_sysexitq_far, back_sysretq, back_sysretl, back_sysexitq, back_sysexitl, back_sysretq_far
back_sysretq:
    sysretq
back_sysretl:
    sysretl
back_sysretq_far:
    mov $0x800000000000, %rcx
    sysretq
back_sysexitq:
    sysexitq
back_sysexitq_far:
    mov $0x800000000000, %rdx
    xor %ecx, %ecx
    sysexitq
back_sysexitl:
    sysexitl

    .globl call_gate_target
call_gate_target:
    mov %cs, %eax
    shl $16, %rax
    mov %ss, %cx
    mov %cx, %ax
    lretq

    .data
    .align 8
entry_seen: .skip 64            // rcx r11 rsp rflags cs ss rax
entry_back: .quad 0

    .section .user, "ax"
    .globl user_int80, user_syscall, user_sysenter, user_flags, user_popf, user_loop, user_read_fs, user_read_gs
    .globl user_rdtsc, user_rdpmc, user_sgdt, user_call_gate, user_step, user_syscall_popf, user_int81, user_int83
    .globl user_movaps, user_selectors, user_load_fs, user_after_int83, user_after_syscall, user_compat_syscall
    .globl user_exchange_cli, user_exchange_fault, user_misaligned, user_after_sysenter, user_int80_32
user_int80:
    int $0x80
user_syscall:
    syscall
user_after_syscall:
    int $0x80
user_sysenter:
    sysenter
user_after_sysenter:
    int $0x80
user_flags:
    pushfq
    pop %rax
    int $0x80
user_popf:                      // RAX = what to load; the new flags come back
    push %rax
    popfq
    pushfq
    pop %rax
    int $0x80
user_loop:
1:  inc %rax
    jmp 1b
user_read_fs:
    mov %fs:0, %rax
    int $0x80
user_read_gs:
    mov %gs:0, %rax
    int $0x80
user_load_fs:                   // RAX = selector
    mov %eax, %fs
    mov %fs:0, %rax
    int $0x80
user_selectors:                 // DS, ES, FS, GS in 16 bits each
    xor %eax, %eax
    mov %ds, %ax
    shl $16, %rax
    mov %es, %cx
    mov %cx, %ax
    shl $16, %rax
    mov %fs, %cx
    mov %cx, %ax
    shl $16, %rax
    mov %gs, %cx
    mov %cx, %ax
    int $0x80
user_rdtsc:
    rdtsc
    int $0x80
user_rdpmc:
    xor %ecx, %ecx
    rdpmc
    int $0x80
user_sgdt:
    sgdt -64(%rsp)
    int $0x80
user_call_gate:                 // RDI = a far pointer to the gate
    lcall *(%rdi)
    int $0x80
user_step:                      // with TF already set: stops after the first
    nop
    nop
    int $0x80
user_syscall_popf:
    push %rax
    popfq
    syscall
    int $0x80
user_int81:
    int $0x81
user_int83:
    int $0x83
user_after_int83:
    int $0x80
user_exchange_cli:              // RAX = an operand; the comparison fails
    add %rax, %rax
    cmpxchg8b -64(%rsp)
    cli
    int $0x80
user_exchange_fault:
    mov %rax, %rsi
    add %rax, %rsi
    cmpxchg16b -64(%rsp)
    int $0x80
user_misaligned:
    mov (%rdi), %eax
    int $0x80
    .code32
user_compat_syscall:
    syscall
    int $0x80
user_int80_32:
    mov $0x11223344, %eax
    int $0x80
    .section .note.GNU-stack, "", @progbits
