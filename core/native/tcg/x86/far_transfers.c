// SPDX-License-Identifier: GPL-2.0-or-later
// Far JMP and CALL: to code segments, through call gates, to tasks (SDM vol. 2A, JMP and CALL; vol. 3A 5.8).
#include "segments.h"

static void privileged_gate(const struct cm_transfer* t, uint32_t selector,
                            const struct cm_descriptor* gate) {
    const unsigned dpl = cm_dpl(gate);
    if (dpl < cm_cpl(t->env) || dpl < cm_rpl(selector)) cm_selector_fault(t, EXCP0D_GPF, selector);
}

// To another task, directly or by its gate. False: the descriptor leads to none.
static bool switch_task(const struct cm_transfer* t, uint32_t selector, const struct cm_descriptor* d,
                        enum cm_task_source source, uint32_t next_eip) {
    const unsigned type = cm_system_type(d);
    if (cm_long_mode(t->env)) return false;
    if (type == CM_TASK_GATE) {
        struct cm_descriptor tss;
        privileged_gate(t, selector, d);
        if (!cm_is_present(d)) cm_selector_fault(t, EXCP0B_NOSEG, selector);
        selector = cm_read_task_gate(t, d, &tss);
        cm_switch_task(t, selector, &tss, source, next_eip);
    } else if (type == CM_TSS16 || type == CM_TSS32) {
        privileged_gate(t, selector, d);
        if (!cm_is_present(d)) cm_selector_fault(t, EXCP0B_NOSEG, selector);
        cm_switch_task(t, selector, d, source, next_eip);
    } else {
        return false;
    }
    cm_check_task_trap(t->env);
    return true;
}

// The code segment and offset that a call gate leads to; `selector` becomes the code's.
static target_ulong read_call_gate(const struct cm_transfer* t, uint32_t* selector,
                                   const struct cm_descriptor* low, struct cm_descriptor* code,
                                   struct cm_descriptor* gate) {
    const unsigned type = cm_system_type(low);
    const bool is_gate = type == CM_CALL_GATE32 || (type == CM_CALL_GATE16 && !cm_long_mode(t->env));
    if (!is_gate) cm_selector_fault(t, EXCP0D_GPF, *selector);
    *gate = *low;
    if (cm_long_mode(t->env)) cm_read_wide_descriptor(t, *selector, EXCP0D_GPF, gate);
    privileged_gate(t, *selector, gate);
    if (!cm_is_present(gate)) cm_selector_fault(t, EXCP0B_NOSEG, *selector);
    *selector = gate->low >> 16;
    if (cm_is_null(*selector)) cm_fault(t, EXCP0D_GPF, 0);
    cm_read_descriptor(t, *selector, EXCP0D_GPF, code);
    cm_check_code(t, *selector, code, true);
    const target_ulong offset = cm_gate_offset(gate);
    return type == CM_CALL_GATE16 ? offset & 0xffff : offset;
}

void CM_WRAP(helper_ljmp_protected)(CPUX86State* env, int new_cs, target_ulong eip, target_ulong next_eip) {
    const struct cm_transfer t = {env, GETPC(), 0};
    uint32_t selector = new_cs & 0xffff;
    struct cm_descriptor d, gate;
    CM_HIT(helper_ljmp_protected);
    if (cm_is_null(selector)) cm_fault(&t, EXCP0D_GPF, 0);
    cm_read_descriptor(&t, selector, EXCP0D_GPF, &d);
    if (cm_is_system(&d)) {
        if (switch_task(&t, selector, &d, CM_TASK_JUMP, (uint32_t)next_eip)) return;
        const struct cm_descriptor low = d;
        eip = read_call_gate(&t, &selector, &low, &d, &gate);
        // A jump does not change the ring.
        if (!cm_is_conforming(&d) && cm_dpl(&d) != cm_cpl(env)) cm_selector_fault(&t, EXCP0D_GPF, selector);
    } else {
        cm_check_code(&t, selector, &d, false);
    }
    cm_check_eip(&t, &d, eip);
    cm_mark_accessed(&t, &d);
    cm_enter_code(env, selector, &d, cm_cpl(env), eip);
}

// The parameters of a call gate, from the caller's stack to the new one, in their order (SDM vol. 3A 5.8.5).
static void copy_parameters(const struct cm_transfer* t, const struct cm_stack* from, struct cm_stack* to,
                            unsigned count, unsigned size) {
    for (unsigned i = count; i-- > 0;) {
        struct cm_stack at = *from;
        at.pointer += i * size;
        cm_push(t, to, size, cm_pop(t, &at, size));
    }
}

static void call_through_gate(const struct cm_transfer* t, uint32_t selector, const struct cm_descriptor* low,
                              target_ulong next_eip) {
    CPUX86State* env = t->env;
    struct cm_descriptor code, gate, ss;
    const bool is_64bit = cm_long_mode(env);
    const target_ulong eip = read_call_gate(t, &selector, low, &code, &gate);
    const unsigned size = is_64bit ? 8 : cm_system_type(&gate) == CM_CALL_GATE32 ? 4 : 2;
    const bool inwards = !cm_is_conforming(&code) && cm_dpl(&code) < cm_cpl(env);
    const unsigned cpl = inwards ? cm_dpl(&code) : cm_cpl(env);
    struct cm_stack old = cm_current_stack(env), stack = old;
    uint32_t ss_selector = 0;
    if (inwards) stack = cm_inner_stack(t, cpl, 0, is_64bit, &ss_selector, &ss);
    cm_check_eip(t, &code, eip);
    if (inwards) {
        cm_push(t, &stack, size, env->segs[R_SS].selector);
        cm_push(t, &stack, size, env->regs[R_ESP]);
        if (!is_64bit) copy_parameters(t, &old, &stack, gate.high & 0x1f, size);
    }
    cm_push(t, &stack, size, env->segs[R_CS].selector);
    cm_push(t, &stack, size, next_eip);
    cm_mark_accessed(t, &code);
    if (inwards && is_64bit) {
        cm_load_null_stack_segment(env, ss_selector, cpl);
    } else if (inwards) {
        cm_mark_accessed(t, &ss);
        cm_load_segment(env, R_SS, ss_selector, &ss);
    }
    cm_set_stack_pointer(env, &stack);
    cm_enter_code(env, selector, &code, cpl, eip);
}

void CM_WRAP(helper_lcall_protected)(CPUX86State* env, int new_cs, target_ulong eip, int shift,
                                     target_ulong next_eip) {
    const struct cm_transfer t = {env, GETPC(), 0};
    const uint32_t selector = new_cs & 0xffff;
    const unsigned size = 2u << shift;
    struct cm_descriptor d;
    CM_HIT(helper_lcall_protected);
    if (cm_is_null(selector)) cm_fault(&t, EXCP0D_GPF, 0);
    cm_read_descriptor(&t, selector, EXCP0D_GPF, &d);
    if (cm_is_system(&d)) {
        if (switch_task(&t, selector, &d, CM_TASK_CALL, (uint32_t)next_eip)) return;
        call_through_gate(&t, selector, &d, next_eip);
        return;
    }
    cm_check_code(&t, selector, &d, false);
    cm_check_eip(&t, &d, eip);
    struct cm_stack stack = cm_current_stack(env);
    cm_push(&t, &stack, size, env->segs[R_CS].selector);
    cm_push(&t, &stack, size, next_eip);
    cm_mark_accessed(&t, &d);
    cm_set_stack_pointer(env, &stack);
    cm_enter_code(env, selector, &d, cm_cpl(env), eip);
}

// Real and virtual-8086 mode; the latter's stack is the user's.
void CM_WRAP(helper_lcall_real)(CPUX86State* env, int new_cs, target_ulong eip, int shift, int next_eip) {
    const struct cm_transfer t = {env, GETPC(), 0};
    const unsigned size = 2u << shift;
    struct cm_stack stack = cm_current_stack(env);
    CM_HIT(helper_lcall_real);
    cm_push(&t, &stack, size, env->segs[R_CS].selector);
    cm_push(&t, &stack, size, (uint32_t)next_eip);
    cm_set_stack_pointer(env, &stack);
    env->segs[R_CS].selector = new_cs & 0xffff;
    env->segs[R_CS].base = (target_ulong)(new_cs & 0xffff) << 4;
    env->eip = (uint32_t)eip;
}
