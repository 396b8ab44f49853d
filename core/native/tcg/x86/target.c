// SPDX-License-Identifier: GPL-2.0-or-later
// What ../engine.c asks of the target: its part of the self-check, its hooks, reset and start-up.
#include "../internals.h"
#include "platform.h"
#include "tcg/x86/engine.h"
#ifdef COREMESH_HOST_SSE
#include "float.h"
#endif

const char* cm_target_compare(struct uc_struct* uc) {
    CPUState* cs = uc->cpu;
    CPUX86State* env = cs ? cs->env_ptr : NULL;
    if (!cs || !env) return "no CPU behind uc_struct.cpu";
    if (env->uc != uc) return "CPUX86State.uc";
    if (cs->uc != uc) return "CPUState.uc";
    if (env_cpu(env) != cs) return "CPUX86State inside X86CPU";
    if (cs->icount_decr_ptr != &cpu_neg(cs)->icount_decr) return "CPUNegativeOffsetState";
    if (cs->cc != (CPUClass*)&X86_CPU(cs)->cc || !cs->cc->cpu_exec_interrupt) return "CPUClass";
    if (uc->tcg_ctx->uc != uc || !uc->tcg_ctx->code_gen_buffer) return "TCGContext";
    if (uc->qemu_thread_data) return "uc_struct.qemu_thread_data";
    return cm_translator_selfcheck(uc);
}

bool cm_target_prepare(struct cm_engine* engine) { return cm_translator_attach(engine); }

void cm_target_attach(struct cm_engine* engine) {
    cm_exceptions_attach(engine);
    cm_accesses_attach(engine);
    cm_canonical_attach(engine);
    cm_code_address_attach(engine);
    cm_platform_attach(engine);
    cm_engine_reset(engine);
}

void cm_target_release(struct cm_engine* engine) { free(engine->target.translation); }

static void after_reset(cm_engine* engine) {
    // Unicorn's reset turns user conveniences on; hardware comes up with CR4 = 0 (SDM vol. 3A table 10-1).
    cpu_x86_update_cr4(engine->env, 0);
    engine->env->cr[0] = 0x60000010;
    engine->cs->exception_index = -1;
    engine->cs->exit_request = 0;
    engine->cs->interrupt_request = CM_PERMANENT_REQUEST;
    engine->shutdown = false;
    cm_platform_reset(engine);
    tlb_flush(engine->cs);
}

void cm_engine_reset(cm_engine* engine) {
    cpu_reset(engine->cs);
#ifdef COREMESH_HOST_SSE
    cm_float_reset(engine->env);
#endif
    after_reset(engine);
}

void cm_engine_init(cm_engine* engine) {
    CPUX86State* env = engine->env;
    CPUX86State* before = malloc(sizeof *before);
    if (before) *before = *env;
    cpu_reset(engine->cs);
    if (before) {
        memcpy(env->fpregs, before->fpregs, sizeof env->fpregs);
        memcpy(env->fptags, before->fptags, sizeof env->fptags);
        memcpy(env->xmm_regs, before->xmm_regs, sizeof env->xmm_regs);
        env->fpstt = before->fpstt;
        env->fpus = before->fpus;
        env->fpop = before->fpop;
        env->fpip = before->fpip;
        env->fpdp = before->fpdp;
        env->fpcs = before->fpcs;
        env->fpds = before->fpds;
        env->mxcsr = before->mxcsr;
        env->sse_status = before->sse_status;
        cpu_set_fpuc(env, before->fpuc);
        free(before);
    }
    after_reset(engine);
}

void cm_engine_sipi(cm_engine* engine, uint8_t vector) {
    cpu_x86_load_seg_cache_sipi(X86_CPU(engine->cs), vector);
}

bool cm_engine_interrupts_enabled(const cm_engine* engine) {
    const CPUX86State* env = engine->env;
    return (env->eflags & IF_MASK) && !(env->hflags & HF_INHIBIT_IRQ_MASK);
}

bool cm_engine_nmi_blocked(const cm_engine* engine) { return (engine->env->hflags2 & HF2_NMI_MASK) != 0; }

void cm_engine_enter_thread(cm_engine* engine) {
#ifdef COREMESH_HOST_SSE
    cm_float_thread_enter(engine->env);
#else
    (void)engine;
#endif
}

void cm_engine_sync_thread(cm_engine* engine) {
#ifdef COREMESH_HOST_SSE
    cm_float_sync(engine->env);
#else
    (void)engine;
#endif
}

void cm_engine_interrupted(void* ucontext) {
#ifdef COREMESH_HOST_SSE
    cm_float_interrupted(ucontext);
#else
    (void)ucontext;
#endif
}

uint32_t cm_engine_leave_floats(void) {
#ifdef COREMESH_HOST_SSE
    return cm_float_leave();
#else
    return 0;
#endif
}

void cm_engine_return_floats(uint32_t saved) {
#ifdef COREMESH_HOST_SSE
    cm_float_return(saved);
#else
    (void)saved;
#endif
}

const struct cm_x86_functions cm_x86_functions_x86_64 = {CM_X86_FUNCTIONS(CM_ENGINE_FUNCTION_VALUE)};

// LOCK NEG is a loop around a compare-and-exchange, the only backward branch inside a block. After it the
// engine computes the flags from the old value where they belong to its negation.
static void mend_lock_neg(TCGContext* tcg) {
    TCGArg label = 0;
    TCGOp* op;
    QTAILQ_FOREACH(op, &tcg->ops, link) {
        if (op->opc == INDEX_op_set_label) {
            label = op->args[0];
        } else if (op->opc == INDEX_op_brcond_i64 && label && op->args[3] == label) {
            TCGOp* result = QTAILQ_NEXT(op, link);
            if (result && result->opc == INDEX_op_mov_i64) result->opc = INDEX_op_neg_i64;
        }
    }
}

void cm_target_mend_block(struct cm_engine* engine, TCGContext* tcg) {
    const unsigned contents = cm_block_contents(engine);
    if (contents & CM_CALLS) cm_store_condition_codes(tcg);
    if (contents & CM_LOCKS) mend_lock_neg(tcg);
    if (contents & CM_CALLS) cm_narrow_operands(tcg);
    if (contents & CM_LOADS_TABLES) cm_check_table_bases(tcg);
}
