// SPDX-License-Identifier: GPL-2.0-or-later
// The code of a hostile machine that is not hostile: it gives each vCPU one block after the other.
//
// Every exception and interrupt, in every mode, ends the block that runs and starts the next one. Nothing is
// kept of what the block left: control registers, descriptor tables, EFER and the local APIC are put back,
// and the vCPU is told from its APIC id (CPUID), which no guest can change. Where a block has destroyed
// this code or its tables the machine ends with a triple fault, which is an orderly end.
//
// Addresses and the layout of a vCPU's area come from hostile_machine.py (-D).
#define CODE64 0x08
#define DATA 0x10
#define CODE32 0x18
#define USER_CODE64 0x2b
#define USER_DATA 0x33
#define USER_CODE32 0x3b
#define TSS64 0x40
#define TSS32 0x50
#define CODE16 0x58
#define DATA16 0x60

#define CR0_LONG 0x80010033
#define CR4_LONG 0x6b0
#define EFER_LONG 0xd01
#define APIC 0xfee00000

// A vCPU's area.
#define NEXT 0x00
#define END 0x08
#define IDT64_POINTER 0x10
#define IDT32_POINTER 0x20
#define IVT_POINTER 0x30
#define GDT_POINTER 0x40
#define GDT 0x200

// A block's record.
#define RECORD_RIP 0x00
#define RECORD_MODE 0x04
#define RECORD_FLAGS 0x08
#define RECORD_STACK 0x0c
#define RECORD_REGISTERS 0x10

    .section .text
    .globl _start
    .code16
_start:  // a start-up IPI, vector 8
    ljmp $0, $(real_trap - _start + SUPERVISOR)
    .globl real_trap
real_trap:  // from the real-mode vectors
    cli
    data32 lgdt %cs:(common_gdt_pointer - _start + SUPERVISOR)
    mov $0x11, %eax
    mov %eax, %cr0
    data32 ljmp $CODE32, $(trap32 - _start + SUPERVISOR)

    .balign 8
common_gdt_pointer:
    .word 0x7f
    .long PERCPU + GDT

    .code32
    .balign 16
    .globl trap32
trap32:  // from the 32-bit IDT, from a task gate, and from real mode
    cli
    lgdt %cs:(common_gdt_pointer - _start + SUPERVISOR)
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $CR4_LONG, %eax
    mov %eax, %cr4
    mov $TABLES, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    mov $EFER_LONG & ~0x400, %eax
    xor %edx, %edx
    wrmsr
    mov $CR0_LONG, %eax
    mov %eax, %cr0
    ljmp $CODE64, $(trap64 - _start + SUPERVISOR)

    .code64
    .balign 16
    .globl trap64
trap64:
    cli
    mov $1, %eax
    cpuid
    shr $24, %ebx
    imul $PERCPU_BYTES, %ebx, %ebp
    add $PERCPU, %ebp
    lea PERCPU_BYTES(%rbp), %rsp
    mov %dr7, %rax
    cmp $0x400, %rax
    je 1f
    mov $0x400, %eax
    mov %rax, %dr7
1:  mov %cr4, %rax
    cmp $CR4_LONG, %rax
    je 1f
    mov $CR4_LONG, %eax
    mov %rax, %cr4
1:  mov %cr3, %rax
    cmp $TABLES, %rax
    je 1f
    mov $TABLES, %eax
    mov %rax, %cr3
1:  mov %cr0, %rax
    mov $CR0_LONG, %edx
    cmp %rdx, %rax
    je 1f
    mov %rdx, %cr0
1:  mov $0xc0000080, %ecx
    rdmsr
    cmp $EFER_LONG, %eax
    je 1f
    mov $EFER_LONG, %eax
    xor %edx, %edx
    wrmsr
1:  mov $0x1b, %ecx
    rdmsr
    and $~0x100, %eax
    cmp $APIC | 0x800, %eax
    je 1f
    mov $APIC, %eax  // through «off», the only way out of x2APIC mode (SDM vol. 3A 11.12.5)
    xor %edx, %edx
    wrmsr
    mov $APIC | 0x800, %eax
    wrmsr
1:  lgdt GDT_POINTER(%rbp)
    lidt IDT64_POINTER(%rbp)
    movb $0x89, GDT + TSS64 + 5(%rbp)
    movb $0x89, GDT + TSS32 + 5(%rbp)
    movb $0x89, GDT + 0x68 + 5(%rbp)
    mov $TSS64, %eax
    ltr %ax
    mov $DATA, %eax
    mov %eax, %ss
    pushq $CODE64
    lea 1f(%rip), %rax
    push %rax
    lretq
1:  xor %eax, %eax
    mov %rax, %cr8
    mov $APIC, %edx
    movl $0x1ff, 0xf0(%rdx)
    movl $0, 0xb0(%rdx)
    movl $0x40, 0x320(%rdx)
    movl $0xb, 0x3e0(%rdx)
    movl $TIMER_COUNT, 0x380(%rdx)
    mov PROGRESS(, %rbx, 8), %rax
    inc %rax
    mov %rax, PROGRESS(, %rbx, 8)
    // Who was sent INIT is started again by the others.
    test $0xf, %al
    jne 1f
    movl $0xc4608, 0x300(%rdx)
1:  mov NEXT(%rbp), %rsi
    cmp END(%rbp), %rsi
    jae done
    addq $32, NEXT(%rbp)
    cmpb $3, RECORD_MODE(%rsi)
    ja legacy

    // 64-bit and compatibility mode: fifteen registers, then the frame of IRET.
    lea -256(%rsp), %rdi
    xor %ecx, %ecx
1:  movzbl RECORD_REGISTERS(%rsi, %rcx), %eax
    mov VALUES(, %rax, 8), %rax
    mov %rax, (%rdi, %rcx, 8)
    inc %ecx
    cmp $15, %ecx
    jne 1b
    mov RECORD_RIP(%rsi), %eax
    mov %rax, 120(%rdi)
    mov RECORD_FLAGS(%rsi), %eax
    mov %rax, 136(%rdi)
    movzbl RECORD_STACK(%rsi), %eax
    mov VALUES(, %rax, 8), %rax
    mov %rax, 144(%rdi)
    movzbl RECORD_MODE(%rsi), %eax
    movzbl long_code - _start + SUPERVISOR(%rax), %ecx
    mov %rcx, 128(%rdi)
    movzbl long_stack - _start + SUPERVISOR(%rax), %ecx
    mov %rcx, 152(%rdi)
    mov $USER_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
    mov %rdi, %rsp
    pop %rax
    pop %rcx
    pop %rdx
    pop %rbx
    pop %rbp
    pop %rsi
    pop %rdi
    pop %r8
    pop %r9
    pop %r10
    pop %r11
    pop %r12
    pop %r13
    pop %r14
    pop %r15
    iretq

done:
    mov $0x8000000000000000, %rax
    or PROGRESS(, %rbx, 8), %rax
    mov %rax, PROGRESS(, %rbx, 8)
1:  hlt
    jmp 1b

long_code:
    .byte CODE64, USER_CODE64, USER_CODE32, CODE32
long_stack:
    .byte DATA, USER_DATA, USER_DATA, DATA

    // Out of long mode (SDM vol. 3A 10.8.5.4), through a 32-bit segment. The mode waits in EBX.
legacy:
    movzbl RECORD_MODE(%rsi), %ebx
    pushq $CODE32
    lea 1f(%rip), %rax
    push %rax
    lretq
    .code32
1:  mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    mov $EFER_LONG & ~0x500, %eax
    xor %edx, %edx
    wrmsr
    mov $0x610, %eax
    mov %eax, %cr4
    mov $TABLES32, %eax
    mov %eax, %cr3
    lidt IDT32_POINTER(%ebp)
    mov $TSS32, %eax
    ltr %ax
    // Modes: 4 protected without paging, 5 with, 6 in ring 3, 7 virtual-8086, 8 16-bit protected, 9 real.
    cmp $9, %ebx
    je real
    cmp $4, %ebx
    je 1f
    cmp $8, %ebx
    je 1f
    mov $0x80010033, %eax
    mov %eax, %cr0
1:  lea PERCPU_BYTES - 256(%ebp), %edi
    call registers32
    mov RECORD_RIP(%esi), %eax
    mov RECORD_FLAGS(%esi), %edx
    mov $CODE32, %ecx
    cmp $6, %ebx
    jne 2f
    mov $USER_CODE32, %ecx
2:  cmp $8, %ebx
    jne 2f
    mov $CODE16, %ecx
2:  cmp $7, %ebx
    jne 2f
    or $0x20000, %edx
    mov %eax, %ecx
    shr $4, %ecx
    and $0xf000, %ecx
    and $0xffff, %eax
2:  mov %eax, 32(%edi)
    mov %ecx, 36(%edi)
    mov %edx, 40(%edi)
    movzbl RECORD_STACK(%esi), %eax
    mov VALUES(, %eax, 8), %eax
    mov %eax, 44(%edi)
    mov $USER_DATA, %eax
    cmp $7, %ebx
    jne 2f
    mov $0xe000, %eax
    movl $0xfff0, 44(%edi)
2:  mov %eax, 48(%edi)
    mov %eax, 52(%edi)
    mov %eax, 56(%edi)
    mov %eax, 60(%edi)
    mov %eax, 64(%edi)
    mov $USER_DATA, %eax
    cmp $6, %ebx
    je 2f
    mov $DATA, %eax
2:  cmp $7, %ebx
    je 3f
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %fs
    mov %eax, %gs
3:  mov %edi, %esp
    popal
    iretl

registers32:
    xor %ecx, %ecx
1:  movzbl RECORD_REGISTERS(%esi, %ecx), %eax
    mov VALUES(, %eax, 8), %eax
    mov %eax, (%edi, %ecx, 4)
    inc %ecx
    cmp $8, %ecx
    jne 1b
    ret

real:
    mov $1, %eax
    cpuid
    shr $24, %ebx
    imul $0x500, %ebx, %edi
    add $0x4c0, %edi
    mov %edi, %ebx
    add $0xf0000, %edi
    call registers32
    mov RECORD_RIP(%esi), %eax
    mov %ax, 32(%edi)
    shr $4, %eax
    and $0xf000, %eax
    mov %ax, 34(%edi)
    mov RECORD_FLAGS(%esi), %eax
    mov %ax, 36(%edi)
    lidt IVT_POINTER(%ebp)
    ljmp $CODE16, $(1f - _start + SUPERVISOR)
    .code16
1:  mov $DATA16, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %fs
    mov %ax, %gs
    mov %ax, %ss
    mov $0x10, %eax
    mov %eax, %cr0
    ljmp $0, $(1f - _start + SUPERVISOR)
1:  mov $0xf000, %ax
    mov %ax, %ss
    mov %bx, %sp
    mov $0x2000, %ax
    shl $4, %ax
    mov %ax, %ds
    mov %ax, %es
    popal
    iret
