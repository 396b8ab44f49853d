// SPDX-License-Identifier: GPL-2.0-or-later
// The whole state of the processor between two instructions, as words by name.
//
// Most of it is kept word for word: `plain` says where the engine has it. What the engine keeps in several
// forms (flags, segments, control registers, the modes that follow from them) is in `struct special`, and is
// put together anew: the engine's hidden flags are never trusted from outside.
#include "platform.h"
#include "segments.h"
#include "watchpoints.h"

// ---- words that the engine keeps as they are

struct plain {
    struct cm_state_entry entry;
    size_t offset;    // of the first word in CPUX86State
    uint16_t stride;  // bytes from one to the next
    uint8_t bytes;    // of each
};

#define MEMBER(member) (((CPUX86State*)0)->member)
#define WORD(name, member, bits) \
    { {name, 0, bits}, offsetof(CPUX86State, member), 0, sizeof(MEMBER(member)) }
#define LIST(name, array, member, count, bits)                                                 \
    {                                                                                          \
        {name, count, bits}, offsetof(CPUX86State, array[0] member), sizeof(MEMBER(array[0])), \
            sizeof(MEMBER(array[0] member))                                                    \
    }

// An XMM register is the low end of what the engine has room for; no wider ones are announced.
static const struct plain plain[] = {
    LIST("gpr", regs, , 16, 64),  // RAX RCX RDX RBX RSP RBP RSI RDI R8..R15
    WORD("cr2", cr[2], 64),
    WORD("cr3", cr[3], 40),
    WORD("dr0", dr[0], 64),
    WORD("dr1", dr[1], 64),
    WORD("dr2", dr[2], 64),
    WORD("dr3", dr[3], 64),
    WORD("dr6", dr[6], 32),
    LIST("x87_significand", fpregs, .d.low, 8, 64),  // physical registers R0..R7
    LIST("x87_sign_exponent", fpregs, .d.high, 8, 16),
    LIST("x87_empty", fptags, , 8, 1),
    WORD("x87_top", fpstt, 3),
    WORD("x87_opcode", fpop, 11),
    WORD("x87_ip", fpip, 64),
    WORD("x87_cs", fpcs, 16),
    WORD("x87_dp", fpdp, 64),
    WORD("x87_ds", fpds, 16),
    LIST("xmm_low", xmm_regs, .ZMM_Q(0), 16, 64),
    LIST("xmm_high", xmm_regs, .ZMM_Q(1), 16, 64),
    WORD("ia32_sysenter_cs", sysenter_cs, 32),
    WORD("ia32_sysenter_esp", sysenter_esp, 64),
    WORD("ia32_sysenter_eip", sysenter_eip, 64),
    WORD("ia32_star", star, 64),
    WORD("ia32_lstar", lstar, 64),
    WORD("ia32_cstar", cstar, 64),
    WORD("ia32_fmask", fmask, 32),
    WORD("ia32_kernel_gs_base", kernelgsbase, 64),
    WORD("ia32_tsc_aux", tsc_aux, 32),
    WORD("ia32_pat", pat, 64),
    WORD("ia32_misc_enable", msr_ia32_misc_enable, 64),
    WORD("ia32_mcg_status", mcg_status, 3),
    WORD("ia32_mcg_ctl", mcg_ctl, 64),
    LIST("ia32_mc_banks", mce_banks, , MCE_BANKS_DEF * 4, 64),
    LIST("ia32_mtrr_fixed", mtrr_fixed, , 11, 64),
    WORD("ia32_mtrr_def_type", mtrr_deftype, 12),
    LIST("ia32_mtrr_physbase", mtrr_var, .base, MSR_MTRRcap_VCNT, 64),
    LIST("ia32_mtrr_physmask", mtrr_var, .mask, MSR_MTRRcap_VCNT, 64),
};

enum { PLAIN = sizeof plain / sizeof *plain };

// ---- what is put together

// Selector, base, limit, access rights (engine.h, cm_segment).
#define SEGMENT_WORDS 4

#define SPECIAL(ONE, MANY)                                                                    \
    ONE(rip, 64)                                                                              \
    ONE(rflags, 22)                                                                           \
    ONE(cr0, 32)                                                                              \
    ONE(cr4, 32)                                                                              \
    ONE(ia32_efer, 32)                                                                        \
    ONE(xcr0, 64)                                                                             \
    ONE(dr7, 32)                                                                              \
    MANY(es, SEGMENT_WORDS)                                                                   \
    MANY(cs, SEGMENT_WORDS)                                                                   \
    MANY(ss, SEGMENT_WORDS)                                                                   \
    MANY(ds, SEGMENT_WORDS)                                                                   \
    MANY(fs, SEGMENT_WORDS)                                                                   \
    MANY(gs, SEGMENT_WORDS)                                                                   \
    MANY(ldtr, SEGMENT_WORDS)                                                                 \
    MANY(tr, SEGMENT_WORDS)                                                                   \
    MANY(gdtr, 2) /* base, limit */                                                           \
    MANY(idtr, 2)                                                                             \
    ONE(x87_control, 16)                                                                      \
    ONE(x87_status, 16) /* without TOP */                                                     \
    ONE(mxcsr, 16)                                                                            \
    ONE(interrupt_shadow, 2)     /* 1: of STI, 2: of MOV SS or POP SS (SDM vol. 3C 25.4.2) */ \
    ONE(nmi_blocked, 1)          /* until IRET (SDM vol. 3A 6.7.1) */                         \
    ONE(data_breakpoints_hit, 4) /* a #DB that waits for the instruction's end: DR0 to DR3 */

#define AS_MEMBER(name, bits) uint64_t name;
#define AS_MEMBERS(name, count) uint64_t name[count];
struct special {
    SPECIAL(AS_MEMBER, AS_MEMBERS)
};

#define AS_ENTRY(name, bits) {#name, 0, bits},
#define AS_ENTRIES(name, count) {#name, count, 64},
static const struct cm_state_entry special_entries[] = {SPECIAL(AS_ENTRY, AS_ENTRIES)};

enum { SPECIALS = sizeof special_entries / sizeof *special_entries };

const struct cm_state_entry* cm_engine_state_entry(size_t index) {
    if (index < PLAIN) return &plain[index].entry;
    return index - PLAIN < SPECIALS ? &special_entries[index - PLAIN] : NULL;
}

// ---- save

static uint64_t read_word(const void* at, unsigned bytes) {
    uint64_t word = 0;
    memcpy(&word, at, bytes);
    return word;
}

static void save_segment(uint64_t* to, const SegmentCache* from) {
    to[0] = from->selector;
    to[1] = from->base;
    to[2] = from->limit;
    to[3] = cm_segment_access(from);
}

static uint64_t breakpoints_hit(const struct cm_engine* engine) {
    const CPUX86State* env = engine->env;
    uint64_t hit = 0;
    if (!engine->target.data_trap) return 0;
    for (unsigned i = 0; i < 4; i++) {
        // A union with instruction breakpoints: DR7 tells which.
        const bool data = env->dr[7] >> (DR7_TYPE_SHIFT + 4 * i) & 1;
        if (data && env->cpu_watchpoint[i] && (env->cpu_watchpoint[i]->flags & BP_WATCHPOINT_HIT))
            hit |= 1u << i;
    }
    return hit;
}

// STI and MOV SS leave the same mark in hflags; an instruction breakpoint tells them apart
// (debug_registers.c).
enum { SHADOW_NONE, SHADOW_STI, SHADOW_STACK };

static uint64_t interrupt_shadow(const struct cm_engine* engine) {
    if (!(engine->env->hflags & HF_INHIBIT_IRQ_MASK)) return SHADOW_NONE;
    return cm_is_behind_stack_load(engine) ? SHADOW_STACK : SHADOW_STI;
}

static void load_shadow(struct cm_engine* engine, uint64_t shadow) {
    CPUX86State* env = engine->env;
    env->hflags &= ~HF_INHIBIT_IRQ_MASK;
    if (shadow != SHADOW_NONE) env->hflags |= HF_INHIBIT_IRQ_MASK;
    engine->target.last_sti = shadow == SHADOW_STI ? env->segs[R_CS].base + env->eip - 1 : 0;
}

void cm_engine_save(const cm_engine* engine, uint64_t* words) {
    CPUX86State* env = engine->env;
    for (size_t i = 0; i < PLAIN; i++) {
        const uint8_t* at = (const uint8_t*)env + plain[i].offset;
        for (unsigned n = cm_state_words(&plain[i].entry); n-- > 0; at += plain[i].stride)
            *words++ = read_word(at, plain[i].bytes);
    }
    struct special s = {
        .rip = env->eip,
        .rflags = cpu_compute_eflags(env),
        .cr0 = env->cr[0],
        .cr4 = env->cr[4],
        .ia32_efer = env->efer,
        .xcr0 = env->xcr0,
        .dr7 = env->dr[7],
        .gdtr = {env->gdt.base, env->gdt.limit},
        .idtr = {env->idt.base, env->idt.limit},
        .x87_control = env->fpuc,
        .x87_status = env->fpus,
        .mxcsr = env->mxcsr,
        .interrupt_shadow = interrupt_shadow(engine),
        .nmi_blocked = (env->hflags2 & HF2_NMI_MASK) != 0,
        .data_breakpoints_hit = breakpoints_hit(engine),
    };
    save_segment(s.es, &env->segs[R_ES]);
    save_segment(s.cs, &env->segs[R_CS]);
    save_segment(s.ss, &env->segs[R_SS]);
    save_segment(s.ds, &env->segs[R_DS]);
    save_segment(s.fs, &env->segs[R_FS]);
    save_segment(s.gs, &env->segs[R_GS]);
    save_segment(s.ldtr, &env->ldt);
    save_segment(s.tr, &env->tr);
    memcpy(words, &s, sizeof s);
}

// ---- load

static bool is_segment(const uint64_t* segment) {
    return !(segment[0] >> 16 || segment[2] >> 32 || segment[3] >> 12);
}

// The name of what no processor can hold, or NULL. An engine would take it and go wrong later.
static const char* impossible(const CPUX86State* env, const struct special* s) {
    const bool paging = s->cr0 & CR0_PG_MASK, long_mode = paging && (s->ia32_efer & MSR_EFER_LME);
    const uint64_t efer = MSR_EFER_SCE | MSR_EFER_LME | MSR_EFER_LMA | MSR_EFER_NXE;
    const struct {
        const char* name;
        const uint64_t* segment;
    } segments[] = {{"es", s->es}, {"cs", s->cs}, {"ss", s->ss},     {"ds", s->ds},
                    {"fs", s->fs}, {"gs", s->gs}, {"ldtr", s->ldtr}, {"tr", s->tr}};
    for (size_t i = 0; i < sizeof segments / sizeof *segments; i++) {
        if (!is_segment(segments[i].segment)) return segments[i].name;
    }
    if (s->interrupt_shadow > SHADOW_STACK) return "interrupt_shadow";
    if (s->gdtr[1] >> 16) return "gdtr";
    if (s->idtr[1] >> 16) return "idtr";
    if (paging && !(s->cr0 & CR0_PE_MASK)) return "cr0";
    if ((s->cr4 & ~cm_settable_cr4(env)) || (long_mode && !(s->cr4 & CR4_PAE_MASK))) return "cr4";
    if ((s->ia32_efer & ~efer) || !(s->ia32_efer & MSR_EFER_LMA) == long_mode) return "ia32_efer";
    if (!(s->xcr0 & XSTATE_FP_MASK) || (s->xcr0 & ~(uint64_t)(XSTATE_FP_MASK | XSTATE_SSE_MASK)))
        return "xcr0";
    for (unsigned i = 0; i < 4; i++) {
        const bool enabled = s->dr7 >> 2 * i & 3, data = s->dr7 >> (DR7_TYPE_SHIFT + 4 * i) & 1;
        if ((s->data_breakpoints_hit >> i & 1) && !(enabled && data)) return "data_breakpoints_hit";
    }
    return NULL;
}

static void load_segment(CPUX86State* env, int index, const uint64_t* from) {
    cpu_x86_load_seg_cache(env, index, (unsigned)from[0], from[1], (unsigned)from[2],
                           cm_segment_flags((uint32_t)from[3]));
}

static void load_table_segment(SegmentCache* to, const uint64_t* from) {
    to->selector = (uint32_t)from[0];
    to->base = from[1];
    to->limit = (uint32_t)from[2];
    to->flags = cm_segment_flags((uint32_t)from[3]);
}

// Paging is left and entered anew in the order the processor demands: CR4.PAE, CR3, EFER.LME, CR0.PG (SDM
// vol. 3A 10.8.5). That is when the engine finds its modes. RFLAGS.VM and CS decide what a segment's load
// means.
static void load_modes(CPUX86State* env, const struct special* s) {
    cpu_x86_update_cr0(env, (uint32_t)env->cr[0] & ~CR0_PG_MASK);
    cpu_x86_update_cr4(env, (uint32_t)s->cr4);
    cpu_load_efer(env, s->ia32_efer & ~(uint64_t)MSR_EFER_LMA);
    cpu_x86_update_cr0(env, (uint32_t)s->cr0);
    cpu_load_eflags(env, (int)s->rflags, CM_SYSTEM_FLAGS);
    load_segment(env, R_CS, s->cs);
    load_segment(env, R_SS, s->ss);
    load_segment(env, R_DS, s->ds);
    load_segment(env, R_ES, s->es);
    load_segment(env, R_FS, s->fs);
    load_segment(env, R_GS, s->gs);
    cm_note_segments(env);
    load_table_segment(&env->ldt, s->ldtr);
    load_table_segment(&env->tr, s->tr);
    env->gdt.base = s->gdtr[0], env->gdt.limit = (uint32_t)s->gdtr[1];
    env->idt.base = s->idtr[0], env->idt.limit = (uint32_t)s->idtr[1];
    env->eip = s->rip;
    // The engine takes the arithmetic flags and DF out of this word when it is entered, as it puts them there
    // when it is left.
    env->eflags = (uint32_t)s->rflags | 2;
}

static void load_breakpoints(struct cm_engine* engine, const struct special* s) {
    CPUX86State* env = engine->env;
    cpu_x86_update_dr7(env, (uint32_t)s->dr7);  // makes the lists of breakpoints
    for (unsigned i = 0; i < 4; i++) {
        if (!(s->data_breakpoints_hit >> i & 1) || !env->cpu_watchpoint[i]) continue;
        env->cpu_watchpoint[i]->flags |= BP_WATCHPOINT_HIT_WRITE;
        engine->target.data_trap = true;
    }
}

const char* cm_engine_load(cm_engine* engine, const uint64_t* words) {
    CPUX86State* env = engine->env;
    struct special s;
    const uint64_t* word = words;
    const struct cm_state_entry* entry;
    for (size_t i = 0; (entry = cm_engine_state_entry(i)); i++) {
        for (unsigned n = cm_state_words(entry); n-- > 0; word++) {
            if (!cm_state_fits(entry, *word)) return entry->name;
        }
    }
    memcpy(&s, word - sizeof s / sizeof *word, sizeof s);
    const char* wrong = impossible(env, &s);
    if (wrong) return wrong;

    cpu_x86_update_dr7(env, 0);  // before the addresses change
    for (size_t i = 0; i < PLAIN; i++) {
        uint8_t* at = (uint8_t*)env + plain[i].offset;
        for (unsigned n = cm_state_words(&plain[i].entry); n-- > 0; at += plain[i].stride)
            memcpy(at, words++, plain[i].bytes);
    }
    load_modes(env, &s);
    load_breakpoints(engine, &s);
    env->xcr0 = s.xcr0;
    cpu_set_fpuc(env, (uint16_t)s.x87_control);
    env->fpus = (uint16_t)s.x87_status;
    cpu_set_mxcsr(env, (uint32_t)s.mxcsr);
    load_shadow(engine, s.interrupt_shadow);
    env->hflags2 &= ~HF2_NMI_MASK;
    if (s.nmi_blocked) env->hflags2 |= HF2_NMI_MASK;
    tlb_flush(engine->cs);
    return NULL;
}

// ---- every member of CPUX86State, in order

#define PART(member, role) \
    { #member, offsetof(CPUX86State, member), sizeof(MEMBER(member)), CM_MEMBER_##role }

static const struct cm_state_member members[] = {
    PART(regs, SAVED), PART(eip, SAVED), PART(eflags, SAVED),
    // The arithmetic flags before they are worked out; RFLAGS has them.
    PART(cc_dst, SCRATCH), PART(cc_src, SCRATCH), PART(cc_src2, SCRATCH), PART(cc_op, SCRATCH),
    PART(df, SAVED), PART(hflags, SAVED),  // follow from the registers, and must come out the same
    PART(hflags2, SAVED),
    PART(segs,
         SCRATCH),  // with bits of the descriptor that nothing reads; the entries es to gs have the rest
    PART(ldt, SCRATCH), PART(tr, SCRATCH), PART(gdt, SAVED), PART(idt, SAVED), PART(cr, SAVED),
    PART(a20_mask, FIXED), PART(bnd_regs, FIXED),  // MPX is not announced
    PART(bndcs_regs, FIXED), PART(msr_bndcfgs, FIXED), PART(efer, SAVED), PART(start_init_save, FIXED),
    PART(fpstt, SAVED), PART(fpus, SAVED), PART(fpuc, SAVED), PART(fptags, SAVED),
    PART(fpregs, SCRATCH),  // 10 bytes of each 16 have a meaning
    PART(fpop, SAVED), PART(fpcs, SAVED), PART(fpds, SAVED), PART(fpip, SAVED), PART(fpdp, SAVED),
    PART(fp_status, SCRATCH),  // of the engine's own floating point; made of the control word
    PART(ft0, SCRATCH), PART(mmx_status, SCRATCH),  // of 3DNow!, which is not announced
    PART(sse_status, SCRATCH), PART(mxcsr, SAVED), PART(xmm_regs, SAVED), PART(xmm_t0, SCRATCH),
    PART(mmx_t0, SCRATCH), PART(ymmh_regs, FIXED),  // AVX and wider are not announced
    PART(opmask_regs, FIXED), PART(zmmh_regs, FIXED), PART(hi16_zmm_regs, FIXED), PART(sysenter_cs, SAVED),
    PART(sysenter_esp, SAVED), PART(sysenter_eip, SAVED), PART(star, SAVED),
    PART(vm_hsave, FIXED),  // SVM is not announced
    PART(lstar, SAVED), PART(cstar, SAVED), PART(fmask, SAVED), PART(kernelgsbase, SAVED),
    PART(tsc, FIXED),  // the vCPU keeps time
    PART(tsc_adjust, FIXED), PART(tsc_deadline, FIXED), PART(tsc_aux, SAVED), PART(xcr0, SAVED),
    PART(mcg_status, SAVED), PART(msr_ia32_misc_enable, SAVED), PART(msr_ia32_feature_control, FIXED),
    PART(msr_fixed_ctr_ctrl, FIXED),  // there are no performance counters
    PART(msr_global_ctrl, FIXED), PART(msr_global_status, FIXED), PART(msr_global_ovf_ctrl, FIXED),
    PART(msr_fixed_counters, FIXED), PART(msr_gp_counters, FIXED), PART(msr_gp_evtsel, FIXED),
    PART(pat, SAVED), PART(smbase, FIXED),  // no system-management mode
    PART(msr_smi_count, FIXED), PART(pkru, FIXED), PART(tsx_ctrl, FIXED), PART(spec_ctrl, FIXED),
    PART(virt_ssbd, FIXED), PART(end_init_save, FIXED), PART(system_time_msr, FIXED),  // KVM's
    PART(wall_clock_msr, FIXED), PART(steal_time_msr, FIXED), PART(async_pf_en_msr, FIXED),
    PART(pv_eoi_en_msr, FIXED), PART(poll_control_msr, FIXED),
    PART(error_code, SCRATCH),  // of the last exception, which was delivered
    PART(exception_is_int, FIXED), PART(exception_next_eip, SCRATCH), PART(dr, SAVED),
    PART(cpu_breakpoint, SCRATCH),  // lists that DR7 makes
    PART(old_exception, FIXED), PART(vm_vmcb, FIXED), PART(tsc_offset, FIXED), PART(intercept, FIXED),
    PART(intercept_cr_read, FIXED), PART(intercept_cr_write, FIXED), PART(intercept_dr_read, FIXED),
    PART(intercept_dr_write, FIXED), PART(intercept_exceptions, FIXED), PART(nested_cr3, FIXED),
    PART(nested_pg_mode, FIXED), PART(v_tpr, FIXED), PART(retaddr, SCRATCH), PART(end_reset_fields, FIXED),
    PART(cpuid_level_func7, FIXED),  // the processor's description
    PART(cpuid_min_level_func7, FIXED), PART(cpuid_min_level, FIXED), PART(cpuid_min_xlevel, FIXED),
    PART(cpuid_min_xlevel2, FIXED), PART(cpuid_max_level, FIXED), PART(cpuid_max_xlevel, FIXED),
    PART(cpuid_max_xlevel2, FIXED), PART(cpuid_level, FIXED), PART(cpuid_xlevel, FIXED),
    PART(cpuid_xlevel2, FIXED), PART(cpuid_vendor1, FIXED), PART(cpuid_vendor2, FIXED),
    PART(cpuid_vendor3, FIXED), PART(cpuid_version, FIXED), PART(features, FIXED), PART(user_features, FIXED),
    PART(cpuid_model, FIXED), PART(cache_info_cpuid2, SCRATCH),  // pointers to tables
    PART(cache_info_cpuid4, SCRATCH), PART(cache_info_amd, SCRATCH), PART(mtrr_fixed, SAVED),
    PART(mtrr_deftype, SAVED), PART(mtrr_var, SAVED), PART(mp_state, FIXED),  // KVM's
    PART(exception_nr, FIXED), PART(interrupt_injected, FIXED), PART(soft_interrupt, FIXED),
    PART(exception_pending, FIXED), PART(exception_injected, FIXED), PART(has_error_code, FIXED),
    PART(exception_has_payload, FIXED), PART(exception_payload, FIXED), PART(ins_len, FIXED),
    PART(sipi_vector, FIXED), PART(tsc_valid, FIXED), PART(tsc_khz, FIXED), PART(user_tsc_khz, FIXED),
    PART(mcg_cap, FIXED), PART(mcg_ctl, SAVED), PART(mcg_ext_ctl, FIXED), PART(mce_banks, SAVED),
    PART(xstate_bv, FIXED), PART(fpus_vmstate, FIXED), PART(fptag_vmstate, FIXED),
    PART(fpregs_format_vmstate, FIXED), PART(xss, FIXED), PART(umwait, FIXED), PART(tpr_access_type, FIXED),
    PART(nr_dies, FIXED), PART(nr_nodes, FIXED), PART(pkg_offset, FIXED), PART(uc, SCRATCH),  // a pointer
};

const struct cm_state_member* cm_engine_state_members(size_t* count, size_t* size) {
    *count = sizeof members / sizeof *members;
    *size = sizeof(CPUX86State);
    return members;
}

const uint8_t* cm_engine_state_image(const cm_engine* engine) { return (const uint8_t*)engine->env; }
