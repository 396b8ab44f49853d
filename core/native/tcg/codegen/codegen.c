// SPDX-License-Identifier: GPL-2.0-or-later
// A code generator of our own for x86-64 hosts.
//
// The engine translates guest instructions to operations; from these its own generator makes host code that
// writes every changed register of the guest to memory before every load and store, since they may raise an
// exception, and forgets what is in registers wherever a branch is. This one keeps values in registers over
// the whole block, writes the state in the slow paths, and works in 32 bits where a result's other half is
// not wanted. A block that is too long for its tables is divided. An instruction with an operation that it
// does not know (vectors, byte-swapped accesses) goes to the engine's; the x86 translator emits none.
//
//   analysis.c  what is known beforehand: last uses, halves that are not wanted
//   groups.c    which guest accesses lie near each other
//   values.c    which register holds what
//   arithmetic.c  computing, with operands from operands.c
//   ops.c       the CPU state, branches
//   memory.c    guest loads and stores
//   calls.c     calls of helpers
//   emit.h              host instructions as bytes
#include "codegen.h"

int CM_REAL(tcg_gen_code)(TCGContext* tcg, TranslationBlock* tb);

#ifdef __x86_64__

static void note_instruction(TCGContext* tcg, const gen* g, const TCGOp* op, int* instructions) {
    if (*instructions >= 0) {
        tcg->gen_insn_end_off[*instructions] = (uint16_t)(g->e.at - (uint8_t*)tcg->code_buf);
    }
    ++*instructions;
    for (int i = 0; i < TARGET_INSN_START_WORDS; i++) tcg->gen_insn_data[*instructions][i] = op->args[i];
}

// Bytes of code; -1: the code buffer is full; -2: the block is too long; 0: an operation is not known, or
// something did not fit.
static int generate(gen* g, TranslationBlock* tb) {
    TCGContext* tcg = g->tcg;
    int instructions = -1;
    g->nb_accesses = g->nb_saves = g->nb_fixups = 0;
    if (tcg->nb_indirects || tcg->nb_globals > CM_MAX_GLOBALS || tcg->nb_labels > CM_MAX_LABELS ||
        tcg_uc_has_hookmem(tcg))
        return 0;
    tcg_optimize(tcg);
    if (!cm_prepare(tcg)) return 0;
    cm_analyse(g);
    cm_find_groups(g);
    cm_values_start(g);
    tcg->code_buf = tcg->code_ptr = tb->tc.ptr;
    g->e.at = tb->tc.ptr;
    for (TCGOp* op = QTAILQ_FIRST(&tcg->ops); op;) {
        if (op->opc == INDEX_op_insn_start) {
            note_instruction(tcg, g, op, &instructions);
            op = QTAILQ_NEXT(op, link);
        } else {
            op = cm_generate_op(g, op);
        }
        if (unlikely((void*)g->e.at > tcg->code_gen_highwater)) return -1;
        if (unlikely(g->e.at - (uint8_t*)tcg->code_buf > UINT16_MAX)) return -2;
        if (unlikely(g->overflow)) return 0;
    }
    tcg->gen_insn_end_off[instructions] = (uint16_t)(g->e.at - (uint8_t*)tcg->code_buf);
    if (!cm_generate_slow_paths(g)) return -1;
    for (int i = 0; i < g->nb_fixups; i++) emit_patch(g->fixups[i].place, g->labels[g->fixups[i].label]);
    tcg->code_ptr = g->e.at;
    return (int)(g->e.at - (uint8_t*)tcg->code_buf);
}

int CM_WRAP(tcg_gen_code)(TCGContext* tcg, TranslationBlock* tb) {
    struct cm_engine* engine = cm_engine_of(tcg->uc);
    CM_HIT(tcg_gen_code);
    if (!engine->codegen) engine->codegen = calloc(1, sizeof *engine->codegen);
    if (engine->codegen) {
        gen* g = engine->codegen;
        g->tcg = tcg;
        g->engine = engine;
        const int bytes = generate(g, tb);
        if (bytes) return bytes;
        // Half the block is translated instead, so that the engine's generator, which knows less of what an
        // access asks for (x86/accesses.c), is left with single instructions.
        if (tb->icount > 1) return -2;
    }
    return CM_REAL(tcg_gen_code)(tcg, tb);
}

#else

int CM_WRAP(tcg_gen_code)(TCGContext* tcg, TranslationBlock* tb) {
    CM_HIT(tcg_gen_code);
    return CM_REAL(tcg_gen_code)(tcg, tb);
}

#endif
