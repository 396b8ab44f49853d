// SPDX-License-Identifier: GPL-2.0-or-later
// When exceptions and interrupts are delivered; delivery.c does it.
//
// Unicorn hands exceptions to a hook and does not deliver external interrupts. The hook and
// cpu_exec_interrupt below take both to the guest's IDT, and mend what the engine gets wrong on the way (U20,
// U27).
#include "../shared_blocks.h"
#include "platform.h"
#include "tcg/x86/engine.h"
#include "unicorn/unicorn.h"
#include "segments.h"
#include "watchpoints.h"

#include <stdarg.h>
#include <stdio.h>

// Faults, whose pushed RFLAGS has RF set so that an instruction breakpoint does not fire twice (SDM vol. 3A
// 18.3.1.1). Traps, aborts and #DB have not.
static bool is_fault(int vector) {
    const uint32_t faults = 1u << EXCP00_DIVZ | 1u << EXCP05_BOUND | 1u << EXCP06_ILLOP | 1u << EXCP07_PREX |
                            1u << EXCP0A_TSS | 1u << EXCP0B_NOSEG | 1u << EXCP0C_STACK | 1u << EXCP0D_GPF |
                            1u << EXCP0E_PAGE | 1u << EXCP10_COPR | 1u << EXCP11_ALGN | 1u << 19;
    return vector < 32 && (faults >> vector & 1);
}

// Runs first for each exception, before the engine moves EIP past an INT n (U20): keeps the address.
static bool note_address(struct uc_struct* uc, int vector) {
    struct cm_engine* engine = cm_engine_of(uc);
    (void)vector;
    engine->target.int_eip = engine->env->eip;
    return false;  // #UD goes the way of all exceptions
}

static void deliver_exception(uc_engine* uc, uint32_t vector, void* data) {
    struct cm_engine* engine = data;
    CPUX86State* env = engine->env;
    (void)uc;
    engine->counters.exits_exception++;
    engine->slow_store = 0;  // it may have been the store's: the delivery stores too
    // A shadow of STI or MOV SS ends with the instruction that raised this.
    env->hflags &= ~HF_INHIBIT_IRQ_MASK;
    if (env->exception_is_int) {
        // A data breakpoint that MOV SS held back comes now, before the handler's first instruction (SDM vol.
        // 3A 6.8.3). A fault on the way in (gate not present, stack not writable) is one of the INT itself.
        env->eip = engine->target.int_eip;
        cm_deliver(env, CM_EVENT_SOFTWARE, vector, 0, env->exception_next_eip);
    } else {
        cm_data_trap_forget(engine);
        if (is_fault((int)vector)) env->eflags |= RF_MASK;
        if (vector == EXCP01_DB) env->dr[7] &= ~(target_ulong)DR7_GD;  // SDM vol. 3B 18.2.4
        cm_deliver(env, CM_EVENT_EXCEPTION, vector, (uint32_t)env->error_code, env->eip);
    }
    env->old_exception = -1;  // a fault that follows makes no double fault
    env->exception_is_int = 0;
}

static bool serve(CPUState* cs) {
    struct cm_engine* engine = cm_engine_of(cs->uc);
    CPUX86State* env = engine->env;
    engine->slow_store = 0;  // one that was left by a jump
    // The loop has cleared the kick's flag by a plain store, which may still be on its way when the mailbox
    // is read: a kick between the two would be overwritten, and what was posted before it not seen (SDM vol.
    // 3A 9.2.3.4).
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    unsigned flags = engine->ops->service(engine->opaque);
    if (flags & CM_SERVICE_LEAVE) {
        cs->exit_request = 1;
        return true;
    }
    cm_look_at_requests(engine, (flags & CM_SERVICE_PENDING) || engine->target.data_trap);
    // Held back by MOV SS and POP SS, like interrupts; goes before them otherwise (SDM vol. 3A 6.8.3, 6.9).
    if (engine->target.data_trap && !(env->hflags & HF_INHIBIT_IRQ_MASK)) cm_data_trap_raise(engine);
    if (!engine->attention) return (flags & CM_SERVICE_DROP_LAST) != 0;
    if (!(env->hflags & HF_INHIBIT_IRQ_MASK)) {
        // Blocked until IRET from the first one (SDM vol. 3A 6.7.1).
        if (!(env->hflags2 & HF2_NMI_MASK) && engine->core_ops->take_nmi(engine->core)) {
            env->hflags2 |= HF2_NMI_MASK;
            engine->counters.interrupts++;
            cm_deliver(env, CM_EVENT_EXTERNAL, EXCP02_NMI, 0, env->eip);
            return true;
        }
        if (env->eflags & IF_MASK) {
            int vector = engine->core_ops->take_interrupt(engine->core);
            if (vector >= 0) {
                engine->counters.interrupts++;
                cm_deliver(env, CM_EVENT_EXTERNAL, (unsigned)vector, 0, env->eip);
                return true;
            }
        }
    }
    return (flags & CM_SERVICE_DROP_LAST) != 0;
}

// Before each block that the main loop enters.
static bool exec_interrupt(CPUState* cs, int request) {
    (void)request;
    const bool drop_last = serve(cs);
    const CPUX86State* env = cs->env_ptr;
    cm_set_code_base(cs, env->segs[R_CS].base + env->eip);
    return drop_last;
}

// A fault while a double fault is being delivered: shutdown (SDM vol. 3A 6.15). Unicorn would treat it as
// HLT.
void __wrap_qemu_system_reset_request(struct uc_struct* uc) {
    CM_HIT(qemu_system_reset_request);
    cm_engine_of(uc)->shutdown = true;
}

// Where the engine gives up it would end the process. Here it ends the guest.
void CM_WRAP(cpu_abort)(CPUState* cs, const char* format, ...) {
    struct cm_engine* engine = cm_engine_of(cs->uc);
    CM_HIT(cpu_abort);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(engine->abort_text, sizeof engine->abort_text, format, arguments);
    va_end(arguments);
    cs->exception_index = EXCP_HLT;
    cpu_loop_exit(cs);
}

void cm_exceptions_attach(struct cm_engine* engine) {
    uc_hook hook;
    engine->uc->stop_interrupt = note_address;
    uc_hook_add(engine->uc, &hook, UC_HOOK_INTR, (void*)deliver_exception, engine, 1, 0);
    engine->cs->cc->cpu_exec_interrupt = exec_interrupt;
}
