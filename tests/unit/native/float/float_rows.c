// SPDX-License-Identifier: GPL-2.0-or-later
// Runs every SSE arithmetic instruction over rows of values on the bare host and in the engine, and compares
// results, MXCSR and exceptions. Built twice: with the engine's own helpers, and with ours wrapped round it.
//
//   float_rows check ROWS [SEED]   one line of JSON: rows and differences by instruction
//   float_rows time                one line of JSON: nanoseconds by loop
#define _GNU_SOURCE
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unicorn/unicorn.h>

#include "float_blocks.h"
#ifdef COREMESH_WRAPPED
#include "tcg/x86/float.h"
#include "tcg/wraps.h"
#endif

#define DECLARE_BLOCK(name, before, instruction, after, elements) ROW_LOOP(name, before, instruction, after)
FLOAT_BLOCKS(DECLARE_BLOCK)
TIMED_BLOCKS(TIMED_LOOP)

typedef struct {
    const char* name;
    const uint8_t *begin, *instruction, *next, *end;
    Elements elements;
} Block;

#define BLOCK_ENTRY(name, before, text, after, elements)                                                 \
    {#name,   block_##name##_begin, block_##name##_instruction, block_##name##_next, block_##name##_end, \
     elements},
static const Block blocks[] = {FLOAT_BLOCKS(BLOCK_ENTRY)};

#define TIMED_ENTRY(name, body) {#name, timed_##name##_begin, NULL, NULL, timed_##name##_end, DOUBLES},
static const Block timed[] = {TIMED_BLOCKS(TIMED_ENTRY)};

enum { CODE = 0x10000, ROWS = 0x1000000, PAGE = 4096, XM = 19 };

static const uint32_t singles[] = {
    0x00000000, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000,
    0x7fc12345, 0x7f800001, 0xffa00000, 0x00000001, 0x80000001, 0x007fffff, 0x00400000, 0x00800000,
    0x80800000, 0x00ffffff, 0x7f7fffff, 0xff7fffff, 0x7f000000, 0x3f000000, 0xbf000000, 0x3fc00000,
    0x40200000, 0x3effffff, 0x4effffff, 0x4f000000, 0xcf000000, 0xcf000001, 0x5effffff, 0x5f000000,
    0xdf000000, 0xdf000001, 0x4b7fffff, 0x4b800001, 0x1f800000, 0x20000000, 0x5f800000, 0x2d800000,
    0x33800000, 0x34000000, 0x4b000001, 0x3f800001, 0x3f7fffff,
};

static const uint64_t doubles[] = {
    0x0000000000000000, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000,
    0xfff0000000000000, 0x7ff8000000000000, 0xfff8000000000000, 0x7ff8000000012345, 0x7ff0000000000001,
    0xfff4000000000000, 0x0000000000000001, 0x8000000000000001, 0x000fffffffffffff, 0x0008000000000000,
    0x0010000000000000, 0x8010000000000000, 0x001fffffffffffff, 0x7fefffffffffffff, 0xffefffffffffffff,
    0x7fe0000000000000, 0x3fe0000000000000, 0xbfe0000000000000, 0x3ff8000000000000, 0x4004000000000000,
    0x3fdfffffffffffff, 0x41dfffffffc00000, 0x41dfffffffe00000, 0x41e0000000000000, 0xc1e0000000000000,
    0xc1e0000000100000, 0xc1e0000000200000, 0x43dfffffffffffff, 0x43e0000000000000, 0xc3e0000000000000,
    0xc3e0000000000001, 0x1ff0000000000000, 0x2000000000000000, 0x5ff0000000000000, 0x3ca0000000000000,
    0x47efffffe0000000, 0x47efffffefffffff, 0x47effffff0000000, 0x47f0000000000000, 0x3810000000000000,
    0x380fffffffffffff, 0x380fffffe0000000, 0x36a0000000000000, 0x3690000000000000, 0x3690000000000001,
    0x37f0000000000000, 0x3ff0000000000001, 0x3fefffffffffffff, 0x4340000000000001, 0x3ff0000010000000,
};

static const uint64_t integers[] = {
    0,
    1,
    0xffffffffffffffff,
    0x7fffffff,
    0x80000000,
    0x7fffffffffffffff,
    0x8000000000000000,
    0x01000001,
    0x01000003,
    0xfeffffff,
    0x0020000000000001,
    0x0020000000000003,
    0x7ffffffffffffc00,
    0x7ffffffffffffdff,
    0x7fffff4000000001,
    0xffffffff80000000,
};

static uint64_t random_state = 0x9e3779b97f4a7c15;

static uint64_t random64(void) {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1d;
}

#define PICK(table) (table)[random64() % (sizeof(table) / sizeof((table)[0]))]

// Half of the values are named cases; of the others, half are any bits and half lie near 1, so that sums
// cancel.
static void fill_lanes(uint8_t* to, Elements elements) {
    for (int i = 0; i < 16; i += elements == DOUBLES ? 8 : 4) {
        uint64_t choice = random64() % 4, value = random64();
        if (elements == SINGLES) {
            uint32_t bits = choice < 2    ? PICK(singles)
                            : choice == 2 ? (uint32_t)value
                                          : 0x3f800000 + (uint32_t)(int32_t)(value % 65536) - 32768;
            memcpy(to + i, &bits, 4);
        } else if (elements == DOUBLES) {
            uint64_t bits = choice < 2    ? PICK(doubles)
                            : choice == 2 ? value
                                          : 0x3ff0000000000000 + value % 65536 - 32768;
            memcpy(to + i, &bits, 8);
        } else {
            uint32_t bits = (uint32_t)(choice < 2 ? PICK(integers) : value);
            memcpy(to + i, &bits, 4);
        }
    }
}

// A third of the rows under the default controls, a third under other rounding, FZ and DAZ, a third with
// exceptions unmasked as well. The sticky flags before the instruction are any.
static uint32_t any_mxcsr(void) {
    uint64_t value = random64();
    uint32_t flags = value >> 32 & 0x3f & (uint32_t)(value >> 40);
    switch (value % 3) {
        case 0:
            return 0x1f80 | flags;
        case 1:
            return 0x1f80 | (value >> 16 & 0xe040) | flags;
        default: {
            uint32_t masks = random64() & 0x1f80;
            return masks | (value & 64 ? value >> 16 & 0xe040 : 0) | flags;
        }
    }
}

static const Block* running;
static long misplaced;  // exceptions reported at another instruction than the one under test

static void on_sigfpe(int signal_number, siginfo_t* info, void* context) {
    (void)signal_number, (void)info;
    greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
    if (registers[REG_RIP] != (greg_t)running->instruction) abort();
    ((Row*)registers[REG_RDI])->vector = XM;
    registers[REG_RIP] = (greg_t)running->next;
}

static void run_on_host(const Block* block, Row* rows, long count) {
    running = block;
    __asm__ volatile("push %%rbx\n\tcall *%2\n\tpop %%rbx\n\temms\n\tldmxcsr %3"
                     : "+D"(rows), "+S"(count)
                     : "r"(block->begin), "m"((uint32_t){0x1f80})
                     : "rax", "xmm0", "xmm1", "mm0", "mm1", "cc", "memory");
}

static void on_interrupt(uc_engine* uc, uint32_t vector, void* rows) {
    uint64_t rip, rdi;
    uc_reg_read(uc, UC_X86_REG_RIP, &rip);
    uc_reg_read(uc, UC_X86_REG_RDI, &rdi);
    if (rip != CODE + (uint64_t)(running->instruction - running->begin)) misplaced++;
    ((Row*)((uint8_t*)rows + rdi - ROWS))->vector = vector;
    rip = CODE + (uint64_t)(running->next - running->begin);
    uc_reg_write(uc, UC_X86_REG_RIP, &rip);
}

static void must(uc_err error, const char* what) {
    if (error == UC_ERR_OK) return;
    fprintf(stderr, "%s: %s\n", what, uc_strerror(error));
    exit(2);
}

static void run_in_engine(uc_engine* uc, const Block* block, long count) {
    uint64_t rdi = ROWS, rsi = (uint64_t)count, code_bytes = (uint64_t)(block->end - block->begin);
    running = block;
    must(uc_mem_write(uc, CODE, block->begin, code_bytes), "code");
    must(uc_ctl_remove_cache(uc, CODE, CODE + PAGE), "code cache");
    uc_reg_write(uc, UC_X86_REG_RDI, &rdi);
    uc_reg_write(uc, UC_X86_REG_RSI, &rsi);
    must(uc_emu_start(uc, CODE, CODE + code_bytes, 0, 0), block->name);
}

static uc_engine* open_engine(Row* rows, size_t bytes) {
    uc_engine* uc;
    uint64_t cr4;
    must(uc_open(UC_ARCH_X86, UC_MODE_64, &uc), "open");
    must(uc_mem_map(uc, CODE, PAGE, UC_PROT_ALL), "map code");
    must(uc_mem_map_ptr(uc, ROWS, bytes, UC_PROT_ALL, rows), "map rows");
    uc_reg_read(uc, UC_X86_REG_CR4, &cr4);
    cr4 |= 3 << 9;  // OSFXSR, OSXMMEXCPT
    must(uc_reg_write(uc, UC_X86_REG_CR4, &cr4), "CR4");
#ifdef COREMESH_WRAPPED
    cm_float_thread_enter(NULL);
#endif
    return uc;
}

static void show_difference(const Block* block, const Row* host, const Row* guest) {
    fprintf(stderr, "%-12s mxcsr %04x gpr %016lx\n", block->name, host->mxcsr_in, host->gpr_in);
    const Row* sides[] = {host, guest};
    const uint64_t *d = (const uint64_t*)host->d_in, *s = (const uint64_t*)host->s_in;
    fprintf(stderr, "   in  d %016lx_%016lx s %016lx_%016lx\n", d[1], d[0], s[1], s[0]);
    for (int i = 0; i < 2; i++) {
        const uint64_t* out = (const uint64_t*)sides[i]->d_out;
        fprintf(stderr, "   %s d %016lx_%016lx gpr %016lx mxcsr %04x vector %u\n", i ? "got" : "out", out[1],
                out[0], sides[i]->gpr_out, sides[i]->mxcsr_out, sides[i]->vector);
    }
}

static int check(long count) {
    size_t bytes = ((size_t)count * sizeof(Row) + PAGE - 1) / PAGE * PAGE;
    Row* host = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    Row* guest = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {.sa_sigaction = on_sigfpe, .sa_flags = SA_SIGINFO};
    uc_hook hook;
    long values = 0, flags = 0, exceptions = 0, raised = 0, shown = 0;
    sigaction(SIGFPE, &action, NULL);
    uc_engine* uc = open_engine(guest, bytes);
    must(uc_hook_add(uc, &hook, UC_HOOK_INTR, on_interrupt, guest, 1, 0), "hook");
    printf("{\"rows\": %ld, \"instructions\": %zu, \"differing\": {", count,
           sizeof(blocks) / sizeof(blocks[0]));
    bool first = true;
    for (size_t b = 0; b < sizeof(blocks) / sizeof(blocks[0]); b++) {
        long differing = 0;
        memset(host, 0, bytes);
        for (long i = 0; i < count; i++) {
            host[i].mxcsr_in = any_mxcsr();
            host[i].gpr_in = random64() & 1 ? PICK(integers) : random64() >> (random64() & 63);
            fill_lanes(host[i].d_in, blocks[b].elements);
            fill_lanes(host[i].s_in, blocks[b].elements);
        }
        memcpy(guest, host, bytes);
        run_on_host(&blocks[b], host, count);
        run_in_engine(uc, &blocks[b], count);
        for (long i = 0; i < count; i++) {
            bool value = memcmp(host[i].d_out, guest[i].d_out, 16) || host[i].gpr_out != guest[i].gpr_out;
            bool flag = host[i].mxcsr_out != guest[i].mxcsr_out,
                 exception = host[i].vector != guest[i].vector;
            values += value, flags += flag, exceptions += exception, raised += host[i].vector == XM;
            differing += value || flag || exception;
            if ((value || flag || exception) && getenv("FLOAT_ROWS_SHOW") &&
                shown++ < atol(getenv("FLOAT_ROWS_SHOW")))
                show_difference(&blocks[b], &host[i], &guest[i]);
        }
        if (differing) printf("%s\"%s\": %ld", first ? "" : ", ", blocks[b].name, differing), first = false;
    }
    printf("}, \"values\": %ld, \"flags\": %ld, \"exceptions\": %ld, \"misplaced\": %ld, \"raised\": %ld",
           values, flags, exceptions, misplaced, raised);
#ifdef COREMESH_WRAPPED
    printf(", \"hit\": [");
    for (const struct cm_wrap_hit* hit = __start_cm_wrap_hits; hit < __stop_cm_wrap_hits; hit++)
        printf("%s[\"%s\", %d]", hit == __start_cm_wrap_hits ? "" : ", ", hit->name, hit->hit);
    printf("]");
#endif
    printf("}\n");
    uc_close(uc);
    return values || flags || exceptions || misplaced;
}

static int time_loops(void) {
    static uint8_t rows[PAGE] __attribute__((aligned(PAGE)));
    const long count = 1000000;
    const double start[] = {1.5, 0.999999, 1e-6};
    const float start_single[] = {1.5f, 0.999999f, 1e-6f};
    uint32_t mxcsr = 0x1f80;
    uc_engine* uc = open_engine((Row*)rows, PAGE);
    must(uc_reg_write(uc, UC_X86_REG_MXCSR, &mxcsr), "MXCSR");
    memcpy(rows + 32, start_single, 8);
    printf("{");
    for (size_t b = 0; b < sizeof(timed) / sizeof(timed[0]); b++) {
        double best = 1e9;
        for (int turn = 0; turn < 5; turn++) {
            struct timespec before, after;
            uint64_t rax = 12345;
            for (int i = 0; i < 3; i++) {
                uint64_t wide[2], narrow[2];
                memcpy(&wide[0], &start[i], 8), wide[1] = wide[0];
                memcpy(&narrow[0], &start_single[i], 4);
                narrow[0] = (narrow[0] & 0xffffffff) | narrow[0] << 32, narrow[1] = narrow[0];
                uc_reg_write(uc, UC_X86_REG_XMM0 + i, wide);
                uc_reg_write(uc, UC_X86_REG_XMM3 + i, narrow);
            }
            uc_reg_write(uc, UC_X86_REG_RAX, &rax);
            clock_gettime(CLOCK_MONOTONIC, &before);
            run_in_engine(uc, &timed[b], count);
            clock_gettime(CLOCK_MONOTONIC, &after);
            double ns = ((after.tv_sec - before.tv_sec) * 1e9 + (after.tv_nsec - before.tv_nsec)) / count;
            if (ns < best) best = ns;
        }
        printf("%s\"%s\": %.2f", b ? ", " : "", timed[b].name, best);
    }
    printf("}\n");
    uc_close(uc);
    return 0;
}

int main(int argc, char** argv) {
    if (argc > 3) random_state += strtoull(argv[3], NULL, 0) << 1;  // odd, so never zero
    if (argc > 2 && !strcmp(argv[1], "check")) return check(atol(argv[2]));
    if (argc > 1 && !strcmp(argv[1], "time")) return time_loops();
    fprintf(stderr, "usage: float_rows check ROWS [SEED] | time\n");
    return 2;
}
