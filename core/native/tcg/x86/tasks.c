// SPDX-License-Identifier: GPL-2.0-or-later
// Task switches (SDM vol. 3A 8.3), which IA-32e mode does not have.
#include "segments.h"

// Where a TSS keeps what (SDM vol. 3A figures 8-2 and 8-10).
struct tss_layout {
    unsigned bytes, word;  // least size; size of a register
    unsigned cr3, eip, flags, registers, segments, segment_count, segment_step, ldt, trap;
};
static const struct tss_layout layout32 = {104, 4, 0x1c, 0x20, 0x24, 0x28, 0x48, 6, 4, 0x60, 0x64};
static const struct tss_layout layout16 = {44, 2, 0, 0x0e, 0x10, 0x12, 0x22, 4, 2, 0x2a, 0};

static const struct tss_layout* layout_of(uint32_t flags) {
    return flags >> DESC_TYPE_SHIFT & 8 ? &layout32 : &layout16;
}

static uint32_t read_word(const struct cm_transfer* t, target_ulong at, unsigned size) {
    return size == 4 ? cm_system_read32(t, at) : cm_system_read16(t, at);
}

static void write_word(const struct cm_transfer* t, target_ulong at, unsigned size, uint32_t value) {
    if (size == 4) {
        cm_system_write32(t, at, value);
    } else {
        cm_system_write16(t, at, value);
    }
}

uint32_t cm_read_task_gate(const struct cm_transfer* t, const struct cm_descriptor* gate,
                           struct cm_descriptor* tss) {
    const uint32_t selector = gate->low >> 16;
    if (cm_is_null(selector) || selector & 4) cm_selector_fault(t, EXCP0D_GPF, selector);
    cm_read_descriptor(t, selector, EXCP0D_GPF, tss);
    const unsigned type = cm_system_type(tss);
    if (!cm_is_system(tss) || (type != CM_TSS32 && type != CM_TSS16))
        cm_selector_fault(t, EXCP0D_GPF, selector);
    if (!cm_is_present(tss)) cm_selector_fault(t, EXCP0B_NOSEG, selector);
    return selector;
}

static void save_task(const struct cm_transfer* t, enum cm_task_source source, uint32_t next_eip) {
    CPUX86State* env = t->env;
    const struct tss_layout* layout = layout_of(env->tr.flags);
    const target_ulong base = env->tr.base;
    uint32_t flags = cpu_compute_eflags(env);
    if (env->tr.limit < layout->bytes - 1) cm_selector_fault(t, EXCP0A_TSS, env->tr.selector);
    if (source == CM_TASK_RETURN) flags &= ~(uint32_t)NT_MASK;
    write_word(t, base + layout->eip, layout->word, next_eip);
    write_word(t, base + layout->flags, layout->word, flags);
    for (unsigned i = 0; i < 8; i++) {
        write_word(t, base + layout->registers + i * layout->word, layout->word, (uint32_t)env->regs[i]);
    }
    for (unsigned i = 0; i < layout->segment_count; i++) {
        cm_system_write16(t, base + layout->segments + i * layout->segment_step, env->segs[i].selector);
    }
}

struct task {
    uint32_t cr3, eip, flags, registers[8], segments[6], ldt;
};

static struct task read_task(const struct cm_transfer* t, target_ulong base,
                             const struct tss_layout* layout) {
    struct task task = {0};
    if (layout->cr3) task.cr3 = cm_system_read32(t, base + layout->cr3);
    task.eip = read_word(t, base + layout->eip, layout->word);
    task.flags = read_word(t, base + layout->flags, layout->word);
    for (unsigned i = 0; i < 8; i++) {
        task.registers[i] = read_word(t, base + layout->registers + i * layout->word, layout->word);
        if (layout->word == 2) task.registers[i] |= 0xffff0000;
    }
    for (unsigned i = 0; i < layout->segment_count; i++) {
        task.segments[i] = cm_system_read16(t, base + layout->segments + i * layout->segment_step);
    }
    task.ldt = cm_system_read16(t, base + layout->ldt);
    return task;
}

static void load_ldt(const struct cm_transfer* t, uint32_t selector) {
    CPUX86State* env = t->env;
    struct cm_descriptor d;
    env->ldt = (SegmentCache){.selector = selector};
    if (cm_is_null(selector)) return;
    if (selector & 4) cm_selector_fault(t, EXCP0A_TSS, selector);
    cm_read_descriptor(t, selector, EXCP0A_TSS, &d);
    if (!cm_is_system(&d) || cm_system_type(&d) != CM_LDT || !cm_is_present(&d)) {
        cm_selector_fault(t, EXCP0A_TSS, selector);
    }
    env->ldt.base = cm_base(&d);
    env->ldt.limit = cm_limit(&d);
    env->ldt.flags = d.high;
}

static void load_code(const struct cm_transfer* t, uint32_t selector) {
    const unsigned rpl = cm_rpl(selector);
    struct cm_descriptor d;
    if (cm_is_null(selector)) cm_selector_fault(t, EXCP0A_TSS, selector);
    cm_read_descriptor(t, selector, EXCP0A_TSS, &d);
    const bool ring = cm_is_conforming(&d) ? cm_dpl(&d) <= rpl : cm_dpl(&d) == rpl;
    if (!cm_is_code(&d) || !ring) cm_selector_fault(t, EXCP0A_TSS, selector);
    if (!cm_is_present(&d)) cm_selector_fault(t, EXCP0B_NOSEG, selector);
    cm_mark_accessed(t, &d);
    cm_load_segment(t->env, R_CS, selector, &d);
}

static void load_stack(const struct cm_transfer* t, uint32_t selector, unsigned cpl) {
    struct cm_descriptor d;
    if (cm_is_null(selector)) cm_selector_fault(t, EXCP0A_TSS, selector);
    cm_read_descriptor(t, selector, EXCP0A_TSS, &d);
    if (!cm_is_writable_data(&d) || cm_dpl(&d) != cpl || cm_rpl(selector) != cpl) {
        cm_selector_fault(t, EXCP0A_TSS, selector);
    }
    if (!cm_is_present(&d)) cm_selector_fault(t, EXCP0C_STACK, selector);
    cm_mark_accessed(t, &d);
    cm_load_segment(t->env, R_SS, selector, &d);
}

static void load_data(const struct cm_transfer* t, int reg, uint32_t selector, unsigned cpl) {
    struct cm_descriptor d;
    if (cm_is_null(selector)) return;
    cm_read_descriptor(t, selector, EXCP0A_TSS, &d);
    const bool readable = !cm_is_system(&d) && (!cm_is_code(&d) || (d.high & DESC_R_MASK));
    const bool allowed = cm_is_conforming(&d) || (cm_dpl(&d) >= cpl && cm_dpl(&d) >= cm_rpl(selector));
    if (!readable || !allowed) cm_selector_fault(t, EXCP0A_TSS, selector);
    if (!cm_is_present(&d)) cm_selector_fault(t, EXCP0B_NOSEG, selector);
    cm_mark_accessed(t, &d);
    cm_load_segment(t->env, reg, selector, &d);
}

void cm_switch_task(const struct cm_transfer* t, uint32_t selector, const struct cm_descriptor* tss,
                    enum cm_task_source source, uint32_t next_eip) {
    CPUX86State* env = t->env;
    const struct tss_layout* layout = layout_of(tss->high);
    const target_ulong base = cm_base(tss);
    const uint32_t old_selector = env->tr.selector;
    if (cm_limit(tss) < layout->bytes - 1) cm_selector_fault(t, EXCP0A_TSS, selector);
    struct task task = read_task(t, base, layout);
    save_task(t, source, next_eip);
    if (source == CM_TASK_CALL) {
        cm_system_write16(t, base, old_selector);
        task.flags |= NT_MASK;
    } else {
        cm_set_tss_busy(t, old_selector, false);
    }
    if (source != CM_TASK_RETURN) cm_set_tss_busy(t, selector, true);

    // From here on the state is the new task's, and so are the faults.
    const struct cm_transfer in_task = {env, 0, t->ext};
    env->cr[0] |= CR0_TS_MASK;
    env->hflags |= HF_TS_MASK;
    env->tr = (SegmentCache){
        .selector = selector, .base = base, .limit = cm_limit(tss), .flags = tss->high | DESC_TSS_BUSY_MASK};
    if (layout->cr3 && (env->cr[0] & CR0_PG_MASK)) cpu_x86_update_cr3(env, task.cr3);
    cpu_x86_update_dr7(env, (uint32_t)env->dr[7] & ~(uint32_t)DR7_LOCAL_BP_MASK);
    env->eip = task.eip;
    const int flags =
        TF_MASK | IF_MASK | IOPL_MASK | NT_MASK | RF_MASK | VM_MASK | AC_MASK | ID_MASK | VIF_MASK | VIP_MASK;
    cpu_load_eflags(env, (int)task.flags, layout->word == 2 ? flags & 0xffff : flags);
    for (unsigned i = 0; i < 8; i++) env->regs[i] = task.registers[i];
    if (env->eflags & VM_MASK) {
        for (int i = 0; i < 6; i++) cm_load_virtual_8086_segment(env, i, task.segments[i]);
        cm_set_cpl(env, 3);
        load_ldt(&in_task, task.ldt);
        return;
    }
    const unsigned cpl = cm_rpl(task.segments[R_CS]);
    // First the selectors alone: a fault of one finds the others there.
    for (int i = 0; i < 6; i++) {
        cpu_x86_load_seg_cache(env, i, task.segments[i], 0, 0, i == R_SS ? cpl << DESC_DPL_SHIFT : 0);
    }
    load_ldt(&in_task, task.ldt);
    load_code(&in_task, task.segments[R_CS]);
    load_stack(&in_task, task.segments[R_SS], cpl);
    load_data(&in_task, R_DS, task.segments[R_DS], cpl);
    load_data(&in_task, R_ES, task.segments[R_ES], cpl);
    load_data(&in_task, R_FS, task.segments[R_FS], cpl);
    load_data(&in_task, R_GS, task.segments[R_GS], cpl);
    if (task.eip > env->segs[R_CS].limit) cm_fault(&in_task, EXCP0D_GPF, 0);
}

void cm_check_task_trap(CPUX86State* env) {
    const struct cm_transfer t = {env, 0, 0};
    const struct tss_layout* layout = layout_of(env->tr.flags);
    if (!layout->trap || !(cm_system_read16(&t, env->tr.base + layout->trap) & 1)) return;
    env->dr[6] |= DR6_BT;
    raise_exception_err_ra(env, EXCP01_DB, 0, 0);
}
