// SPDX-License-Identifier: GPL-2.0-or-later
// Every SSE arithmetic instruction as the guest sees it: registers, MXCSR and #XM must be the bare host's.
//
// The cases are tests/unit/native/float/float_blocks.h; the rows and the host's answers are written by
// float_export and built in from the file named by FLOAT_ROWS_FILE. With the word "store" only MXCSR is
// looked at, across a store into the running code; with "bench" it prints picoseconds of loops instead.
#include "guest.h"

#include "../../unit/native/float/float_blocks.h"

__asm__(".pushsection .rodata\n.balign 16\nhost_rows: .incbin \"" FLOAT_ROWS_FILE "\"\n.popsection");
extern const uint64_t host_rows[];

FLOAT_BLOCKS(DECLARE_BLOCK)
static const Block blocks[] = {FLOAT_BLOCKS(BLOCK_ENTRY)};
TIMED_BLOCKS(TIMED_LOOP)
static const Block timed[] = {TIMED_BLOCKS(TIMED_ENTRY)};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))
#define MOST_ROWS 256u
enum { UD = 6, XM = 19, OSFXSR = 1 << 9, OSXMMEXCPT = 1 << 10 };

static Row rows[MOST_ROWS] __attribute__((aligned(64)));
static const Block* running;

static void skip(struct trap_frame* frame) {
    check(frame->rip == (uint64_t)running->instruction, "%s: vector %lu at another instruction",
          running->name, frame->vector);
    ((Row*)frame->rdi)->vector = (uint32_t)frame->vector;
    frame->rip = (uint64_t)running->next;
}

static void run(const Block* block, void* first, uint64_t count) {
    running = block;
    __asm__ volatile("call *%2; emms" : "+D"(first), "+S"(count) : "r"(block->begin) : "rax", "cc", "memory");
}

static void compare(const Block* block, const Row* host, uint64_t count) {
    uint32_t values = 0, flags = 0, exceptions = 0;
    for (uint64_t i = 0; i < count; i++) {
        rows[i] = host[i];
        memset(rows[i].d_out, 0, sizeof(Row) - offsetof(Row, d_out));
    }
    run(block, rows, count);
    for (uint64_t i = 0; i < count; i++) {
        values += memcmp(host[i].d_out, rows[i].d_out, 16) || host[i].gpr_out != rows[i].gpr_out;
        flags += host[i].mxcsr_out != rows[i].mxcsr_out;
        exceptions += host[i].vector != rows[i].vector;
    }
    check(!values && !flags && !exceptions, "%s: of %lu rows differ: values %u, flags %u, exceptions %u",
          block->name, count, values, flags, exceptions);
}

// CR4.OSXMMEXCPT clear says that the system has no handler for #XM: an unmasked exception is then #UD.
static void without_handler(const Block* block, const Row* host, uint64_t count) {
    uint32_t raised = 0;
    write_cr4(read_cr4() & ~(uint64_t)OSXMMEXCPT);
    for (uint64_t i = 0; i < count; i++) {
        rows[0] = host[i], rows[0].vector = 0;
        run(block, rows, 1);
        raised += host[i].vector != 0;
        check(rows[0].vector == (host[i].vector ? UD : 0), "%s: without OSXMMEXCPT vector %u", block->name,
              rows[0].vector);
    }
    write_cr4(read_cr4() | OSXMMEXCPT);
    check(raised, "no row of %s raises an exception", block->name);
}

// A store into the very block that runs stops it in the middle, by way of the host's fault handler: what the
// instructions before it owe to MXCSR must come through. Rounding up is in force; its flags are not yet read.
static void across_a_store_into_the_running_code(void) {
    static const double one = 1.0, three = 3.0;
    static const uint32_t up = 0x5f80;
    for (int turn = 0; turn < 8; turn++) {
        uint32_t after;
        uint64_t quotient;
        __asm__ volatile(
            "ldmxcsr %2\n\tmovsd %3, %%xmm0\n\tdivsd %4, %%xmm0\n\t"
            "movb $0x90, 1f(%%rip)\n1:\tnop\n\t"
            "stmxcsr %0\n\tmovsd %3, %%xmm0\n\tdivsd %4, %%xmm0\n\tmovq %%xmm0, %1"
            : "=m"(after), "=r"(quotient)
            : "m"(up), "m"(one), "m"(three)
            : "memory");
        check(after == (up | 0x20), "turn %d: MXCSR %x after a store into the running code", turn, after);
        check(quotient == 0x3fd5555555555556, "turn %d: rounding lost at a store into the running code",
              turn);
    }
}

// The last bytes before a page that is not there.
#define OPERAND_PAGE (1ull << 40)
#define AT_THE_END(name, bytes, instruction)                                                    \
    static void name##_at_the_end(void* unused) {                                               \
        (void)unused;                                                                           \
        __asm__ volatile(instruction "\n\temms" ::"r"(OPERAND_PAGE + 4096 - bytes) : "memory"); \
    }
#define NARROW_OPERANDS(N)                    \
    N(cvtps2pd, 8, "cvtps2pd (%0), %%xmm0")   \
    N(cvtdq2pd, 8, "cvtdq2pd (%0), %%xmm0")   \
    N(cvtps2pi, 8, "cvtps2pi (%0), %%mm0")    \
    N(cvttps2pi, 8, "cvttps2pi (%0), %%mm0")  \
    N(roundsd, 8, "roundsd $0, (%0), %%xmm0") \
    N(roundss, 4, "roundss $0, (%0), %%xmm0")
NARROW_OPERANDS(AT_THE_END)
AT_THE_END(roundpd, 8, "roundpd $0, (%0), %%xmm0")

static void operands_at_the_end_of_a_page(void) {
    static uint8_t page[4096] __attribute__((aligned(4096)));
    page_map(OPERAND_PAGE, (uint64_t)page, PAGE_PRESENT | PAGE_WRITE);
#define EXPECT_NO_FAULT(name, bytes, instruction) \
    check(trap_catch(name##_at_the_end, NULL) == -1, #name " reads more than its " #bytes " bytes");
    NARROW_OPERANDS(EXPECT_NO_FAULT)
    int vector = trap_catch(roundpd_at_the_end, NULL);
    check(vector == 14 || vector == 13, "roundpd of 16 bytes over the end of a page: vector %d", vector);
}

static void load_start_values(void) {
    static const double doubles[6] __attribute__((aligned(16))) = {1.5, 1.5, 0.999999, 0.999999, 1e-6, 1e-6};
    static const float singles[12] __attribute__((aligned(16))) = {
        1.5f, 1.5f, 1.5f, 1.5f, 0.999999f, 0.999999f, 0.999999f, 0.999999f, 1e-6f, 1e-6f, 1e-6f, 1e-6f};
    static const uint32_t mxcsr = 0x1f80;
    __asm__ volatile(
        "ldmxcsr %2; movaps %0, %%xmm0; movaps 16+%0, %%xmm1; movaps 32+%0, %%xmm2;"
        "movaps %1, %%xmm3; movaps 16+%1, %%xmm4; movaps 32+%1, %%xmm5" ::"m"(doubles),
        "m"(singles), "m"(mxcsr));
}

static void bench(uint64_t count) {
    uint64_t per_us = tsc_hz() / 1000000;
    for (size_t b = 0; b < COUNT(timed); b++) {
        uint64_t best = UINT64_MAX;
        memset(rows, 0, sizeof(rows[0]));
        for (int turn = 0; turn < 100; turn++) {  // many short ones: on a busy machine some run undisturbed
            load_start_values();
            uint64_t from = read_tsc();
            run(&timed[b], rows, count);
            uint64_t cycles = read_tsc() - from;
            if (cycles < best) best = cycles;
        }
        print("bench %s_ps=%lu\n", timed[b].name, best * 1000000 / per_us / count);
    }
}

void guest_main(void) {
    write_cr4(read_cr4() | OSFXSR | OSXMMEXCPT);
    trap_handlers[XM] = trap_handlers[UD] = skip;
    if (option("bench")) {
        bench(option_number("bench", 20000));
        finish();
    }
    across_a_store_into_the_running_code();
    if (option("store")) finish();
    operands_at_the_end_of_a_page();
    uint64_t count = host_rows[1];
    const Row* host = (const Row*)(host_rows + 2);
    if (check(host_rows[0] == COUNT(blocks) && count <= MOST_ROWS,
              "the built-in rows are of another version"))
        for (size_t b = 0; b < COUNT(blocks); b++, host += count) compare(&blocks[b], host, count);
    without_handler(&blocks[3], (const Row*)(host_rows + 2) + 3 * count, count);
    finish();
}
