// SPDX-License-Identifier: GPL-2.0-or-later
// What a bare-metal guest may use: the console, traps, page tables, cores and local APICs of a PC.
//
// The image is a Multiboot 1 kernel at 1 MiB. It runs in long mode with the first 4 GiB mapped one to one by
// 2 MiB supervisor pages. RAM the runtime takes for itself: the page at TRAMPOLINE, a block for each core
// from CORE_BLOCKS, page tables from TABLE_POOL. A guest needs 32 MiB of RAM with up to 255 cores.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TRAMPOLINE 0x8000u
#define TABLE_POOL 0x800000u
#define CORE_BLOCKS 0x1000000u
#define CORE_BLOCK 0x8000u
#define MAX_CORES 256u

// Selectors; the order of the user ones is what SYSRET wants (SDM 2B, SYSRET: STAR[63:48], +8, +16).
#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_CODE32 0x1b
#define USER_DATA 0x23
#define USER_CODE64 0x2b
#define KERNEL_CODE32 0x30
#define SPARE_SELECTOR 0x38
#define TSS_SELECTOR 0x40
#define GDT_ENTRIES 16

struct __attribute__((packed)) tss64 {
    uint32_t reserved0;
    uint64_t rsp[3];
    uint64_t reserved1;
    uint64_t ist[7];
    uint64_t reserved2;
    uint16_t reserved3, io_map;
};

struct trap_frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

struct trap {
    uint64_t vector, error, rip, cs, rflags, rsp, ss, cr2, rax;
    uint64_t stack, handler_flags;  // RSP before the hardware pushed SS; RFLAGS inside the handler
};

// A core's block: this at its foot, its stacks above. The block is aligned, so RSP tells the core.
struct core {
    uint64_t catch_rsp;  // non-zero inside trap_catch; traps.S knows that it comes first
    uint32_t index, apic_id;
    uint64_t gdt[GDT_ENTRIES];
    struct tss64 tss;
    struct trap trap;  // what trap_catch caught last
};

static inline struct core* this_core(void) {
    uint64_t rsp;
    __asm__ volatile("mov %%rsp, %0" : "=r"(rsp));
    return (struct core*)(rsp & ~(uint64_t)(CORE_BLOCK - 1));
}

// --- instructions
static inline void out8(uint16_t port, uint8_t value) {
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
static inline void out16(uint16_t port, uint16_t value) {
    __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port));
}
static inline void out32(uint16_t port, uint32_t value) {
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}
static inline uint8_t in8(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline uint16_t in16(uint16_t port) {
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline uint32_t in32(uint16_t port) {
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline uint64_t read_msr(uint32_t msr) {
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}
static inline void write_msr(uint32_t msr, uint64_t value) {
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}
static inline void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]) {
    __asm__ volatile("cpuid"
                     : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                     : "a"(leaf), "c"(subleaf));
}
static inline uint64_t read_tsc(void) {
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}
static inline uint64_t read_flags(void) {
    uint64_t flags;
    __asm__ volatile("pushfq; popq %0" : "=r"(flags)::"memory");
    return flags;
}
#define DEFINE_CONTROL_REGISTER(name)                                    \
    static inline uint64_t read_##name(void) {                           \
        uint64_t value;                                                  \
        __asm__ volatile("mov %%" #name ", %0" : "=r"(value)::"memory"); \
        return value;                                                    \
    }                                                                    \
    static inline void write_##name(uint64_t value) {                    \
        __asm__ volatile("mov %0, %%" #name ::"r"(value) : "memory");    \
    }
DEFINE_CONTROL_REGISTER(cr0)
DEFINE_CONTROL_REGISTER(cr2)
DEFINE_CONTROL_REGISTER(cr3)
DEFINE_CONTROL_REGISTER(cr4)
DEFINE_CONTROL_REGISTER(cr8)
static inline void interrupts_on(void) { __asm__ volatile("sti" ::: "memory"); }
static inline void interrupts_off(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void wait_for_interrupt(void) { __asm__ volatile("sti; hlt" ::: "memory"); }
static inline void pause(void) { __asm__ volatile("pause" ::: "memory"); }

// --- console.c: COM1, the command line, the end
void print(const char* format, ...)
    __attribute__((format(printf, 1, 2)));  // %s %c %d %u %x with l; whole lines
// A check that fails prints its line and is counted; returns the condition.
bool check(bool good, const char* format, ...) __attribute__((format(printf, 2, 3)));
extern uint32_t failures;
// Prints the verdict and writes debug-exit: 16 when all checks held (status 33), 1 otherwise (status 3).
void finish(void) __attribute__((noreturn));
void debug_exit(uint32_t value) __attribute__((noreturn));
bool option(const char* name);  // is the word, or name=..., on the command line?
uint64_t option_number(const char* name, uint64_t otherwise);
void* memset(void* to, int value, size_t length);
void* memcpy(void* to, const void* from, size_t length);
int memcmp(const void* left, const void* right, size_t length);

// --- traps.S, traps.c: an IDT of 256 interrupt gates
typedef void trap_handler(struct trap_frame* frame);
extern trap_handler* trap_handlers[256];  // a vector's own handler; else trap_catch; else a dump and the end
void traps_start(struct core* core);      // GDT, TSS and IDT of the calling core
void gate_set(uint8_t vector, uint64_t entry, uint16_t selector, uint8_t access, uint8_t ist);
uint64_t trap_entry(uint8_t vector);
// Calls body(argument). A trap inside ends it: returns the vector, with this_core()->trap filled. -1 if there
// was none. Works from ring 3 too: flags, stack and callee-saved registers are those of the caller again.
int trap_catch(void (*body)(void*), void* argument);

// --- paging.c: 4 KiB pages beside the identity map (any address outside the first 4 GiB)
#define PAGE_PRESENT 1ull
#define PAGE_WRITE 2ull
#define PAGE_USER 4ull
#define PAGE_NX (1ull << 63)
void page_map(uint64_t virtual_address, uint64_t physical, uint64_t flags);
uint64_t* page_entry(uint64_t virtual_address);   // of a page mapped by page_map
void page_clear_large(uint64_t virtual_address);  // takes the 2 MiB around it out of the identity map

// --- lapic.c: the local APIC of the calling core, in xAPIC or x2APIC mode
enum {
    APIC_ID = 0x20,
    APIC_VERSION = 0x30,
    APIC_TPR = 0x80,
    APIC_PPR = 0xa0,
    APIC_EOI = 0xb0,
    APIC_LDR = 0xd0,
    APIC_DFR = 0xe0,
    APIC_SVR = 0xf0,
    APIC_ISR = 0x100,
    APIC_TMR = 0x180,
    APIC_IRR = 0x200,
    APIC_ESR = 0x280,
    APIC_ICR = 0x300,
    APIC_ICR_HIGH = 0x310,
    APIC_LVT_TIMER = 0x320,
    APIC_LVT_LINT0 = 0x350,
    APIC_LVT_LINT1 = 0x360,
    APIC_LVT_ERROR = 0x370,
    APIC_TIMER_INITIAL = 0x380,
    APIC_TIMER_CURRENT = 0x390,
    APIC_TIMER_DIVIDE = 0x3e0,
    APIC_SELF_IPI = 0x3f0,
};
enum {
    ICR_LOWEST = 0x100,
    ICR_NMI = 0x400,
    ICR_INIT = 0x500,
    ICR_STARTUP = 0x600,
    ICR_LOGICAL = 0x800,
    ICR_ASSERT = 0x4000,
    ICR_SELF = 0x40000,
    ICR_ALL = 0x80000,
    ICR_OTHERS = 0xc0000,
};
#define MSR_APIC_BASE 0x1b
#define MSR_X2APIC 0x800
bool lapic_is_x2(void);
bool lapic_has_x2(void);
void lapic_enable(bool x2);  // software enable with spurious vector 0xff, all LVTs masked, TPR 0
uint32_t lapic_read(uint32_t reg);
void lapic_write(uint32_t reg, uint32_t value);
uint32_t lapic_id(void);
void lapic_send(uint32_t destination, uint32_t command);  // waits until the last one was accepted
static inline void lapic_eoi(void) { lapic_write(APIC_EOI, 0); }

// --- cores.c
extern uint32_t cores_found, core_apic_ids[MAX_CORES], cores_running;
extern uint64_t acpi_rsdp;  // 0 when the firmware tables were not found
void cores_start(void);     // all the machine has, each in its job loop; returns when all run
void cores_run(void (*job)(uint32_t core), uint32_t count);  // on cores 0..count-1; returns when all are done
void cores_post(void (*job)(uint32_t core),
                uint32_t count);  // the same for the others alone, without waiting
void cores_join(void);            // waits for those of cores_post
void trampoline_copy(void);
// INIT, then one SIPI to the given page, from where the core must reach TRAMPOLINE; false after twenty
// seconds.
bool core_start(uint32_t index, uint32_t page);
void core_wait(void) __attribute__((noreturn));  // the job loop; uses vector 0xf0 to wake
uint64_t tsc_hz(void);                           // measured once against the ACPI PM timer
void delay_us(uint64_t microseconds);

struct barrier {
    volatile uint32_t arrived, generation;
};
void barrier_wait(struct barrier* barrier, uint32_t count);

void guest_main(void);  // what a guest defines
