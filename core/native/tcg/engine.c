// SPDX-License-Identifier: GPL-2.0-or-later
// Opening, running and kicking an engine.
//
// Neither uc_emu_start nor uc_emu_stop is used: between two starts a stop request is lost. The loop of
// execution is entered directly, and a kick is the flag that each block tests at its head. That flag is
// cleared by the loop before it calls cpu_exec_interrupt, which is ours and which reads the mailbox: so a
// kick that comes at any moment is either seen by the next block head or by the mailbox read that follows.
#include <stdio.h>
#include <string.h>

#include "internals.h"
#include "shared_blocks.h"
#include "sysemu/cpus.h"
#include "accel/tcg/translate-all.h"
#include "unicorn/unicorn.h"

// No guest address reaches this value, which is not canonical: blocks are never compared with an «until» PC.
#define UNREACHABLE_PC UINT64_C(0x7eadbeef00000000)

// The engine's guests have 40 bits of physical address.
#define CM_ADDRESS_END (UINT64_C(1) << 40)

static uint64_t hole_read(uc_engine* uc, uint64_t offset, unsigned size, void* data) {
    (void)uc, (void)offset, (void)data;
    return size == 8 ? UINT64_MAX : (UINT64_C(1) << (8 * size)) - 1;
}

static void hole_write(uc_engine* uc, uint64_t offset, unsigned size, uint64_t value, void* data) {
    (void)uc, (void)offset, (void)size, (void)value, (void)data;
}

static uc_err open_uc(uc_engine** uc, unsigned code_buffer_bytes) {
    uc_err error = uc_open(CM_TARGET_ARCH, CM_TARGET_MODE, uc);
    if (error) return error;
    error = uc_ctl_set_cpu_model(*uc, CM_TARGET_MODEL);
    if (!error && code_buffer_bytes) error = uc_ctl_set_tcg_buffer_size(*uc, code_buffer_bytes);
    return error;
}

const char* cm_engine_selfcheck(void) {
    unsigned major, minor;
    unsigned version = uc_version(&major, &minor);
    if (version != UC_MAKE_VERSION(UC_VERSION_MAJOR, UC_VERSION_MINOR) && (major != 2 || minor != 1)) {
        return "the linked Unicorn is not 2.1";
    }
    uc_engine* uc = NULL;
    if (open_uc(&uc, 1u << 20) || uc_mem_map(uc, 0, 0x1000, UC_PROT_ALL)) return "uc_open fails";
    const char* difference = cm_target_compare(uc);
    uc_close(uc);
    return difference;
}

static int by_offset(const void* a, const void* b) {
    const uint64_t left = ((const struct cm_mapped_region*)a)->at.offset;
    const uint64_t right = ((const struct cm_mapped_region*)b)->at.offset;
    return (left > right) - (left < right);
}

static int by_address(const void* a, const void* b) {
    const uint64_t left = ((const struct cm_mapped_region*)a)->at.gpa;
    const uint64_t right = ((const struct cm_mapped_region*)b)->at.gpa;
    return (left > right) - (left < right);
}

static int by_size(const void* a, const void* b) {
    const uint64_t left = ((const struct cm_mapped_region*)a)->at.bytes;
    const uint64_t right = ((const struct cm_mapped_region*)b)->at.bytes;
    return (left < right) - (left > right);
}

// All that is not memory is I/O: an access to nothing must not stop the engine, which would repeat it for
// ever.
static bool map_hole(struct cm_engine* engine, uint64_t from, uint64_t to) {
    if (from == to) return true;
    if (uc_mmio_map(engine->uc, from, to - from, hole_read, NULL, hole_write, NULL)) return false;
    if (!engine->hole_region) engine->hole_region = engine->uc->memory_mapping(engine->uc, from);
    return true;
}

static bool map_memory(struct cm_engine* engine, const struct cm_ram_layout* ram) {
    uc_engine* uc = engine->uc;
    struct cm_mapped_region* const regions = engine->regions;
    if (ram->count > CM_RAM_REGIONS) return false;
    engine->guest_view = ram->guest_view;
    engine->ram_size = ram->size;
    engine->page_access = ram->access;
    engine->nb_regions = ram->count;
    for (unsigned i = 0; i < ram->count; i++) regions[i].at = ram->regions[i];
    // Blocks get their offsets in the order in which they are mapped, so that an offset in the engine's RAM
    // is the offset in the RAM file.
    qsort(regions, ram->count, sizeof *regions, by_offset);
    for (unsigned i = 0; i < ram->count; i++) {
        const struct cm_ram_region* at = &regions[i].at;
        const uint32_t access = at->rom ? UC_PROT_READ | UC_PROT_EXEC : UC_PROT_ALL;
        if (uc_mem_map_ptr(uc, at->gpa, at->bytes, access, ram->guest_view + at->offset)) return false;
    }
    qsort(regions, ram->count, sizeof *regions, by_address);
    uint64_t end = 0;
    for (unsigned i = 0; i < ram->count; i++) {
        if (!map_hole(engine, end, regions[i].at.gpa)) return false;
        end = regions[i].at.gpa + regions[i].at.bytes;
    }
    if (!map_hole(engine, end, CM_ADDRESS_END)) return false;
    // What may be done is the TLB's affair. A fetch from a hole reads all ones, an undefined opcode, which is
    // the guest's own affair.
    for (uint32_t i = 0; i < uc->mapped_block_count; i++) uc->mapped_blocks[i]->perms = UC_PROT_ALL;
    qsort(regions, ram->count, sizeof *regions, by_size);
    for (unsigned i = 0; i < ram->count; i++) {
        regions[i].region = uc->memory_mapping(uc, regions[i].at.gpa);
        if (!regions[i].region) return false;
    }
    return true;
}

cm_engine* cm_engine_open(const struct cm_vcpu_ops* ops, void* opaque, const void* core_ops, void* core,
                          const struct cm_ram_layout* ram, unsigned code_buffer_bytes, char* error,
                          size_t error_size) {
    // Zeroed by the kernel, page by page as it is used: aligned_alloc would have to be filled.
    void* allocation = calloc(1, sizeof(struct cm_engine) + CM_CACHE_LINE);
    if (!allocation) {
        snprintf(error, error_size, "out of memory");
        return NULL;
    }
    struct cm_engine* engine = (struct cm_engine*)ROUND_UP((uintptr_t)allocation, CM_CACHE_LINE);
    engine->allocation = allocation;
    engine->ops = ops;
    engine->opaque = opaque;
    engine->core_ops = core_ops;
    engine->core = core;
    uc_err code = open_uc(&engine->uc, code_buffer_bytes);
    if (code || !map_memory(engine, ram) || !cm_target_prepare(engine)) {
        snprintf(error, error_size, "the translator did not start: %s",
                 code ? uc_strerror(code) : "its memory could not be mapped");
        cm_engine_close(engine);
        return NULL;
    }
    uc_engine* uc = engine->uc;
    engine->cs = uc->cpu;
    engine->env = uc->cpu->env_ptr;
    uc->qemu_thread_data = engine;
    // The state in which uc_emu_start would leave it, kept for good.
    uc->nested_level = 1;
    uc->use_exits = 0;
    uc->exits[0] = UNREACHABLE_PC;
    uc->no_exit_request = true;  // only block heads are tested, never the middle of an instruction
    uc->invalid_error = UC_ERR_OK;
    uc->first_tb = false;
    uc->emulation_done = false;
    uc->stop_request = false;
    engine->cs->created = true;
    engine->cs->stop = false;
    engine->cs->stopped = false;
    cm_memory_attach(engine);
    cm_target_attach(engine);
    return engine;
}

void cm_engine_close(cm_engine* engine) {
    if (!engine) return;
    if (engine->uc) {
        engine->uc->nested_level = 0;
        // Functions of ours that the engine calls find this struct by the next word, which uc_close would
        // free too: what they do in an end is done before. Breakpoints and watchpoints flush TLB and code as
        // they go.
        if (engine->uc->qemu_thread_data) {
            cpu_watchpoint_remove_all(engine->cs, BP_CPU);
            cpu_breakpoint_remove_all(engine->cs, BP_CPU);
        }
        engine->uc->qemu_thread_data = NULL;
        uc_close(engine->uc);
    }
    free(engine->codegen);
    cm_shared_blocks_free(engine);
    cm_target_release(engine);
    free(engine->allocation);
}

enum cm_exit cm_engine_run(cm_engine* engine) {
    CPUState* cs = engine->cs;
    for (;;) {
        cs->halted = 0;
        cs->interrupt_request |= CM_PERMANENT_REQUEST;
        int reason = cpu_exec(engine->uc, cs);
        if (engine->shutdown) return CM_EXIT_SHUTDOWN;
        if (engine->uc->invalid_error && !engine->abort_text[0]) {
            snprintf(engine->abort_text, sizeof engine->abort_text, "%s at guest address %#llx",
                     uc_strerror(engine->uc->invalid_error), (unsigned long long)engine->uc->invalid_addr);
        }
        if (engine->abort_text[0]) return CM_EXIT_ABORT;
        if (reason == EXCP_HLT || reason == EXCP_HALTED) return CM_EXIT_HALT;
        if (reason == EXCP_INTERRUPT) return CM_EXIT_LEFT;
        // EXCP_DEBUG and the like end in the guest through the exception hook; nothing else leaves the loop.
    }
}

const char* cm_engine_abort_text(const cm_engine* engine) { return engine->abort_text; }

const struct cm_engine_counters* cm_engine_counters_of(const cm_engine* engine) { return &engine->counters; }

size_t cm_engine_code_bytes(const cm_engine* engine) {
    const TCGContext* tcg = engine->uc->tcg_ctx;
    return (size_t)((const char*)tcg->code_gen_ptr - (const char*)tcg->code_gen_buffer);
}

void cm_engine_invalidate_page(cm_engine* engine, uint64_t ram_page) {
    tb_invalidate_phys_range(engine->uc, ram_page << TARGET_PAGE_BITS, (ram_page + 1) << TARGET_PAGE_BITS);
}

void cm_engine_drop_all_code(cm_engine* engine) { tb_flush(engine->cs); }

const struct cm_wrap_hit* cm_engine_wrap_hits(size_t* count) {
    *count = (size_t)(__stop_cm_wrap_hits - __start_cm_wrap_hits);
    return __start_cm_wrap_hits;
}

const struct cm_engine_functions CM_SUFFIXED(cm_engine_functions) = {
    CM_ENGINE_FUNCTIONS(CM_ENGINE_FUNCTION_VALUE)};
