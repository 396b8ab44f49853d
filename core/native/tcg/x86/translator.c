// SPDX-License-Identifier: GPL-2.0-or-later
// The loop over the instructions of a block (see translator.h).
//
// A block ends with its page, and an instruction that runs over the page's end is a block of its own. So a
// fetch from a page that is missing faults when all before it has been executed, and not before (SDM vol. 3A,
// 6.5: faults are reported in the order of execution).
#include <pthread.h>

#include "../shared_blocks.h"
#include "translator.h"
#include "exec/helper-gen.h"
#include "tcg/tcg-op.h"

#include "accesses.h"
#include "coverage.h"
#include "encodings.h"
#include "engine_calls.h"
#include "segment_limits.h"

// --- Calls ---

// One description for each function that was ever called; they live as long as the process. Engines translate
// on several threads at once: `lock` guards both variables.
static HelperInfo* info_of(cm_execute_function execute) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static struct called {
        HelperInfo info;
        struct called* next;
    } * all;
    pthread_mutex_lock(&lock);
    struct called* found = all;
    while (found && found->info.func != (void*)execute) found = found->next;
    if (!found && (found = calloc(1, sizeof *found))) {
        found->info = (HelperInfo){
            (void*)execute, "execute", 0,
            dh_sizemask(void, 0) | dh_sizemask(ptr, 1) | dh_sizemask(i64, 2) | dh_sizemask(i64, 3)};
        found->next = all;
        all = found;
    }
    pthread_mutex_unlock(&lock);
    if (!found) abort();
    return &found->info;
}

static union cm_operands operands_of(const struct cm_instruction* in) {
    return (union cm_operands){
        .opcode = in->opcode,
        .modrm = in->modrm,
        .reg = in->reg,
        .rm = in->rm,
        .operand_bytes = in->operand_bytes,
        .address_bytes = in->address_bytes,
        .mandatory = in->mandatory,
        .lock = (in->prefixes & CM_PREFIX_LOCK) != 0,
        .rex = in->rex != 0,
        .memory = in->is_memory,
        .code64 = in->code_size == CM_CODE64,
        .length = in->length,
        .immediate = (int16_t)in->immediate,
    };
}

void cm_store_flags_kind(struct cm_translator* t) {
    if (!t->dc->cc_op_dirty) return;
    tcg_gen_movi_i32(t->tcg, t->tcg->cpu_cc_op, t->dc->cc_op);
    t->dc->cc_op_dirty = false;
}

void cm_flags_are_in_source(struct cm_translator* t) {
    t->dc->cc_op = CC_OP_EFLAGS;
    t->dc->cc_op_dirty = true;
}

void cm_store_rip(struct cm_translator* t, target_ulong linear) {
    TCGv_i64 rip = tcg_temp_new_i64(t->tcg);
    cm_emit_code_address(t, rip, linear - t->dc->cs_base);
    tcg_gen_st_i64(t->tcg, rip, t->tcg->cpu_env, offsetof(CPUX86State, eip));
    tcg_temp_free_i64(t->tcg, rip);
}

enum cm_translated cm_emit_exception(struct cm_translator* t, int vector) {
    cm_store_flags_kind(t);
    cm_store_rip(t, t->pc);
    TCGv_i32 number = tcg_const_i32(t->tcg, vector);
    gen_helper_raise_exception(t->tcg, t->tcg->cpu_env, number);
    tcg_temp_free_i32(t->tcg, number);
    return CM_TRANSLATED_RAISE;
}

TCGv_i64 cm_emit_address(struct cm_translator* t, const struct cm_instruction* in) {
    TCGContext* tcg = t->tcg;
    TCGv_i64 sum = tcg_temp_new_i64(tcg);
    const bool code64 = in->code_size == CM_CODE64;
    int64_t constant = in->displacement;
    if (in->base == CM_RIP) {
        cm_emit_code_address(t, sum, (target_ulong)constant + t->pc + in->length);
    } else if (in->index != CM_NO_REGISTER) {
        tcg_gen_shli_i64(tcg, sum, tcg->cpu_regs[in->index], in->scale);
        tcg_gen_addi_i64(tcg, sum, sum, constant);
    } else {
        tcg_gen_movi_i64(tcg, sum, constant);
    }
    if (in->base >= 0 && in->base != CM_RIP) tcg_gen_add_i64(tcg, sum, sum, tcg->cpu_regs[in->base]);
    if (in->address_bytes == 2) tcg_gen_ext16u_i64(tcg, sum, sum);
    if (in->address_bytes == 4) tcg_gen_ext32u_i64(tcg, sum, sum);
    if (code64 ? in->operand_segment >= CM_FS : t->dc->addseg || in->segment != CM_NO_SEGMENT) {
        tcg_gen_add_i64(tcg, sum, sum, tcg->cpu_seg_base[in->operand_segment]);
        if (!code64) tcg_gen_ext32u_i64(tcg, sum, sum);
    }
    return sum;
}

enum cm_translated cm_emit_execute(struct cm_translator* t, const struct cm_instruction* in,
                                   cm_execute_function execute, unsigned flags) {
    TCGContext* tcg = t->tcg;
    if (flags & CM_READS_FLAGS) cm_store_flags_kind(t);
    if (flags & CM_READS_RIP) cm_store_rip(t, t->pc);
    TCGv_i64 address = in->is_memory ? cm_emit_address(t, in) : tcg_const_i64(tcg, 0);
    TCGv_i64 word = tcg_const_i64(tcg, (int64_t)operands_of(in).word);
    TCGTemp* args[] = {tcgv_ptr_temp(tcg, tcg->cpu_env), tcgv_i64_temp(tcg, address),
                       tcgv_i64_temp(tcg, word)};
    cm_emit_call(tcg, info_of(execute), 3, args);
    tcg_temp_free_i64(tcg, word);
    tcg_temp_free_i64(tcg, address);
    if (flags & CM_WRITES_FLAGS) cm_flags_are_in_source(t);
    return flags & CM_ENDS_BLOCK ? CM_TRANSLATED_LAST : CM_TRANSLATED;
}

// --- Look-up ---

enum { MOST_ROWS = 1024 };

// Rows of one opcode, in order. Built once; read only after that.
static const struct cm_row* chained[MOST_ROWS + 1];
static uint16_t first_row[CM_MAPS][256], next_row[MOST_ROWS + 1];
// Whether an opcode has rows for an instruction without 66, F2 and F3.
static bool without_prefix[CM_MAPS][256];

static void chain_row(const struct cm_row* row, unsigned opcode, unsigned* used) {
    if (*used == MOST_ROWS) abort();
    uint16_t* link = &first_row[row->map][opcode];
    while (*link) link = &next_row[*link];
    chained[++*used] = row;
    *link = (uint16_t)*used;
    if (!row->prefixes || row->prefixes & CM_IF_NONE) without_prefix[row->map][opcode] = true;
}

static void chain_rows(void) {
    unsigned used = 0;
    for (size_t i = 0; i < cm_table_count; i++) {
        for (size_t j = 0; j < cm_tables[i].count; j++) {
            const struct cm_row* row = &cm_tables[i].rows[j];
            const unsigned last = row->last ? row->last : row->opcode;
            for (unsigned opcode = row->opcode; opcode <= last; opcode++) chain_row(row, opcode, &used);
        }
    }
}

static bool matches(const struct cm_row* row, const struct cm_instruction* in) {
    if (row->modes && !(row->modes & in->code_size >> 1)) return false;
    if (row->form && row->form != (in->is_memory ? CM_MEMORY : CM_REGISTER)) return false;
    if (row->groups && !(row->groups >> (in->modrm >> 3 & 7) & 1)) return false;
    return !row->prefixes || row->prefixes >> in->mandatory & 1;
}

static enum cm_translated translate_row(struct cm_translator* t, const struct cm_instruction* in,
                                        const struct cm_row* row) {
    if (row->vector) return cm_emit_exception(t, row->vector);
    if (row->check) {
        cm_emit_execute(t, in, row->check, row->flags);
        return CM_TO_ENGINE;
    }
    if (row->execute) return cm_emit_execute(t, in, row->execute, row->flags);
    return row->translate(t, in);
}

enum cm_code_size cm_code_size_of(const struct cm_translator* t) {
    return t->dc->code64 ? CM_CODE64 : t->dc->code32 ? CM_CODE32 : CM_CODE16;
}

uint32_t CM_REAL(cpu_ldub_code)(CPUX86State* env, abi_ptr address);
uint32_t CM_REAL(cpu_lduw_code)(CPUX86State* env, abi_ptr address);
uint32_t CM_REAL(cpu_ldl_code)(CPUX86State* env, abi_ptr address);
uint64_t CM_REAL(cpu_ldq_code)(CPUX86State* env, abi_ptr address);

// Up to the page's end at once; what lies behind it, or is not RAM, when it is asked for.
static void fetch(struct cm_translator* t, target_ulong pc) {
    const unsigned offset = pc & ~TARGET_PAGE_MASK, room = TARGET_PAGE_SIZE - offset;
    t->pc = pc;
    t->available = 0;
    if (!t->host_page || (pc & TARGET_PAGE_MASK) != t->page) return;
    if (likely(room >= 16)) {
        memcpy(t->bytes, t->host_page + offset, t->available = 16);
    } else {
        memcpy(t->bytes, t->host_page + offset, t->available = room);
    }
}

static void fetch_more(struct cm_translator* t) {
    cm_require_code_byte(t, t->pc + t->available);
    t->bytes[t->available] = (uint8_t)CM_REAL(cpu_ldub_code)(t->env, t->pc + t->available);
    t->available++;
}

static enum cm_decoded decode_whole(struct cm_translator* t, struct cm_instruction* in) {
    enum cm_decoded decoded;
    while ((decoded = cm_decode(t->bytes, t->available, cm_code_size_of(t), in)) == CM_NEEDS_MORE)
        fetch_more(t);
    return decoded;
}

// Whether an instruction with this beginning can have a row, or prefixes that exclude each other, without
// decoding it.
static bool may_be_ours(const struct cm_translator* t) {
    const uint8_t* p = t->bytes;
    const uint8_t* const end = p + t->available - 3;
    bool sized = false, repeated = false;
    if (t->available < 16) return true;
    for (; p < end; p++) {
        uint8_t map = CM_MAP_1, opcode = *p;
        switch (opcode) {
            case 0x66:
                if (repeated) return true;
                sized = true;
                continue;
            case 0xf2:
            case 0xf3:
                if (repeated || sized) return true;
                repeated = true;
                continue;
            case 0xf0:
                return true;
            case 0x26:
            case 0x2e:
            case 0x36:
            case 0x3e:
            case 0x64:
            case 0x65:
            case 0x67:
                continue;
            case 0x40 ... 0x4f:
                if (t->dc->code64) continue;
                break;
            case 0x0f:
                map = p[1] == 0x38 ? CM_MAP_0F38 : p[1] == 0x3a ? CM_MAP_0F3A : CM_MAP_0F;
                opcode = map == CM_MAP_0F ? p[1] : p[2];
                break;
            default:
                break;
        }
        return sized || repeated ? first_row[map][opcode] != 0 : without_prefix[map][opcode];
    }
    return true;
}

static enum cm_translated translate_ours(struct cm_translator* t, struct cm_instruction* in) {
    if (decode_whole(t, in) == CM_TOO_LONG) return CM_TO_ENGINE;  // it raises #GP(0)
    if (in->prefixes & CM_PREFIX_LOCK) {
        t->locked = true;
        t->contents |= CM_LOCKS;
    }
    if (cm_is_refused(in)) return cm_emit_exception(t, EXCP06_ILLOP);
    cm_respell_prefixes(t, in);
    for (uint16_t at = first_row[in->map][in->opcode]; at; at = next_row[at]) {
        if (!matches(chained[at], in)) continue;
        enum cm_translated done = translate_row(t, in, chained[at]);
        if (done != CM_TO_ENGINE) return done;
    }
    return CM_TO_ENGINE;
}

// --- The loop ---

struct cm_translation {
    struct cm_translator t;
    TranslatorOps engine;  // the engine's operations
    int lasting_temps;     // temporaries that serve the whole block; 0 before its first instruction
};

// The engine forgets to free temporaries of some instructions. It has room for 512 of them and writes over
// what lies behind when a block needs more, which a guest can make of 500 such instructions. None lives
// longer than its instruction.
static void free_forgotten(struct cm_translation* translation) {
    enum { MANY_TEMPS = TCG_MAX_TEMPS / 2 };  // an instruction needs some twenty
    TCGContext* tcg = translation->t.tcg;
    if (!translation->lasting_temps) translation->lasting_temps = tcg->nb_temps;
    if (likely(tcg->nb_temps < MANY_TEMPS)) return;
    for (int i = translation->lasting_temps; i < tcg->nb_temps; i++) {
        if (tcg->temps[i].temp_allocated) tcg_temp_free_internal(tcg, &tcg->temps[i]);
    }
}

// Whether the instruction at `pc` lies within its page, as far as that can be told without reading the next.
static bool ends_in_page(struct cm_translator* t, target_ulong pc) {
    const unsigned room = TARGET_PAGE_SIZE - (pc & ~TARGET_PAGE_MASK);
    struct cm_instruction in;
    if (room >= CM_LONGEST_INSTRUCTION) return true;
    fetch(t, pc);
    return cm_decode(t->bytes, t->available, cm_code_size_of(t), &in) == CM_DECODED;
}

void cm_translate_by_engine(struct cm_translator* t) {
    const struct cm_translation* translation = t->engine->target.translation;
    TCGOp* mark = QTAILQ_LAST(&t->tcg->ops);
    translation->engine.translate_insn(&t->dc->base, t->engine->cs);
    cm_make_relative(t, mark, false);
    cm_mark_accesses(t, mark);
}

static void translate_insn(DisasContextBase* db, CPUState* cs) {
    struct cm_translation* translation = cm_engine_of(cs->uc)->target.translation;
    struct cm_translator* t = &translation->t;
    struct cm_instruction in;
    if (!translation->lasting_temps) cm_begin_code_addresses(t);
    free_forgotten(translation);
    fetch(t, db->pc_next);
    t->before = QTAILQ_LAST(&t->tcg->ops);
    t->locked = false;
    const bool checks_segments = !t->dc->code64;
    if (checks_segments) {
        t->check_word = tcg_temp_new_i64(t->tcg);
        if (cm_may_leave_code(t) && decode_whole(t, &in) == CM_DECODED) cm_emit_code_checks(t, &in);
    }
    enum cm_translated done = may_be_ours(t) ? translate_ours(t, &in) : CM_TO_ENGINE;
    if (done == CM_TO_ENGINE) {
        cm_translate_by_engine(t);
        if (t->after) t->after(t, &in);
        t->after = NULL;
    } else if (done != CM_TRANSLATED_BY_ENGINE) {
        db->pc_next += in.length;
        if (done != CM_TRANSLATED_RAISE) cm_mark_accesses(t, t->before);
        const bool single = t->dc->tf || (db->tb->flags & HF_INHIBIT_IRQ_MASK);
        if (done == CM_TRANSLATED_RAISE) {
            db->is_jmp = DISAS_NORETURN;
        } else if (done == CM_TRANSLATED_LAST || single) {
            db->is_jmp = DISAS_TOO_MANY;
        }
    }
    if (checks_segments) {
        if (done != CM_TRANSLATED_RAISE) cm_emit_segment_checks(t);
        tcg_temp_free_i64(t->tcg, t->check_word);
    }
    if (unlikely(cm_coverage_on)) cm_note_instruction(t, t->before);
    if (db->is_jmp != DISAS_NEXT) return;
    const bool same_page = ((db->pc_next ^ db->pc_first) & TARGET_PAGE_MASK) == 0;
    if (!same_page || !ends_in_page(t, db->pc_next)) db->is_jmp = DISAS_TOO_MANY;
}

static void tb_stop(DisasContextBase* db, CPUState* cs) {
    struct cm_translation* translation = cm_engine_of(cs->uc)->target.translation;
    TCGOp* mark = QTAILQ_LAST(&translation->t.tcg->ops);
    translation->engine.tb_stop(db, cs);
    cm_make_relative(&translation->t, mark, true);
}

// What the engine reads for the instruction that was decoded is what was decoded.
#define SERVE(kind, type, bits)                                                        \
    type CM_WRAP(cpu_ld##kind##_code)(CPUX86State * env, abi_ptr address) {            \
        const struct cm_translator* t = &cm_engine_of(env->uc)->target.translation->t; \
        const target_ulong at = address - t->pc;                                       \
        CM_HIT(cpu_ld##kind##_code);                                                   \
        if (unlikely(at >= t->available || at + (bits) / 8 > t->available))            \
            return CM_REAL(cpu_ld##kind##_code)(env, address);                         \
        uint##bits##_t value;                                                          \
        memcpy(&value, t->bytes + at, sizeof value);                                   \
        return value;                                                                  \
    }
SERVE(ub, uint32_t, 8)
SERVE(uw, uint32_t, 16)
SERVE(l, uint32_t, 32)
SERVE(q, uint64_t, 64)

static void compare_with_engine(const TranslatorOps* ops, DisasContextBase* db, CPUState* cs,
                                TranslationBlock* tb);

void CM_REAL(translator_loop)(const TranslatorOps* ops, DisasContextBase* db, CPUState* cs,
                              TranslationBlock* tb, int max_insns);

void CM_WRAP(translator_loop)(const TranslatorOps* ops, DisasContextBase* db, CPUState* cs,
                              TranslationBlock* tb, int max_insns) {
    struct cm_engine* engine = cm_engine_of(cs->uc);
    CM_HIT(translator_loop);
    if (!engine) {
        compare_with_engine(ops, db, cs, tb);
        return;
    }
    struct cm_translation* translation = engine->target.translation;
    const uint64_t page = engine->code_page;
    translation->engine = *ops;
    translation->lasting_temps = 0;
    translation->t = (struct cm_translator){
        .engine = engine,
        .tcg = cs->uc->tcg_ctx,
        .env = engine->env,
        .dc = (struct cm_disassembly*)db,
        .page = tb->pc & TARGET_PAGE_MASK,
        .relative = cm_shares_block(engine, tb->pc, tb->cs_base, tb->flags),
        .host_page = page == UINT64_MAX ? NULL : engine->guest_view + (page << TARGET_PAGE_BITS),
    };
    TranslatorOps ours = *ops;
    ours.translate_insn = translate_insn;
    ours.tb_stop = tb_stop;
    CM_REAL(translator_loop)(&ours, db, cs, tb, max_insns);
    translation->t.available = 0;
}

unsigned cm_block_contents(const struct cm_engine* engine) { return engine->target.translation->t.contents; }

bool cm_translator_attach(struct cm_engine* engine) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, chain_rows);
    engine->target.translation = calloc(1, sizeof *engine->target.translation);
    return engine->target.translation != NULL;
}

// --- The check at start ---

static _Thread_local const char* difference;

static const char* compare_block(const struct cm_disassembly* dc, const TranslationBlock* tb, CPUState* cs) {
    const uint32_t flags = tb->flags;
    if (dc->cs_base != tb->cs_base) return "DisasContext.cs_base";
    if (!dc->pe != !(flags & HF_PE_MASK) || !dc->code32 != !(flags & HF_CS32_MASK))
        return "DisasContext.code32";
    if (!dc->lma != !(flags & HF_LMA_MASK) || !dc->code64 != !(flags & HF_CS64_MASK))
        return "DisasContext.code64";
    if (!dc->ss32 != !(flags & HF_SS32_MASK)) return "DisasContext.ss32";
    if (!dc->addseg != !(flags & HF_ADDSEG_MASK)) return "DisasContext.addseg";
    if (!dc->vm86 != !(flags & VM_MASK) || !dc->tf != !(flags & TF_MASK)) return "DisasContext.tf";
    if (dc->cpl != (int)(flags >> HF_CPL_SHIFT & 3) || dc->iopl != (int)(flags >> IOPL_SHIFT & 3))
        return "DisasContext.cpl";
    if (!dc->jmp_opt != !!(flags & TF_MASK)) return "DisasContext.jmp_opt";
    if (dc->mem_index != cpu_mmu_index(cs->env_ptr, false)) return "DisasContext.mem_index";
    return dc->flags == flags ? NULL : "DisasContext.flags";
}

// cc_op is what a new instruction notes; when it is dirty the end of a block stores it.
static const char* compare_flags_kind(const TranslatorOps* ops, struct cm_disassembly* dc, CPUState* cs) {
    TCGContext* tcg = cs->uc->tcg_ctx;
    const CCOp kind = CC_OP_SBBQ;
    if (dc->cc_op != CC_OP_DYNAMIC || dc->cc_op_dirty) return "DisasContext.cc_op at a block's start";
    dc->cc_op = kind;
    ops->insn_start(&dc->base, cs);
    if (QTAILQ_LAST(&tcg->ops)->args[1] != (TCGArg)kind) return "DisasContext.cc_op";
    dc->cc_op_dirty = true;
    dc->base.is_jmp = DISAS_TOO_MANY;
    ops->tb_stop(&dc->base, cs);
    if (dc->cc_op_dirty) return "DisasContext.cc_op_dirty";
    TCGOp* op;
    QTAILQ_FOREACH(op, &tcg->ops, link) {
        if (op->opc == INDEX_op_movi_i32 && op->args[0] == tcgv_i32_arg(tcg, tcg->cpu_cc_op) &&
            op->args[1] == (TCGArg)kind) {
            return NULL;
        }
    }
    return "DisasContext.cc_op at a block's end";
}

static void compare_with_engine(const TranslatorOps* ops, DisasContextBase* db, CPUState* cs,
                                TranslationBlock* tb) {
    struct cm_disassembly* dc = (struct cm_disassembly*)db;
    db->tb = tb;
    db->pc_first = db->pc_next = tb->pc;
    db->is_jmp = DISAS_NEXT;
    ops->init_disas_context(db, cs);
    difference = compare_block(dc, tb, cs);
    if (!difference) difference = compare_flags_kind(ops, dc, cs);
}

void CM_REAL(gen_intermediate_code)(CPUState* cs, TranslationBlock* tb, int max_insns);

const char* cm_translator_selfcheck(struct uc_struct* uc) {
    static const uint32_t patterns[] = {
        HF_PE_MASK | HF_CS64_MASK | HF_SS32_MASK | 3u << HF_CPL_SHIFT | TF_MASK,
        HF_CS32_MASK | HF_LMA_MASK | HF_ADDSEG_MASK | VM_MASK | 2u << IOPL_SHIFT,
    };
    CPUX86State* env = uc->cpu->env_ptr;
    const uint32_t hflags = env->hflags;
    difference = "translator_loop is not reached";
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        TranslationBlock tb = {.pc = 0x123456, .cs_base = 0x2000, .flags = patterns[i]};
        env->hflags = patterns[i] & HF_CPL_MASK;
        tcg_func_start(uc->tcg_ctx);
        CM_REAL(gen_intermediate_code)(uc->cpu, &tb, 1);
        if (difference) break;
    }
    env->hflags = hflags;
    return difference;
}
