// SPDX-License-Identifier: GPL-2.0-or-later
// Runs every SSE arithmetic instruction over rows of values on the bare host and in the engine, and compares
// results, MXCSR and exceptions. Built twice: with the engine's own helpers, and with ours wrapped round it.
//
//   float_rows check ROWS [SEED]   one line of JSON: rows and differences by instruction
//   float_rows time                one line of JSON: nanoseconds by loop
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unicorn/unicorn.h>

#include "float_host.h"
#ifdef COREMESH_WRAPPED
#include "tcg/wraps.h"
#endif

TIMED_BLOCKS(TIMED_LOOP)
static const Block timed[] = {TIMED_BLOCKS(TIMED_ENTRY)};

enum { CODE = 0x10000, ROWS = 0x1000000, PAGE = 4096 };

static const Block* running;
static long misplaced;  // exceptions reported at another instruction than the one under test

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
    must(uc_ctl_set_cpu_model(uc, UC_CPU_X86_HASWELL), "CPU model");
    must(uc_mem_map(uc, CODE, PAGE, UC_PROT_ALL), "map code");
    must(uc_mem_map_ptr(uc, ROWS, bytes, UC_PROT_ALL, rows), "map rows");
    uc_reg_read(uc, UC_X86_REG_CR4, &cr4);
    cr4 |= 3 << 9;  // OSFXSR, OSXMMEXCPT
    must(uc_reg_write(uc, UC_X86_REG_CR4, &cr4), "CR4");
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
    uc_hook hook;
    long values = 0, flags = 0, exceptions = 0, raised = 0, shown = 0;
    uc_engine* uc = open_engine(guest, bytes);
    must(uc_hook_add(uc, &hook, UC_HOOK_INTR, on_interrupt, guest, 1, 0), "hook");
    printf("{\"rows\": %ld, \"instructions\": %zu, \"differing\": {", count, float_block_count);
    bool first = true;
    for (size_t b = 0; b < float_block_count; b++) {
        long differing = 0;
        float_fill_rows(&float_blocks[b], host, count);
        memcpy(guest, host, bytes);
        float_run_on_host(&float_blocks[b], host, count);
        run_in_engine(uc, &float_blocks[b], count);
        for (long i = 0; i < count; i++) {
            bool value = memcmp(host[i].d_out, guest[i].d_out, 16) || host[i].gpr_out != guest[i].gpr_out;
            bool flag = host[i].mxcsr_out != guest[i].mxcsr_out,
                 exception = host[i].vector != guest[i].vector;
            values += value, flags += flag, exceptions += exception, raised += host[i].vector == XM;
            differing += value || flag || exception;
            if ((value || flag || exception) && getenv("FLOAT_ROWS_SHOW") &&
                shown++ < atol(getenv("FLOAT_ROWS_SHOW")))
                show_difference(&float_blocks[b], &host[i], &guest[i]);
        }
        if (differing)
            printf("%s\"%s\": %ld", first ? "" : ", ", float_blocks[b].name, differing), first = false;
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
    const long count = 20000;
    const double start[] = {1.5, 0.999999, 1e-6};
    const float start_single[] = {1.5f, 0.999999f, 1e-6f};
    uint32_t mxcsr = 0x1f80;
    uc_engine* uc = open_engine((Row*)rows, PAGE);
    must(uc_reg_write(uc, UC_X86_REG_MXCSR, &mxcsr), "MXCSR");
    memcpy(rows + 32, start_single, 8);
    printf("{");
    for (size_t b = 0; b < sizeof(timed) / sizeof(timed[0]); b++) {
        double best = 1e9;
        for (int turn = 0; turn < 100; turn++) {  // many short ones: on a busy machine some run undisturbed
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
    if (argc > 3) float_seed(strtoull(argv[3], NULL, 0));
    if (argc > 2 && !strcmp(argv[1], "check")) return check(atol(argv[2]));
    if (argc > 1 && !strcmp(argv[1], "time")) return time_loops();
    fprintf(stderr, "usage: float_rows check ROWS [SEED] | time\n");
    return 2;
}
