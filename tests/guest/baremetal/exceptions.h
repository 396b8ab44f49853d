// SPDX-License-Identifier: GPL-2.0-or-later
// Layout and case table of the exception guest; for C and the assembler.
#pragma once

// Virtual addresses below 4 GiB, so that 32-bit user code reaches them too.
#define USER_WINDOW 0xc0000000
#define USER_CODE USER_WINDOW                    // the .user section, user, read-only, executable
#define USER_DATA_PAGE (USER_WINDOW + 0x100000)  // user, writable, not executable
#define USER_STACK_TOP (USER_WINDOW + 0x102000)
#define READ_ONLY_PAGE (USER_WINDOW + 0x110000)
#define MISSING_PAGE (USER_WINDOW + 0x111000)         // right behind the read-only one
#define KERNEL_PAGE (USER_WINDOW + 0x120000)          // supervisor, writable
#define RESERVED_PAGE (USER_WINDOW + 0x130000)        // a reserved bit set in its entry
#define DATA_BEFORE_MISSING (USER_WINDOW + 0x13f000)  // writable, user; the next one is missing
#define CODE_PAGE (USER_WINDOW + 0x150000)            // user, executable; the next one is missing

// Selectors of descriptors that the guest adds to its GDT.
#define SEL_NOT_PRESENT 0x38  // data, not present
#define SEL_IO_TSS 0x50       // and 0x58: a TSS with an I/O bitmap
#define SEL_LDT 0x60          // and 0x68
#define SEL_CALL_GATE 0x70    // and 0x78

// How a case runs and what it expects.
#define IN_RING0 1
#define IN_RING3 2
#define IN_COMPAT 4     // ring 3, 32-bit code
#define IS_FAULT 8      // RF is set in the saved RFLAGS (SDM 3B, 18.3.1.1)
#define STRICT 16       // QEMU 7.2 does not do this
#define IO_FREE 32      // with IOPL 3
#define AT_CR2 128      // the saved RIP is the faulting address
#define INTEL 256       // where CPUID says GenuineIntel
#define MODIFIES 512    // the engine reads before it writes, and may report the read (SDM 3A, 4.7 wants W)
#define KEEPS_RSP 1024  // RSP is saved as it was when the case began
#define PUSHED 2048     // ... after one push
#define IO_MAP 64       // with the I/O bitmap: ports 0x80..0x83 and 0xed allowed

#define CORE_BLOCK_0 0x1000000  // guest.h, CORE_BLOCKS: where the stacks of core 0 are

#ifdef __ASSEMBLER__
// One case: a few instructions, the vector and error code they must end with, and at label 9 the RIP to be
// saved. Ring 0 runs them where they lie, ring 3 through the user mapping: the code is position-independent.
.macro CASE name:req, vector:req, error=0, kind:req, cr2=-1
    .pushsection .rodata.names, "a"
8:  .asciz "\name"
    .popsection
    .pushsection .data.cases, "aw"
    .quad 7f, 9f, 8b, \vector, \error, \cr2, \kind
    .popsection
7:
.endm
.macro END
    int $0x80
.endm
#define BOTH IN_RING0 + IN_RING3

// Page faults: error code bits P=1 W=2 RSVD=8 I=10h; U=4 is added for ring 3.
#define FAULT_CASE(name, error, kind, address, cr2, text...) \
    CASE name, 14, error, kind + IS_FAULT, cr2;              \
    mov $(address), % eax;                                   \
    9 : text;                                                \
    END
#define PAGE_CASE(name, error, kind, address, text...) FAULT_CASE(name, error, kind, address, address, text)
// Across a page boundary the address is the first byte of the page that is missing.
#define CROSS_CASE(name, error, kind, back, text...) \
    FAULT_CASE(name, error, kind, DATA_BEFORE_MISSING + 0x1000 - back, DATA_BEFORE_MISSING + 0x1000, text)
#else
#include "guest.h"

struct exception_case {
    uint64_t code, rip;
    const char* name;
    int64_t vector;
    uint64_t error, cr2;
    uint64_t kind;
};
#define NO_CR2 (~0ull)

extern const struct exception_case exception_cases[], exception_cases_end[];
extern const struct exception_case encoding_cases[], encoding_cases_end[];
extern char user_begin[], user_end[];
extern bool strict;

struct user_state {
    uint64_t rip, cs, rflags, rsp, ss;
    uint64_t rax, rcx, rdx, rdi;
};
// Leaves for another ring by IRETQ; comes back by a trap. For trap_catch.
void enter_user(void* user_state);
static inline uint64_t user_address(const void* symbol) {
    return USER_CODE + ((uint64_t)symbol - (uint64_t)user_begin);
}
// Runs ring-3 code from a label of the .user section; returns the vector that ended it.
int run_user(const void* code, uint64_t rax, uint64_t flags);
int run_user_state(struct user_state* state);

void test_table(void);  // exceptions.c
void test_debug(void);  // exceptions_kernel.c
void test_delivery(void);
void test_control(void);
void test_paging(void);
void test_descriptors(void);      // exceptions_descriptors.c
void test_debug_registers(void);  // exceptions_registers.c
void test_model_specific_registers(void);
void test_flags(void);       // exceptions_flags.c
void test_float(void);       // exceptions_float.c
void test_user_entry(void);  // exceptions_user.c
void test_syscall(void);
void test_sysenter(void);
void test_segments(void);
#endif
