// SPDX-License-Identifier: GPL-2.0-or-later
// Out of long mode: 32-bit protected mode without paging, ring 3, virtual-8086, task switches, real mode; and back.
//
// Each step names at label 8 the instruction that must trap (or the one behind it, for a trap) and goes on at 9.
// A step that does not trap leaves its row of legacy_log as it was.
#define LOW 0x9000              // 16-bit code is copied here: 900h:0
#define SMALL 0x600000          // base of the small segments
#define HOLE 0x600000           // no page is there in the last steps
#define EDGE 0x5ff000
#define BEFORE_HOLE 0x5ffffe
#define SEL_CODE64 0x08
#define SEL_DATA 0x10
#define SEL_CODE 0x18
#define SEL_USER_CODE 0x23
#define SEL_USER_DATA 0x2b
#define SEL_TSS_A 0x30
#define SEL_TSS_B 0x38
#define SEL_CODE16 0x40
#define SEL_DATA16 0x48
#define SEL_SMALL 0x50
#define SEL_DOWN 0x58
#define SEL_BAD_TSS 0x60
#define SEL_TASK_GATE 0x68
#define ROW 32

    .section .data.eips, "aw"
    .globl legacy_eips
legacy_eips:

    .text
    // void legacy_run(void): 64-bit code calls it in the identity map, interrupts off.
    .code64
    .globl legacy_run
legacy_run:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, saved_rsp
    sgdt saved_gdtr
    sidt saved_idtr
    lgdt legacy_gdtr
    pushq $SEL_CODE
    pushq $1f
    lretq
    .code32
1:  mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $kernel_stack, %esp
    mov %cr0, %eax
    and $0x7fffffff, %eax       // paging off: long mode ends
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    rdmsr
    and $~0x100, %eax
    wrmsr
    lidt legacy_idtr
    mov $SEL_TSS_A, %eax
    ltr %ax
    jmp steps

finished:
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $pml4, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    and $~8, %eax               // a task switch has set TS
    mov %eax, %cr0
    ljmp $SEL_CODE64, $1f
    .code64
1:  lgdt saved_gdtr
    lidt saved_idtr
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov saved_rsp, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    // --- the handlers of the 32-bit IDT
    .code32
    .align 16
    .globl legacy_entries
legacy_entries:
vector = 0
    .rept 256
    .align 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17)
    .else
    push $0
    .endif
    push $vector
    jmp caught
vector = vector + 1
    .endr
    // Stack: vector, error, EIP, CS, EFLAGS, [ESP, SS, [ES, DS, FS, GS]].
caught:
    push %eax
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    popl seen_eax               // the stack may be the small segment
    mov step, %edi
    imul $ROW, %edi
    add $legacy_log, %edi
    .irp offset, 0, 4, 8, 12, 16, 20, 24
    mov %ss:\offset(%esp), %eax
    mov %eax, \offset(%edi)
    .endr
    mov seen_eax, %eax
    mov %eax, 28(%edi)
    mov $SEL_DATA, %eax
    mov %eax, %ss
    mov $kernel_stack, %esp
    jmp *next

.macro STEP
    .pushsection .data.eips, "aw"
    .long 8f
    .popsection
    incl step
    movl $9f, next
.endm

.macro STEP_AT label, base
    .pushsection .data.eips, "aw"
    .long \label - \base
    .popsection
    incl step
    movl $9f, next
.endm

    // A step's code in ring 3 with the given IOPL.
.macro TO_RING3 target, flags=2
    pushl $SEL_USER_DATA
    pushl $user_stack
    pushl $\flags
    pushl $SEL_USER_CODE
    pushl $\target
    iret
.endm

    // To 900h:offset in virtual-8086 mode.
.macro TO_VM86 target, flags=0x20002
    pushl $0                    // GS
    pushl $0                    // FS
    pushl $0x900                // DS
    pushl $0x900                // ES
    pushl $0x900                // SS
    pushl $0xff0                // SP
    pushl $\flags
    pushl $0x900
    pushl $(\target - low_begin)
    iret
.endm

steps:
    // 0: nothing has happened before the first
    STEP                        // 1: ud2
8:  ud2
9:  STEP                        // 2: beyond a limit
    mov $SEL_SMALL, %eax
    mov %eax, %fs
8:  mov %fs:0x1000, %al
9:  STEP                        // 3: across a limit
8:  mov %fs:0xffe, %eax
9:  STEP                        // 4: at the limit is well
    mov %fs:0xffc, %eax
8:
9:  STEP                        // 5: an expand-down segment ends below
    mov $SEL_DOWN, %eax
    mov %eax, %fs
    mov %fs:0x1000, %al
8:  mov %fs:0xfff, %al
9:  STEP                        // 6: #SS for the stack segment
    mov $SEL_SMALL, %eax
    mov %eax, %ss
    mov $0x800, %esp
8:  mov %ss:0x2000, %eax
9:  STEP                        // 7: code is not writable
8:  movb $1, %cs:two_bounds+8
9:  STEP                        // 8: the null selector cannot be used
    xor %eax, %eax
    mov %eax, %gs
8:  mov %gs:0, %eax
9:  STEP                        // 9: into
    mov $0x7f, %al
    inc %al
    into
8:
9:  STEP                        // 10: bound
    mov $9, %eax
8:  bound %eax, two_bounds
9:  STEP                        // 11: int3
    int3
8:
9:  STEP                        // 12: execute-only or absent: a far jump to data
8:  ljmp $SEL_DATA, $0
9:  STEP                        // 13: cli in ring 3
    TO_RING3 1f
1:
8:  cli
9:  STEP                        // 14: int 80h from ring 3
    TO_RING3 1f
1:  int $0x80
8:
9:  STEP                        // 15: in, IOPL 0, no bitmap
    TO_RING3 1f
1:
8:  inb $0x80, %al
9:  STEP                        // 16: in with IOPL 3, then out of it
    TO_RING3 1f, 0x3002
1:  inb $0x80, %al
    cli
    int $0x80
8:
9:  STEP                        // 17: sysenter from ring 3, sysexit back
    mov $0x174, %ecx
    mov $SEL_CODE_FOR_SYSENTER, %eax
    xor %edx, %edx
    wrmsr
    mov $0x175, %ecx
    mov $kernel_stack, %eax
    wrmsr
    mov $0x176, %ecx
    mov $2f, %eax
    wrmsr
    TO_RING3 1f
1:  mov $user_stack, %ecx
    mov $3f, %edx
    sysenter
2:  mov $0xabcd, %eax
    sysexit
3:  int $0x80
8:
9:  STEP                        // 18: virtual-8086: real-mode addresses, then cli
    TO_VM86 vm_cli
8:
9:  STEP                        // 19: int n with IOPL 0
    TO_VM86 vm_int
8:
9:  STEP                        // 20: int n with IOPL 3 goes through the IDT
    TO_VM86 vm_int, 0x23002
8:
9:  STEP                        // 21: pushf with IOPL 0
    TO_VM86 vm_pushf
8:
9:  STEP                        // 22: in without a bitmap, whatever the IOPL
    TO_VM86 vm_in, 0x23002
8:
9:  STEP                        // 23: hlt
    TO_VM86 vm_hlt, 0x23002
8:
9:  STEP                        // 24: beyond 64 KiB
    TO_VM86 vm_limit, 0x23002
8:
9:  STEP                        // 25: a task switch there and back
    movl $task_b, tss_b+32
    movl $2, tss_b+36
    ljmp $SEL_TSS_B, $0
    mov $0x7777, %eax
    int $0x80
8:
9:  STEP                        // 26: the same by a task gate and CALL; back by IRET
    movl $task_b_nested, tss_b+32
    movl $2, tss_b+36
    lcall $SEL_TASK_GATE, $0
    mov $0x8888, %eax
    int $0x80
8:
9:  STEP                        // 27: a jump to the busy task
8:  ljmp $SEL_TSS_A, $0
9:  STEP                        // 28: a TSS that is too short
8:  ljmp $SEL_BAD_TSS, $0
9:  STEP                        // 29: a call gate to ring 0 with two parameters, which both stacks lose again
    TO_RING3 1f
1:  push $0x1111
    push $0x2222
    lcall $SEL_CALL_GATE, $0
    int $0x80
8:
9:  STEP                        // 30: a call gate that leads to data
    TO_RING3 1f
1:
8:  lcall $SEL_BAD_GATE, $0
9:  STEP                        // 31: a TSS with its T flag set: #DB before the task's first instruction
    movl $8f, tss_b+32
    movl $2, tss_b+36
    orl $1, tss_b+100
    mov $0x7fffffff, %ecx       // the flags to be saved
    add $1, %ecx
    ljmp $SEL_TSS_B, $0
    jmp 7f                      // where task A goes on
8:  nop
9:  andl $~1, tss_b+100
    clts
    ljmp $SEL_TSS_A, $0
7:  STEP                        // 32: PAE paging: CR0.PG with a reserved bit in an entry that is present
    xor %ecx, %ecx              // 1 GiB of pages of 2 MiB
1:  mov %ecx, %eax
    shl $21, %eax
    or $0x83, %eax
    mov %eax, pae_directory(, %ecx, 8)
    inc %ecx
    cmp $512, %ecx
    jb 1b
    movl $pae_directory + 1, pae_pointers
    movl $3, pae_pointers + 24
    mov $pae_pointers, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
8:  mov %eax, %cr0
9:  STEP                        // 33: MOV to CR3; an entry that is not present has no reserved bits
    movl $2, pae_pointers + 24
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    movl $pae_directory + 0x21, pae_others
    mov $pae_others, %eax
8:  mov %eax, %cr3
9:  mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    STEP                        // 34: real mode: INT through the vector table, #DE, #GP at 64 KiB
    ljmp $SEL_CODE16, $(real_begin - low_begin)
real_done:
    mov $SEL_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $kernel_stack, %esp
    lidt legacy_idtr
    mov $0x9999, %eax
    int $0x80
8:
9:  STEP_AT in_jump, short_code         // 35: a near jump beyond the limit of CS, which ends at short_over
    ljmp $SEL_SHORT, $(in_jump - short_code)
9:  STEP_AT in_call, short_code         // 36: a call
    ljmp $SEL_SHORT, $(in_call - short_code)
9:  STEP_AT in_return, short_code       // 37: a return
    ljmp $SEL_SHORT, $(in_push - short_code)
9:  STEP_AT in_branch, short_code       // 38: a branch that is taken
    cmp %eax, %eax
    ljmp $SEL_SHORT, $(in_branch - short_code)
9:  STEP_AT behind_branch, short_code   // 39: one that is not; int3 behind it
    cmp %eax, %eax
    ljmp $SEL_SHORT, $(no_branch - short_code)
9:  STEP_AT in_loop, short_code         // 40: a loop, whose count stays
    mov $2, %ecx
    ljmp $SEL_SHORT, $(in_loop - short_code)
9:  mov %ecx, task_seen+24
    STEP_AT in_indirect, short_code     // 41: an indirect jump
    mov $(short_over - short_code), %eax
    ljmp $SEL_SHORT, $(in_indirect - short_code)
9:  STEP_AT in_memory, short_code       // 42: an indirect call, its address in memory
    movl $(short_over - short_code), task_seen+28
    ljmp $SEL_SHORT, $(in_memory - short_code)
9:  STEP_AT short_over, short_code      // 43: running over the limit
    ljmp $SEL_SHORT, $(in_last - short_code)
9:  STEP_AT in_last, short_code         // 44: an instruction across the limit
    ljmp $SEL_SHORTER, $(in_last - short_code)
9:  STEP_AT far_jump, low_begin         // 45: a jump of 32 bits in 16-bit code
    ljmp $SEL_CODE16, $(far_jump - low_begin)
9:  movw $0x11b8, BEFORE_HOLE   // mov $imm32, %eax: its last bytes lie in a page that is missing
    movl $0, pae_directory + (HOLE >> 21) * 8
    mov $pae_pointers, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    STEP_AT BEFORE_HOLE, EDGE           // 46: the limit lies at the page's end: its fault is the first
    ljmp $SEL_EDGE, $(BEFORE_HOLE - EDGE)
9:  STEP_AT BEFORE_HOLE, EDGE           // 47: the limit lies behind it: a page fault
    ljmp $SEL_WIDER, $(BEFORE_HOLE - EDGE)
9:  mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    jmp finished

    // All that is behind it lies beyond the limit of SEL_SHORT; SEL_SHORTER ends within the last move.
    .globl short_code, short_over
short_code:
in_jump:
    jmp short_over
in_call:
    call short_over
in_push:
    pushl $(short_over - short_code)
in_return:
    ret
in_branch:
    je short_over
no_branch:
    jne short_over
    int3
behind_branch:
in_loop:
    loop short_over
in_indirect:
    jmp *%eax
in_memory:
    call *task_seen+28
in_last:
    mov $0x11111111, %eax
    nop
short_over:
    int3

    // Behind the call gate. Stack: EIP, CS, the last parameter, the first one.
    .globl gate_target
gate_target:
    mov 8(%esp), %eax
    shl $16, %eax
    mov 12(%esp), %ax
    lret $8

    // Task B: its registers came from the TSS.
task_b:
    mov %ebx, task_seen
    mov %cr0, %eax
    mov %eax, task_seen+4
    str %ax
    mov %eax, task_seen+8
    clts
    ljmp $SEL_TSS_A, $0
task_b_nested:
    mov %ebx, task_seen+12
    pushfl
    pop task_seen+16
    mov tss_b, %eax
    mov %eax, task_seen+20      // the back link
    clts
    iret

    // --- 16-bit code, copied to LOW
    .code16
    .globl low_begin, low_end
low_begin:
vm_cli:
    mov $0x1234, %ax
    mov %ax, 0x700              // DS = 900h
    mov $0xb000, %bx
    mov %bx, %es
    movb $0x5a, %ss:0x702
    cli
vm_int:
    int $0x21
vm_pushf:
    pushfw
vm_in:
    inb $0x80, %al
vm_hlt:
    hlt
vm_limit:
    mov $0xffff, %bx
    mov (%bx), %ax

far_jump:
    .byte 0x66, 0xe9            // to 12345h, where C has put an int3
    .long 0x12345 - (far_jump + 6 - low_begin)

real_begin:                     // protected mode, 16-bit segments
    mov $SEL_DATA16, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $SEL_DATA, %ax          // FS keeps its limit of 4 GiB in real mode
    mov %ax, %fs
    mov %cr0, %eax
    and $~1, %eax
    mov %eax, %cr0
    ljmp $0x900, $(real_mode - low_begin)
real_mode:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7ff0, %sp
    lidtl %cs:(real_idtr - low_begin)
    movw $(real_int - low_begin), 0x21*4
    movw $0x900, 0x21*4+2
    movw $(real_fault - low_begin), 0
    movw $0x900, 2
    movw $(real_fault - low_begin), 13*4
    movw $0x900, 13*4+2
    mov $0x900, %ax
    mov %ax, %ds
    movw $0, 0x710
    int $0x21
    movw $(1f - low_begin), 0x712
    xor %cx, %cx
    div %cx
1:  movw $(2f - low_begin), 0x712
    mov $0xffff, %bx
    mov (%bx), %ax
2:  mov $SMALL, %ebx
    addr32 movl $0x13572468, %fs:(%ebx)
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $SEL_CODE, $real_done
real_int:
    addw $1, 0x710
    iret
real_fault:                     // goes on where 712h says
    addw $0x100, 0x710
    push %bp
    mov %sp, %bp
    mov 0x712, %ax
    mov %ax, 2(%bp)
    pop %bp
    iret
real_idtr:
    .word 0x3ff
    .long 0
low_end:

    .data
    .align 8
    .globl legacy_gdt, legacy_idt, legacy_log, legacy_steps, task_seen, tss_a, tss_b
legacy_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 64-bit code
    .quad 0x00cf93000000ffff    // data
    .quad 0x00cf9b000000ffff    // 32-bit code
    .quad 0x00cffb000000ffff    // user code
    .quad 0x00cff3000000ffff    // user data
    .quad 0                     // TSS A, TSS B: filled in by C
    .quad 0
    .quad 0x00009b009000ffff    // 16-bit code at LOW
    .quad 0x000093000000ffff    // 16-bit data at 0
    .quad 0x0040936000000fff    // SMALL, 4 KiB
    .quad 0x0040976000000fff    // SMALL, from 4 KiB up: expand-down
    .quad 0                     // a TSS of 32 bytes
    .quad 0x0000850000380000    // task gate to B
    .quad 0x00cf9b000000ffff    // SYSENTER's: code, data, user code, user data
    .quad 0x00cf93000000ffff
    .quad 0x00cffb000000ffff
    .quad 0x00cff3000000ffff
    .quad 0                     // a call gate of ring 3 with two parameters: filled in by C
    .quad 0                     // one to data
    .quad 0                     // short_code, and less of it: filled in by C
    .quad 0
    .quad 0x00409b5ff0000fff    // the page before the hole, and the hole too
    .quad 0x00409b5ff0001fff
    .set SEL_SHORT, 0xa0
    .set SEL_SHORTER, 0xa8
    .set SEL_EDGE, 0xb0
    .set SEL_WIDER, 0xb8
    .set SEL_CODE_FOR_SYSENTER, 0x70
    .set SEL_CALL_GATE, 0x90
    .set SEL_BAD_GATE, 0x98
legacy_gdtr:
    .word . - legacy_gdt - 1
    .quad legacy_gdt
legacy_idtr:
    .word 0x7ff
    .quad legacy_idt
two_bounds:
    .long 1, 4, 0
step: .long 0
next: .long 0
seen_eax: .long 0
saved_rsp: .quad 0
saved_gdtr: .skip 10
saved_idtr: .skip 10
    .align 4
task_seen: .skip 32
legacy_steps: .long 46

    .bss
    .align 4096
pae_directory: .skip 4096
pae_pointers: .skip 32
pae_others: .skip 32
    .align 16
legacy_idt: .skip 2048
legacy_log: .skip 48 * ROW
tss_a: .skip 104
tss_b: .skip 104
    .skip 4096
kernel_stack:
    .skip 4096
    .globl kernel_stack, user_stack, task_stack
user_stack:
    .skip 4096
task_stack:
    .section .note.GNU-stack, "", @progbits
