// SPDX-License-Identifier: GPL-2.0-or-later
// A core that does one kind of work for ever and counts the interrupts that come meanwhile.
//
// Options: work=N, one of the numbers in `works`. The one who drives it finds the counters and the word that
// ends the guest at BOX; all ends happen inside a handler, so that the work itself need not look.
#include "guest.h"

#define BOX 0x700000u
#define HOLE 0x8000000000ull  // nothing is mapped there

struct box {
    volatile uint32_t counters[4];  // by kind: three vectors, then NMI
    volatile uint32_t ready, stop;
    volatile uint32_t faults, wrong, turns;
};
#define SHARED ((struct box*)(uint64_t)BOX)

static const uint8_t vectors[3] = {0x41, 0x93, 0xe5};
static uint8_t area[3][16384] __attribute__((aligned(4096)));

static void end_if_asked(void) {
    if (!SHARED->stop) return;
    print("kicked faults=%u turns=%u\n", SHARED->faults, SHARED->turns);
    check(!SHARED->wrong, "%u turns of the work came out wrong", SHARED->wrong);
    finish();
}

static void on_interrupt(struct trap_frame* frame) {
    for (unsigned kind = 0; kind < 3; kind++) {
        if (vectors[kind] == frame->vector) SHARED->counters[kind]++;
    }
    lapic_eoi();
    end_if_asked();
}

static void on_nmi(struct trap_frame* frame) {
    (void)frame;
    SHARED->counters[3]++;
}

static void on_page_fault(struct trap_frame* frame) {
    SHARED->faults++;
    if (read_cr2() != HOLE + SHARED->turns % 4096) SHARED->wrong++;
    frame->rip += 2;  // mov (%rax), %al
}

// --- the works

static void arithmetic(void) {
    __asm__ volatile("1: add $1, %%rax\n imul %%rax, %%rbx\n rol $3, %%rbx\n xor %%rbx, %%rcx\n jmp 1b" ::
                         : "rax", "rbx", "rcx");
}

static void halt(void) { __asm__ volatile("1: hlt\n jmp 1b"); }

static void sti_halt(void) {
    for (uint32_t i = 0;; i++) {
        interrupts_off();
        for (volatile uint32_t n = i % 64; n; n--) {
        }
        wait_for_interrupt();
        SHARED->turns++;
    }
}

static void strings(void) {
    for (uint32_t turn = 1;; turn++) {
        const uint8_t fill = (uint8_t)turn;
        void *to = area[0], *from = area[0], *copy = area[1];
        uint64_t count = sizeof area[0], words = sizeof area[0] / 8;
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(fill) : "memory");
        __asm__ volatile("rep movsq" : "+D"(copy), "+S"(from), "+c"(words)::"memory");
        if (count || words || area[1][0] != fill || memcmp(area[0], area[1], sizeof area[0])) SHARED->wrong++;
        SHARED->turns++;
    }
}

static void faults(void) {
    for (;;) {
        __asm__ volatile("movb (%%rax), %%al" ::"a"(HOLE + SHARED->turns % 4096) : "memory");
        SHARED->turns++;
        if (SHARED->faults != SHARED->turns) SHARED->wrong++;
    }
}

static void windows(void) {  // short moments in which an interrupt may come
    for (;;) {
        __asm__ volatile(
            "cli\n mov %%ss, %%eax\n nop\n sti\n nop\n cli\n pushfq\n orq $0x200, (%%rsp)\n popfq\n nop\n "
            "cli\n"
            "sti\n mov %%eax, %%ss\n nop\n nop" ::
                : "rax", "memory", "cc");
        write_cr8(14);  // class 0xe alone comes through; the manual's order: SDM 3A, 11.8.3.1
        for (unsigned i = 0; i < 20; i++) pause();
        write_cr8(0);
    }
}

static uint32_t fib(uint32_t n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static void calls(void) {
    uint32_t (*volatile call)(uint32_t) = fib;
    for (;; SHARED->turns++) {
        if (call(12) != 144) SHARED->wrong++;
    }
}

static void changing_code(void) {
    uint8_t* code = area[2];
    for (uint32_t turn = 0;; turn++) {
        const uint8_t text[6] = {0xb8, (uint8_t)turn, (uint8_t)(turn >> 8), (uint8_t)(turn >> 16), 0, 0xc3};
        memcpy(code, text, sizeof text);
        if (((uint32_t(*)(void))code)() != (turn & 0xffffff)) SHARED->wrong++;
        SHARED->turns++;
    }
}

static void input_output(void) {
    for (;; SHARED->turns++) {
        if (in8(0x2f0) != 0xff || lapic_read(APIC_SVR) != 0x1ff) SHARED->wrong++;
        read_msr(MSR_APIC_BASE);
    }
}

static void deaf(void) {  // for the control: an interrupt that is never taken must be noticed
    interrupts_off();
    arithmetic();
}

static void (*const works[])(void) = {arithmetic, halt,  sti_halt,      strings,      faults,
                                      windows,    calls, changing_code, input_output, deaf};

void guest_main(void) {
    lapic_enable(false);
    memset((void*)SHARED, 0, sizeof *SHARED);
    for (unsigned kind = 0; kind < 3; kind++) trap_handlers[vectors[kind]] = on_interrupt;
    trap_handlers[2] = on_nmi;
    trap_handlers[14] = on_page_fault;
    uint64_t work = option_number("work", 0);
    print("kicked work=%lu\n", work);
    SHARED->ready = 1;
    interrupts_on();
    works[work % (sizeof works / sizeof *works)]();
    finish();
}
