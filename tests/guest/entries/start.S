// SPDX-License-Identifier: GPL-2.0-or-later
// The entry of a kernel of 32 bits, with the header that ENTRY_KIND asks for: Multiboot (1), Multiboot 2 (2),
// or the note of PVH (3).
#define MULTIBOOT 0x1badb002
#define MULTIBOOT2 0xe85250d6

#if ENTRY_KIND == 1
    .section .header, "a"
    .balign 4
    .long MULTIBOOT, 7, -(MULTIBOOT + 7)
    .long 0, 0, 0, 0, 0
    .long 1, 80, 25, 0  // a text mode, as a preference
#elif ENTRY_KIND == 2
    .section .header, "a"
    .balign 8
header:
    .long MULTIBOOT2, 0, header_end - header, -(MULTIBOOT2 + header_end - header)
    .short 1, 0
    .long 8 + 4 * 5
    .long 1, 4, 6, 9, 15  // command line, memory, memory map, ELF sections, new RSDP
    .balign 8
    .short 5, 1
    .long 20, 80, 25, 0  // a frame buffer, optional
    .balign 8
    .short 6, 0
    .long 8  // modules on pages
    .short 0, 0
    .long 8
header_end:
#else
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long start
#endif

    .text
    .globl start
start:
    // The loader's GDT is still loaded: selectors 8 and 10h are both code.
    ljmp $0x08, $1f
1:  ljmp $0x10, $2f
2:  mov $0x18, %edx
    mov %edx, %ds
    mov %edx, %es
    mov %edx, %ss
    mov $stack_top, %esp
    push %ebx
    push %eax
    call kernel_main
3:  cli
    hlt
    jmp 3b

    .bss
    .balign 16
    .skip 8192
stack_top:
    .section .note.GNU-stack, "", @progbits
