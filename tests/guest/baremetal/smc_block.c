// SPDX-License-Identifier: GPL-2.0-or-later
// A block changes the code that follows in it, by each kind of store, or after another kind of store has made
// its page writable. The next instruction is the new one (SDM vol. 3A, 13.1.3 and 13.6: so on Intel).
#include "smc.h"

// The image is writable. 2: room for data beside the code, on the same page. 1: MOV EAX, whose operand is
// changed.
#define BESIDE(instruction)                               \
    "jmp 3f\n.balign 1024\n2: .skip 528\n3: " instruction \
    "\n"                                                  \
    "movl %[value], 1f+1(%%rip)\n"                        \
    "1: movl $0x55, %%eax\n"

#define AFTER(name, instruction)                                          \
    static uint32_t name(uint32_t value) {                                \
        uint32_t got, zero = 0;                                           \
        __asm__ volatile(BESIDE(instruction)                              \
                         : "=&a"(got), "+c"(zero)                         \
                         : [value] "r"(value), "b"(0), "d"(0), "S"(&zero) \
                         : "memory", "cc");                               \
        return got;                                                       \
    }

AFTER(after_move, "movl $7, 2b(%%rip)")
AFTER(after_exchange, "xchg %%ecx, 2b(%%rip)")
AFTER(after_bit, "lock btsl $3, 2b(%%rip)")
AFTER(after_add, "lock xaddl %%ecx, 2b(%%rip)")
AFTER(after_compare_8, "lock cmpxchg8b 2b(%%rip)")
AFTER(after_compare_16, "lock cmpxchg16b 2b(%%rip)")
AFTER(after_save, "fxsave 2b(%%rip)")
AFTER(after_old_save, "fnsave 2b(%%rip)")
AFTER(after_environment, "fnstenv 2b(%%rip)")
AFTER(after_long_double, "fld1; fstpt 2b(%%rip)")
AFTER(after_decimal, "fld1; fbstp 2b(%%rip)")
AFTER(after_control, "stmxcsr 2b(%%rip)")
AFTER(after_table, "sidt 2b(%%rip)")
AFTER(after_vector, "movups %%xmm0, 2b(%%rip)")
AFTER(after_push, "xchg %%rsp, %%rdx; lea 2b+64(%%rip), %%rsp; pushq $1; xchg %%rsp, %%rdx")

// The instruction itself writes the operand of the next one. Eight bytes: the operand, and the NOPs behind
// it.
#define INTO(name, instruction)                                                                             \
    static uint32_t name(uint32_t value) {                                                                  \
        uint32_t got;                                                                                       \
        uint64_t wide = value | 0x9090909000000000ull;                                                      \
        __asm__ volatile(                                                                                   \
            "movl $0x55, 1f+1(%%rip)\n"                                                                     \
            "jmp 3f\n.balign 256\n3: " instruction "\n1: movl $0x55, %%eax\n.byte 0x90, 0x90, 0x90, 0x90\n" \
            : "=&a"(got)                                                                                    \
            : "c"(wide), "b"(value), "d"(0x90909090), "S"(&wide), [wide] "m"(wide)                          \
            : "rdi", "memory", "cc");                                                                       \
        return got;                                                                                         \
    }

INTO(by_exchange, "xchg %%rcx, 1f+1(%%rip)")
INTO(by_add, "subl $0x55, %%ecx; lock xaddl %%ecx, 1f+1(%%rip)")
INTO(by_compare, "movl $0x55, %%eax; lock cmpxchg %%ebx, 1f+1(%%rip)")
INTO(by_compare_8,
     "movl %%ebx, %%ecx; xchg %%ebx, %%ecx; movl %%edx, %%ecx; movl $0x55, %%eax; cmpxchg8b 1f+1(%%rip)")
INTO(by_integer, "fildl %[wide]; fistpl 1f+1(%%rip)")
INTO(by_wide_integer, "fildll %[wide]; fistpll 1f+1(%%rip)")
INTO(by_string, "lea 1f+1(%%rip), %%rdi; movsq")
INTO(by_repeated_string, "lea 1f+1(%%rip), %%rdi; movl $8, %%ecx; rep movsb")
INTO(by_pop, "pushq %[wide]; popq 1f+1(%%rip)")
INTO(by_vector, "movq %[wide], %%xmm0; movq %%xmm0, 1f+1(%%rip)")

static uint32_t call(uint64_t at, uint64_t rax, uint64_t rdi) {
    __asm__ volatile("call *%1" : "+a"(rax) : "r"(at), "D"(rdi) : "rcx", "memory", "cc");
    return (uint32_t)rax;
}

// A store over a page's end whose first part, or whose second part, goes into the block.
static unsigned over_the_end(void) {
    unsigned stale = 0;
    for (uint32_t value = 1; value <= 50; value++) {
        // mov [rdi], rax; mov eax, imm32, whose operand ends with the page; on the next page RET
        static const uint8_t first[] = {0x48, 0x89, 0x07, 0xb8, 0x55, 0x55, 0x55, 0x55};
        memcpy((void*)(uint64_t)(CODE + 0x1000 - sizeof first), first, sizeof first);
        *(volatile uint32_t*)(uint64_t)(CODE + 0x1000) = 0x909090c3;
        stale += call(CODE + 0x1000 - sizeof first, 0x909090c300000000ull | value, CODE + 0xffc) != value;
        // At a page's start: mov [rdi], rax; mov al, imm8; ret
        static const uint8_t second[] = {0x48, 0x89, 0x07, 0xb0, 0x55, 0xc3};
        memcpy((void*)(uint64_t)(CODE + 0x3000), second, sizeof second);
        const uint64_t bytes = 0xb0078948000000ull | (uint64_t)value << 56;
        stale += (uint8_t)call(CODE + 0x3000, bytes, CODE + 0x2ffd) != value;
    }
    return stale;
}

void own_block(void) {
    static const struct {
        const char* name;
        uint32_t (*run)(uint32_t);
    } kinds[] = {
        {"move", after_move},
        {"exchange", after_exchange},
        {"lock bts", after_bit},
        {"lock xadd", after_add},
        {"cmpxchg8b", after_compare_8},
        {"cmpxchg16b", after_compare_16},
        {"fxsave", after_save},
        {"fnsave", after_old_save},
        {"fnstenv", after_environment},
        {"fstpt", after_long_double},
        {"fbstp", after_decimal},
        {"stmxcsr", after_control},
        {"sidt", after_table},
        {"movups", after_vector},
        {"push", after_push},
        {"by exchange", by_exchange},
        {"by xadd", by_add},
        {"by cmpxchg", by_compare},
        {"by cmpxchg8b", by_compare_8},
        {"by fistpl", by_integer},
        {"by fistpll", by_wide_integer},
        {"by movsq", by_string},
        {"by rep movsb", by_repeated_string},
        {"by pop", by_pop},
        {"by movq", by_vector},
    };
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        unsigned stale = 0;
        for (uint32_t value = 1; value <= 20; value++) stale += kinds[i].run(value) != value;
        check(!stale, "%u of 20 changes of code that follows in the block were not seen: %s", stale,
              kinds[i].name);
    }
    unsigned stale = over_the_end();
    check(!stale, "%u of 100 stores over a page's end into the block were not seen", stale);
}
