// SPDX-License-Identifier: GPL-2.0-or-later
// The architectural state, field by field: never the engine's own blob, which holds host pointers (U15).
#include "tcg/x86/engine.h"
#include "segments.h"
#ifdef COREMESH_HOST_SSE
#include "float.h"
#include "segments.h"
#endif

static void read_segment(const SegmentCache* cache, struct cm_segment* out) {
    out->selector = cache->selector;
    out->base = cache->base;
    out->limit = cache->limit;
    out->access = cm_segment_access(cache);
}

static void write_table_segment(SegmentCache* cache, const struct cm_segment* in) {
    cache->selector = in->selector;
    cache->base = in->base;
    cache->limit = in->limit;
    cache->flags = cm_segment_flags(in->access);
}

void cm_engine_get_registers(cm_engine* engine, struct cm_registers* out) {
    CPUX86State* env = engine->env;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < 16; i++) out->gpr[i] = env->regs[i];
    out->rip = env->eip;
    out->rflags = cpu_compute_eflags(env);
    out->cr0 = env->cr[0], out->cr2 = env->cr[2], out->cr3 = env->cr[3], out->cr4 = env->cr[4];
    out->efer = env->efer;
    read_segment(&env->segs[R_ES], &out->es);
    read_segment(&env->segs[R_CS], &out->cs);
    read_segment(&env->segs[R_SS], &out->ss);
    read_segment(&env->segs[R_DS], &out->ds);
    read_segment(&env->segs[R_FS], &out->fs);
    read_segment(&env->segs[R_GS], &out->gs);
    read_segment(&env->ldt, &out->ldtr);
    read_segment(&env->tr, &out->tr);
    out->gdt_base = env->gdt.base, out->gdt_limit = env->gdt.limit;
    out->idt_base = env->idt.base, out->idt_limit = env->idt.limit;
}

void cm_engine_set_registers(cm_engine* engine, const struct cm_registers* in) {
    CPUX86State* env = engine->env;
    // Paging is left, and entered anew in the order the processor demands: CR4.PAE, CR3, EFER.LME, CR0.PG.
    // That is when the engine computes EFER.LMA.
    cpu_x86_update_cr0(env, (uint32_t)env->cr[0] & ~CR0_PG_MASK);
    for (int i = 0; i < 16; i++) env->regs[i] = in->gpr[i];
    env->cr[2] = in->cr2;
    cpu_x86_update_cr4(env, (uint32_t)in->cr4);
    env->cr[3] = in->cr3;
    cpu_load_efer(env, in->efer & ~(uint64_t)MSR_EFER_LMA);
    cpu_x86_update_cr0(env, (uint32_t)in->cr0);
    const struct {
        int index;
        const struct cm_segment* from;
    } segments[] = {{R_ES, &in->es}, {R_CS, &in->cs}, {R_SS, &in->ss},
                    {R_DS, &in->ds}, {R_FS, &in->fs}, {R_GS, &in->gs}};
    for (size_t i = 0; i < sizeof segments / sizeof *segments; i++) {
        const struct cm_segment* from = segments[i].from;
        cpu_x86_load_seg_cache(env, segments[i].index, from->selector, from->base, from->limit,
                               cm_segment_flags(from->access));
    }
    cm_note_segments(env);
    write_table_segment(&env->ldt, &in->ldtr);
    write_table_segment(&env->tr, &in->tr);
    env->gdt.base = in->gdt_base, env->gdt.limit = in->gdt_limit;
    env->idt.base = in->idt_base, env->idt.limit = in->idt_limit;
    env->eip = in->rip;
    cpu_load_eflags(env, (int)in->rflags, CM_SYSTEM_FLAGS);
    tlb_flush(engine->cs);
}
