// SPDX-License-Identifier: GPL-2.0-or-later
// Far RET and IRET (SDM vol. 2B, RET; vol. 2A, IRET).
#include "segments.h"

// The code segment that a return may go to. Its ring is the selector's RPL.
static void check_return_code(const struct cm_transfer* t, uint32_t selector, struct cm_descriptor* code) {
    const unsigned rpl = cm_rpl(selector);
    if (cm_is_null(selector)) cm_fault(t, EXCP0D_GPF, 0);
    cm_read_descriptor(t, selector, EXCP0D_GPF, code);
    bool good = cm_is_code(code) && rpl >= cm_cpl(t->env);
    good = good && (cm_is_conforming(code) ? cm_dpl(code) <= rpl : cm_dpl(code) == rpl);
    if (cm_long_mode(t->env) && (code->high & DESC_L_MASK) && (code->high & DESC_B_MASK)) good = false;
    if (!good) cm_selector_fault(t, EXCP0D_GPF, selector);
    if (!cm_is_present(code)) cm_selector_fault(t, EXCP0B_NOSEG, selector);
}

// The stack segment that goes with it. False: a null one, which 64-bit code of an inner ring may have.
static bool check_return_stack(const struct cm_transfer* t, uint32_t selector, unsigned rpl, bool to_64bit,
                               struct cm_descriptor* ss) {
    if (cm_is_null(selector)) {
        if (!to_64bit || rpl == 3) cm_fault(t, EXCP0D_GPF, 0);
        return false;
    }
    cm_read_descriptor(t, selector, EXCP0D_GPF, ss);
    if (cm_rpl(selector) != rpl || cm_dpl(ss) != rpl || !cm_is_writable_data(ss)) {
        cm_selector_fault(t, EXCP0D_GPF, selector);
    }
    if (!cm_is_present(ss)) cm_selector_fault(t, EXCP0C_STACK, selector);
    return true;
}

struct frame {
    target_ulong eip;
    uint32_t cs, flags;
};

// Loads CS, EIP and, where the frame has them, SS and ESP. `release`: bytes of parameters that RET frees on
// both stacks.
static void return_to(const struct cm_transfer* t, struct cm_stack* stack, const struct frame* frame,
                      unsigned size, unsigned release, bool is_iret) {
    CPUX86State* env = t->env;
    const unsigned rpl = cm_rpl(frame->cs);
    struct cm_descriptor code, ss;
    check_return_code(t, frame->cs, &code);
    const bool to_64bit = cm_is_64bit_code(env, &code);
    const bool outwards = rpl > cm_cpl(env);
    stack->pointer += release;
    if (!outwards && !(is_iret && (env->hflags & HF_CS64_MASK))) {
        cm_check_eip(t, &code, frame->eip);
        cm_mark_accessed(t, &code);
        cm_set_stack_pointer(env, stack);
        cm_enter_code(env, frame->cs, &code, rpl, frame->eip);
        return;
    }
    struct cm_stack to = {.pointer = cm_pop(t, stack, size)};
    const uint32_t ss_selector = cm_pop(t, stack, size) & 0xffff;
    const bool has_ss = check_return_stack(t, ss_selector, rpl, to_64bit, &ss);
    cm_check_eip(t, &code, frame->eip);
    cm_mark_accessed(t, &code);
    if (has_ss) {
        cm_mark_accessed(t, &ss);
        cm_load_segment(env, R_SS, ss_selector, &ss);
    } else {
        cm_load_null_stack_segment(env, ss_selector, rpl);
    }
    cm_enter_code(env, frame->cs, &code, rpl, frame->eip);
    to.mask = cm_current_stack(env).mask;
    to.pointer += release;
    cm_set_stack_pointer(env, &to);
    if (outwards) cm_drop_inner_segments(env, rpl);
}

void CM_WRAP(helper_lret_protected)(CPUX86State* env, int shift, int release) {
    const struct cm_transfer t = {env, GETPC(), 0};
    const unsigned size = 2u << shift;
    struct cm_stack stack = cm_current_stack(env);
    struct frame frame = {0};
    CM_HIT(helper_lret_protected);
    frame.eip = cm_pop(&t, &stack, size);
    frame.cs = cm_pop(&t, &stack, size) & 0xffff;
    return_to(&t, &stack, &frame, size, (unsigned)release & 0xffff, false);
}

// The bits of RFLAGS that IRET takes from its frame (SDM vol. 2A, IRET).
static int loaded_flags(const CPUX86State* env, unsigned size) {
    int flags = TF_MASK | NT_MASK;
    if (size > 2) flags |= RF_MASK | AC_MASK | ID_MASK;
    if (cm_cpl(env) <= (unsigned)(env->eflags >> IOPL_SHIFT & 3)) flags |= IF_MASK;
    if (cm_cpl(env) == 0) flags |= size > 2 ? IOPL_MASK | VIF_MASK | VIP_MASK : IOPL_MASK;
    return flags;
}

static void return_to_virtual_8086(const struct cm_transfer* t, struct cm_stack* stack,
                                   const struct frame* frame) {
    CPUX86State* env = t->env;
    static const int order[] = {R_SS, R_ES, R_DS, R_FS, R_GS};
    uint32_t selectors[sizeof order / sizeof *order];
    const uint32_t esp = (uint32_t)cm_pop(t, stack, 4);
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) selectors[i] = (uint32_t)cm_pop(t, stack, 4);
    // Segments are loaded after VM is set, which tells the translator how to use them.
    cpu_load_eflags(env, (int)frame->flags,
                    TF_MASK | AC_MASK | ID_MASK | IF_MASK | IOPL_MASK | VM_MASK | NT_MASK | RF_MASK |
                        VIF_MASK | VIP_MASK);
    cm_load_virtual_8086_segment(env, R_CS, frame->cs);
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        cm_load_virtual_8086_segment(env, order[i], selectors[i]);
    }
    cm_set_cpl(env, 3);
    env->eip = frame->eip & 0xffff;
    env->regs[R_ESP] = esp;
}

// IRET with NT set goes back to the task that called this one.
static void return_to_task(const struct cm_transfer* t, uint32_t next_eip) {
    struct cm_descriptor tss;
    if (cm_long_mode(t->env)) cm_fault(t, EXCP0D_GPF, 0);
    const uint32_t selector = cm_system_read16(t, t->env->tr.base);
    if (cm_is_null(selector) || selector & 4) cm_selector_fault(t, EXCP0A_TSS, selector);
    cm_read_descriptor(t, selector, EXCP0A_TSS, &tss);
    const unsigned type = cm_system_type(&tss);
    if (!cm_is_system(&tss) || (type != CM_TSS32_BUSY && type != CM_TSS16_BUSY)) {
        cm_selector_fault(t, EXCP0A_TSS, selector);
    }
    if (!cm_is_present(&tss)) cm_selector_fault(t, EXCP0B_NOSEG, selector);
    cm_switch_task(t, selector, &tss, CM_TASK_RETURN, next_eip);
    cm_check_task_trap(t->env);
}

static struct frame pop_frame(const struct cm_transfer* t, struct cm_stack* stack, unsigned size) {
    struct frame frame;
    frame.eip = cm_pop(t, stack, size);
    frame.cs = cm_pop(t, stack, size) & 0xffff;
    frame.flags = (uint32_t)cm_pop(t, stack, size);
    return frame;
}

void CM_WRAP(helper_iret_protected)(CPUX86State* env, int shift, int next_eip) {
    const struct cm_transfer t = {env, GETPC(), 0};
    const unsigned size = 2u << shift;
    CM_HIT(helper_iret_protected);
    if (env->eflags & NT_MASK) {
        return_to_task(&t, (uint32_t)next_eip);
        env->hflags2 &= ~HF2_NMI_MASK;
        return;
    }
    struct cm_stack stack = cm_current_stack(env);
    const struct frame frame = pop_frame(&t, &stack, size);
    if (size == 4 && (frame.flags & VM_MASK) && cm_cpl(env) == 0 && !cm_long_mode(env)) {
        return_to_virtual_8086(&t, &stack, &frame);
    } else {
        const int flags = loaded_flags(env, size);  // by the ring that returns
        return_to(&t, &stack, &frame, size, 0, true);
        cpu_load_eflags(env, (int)frame.flags, flags);
    }
    env->hflags2 &= ~HF2_NMI_MASK;
}

// Real mode, and virtual-8086 mode with IOPL 3.
void CM_WRAP(helper_iret_real)(CPUX86State* env, int shift) {
    const struct cm_transfer t = {env, GETPC(), 0};
    const unsigned size = 2u << shift;
    struct cm_stack stack = cm_current_stack(env);
    CM_HIT(helper_iret_real);
    const struct frame frame = pop_frame(&t, &stack, size);
    int flags = TF_MASK | IF_MASK | NT_MASK;
    if (size > 2) flags |= RF_MASK | AC_MASK | ID_MASK;
    if (!(env->eflags & VM_MASK)) flags |= IOPL_MASK;
    cm_set_stack_pointer(env, &stack);
    env->segs[R_CS].selector = frame.cs;
    env->segs[R_CS].base = (target_ulong)frame.cs << 4;
    env->eip = (uint32_t)frame.eip;
    cpu_load_eflags(env, (int)frame.flags, flags);
    env->hflags2 &= ~HF2_NMI_MASK;
}
