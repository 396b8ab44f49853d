// SPDX-License-Identifier: GPL-2.0-or-later
// From the Multiboot 1 entry state (flat 32-bit protected mode, paging off) and from a start-up IPI
// (real mode) to long mode and C.
#define CORE_BLOCKS 0x1000000
#define CORE_BLOCK_SHIFT 15
#define TRAMPOLINE 0x8000
#define CR4_BITS 0x630          // PSE PAE OSFXSR OSXMMEXCPT
#define EFER_BITS 0x901         // SCE LME NXE
#define CR0_BITS 0x80010033     // PG WP NE ET MP PE

    .section .multiboot, "ax"
    .align 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)

    .text
    .code32
    .globl start32
start32:
    cli
    cld
    mov %eax, multiboot_magic
    mov %ebx, multiboot_info
    mov $(CORE_BLOCKS + (1 << CORE_BLOCK_SHIFT)), %esp
    // The first 4 GiB one to one: 2048 entries of 2 MiB in four tables.
    // User pages may lie below any entry; the last level alone says supervisor.
    movl $(pdpt + 7), pml4
    mov $pdpt, %edi
    mov $(directories + 7), %eax
1:  mov %eax, (%edi)
    add $8, %edi
    add $0x1000, %eax
    cmp $(directories + 0x4007), %eax
    jne 1b
    mov $directories, %edi
    mov $0x83, %eax
2:  mov %eax, (%edi)
    add $8, %edi
    add $0x200000, %eax
    jnc 2b
    lgdt boot_gdt_pointer
    call long_mode_on
    ljmp $0x08, $start64

// Paging and long mode on, with CR3 = pml4. The caller must jump to a 64-bit code segment next.
long_mode_on:
    mov $CR4_BITS, %eax
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    mov $EFER_BITS, %eax
    xor %edx, %edx
    wrmsr
    mov $CR0_BITS, %eax
    mov %eax, %cr0
    ret

    .code64
start64:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %ebp, %ebp
    xor %edi, %edi
    call core_main
1:  hlt
    jmp 1b

// --- the start-up page, copied to TRAMPOLINE: assembled here, run there, so only relative jumps within it.
    .globl trampoline_begin, trampoline_end
    .code16
trampoline_begin:
    cli
    cld
    // CS is the start-up vector << 8; everything else is reached through DS = 0.
    xor %ax, %ax
    mov %ax, %ds
    lock incl TRAMPOLINE + (trampoline_arrived - trampoline_begin)
    lgdtl TRAMPOLINE + (trampoline_gdt_pointer - trampoline_begin)
    mov $0x33, %eax
    mov %eax, %cr0
    ljmpl $0x30, $(TRAMPOLINE + (trampoline32 - trampoline_begin))
    .code32
trampoline32:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %ss
    mov $1, %ebp
    lock xadd %ebp, next_core
    mov %ebp, %esp
    inc %esp
    shl $CORE_BLOCK_SHIFT, %esp
    add $CORE_BLOCKS, %esp
    mov $long_mode_on, %eax
    call *%eax
    ljmp $0x08, $start64_other
    .align 8
    .globl trampoline_arrived
trampoline_arrived:
    .long 0
trampoline_gdt_pointer:
    .word 0x37
    .long boot_gdt
trampoline_end:

    .code64
start64_other:
    mov $0x10, %eax
    mov %eax, %es
    mov %ebp, %edi
    xor %ebp, %ebp
    call core_main
1:  hlt
    jmp 1b

    .data
    .align 16
    // The same selectors as guest.h names; a core makes its own table, with its TSS, in traps_start.
    .globl boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 0x08 kernel code, 64-bit
    .quad 0x00cf93000000ffff    // 0x10 kernel data
    .quad 0x00cffb000000ffff    // 0x18 user code, 32-bit
    .quad 0x00cff3000000ffff    // 0x20 user data
    .quad 0x00affb000000ffff    // 0x28 user code, 64-bit
    .quad 0x00cf9b000000ffff    // 0x30 kernel code, 32-bit
boot_gdt_pointer:
    .word 0x37
    .quad boot_gdt
    .align 4
    .globl next_core, multiboot_info, multiboot_magic
next_core: .long 1
multiboot_info: .long 0
multiboot_magic: .long 0

    .bss
    .align 4096
    .globl pml4
pml4: .skip 4096
pdpt: .skip 4096
directories: .skip 4 * 4096
    .section .note.GNU-stack, "", @progbits
