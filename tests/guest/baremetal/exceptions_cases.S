// SPDX-License-Identifier: GPL-2.0-or-later
// Faults and traps of instructions that are well formed.
#include "exceptions.h"

    .section .data.cases, "aw"
    .align 8
    .globl exception_cases
exception_cases:
    .section .user, "ax"
    .code64

    CASE "no trap but the end's", 0x80, 0, BOTH
    int $0x80
9:  END
    CASE "div by zero", 0, 0, BOTH+IS_FAULT
    xor %ecx, %ecx
9:  div %ecx
    END
    CASE "div by zero in memory, 8 bits", 0, 0, BOTH+IS_FAULT
    movb $0, -64(%rsp)
9:  divb -64(%rsp)
    END
    CASE "idiv overflow", 0, 0, BOTH+IS_FAULT
    mov $0x80000000, %eax
    cdq
    mov $-1, %ecx
9:  idiv %ecx
    END
    CASE "idiv overflow, 64 bits", 0, 0, BOTH+IS_FAULT
    mov $1, %eax
    shl $63, %rax
    cqo
    mov $-1, %rcx
9:  idiv %rcx
    END
    CASE "int3", 3, 0, BOTH
    int3
9:  END
    CASE "int 3, two bytes", 3, 0, BOTH
    int $3
9:  END
    CASE "int 0x40", 0x40, 0, IN_RING0
    int $0x40
9:  END
    CASE "int 0x40 with DPL 0", 13, 0x40*8+2, IN_RING3+IS_FAULT
9:  int $0x40
    END
    CASE "int 14 with DPL 0", 13, 14*8+2, IN_RING3+IS_FAULT
9:  int $14
    END
    CASE "ud2", 6, 0, BOTH+IS_FAULT
9:  ud2
    END
    CASE "into in 64-bit code", 6, 0, BOTH+IS_FAULT
9:  .byte 0xce
    END
    CASE "push es in 64-bit code", 6, 0, BOTH+IS_FAULT
9:  .byte 0x06
    END
    CASE "daa in 64-bit code", 6, 0, BOTH+IS_FAULT
9:  .byte 0x27
    END
    CASE "far call with an immediate in 64-bit code", 6, 0, BOTH+IS_FAULT
9:  .byte 0x9a, 0, 0, 0, 0, 8, 0
    END
    CASE "mov to cs", 6, 0, BOTH+IS_FAULT
    xor %eax, %eax
9:  .byte 0x8e, 0xc8
    END
    CASE "lea of a register", 6, 0, BOTH+IS_FAULT
9:  .byte 0x8d, 0xc0
    END
    CASE "16 bytes of prefixes", 13, 0, BOTH+IS_FAULT
9:  .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
    END
    CASE "non-canonical load", 13, 0, BOTH+IS_FAULT
    mov $0x800000000000, %rax
9:  mov (%rax), %ecx
    END
    CASE "non-canonical store", 13, 0, BOTH+IS_FAULT
    mov $0xff7fffffffffffff, %rax
9:  mov %ecx, (%rax)
    END
    CASE "selector beyond the GDT", 13, 0x7f8, BOTH+IS_FAULT
    mov $0x7fb, %eax
9:  mov %eax, %es
    END
    CASE "selector beyond the GDT to fs", 13, 0x7f8, BOTH+IS_FAULT
    mov $0x7f8, %eax
9:  mov %eax, %fs
    END
    CASE "data segment not present", 11, SEL_NOT_PRESENT, BOTH+IS_FAULT
    mov $SEL_NOT_PRESENT+3, %eax
9:  mov %eax, %ds
    END
    CASE "stack segment not present", 12, SEL_NOT_PRESENT, IN_RING3+IS_FAULT
    mov $SEL_NOT_PRESENT+3, %eax
9:  mov %eax, %ss
    END
    CASE "stack segment of another ring", 13, 0x10, IN_RING3+IS_FAULT
    mov $0x10, %eax
9:  mov %eax, %ss
    END
    CASE "data segment of an inner ring", 13, 0x10, IN_RING3+IS_FAULT
    mov $0x10, %eax
9:  mov %eax, %ds
    END
    CASE "null ss in ring 3", 13, 0, IN_RING3+IS_FAULT
    xor %eax, %eax
9:  mov %eax, %ss
    END
    CASE "system segment as data", 13, 0x40, IN_RING0+IS_FAULT
    mov $0x40, %eax
9:  mov %eax, %ds
    END
    CASE "TSS that is busy", 13, 0x40, IN_RING0+IS_FAULT
    mov $0x40, %eax
9:  ltr %ax
    END
    CASE "null TSS", 13, 0, IN_RING0+IS_FAULT+STRICT
    xor %eax, %eax
9:  ltr %ax
    END
    CASE "far return to a data segment", 13, 0x10, IN_RING0+IS_FAULT
    lea 9f(%rip), %rcx
    push $0x10
    push %rcx
9:  lretq
    END
    CASE "iret to ring 0 from ring 3", 13, 8, IN_RING3+IS_FAULT
    mov %rsp, %rdx
    lea 9f(%rip), %rcx
    push $0x10
    push %rdx
    push $2
    push $8
    push %rcx
9:  iretq
    END

    // --- privileged instructions
#define PRIVILEGED(name, text...) CASE name, 13, 0, IN_RING3+IS_FAULT; 9: text; END
    PRIVILEGED("hlt in ring 3", hlt)
    PRIVILEGED("cli in ring 3", cli)
    PRIVILEGED("sti in ring 3", sti)
    PRIVILEGED("rdmsr in ring 3", rdmsr)
    PRIVILEGED("wrmsr in ring 3", wrmsr)
    PRIVILEGED("mov from cr0 in ring 3", mov %cr0, %rax)
    PRIVILEGED("mov to cr3 in ring 3", mov %rax, %cr3)
    PRIVILEGED("mov from cr8 in ring 3", mov %cr8, %rax)
    PRIVILEGED("mov to dr7 in ring 3", mov %rax, %dr7)
    PRIVILEGED("mov from dr6 in ring 3", mov %dr6, %rax)
    PRIVILEGED("clts in ring 3", clts)
    PRIVILEGED("lmsw in ring 3", lmsw %ax)
    PRIVILEGED("invlpg in ring 3", invlpg (%rsp))
    PRIVILEGED("wbinvd in ring 3", wbinvd)
    PRIVILEGED("invd in ring 3", invd)
    PRIVILEGED("lgdt in ring 3", lgdt -64(%rsp))
    PRIVILEGED("lidt in ring 3", lidt -64(%rsp))
    PRIVILEGED("lldt in ring 3", lldt %ax)
    PRIVILEGED("ltr in ring 3", ltr %ax)
    PRIVILEGED("swapgs in ring 3", swapgs)
    PRIVILEGED("sysretq in ring 3", sysretq)
    CASE "sysexit in ring 3", 13, 0, IN_RING3+IS_FAULT+INTEL
9:  sysexitl
    END
    PRIVILEGED("in al,80h in ring 3", inb $0x80, %al)
    PRIVILEGED("out 80h,al in ring 3", outb %al, $0x80)

    // --- ports
#define PORT(name, vector, kind, text...) CASE name, vector, 0, IN_RING3+kind; mov $0x80, %edx; text; END
    PORT("in eax,dx in ring 3", 13, IS_FAULT, 9: inl (%dx), %eax)
    PORT("out dx,ax in ring 3", 13, IS_FAULT, 9: outw %ax, (%dx))
    PORT("outsb in ring 3", 13, IS_FAULT, lea -64(%rsp), %rsi; 9: outsb)
    PORT("insd in ring 3", 13, IS_FAULT, lea -64(%rsp), %rdi; 9: insl)
    PORT("rep outsw in ring 3", 13, IS_FAULT, lea -64(%rsp), %rsi; mov $2, %ecx; 9: rep outsw)
    PORT("in with IOPL 3", 0x80, IO_FREE, inb (%dx), %al; int $0x80; 9:)
    PORT("out with IOPL 3", 0x80, IO_FREE, outl %eax, (%dx); int $0x80; 9:)
    PORT("in of an allowed port", 0x80, IO_MAP, inb (%dx), %al; int $0x80; 9:)
    PORT("in of four allowed ports", 0x80, IO_MAP, inl (%dx), %eax; int $0x80; 9:)
    PORT("in of four ports, the last not allowed", 13, IO_MAP+IS_FAULT, inc %edx; 9: inl (%dx), %eax)
    PORT("in of a port not allowed", 13, IO_MAP+IS_FAULT, mov $0x7f, %dl; 9: inb (%dx), %al)
    PORT("in of two ports, the second not allowed", 13, IO_MAP+IS_FAULT, mov $0x83, %dl; 9: inw (%dx), %ax)
    PORT("out of a port beyond the bitmap", 13, IO_MAP+IS_FAULT, mov $0x2000, %edx; 9: outb %al, (%dx))
    CASE "cli and sti with IOPL 3", 0x80, 0, IN_RING3+IO_FREE
    sti
    cli
    int $0x80
9:  END

    // --- page faults
    PAGE_CASE("read of a missing page", 0, BOTH, MISSING_PAGE+0x123, mov (%rax), %cl)
    PAGE_CASE("write of a missing page", 2, BOTH, MISSING_PAGE+0x124, mov %ecx, (%rax))
    PAGE_CASE("add to a missing page", 2, BOTH+MODIFIES, MISSING_PAGE+0x128, add %ecx, (%rax))
    PAGE_CASE("locked add to a missing page", 2, BOTH+STRICT, MISSING_PAGE+0x128, lock add %ecx, (%rax))
    PAGE_CASE("xchg with a missing page", 2, BOTH+STRICT, MISSING_PAGE+0x130, xchg %ecx, (%rax))
    PAGE_CASE("cmpxchg with a missing page", 2, BOTH+STRICT, MISSING_PAGE+0x130, lock cmpxchg %ecx, (%rax))
    PAGE_CASE("cmp with a missing page", 0, BOTH, MISSING_PAGE+0x138, cmp %ecx, (%rax))
    PAGE_CASE("call through a missing page", 0, BOTH, MISSING_PAGE+0x200, call *(%rax))
    PAGE_CASE("fetch of a missing page", 0x10, BOTH+AT_CR2, MISSING_PAGE+0x40, jmp *%rax)
    PAGE_CASE("fetch of a page with NX", 0x11, IN_RING3+AT_CR2, USER_DATA_PAGE+8, jmp *%rax)
    PAGE_CASE("fetch of a kernel page with NX", 0x11, IN_RING0+AT_CR2, KERNEL_PAGE+8, jmp *%rax)
    PAGE_CASE("write of a read-only page", 3, BOTH, READ_ONLY_PAGE+0x10, movb $1, (%rax))
    PAGE_CASE("locked or on a read-only page", 3, BOTH+STRICT, READ_ONLY_PAGE+0x10, lock orl $1, (%rax))
    PAGE_CASE("bts on a read-only page", 3, BOTH, READ_ONLY_PAGE+0x20, btsl $1, (%rax))
    PAGE_CASE("read of a kernel page", 1, IN_RING3, KERNEL_PAGE+0x10, mov (%rax), %ecx)
    PAGE_CASE("write of a kernel page", 3, IN_RING3, KERNEL_PAGE+0x10, mov %ecx, (%rax))
    PAGE_CASE("fetch of a kernel page", 0x11, IN_RING3+AT_CR2, KERNEL_PAGE+0x10, jmp *%rax)
    PAGE_CASE("read through a reserved bit", 9, BOTH+STRICT, RESERVED_PAGE+4, mov (%rax), %ecx)
    PAGE_CASE("write through a reserved bit", 0xb, BOTH+STRICT, RESERVED_PAGE+4, mov %ecx, (%rax))
    CROSS_CASE("read into a missing page", 0, BOTH, 3, mov (%rax), %rcx)
    CROSS_CASE("write into a missing page", 2, BOTH, 3, mov %rcx, (%rax))
    CROSS_CASE("locked xadd into a missing page", 2, BOTH+STRICT, 2, lock xadd %ecx, (%rax))
    CROSS_CASE("movups into a missing page", 2, BOTH, 7, movups %xmm0, (%rax))
    PAGE_CASE("write from a read-only into a missing page", 3, BOTH, MISSING_PAGE-2, mov %ecx, (%rax))
    // The bare processor asks for the image's last byte first.
    FAULT_CASE("fxsave into a missing page", 2, BOTH+STRICT, DATA_BEFORE_MISSING+0x1000-16,
               DATA_BEFORE_MISSING+0x1000-16+511, fxsave (%rax))
    CASE "push to a missing page", 14, 2, IN_RING3+IS_FAULT, DATA_BEFORE_MISSING+0x1ff8
    mov $DATA_BEFORE_MISSING+0x2000, %esp
9:  push %rax
    END
    CASE "call with a missing stack", 14, 2, IN_RING3+IS_FAULT, DATA_BEFORE_MISSING+0x1ff8
    mov $DATA_BEFORE_MISSING+0x2000, %esp
9:  call .
    END
    CASE "rep stosb into a missing page", 14, 2, BOTH+IS_FAULT, DATA_BEFORE_MISSING+0x1000
    mov $DATA_BEFORE_MISSING+0xff0, %edi
    mov $0x40, %ecx
9:  rep stosb
    END
    CASE "fetch that runs into a missing page", 14, 0x10, IN_RING3+IS_FAULT, CODE_PAGE+0x1000
    mov $CODE_PAGE+0x1000-2, %eax       // b8 imm32: two bytes here, the rest beyond
    jmp *%rax
9:  END


    // --- stacks of far transfers: an access of the ring that makes it, as any other of its (SDM vol. 3A 4.6.1)
#define STACK_CASE(name, error, kind, stack, cr2, text...) \
    CASE name, 14, error, kind+IS_FAULT+STRICT, cr2; mov $(stack), %esp; 9: text; END
#define RETURN_CASE(missing, kernel, text...) \
    STACK_CASE(missing, 0, IN_RING3, MISSING_PAGE+0x100, MISSING_PAGE+0x100, text); \
    STACK_CASE(kernel, 1, IN_RING3, KERNEL_PAGE+0x10, KERNEL_PAGE+0x10, text)
    RETURN_CASE("lretq from a missing stack", "lretq from a kernel stack", lretq)
    RETURN_CASE("lretl from a missing stack", "lretl from a kernel stack", lretl)
    RETURN_CASE("lretw from a missing stack", "lretw from a kernel stack", lretw)
    RETURN_CASE("lretq $16 from a missing stack", "lretq $16 from a kernel stack", lretq $16)
    RETURN_CASE("iretq from a missing stack", "iretq from a kernel stack", iretq)
    RETURN_CASE("iretl from a missing stack", "iretl from a kernel stack", iretl)
    RETURN_CASE("ret from a missing stack", "ret from a kernel stack", ret)
    RETURN_CASE("popfq from a missing stack", "popfq from a kernel stack", popfq)
    // The frame begins where it may, and goes on where it may not.
    STACK_CASE("lretq into a missing stack", 0, IN_RING3, DATA_BEFORE_MISSING+0xff8, DATA_BEFORE_MISSING+0x1000, lretq)
    STACK_CASE("iretq into a missing stack", 0, IN_RING3, DATA_BEFORE_MISSING+0xff0, DATA_BEFORE_MISSING+0x1000, iretq)
#define CALL_CASE(name, error, stack) \
    CASE name, 14, error, IN_RING3+IS_FAULT+STRICT, (stack)-8; \
    lea 9f(%rip), %rcx; mov %rcx, -32(%rsp); movw $0x2b, -24(%rsp); lea -32(%rsp), %rdi; mov $(stack), %esp; \
9:  rex.w lcall *(%rdi); END
    CALL_CASE("far call with a missing stack", 2, MISSING_PAGE+0x100)
    CALL_CASE("far call with a kernel stack", 3, KERNEL_PAGE+0x10)
    CALL_CASE("far call with a read-only stack", 3, READ_ONLY_PAGE+0x10)
    CASE "enter with a kernel stack", 14, 3, IN_RING3+IS_FAULT, KERNEL_PAGE+8
    mov $KERNEL_PAGE+0x10, %esp
9:  enter $0, $0
    END
    CASE "leave with a kernel stack", 14, 1, IN_RING3+IS_FAULT, KERNEL_PAGE+0x10
    mov $KERNEL_PAGE+0x10, %ebp
9:  leave
    END

    // --- addresses that are not canonical: #SS through the stack segment, else #GP (SDM vol. 1 3.3.7.1)
#define FAR_CASE(name, vector, reg, text...) \
    CASE name, vector, 0, IN_RING3+IS_FAULT+STRICT; mov $0x800000000100, reg; 9: text; END
    FAR_CASE("push to a non-canonical stack", 12, %rsp, push %rax)
    CASE "push below a canonical stack", 12, 0, IN_RING3+IS_FAULT+STRICT
    mov $-0x800000000000, %rsp
9:  push %rax
    END
    FAR_CASE("push imm8 to a non-canonical stack", 12, %rsp, push $1)
    FAR_CASE("push fs to a non-canonical stack", 12, %rsp, push %fs)
    FAR_CASE("pushf to a non-canonical stack", 12, %rsp, pushfq)
    FAR_CASE("pop of a non-canonical stack", 12, %rsp, pop %rax)
    FAR_CASE("popf of a non-canonical stack", 12, %rsp, popfq)
    FAR_CASE("pop to memory of a non-canonical stack", 12, %rsp, popq (%rax))
    FAR_CASE("call with a non-canonical stack", 12, %rsp, call .)
    FAR_CASE("ret with a non-canonical stack", 12, %rsp, ret)
    FAR_CASE("ret imm16 with a non-canonical stack", 12, %rsp, ret $8)
    FAR_CASE("lretq with a non-canonical stack", 12, %rsp, lretq)
    FAR_CASE("iretq with a non-canonical stack", 12, %rsp, iretq)
    FAR_CASE("enter with a non-canonical stack", 12, %rsp, enter $16, $0)
    FAR_CASE("leave with a non-canonical frame", 12, %rbp, leave)
    FAR_CASE("load by rsp", 12, %rsp, mov 8(%rsp), %eax)
    FAR_CASE("load by rsp and an index", 12, %rsp, mov 8(%rsp,%rcx,1), %eax)
    FAR_CASE("load by rbp", 12, %rbp, mov 8(%rbp), %eax)
    FAR_CASE("store by rbp", 12, %rbp, mov %eax, (%rbp))
    FAR_CASE("locked add by rbp", 12, %rbp, lock add %eax, (%rbp))
    FAR_CASE("load by rbp and fs", 13, %rbp, mov %fs:(%rbp), %eax)
    FAR_CASE("load by rbp as an index", 13, %rbp, mov (%rax,%rbp), %ecx)
    FAR_CASE("load by r12", 13, %r12, mov (%r12), %eax)
    FAR_CASE("load by r13", 13, %r13, mov (%r13), %eax)
    FAR_CASE("call through a non-canonical address", 13, %rax, call *(%rax))
    FAR_CASE("push of a non-canonical address", 13, %rax, push (%rax))
    FAR_CASE("lods of a non-canonical address", 13, %rsi, lodsb)
    FAR_CASE("movups by rsp", 12, %rsp, movups (%rsp), %xmm0)
    FAR_CASE("movups by rax", 13, %rax, movups (%rax), %xmm0)
    FAR_CASE("fxsave by rbp", 12, %rbp, fxsave (%rbp))

    // --- 32-bit user code
    .code32
#define COMPAT IN_COMPAT
    CASE "into", 4, 0, COMPAT
    mov $0x7f, %al
    inc %al
    into
9:  END
    CASE "into without overflow", 0x80, 0, COMPAT
    xor %eax, %eax
    into
    int $0x80
9:  END
    CASE "bound", 5, 0, COMPAT+IS_FAULT
    movl $1, -64(%esp)
    movl $4, -60(%esp)
    mov $5, %eax
9:  bound %eax, -64(%esp)
    END
    CASE "inc with one byte", 0x80, 0, COMPAT
    .byte 0x40
    int $0x80
9:  END
    CASE "syscall registers are 32 bits wide", 0x80, 0, COMPAT
    push %eax
    pop %ecx
    aaa
    int $0x80
9:  END
    CASE "cli in 32-bit code", 13, 0, COMPAT+IS_FAULT
9:  cli
    END
    CASE "in in 32-bit code", 13, 0, COMPAT+IS_FAULT
9:  inb $0x80, %al
    END
    CASE "read of a missing page in 32-bit code", 14, 0, COMPAT+IS_FAULT, MISSING_PAGE+8
9:  mov %ss:MISSING_PAGE+8, %eax
    END
    CASE "use of a null segment in 32-bit code", 13, 0, COMPAT+IS_FAULT+STRICT
    xor %eax, %eax
    mov %eax, %ds
9:  mov MISSING_PAGE+8, %eax
    END
    CASE "lret in 32-bit code from a kernel stack", 14, 1, COMPAT+IS_FAULT+STRICT, KERNEL_PAGE+0x10
    mov $KERNEL_PAGE+0x10, %esp
9:  lret
    END
    CASE "iret in 32-bit code from a missing stack", 14, 0, COMPAT+IS_FAULT+STRICT, MISSING_PAGE+0x10
    mov $MISSING_PAGE+0x10, %esp
9:  iret
    END
    CASE "far call in 32-bit code to a kernel stack", 14, 3, COMPAT+IS_FAULT+STRICT, KERNEL_PAGE+0xc
    mov $KERNEL_PAGE+0x10, %esp
9:  lcall $0x1b, $0x1000
    END
    CASE "far jump from 32-bit to 64-bit code", 0x80, 0, COMPAT
    call 1f
1:  pop %eax
    add $(2f-1b), %eax
    push $0x2b
    push %eax
    lret
    .code64
2:  mov $0x123456789abcdef0, %rax
    int $0x80
9:  END
    .code64
    .section .data.cases, "aw"
    .globl exception_cases_end
exception_cases_end:

    // Half an instruction for the end of a page.
    .section .rodata
    .section .note.GNU-stack, "", @progbits
