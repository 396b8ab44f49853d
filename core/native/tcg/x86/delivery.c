// SPDX-License-Identifier: GPL-2.0-or-later
// Events through the guest's IDT: exceptions, interrupts, INT n (SDM vol. 3A 6.12 to 6.14; vol. 2A, INT n).
#include "segments.h"

// #GP or #NP that names a gate (SDM vol. 3A 6.13).
static _Noreturn void gate_fault(const struct cm_transfer* t, int exception, unsigned vector) {
    const uint32_t in_idt = 2;
    cm_fault(t, exception, vector * 8 + in_idt);
}

static void read_gate(const struct cm_transfer* t, enum cm_event event, unsigned vector,
                      struct cm_descriptor* gate) {
    CPUX86State* env = t->env;
    const unsigned bytes = cm_long_mode(env) ? 16 : 8;
    if (vector * bytes + bytes - 1 > env->idt.limit) gate_fault(t, EXCP0D_GPF, vector);
    gate->address = env->idt.base + vector * bytes;
    const uint64_t both = cm_system_read64(t, gate->address);
    gate->low = (uint32_t)both, gate->high = (uint32_t)(both >> 32);
    gate->upper = bytes == 16 ? cm_system_read32(t, gate->address + 8) : 0;
    uint32_t types = 1u << CM_INTERRUPT_GATE32 | 1u << CM_TRAP_GATE32;
    if (bytes == 8) types |= 1u << CM_INTERRUPT_GATE16 | 1u << CM_TRAP_GATE16 | 1u << CM_TASK_GATE;
    if (!cm_is_system(gate) || !(types >> cm_system_type(gate) & 1)) gate_fault(t, EXCP0D_GPF, vector);
    if (event == CM_EVENT_SOFTWARE && cm_dpl(gate) < cm_cpl(env)) gate_fault(t, EXCP0D_GPF, vector);
    if (!cm_is_present(gate)) gate_fault(t, EXCP0B_NOSEG, vector);
}

static void through_task_gate(const struct cm_transfer* t, const struct cm_descriptor* gate, bool has_code,
                              uint32_t error_code, target_ulong eip) {
    CPUX86State* env = t->env;
    struct cm_descriptor tss;
    const uint32_t selector = cm_read_task_gate(t, gate, &tss);
    cm_switch_task(t, selector, &tss, CM_TASK_CALL, (uint32_t)eip);
    if (has_code) {
        struct cm_stack stack = cm_current_stack(env);
        cm_push(t, &stack, env->tr.flags >> DESC_TYPE_SHIFT & 8 ? 4 : 2, error_code);
        cm_set_stack_pointer(env, &stack);
    }
    env->old_exception = -1;  // delivered: what follows is no double fault
    cm_check_task_trap(env);
}

static void through_gate(const struct cm_transfer* t, const struct cm_descriptor* gate, bool has_code,
                         uint32_t error_code, target_ulong eip) {
    CPUX86State* env = t->env;
    const bool is_64bit = cm_long_mode(env), from_8086 = env->eflags & VM_MASK;
    const unsigned type = cm_system_type(gate);
    const unsigned size = is_64bit ? 8 : type & 8 ? 4 : 2;
    const uint32_t selector = gate->low >> 16;
    struct cm_descriptor code, ss;
    if (cm_is_null(selector)) cm_fault(t, EXCP0D_GPF, 0);
    cm_read_descriptor(t, selector, EXCP0D_GPF, &code);
    cm_check_code(t, selector, &code, true);
    const bool inwards = !cm_is_conforming(&code) && cm_dpl(&code) < cm_cpl(env);
    const unsigned cpl = inwards ? cm_dpl(&code) : cm_cpl(env);
    if (from_8086 && (!inwards || cpl != 0)) cm_selector_fault(t, EXCP0D_GPF, selector);

    struct cm_stack stack = cm_current_stack(env);
    uint32_t ss_selector = 0;
    const unsigned ist = is_64bit ? gate->high & 7 : 0;
    if (inwards || ist) {
        stack = cm_inner_stack(t, cpl, ist, is_64bit, &ss_selector, &ss);
    }
    if (is_64bit) {
        // From compatibility mode too the stack is used with all 64 bits, from a multiple of 16.
        stack.mask = ~(target_ulong)0;
        stack.base = 0;
        stack.pointer &= ~(target_ulong)15;
    }
    const target_ulong offset = type & 8 ? cm_gate_offset(gate) : cm_gate_offset(gate) & 0xffff;
    cm_check_eip(t, &code, offset);

    if (from_8086) {
        cm_push(t, &stack, size, env->segs[R_GS].selector);
        cm_push(t, &stack, size, env->segs[R_FS].selector);
        cm_push(t, &stack, size, env->segs[R_DS].selector);
        cm_push(t, &stack, size, env->segs[R_ES].selector);
    }
    if (inwards || is_64bit) {
        cm_push(t, &stack, size, env->segs[R_SS].selector);
        cm_push(t, &stack, size, env->regs[R_ESP]);
    }
    cm_push(t, &stack, size, cpu_compute_eflags(env));
    cm_push(t, &stack, size, env->segs[R_CS].selector);
    cm_push(t, &stack, size, eip);
    if (has_code) cm_push(t, &stack, size, error_code);
    cm_mark_accessed(t, &code);
    if (inwards && !is_64bit) cm_mark_accessed(t, &ss);

    const bool is_trap_gate = type & 1;
    env->eflags &= ~(TF_MASK | VM_MASK | RF_MASK | NT_MASK);
    if (!is_trap_gate) env->eflags &= ~IF_MASK;
    if (from_8086) {
        static const int data[] = {R_ES, R_DS, R_FS, R_GS};
        for (size_t i = 0; i < sizeof data / sizeof *data; i++) {
            cpu_x86_load_seg_cache(env, data[i], 0, 0, 0, 0);
        }
    }
    if (inwards && is_64bit) {
        cm_load_null_stack_segment(env, ss_selector, cpl);
    } else if (inwards) {
        cm_load_segment(env, R_SS, ss_selector, &ss);
    }
    cm_set_stack_pointer(env, &stack);
    cm_enter_code(env, selector, &code, cpl, offset);
}

static void in_real_mode(const struct cm_transfer* t, unsigned vector, target_ulong eip) {
    CPUX86State* env = t->env;
    if (vector * 4 + 3 > env->idt.limit) gate_fault(t, EXCP0D_GPF, vector);
    const uint32_t entry = cm_system_read32(t, env->idt.base + vector * 4);
    struct cm_stack stack = cm_current_stack(env);
    cm_push(t, &stack, 2, cpu_compute_eflags(env));
    cm_push(t, &stack, 2, env->segs[R_CS].selector);
    cm_push(t, &stack, 2, eip);
    cm_set_stack_pointer(env, &stack);
    env->eip = entry & 0xffff;
    env->segs[R_CS].selector = entry >> 16;
    env->segs[R_CS].base = entry >> 16 << 4;
    env->eflags &= ~(IF_MASK | TF_MASK | AC_MASK | RF_MASK);
}

// SDM vol. 3A table 6-1.
static bool has_error_code(unsigned vector) {
    const uint32_t vectors = 1u << EXCP08_DBLE | 1u << EXCP0A_TSS | 1u << EXCP0B_NOSEG | 1u << EXCP0C_STACK |
                             1u << EXCP0D_GPF | 1u << EXCP0E_PAGE | 1u << EXCP11_ALGN;
    return vector < 32 && (vectors >> vector & 1);
}

void cm_deliver(CPUX86State* env, enum cm_event event, unsigned vector, uint32_t error_code,
                target_ulong eip) {
    const struct cm_transfer t = {env, 0, event != CM_EVENT_SOFTWARE};
    if (!(env->cr[0] & CR0_PE_MASK)) {
        in_real_mode(&t, vector, eip);
        return;
    }
    const bool has_code = event == CM_EVENT_EXCEPTION && has_error_code(vector);
    struct cm_descriptor gate;
    read_gate(&t, event, vector, &gate);
    if (cm_system_type(&gate) == CM_TASK_GATE) {
        through_task_gate(&t, &gate, has_code, error_code, eip);
    } else {
        through_gate(&t, &gate, has_code, error_code, eip);
    }
}
