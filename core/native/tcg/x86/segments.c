// SPDX-License-Identifier: GPL-2.0-or-later
// Segment registers, descriptor tables and stacks. segments.h says what is promised.
#include "segments.h"

_Noreturn void cm_fault(const struct cm_transfer* t, int vector, uint32_t code) {
    raise_exception_err_ra(t->env, vector, (int)(code | t->ext), t->ra);
    __builtin_unreachable();
}

_Noreturn void cm_selector_fault(const struct cm_transfer* t, int vector, uint32_t selector) {
    cm_fault(t, vector, selector & 0xfffc);
}

// ---- memory as the system sees it

target_ulong cm_linear(const CPUX86State* env, target_ulong address) {
    return cm_long_mode(env) ? address : (uint32_t)address;
}

// RFLAGS.AC opens user pages to explicit accesses of the program alone (SDM vol. 3A 4.6.1).
static int system_index(const CPUX86State* env) {
    return env->hflags & HF_SMAP_MASK ? MMU_KSMAP_IDX : MMU_KNOSMAP_IDX;
}

// An aligned word in a page that the TLB knows: an interrupt and its return read seven of them. NULL: the
// engine reads it. The entry's address has bits set that no address has where a look at each access is asked
// for.
static inline const void* at_once(CPUX86State* env, target_ulong address, unsigned size, int mmu_index) {
    const CPUTLBEntry* entry = tlb_entry(env, mmu_index, address);
    if (entry->addr_read != (address & (TARGET_PAGE_MASK | (size - 1)))) return NULL;
    return (const void*)(uintptr_t)(address + entry->addend);
}

static inline uint64_t read_memory(const struct cm_transfer* t, target_ulong address, unsigned size,
                                   int mmu_index) {
    const void* host = at_once(t->env, address, size, mmu_index);
    switch (size) {
        case 8:
            return host ? *(const uint64_t*)host : cpu_ldq_mmuidx_ra(t->env, address, mmu_index, t->ra);
        case 4:
            return host ? *(const uint32_t*)host : cpu_ldl_mmuidx_ra(t->env, address, mmu_index, t->ra);
        default:
            return host ? *(const uint16_t*)host : cpu_lduw_mmuidx_ra(t->env, address, mmu_index, t->ra);
    }
}

uint16_t cm_system_read16(const struct cm_transfer* t, target_ulong address) {
    return (uint16_t)read_memory(t, cm_linear(t->env, address), 2, system_index(t->env));
}
uint32_t cm_system_read32(const struct cm_transfer* t, target_ulong address) {
    return (uint32_t)read_memory(t, cm_linear(t->env, address), 4, system_index(t->env));
}
uint64_t cm_system_read64(const struct cm_transfer* t, target_ulong address) {
    return read_memory(t, cm_linear(t->env, address), 8, system_index(t->env));
}
void cm_system_write16(const struct cm_transfer* t, target_ulong address, uint32_t value) {
    cpu_stw_mmuidx_ra(t->env, cm_linear(t->env, address), value, system_index(t->env), t->ra);
}
void cm_system_write32(const struct cm_transfer* t, target_ulong address, uint32_t value) {
    cpu_stl_mmuidx_ra(t->env, cm_linear(t->env, address), value, system_index(t->env), t->ra);
}

// ---- descriptors

// The address of `bytes` bytes of a table; outside of it the fault.
static target_ulong table_entry(const struct cm_transfer* t, uint32_t selector, int vector, unsigned bytes) {
    const SegmentCache* table = selector & 4 ? &t->env->ldt : &t->env->gdt;
    const uint32_t index = selector & 0xfff8;
    if (index + bytes - 1 > table->limit) cm_selector_fault(t, vector, selector);
    return table->base + index;
}

void cm_read_descriptor(const struct cm_transfer* t, uint32_t selector, int vector,
                        struct cm_descriptor* out) {
    out->address = table_entry(t, selector, vector, 8);
    const uint64_t both = cm_system_read64(t, out->address);
    out->low = (uint32_t)both, out->high = (uint32_t)(both >> 32), out->upper = 0;
}

void cm_read_wide_descriptor(const struct cm_transfer* t, uint32_t selector, int vector,
                             struct cm_descriptor* out) {
    cm_read_descriptor(t, selector, vector, out);
    if (!cm_long_mode(t->env)) return;
    const target_ulong address = table_entry(t, selector, vector, 16);
    out->upper = cm_system_read32(t, address + 8);
    // Where an eight-byte descriptor would have its type there must be none (SDM vol. 3A figures 5-8 and
    // 8-4).
    if (cm_system_read32(t, address + 12) & 0x1f00) cm_selector_fault(t, vector, selector);
}

void cm_mark_accessed(const struct cm_transfer* t, struct cm_descriptor* d) {
    if (d->high & DESC_A_MASK) return;
    d->high |= DESC_A_MASK;
    // One byte, so that nothing else of the descriptor is written back.
    cpu_stb_mmuidx_ra(t->env, cm_linear(t->env, d->address + 5), d->high >> 8 & 0xff, system_index(t->env),
                      t->ra);
}

void cm_set_tss_busy(const struct cm_transfer* t, uint32_t selector, bool busy) {
    const target_ulong address = cm_linear(t->env, t->env->gdt.base + (selector & 0xfff8) + 5);
    const uint32_t access = cpu_ldub_mmuidx_ra(t->env, address, system_index(t->env), t->ra);
    cpu_stb_mmuidx_ra(t->env, address, busy ? access | 2 : access & ~2u, system_index(t->env), t->ra);
}

void cm_check_eip(const struct cm_transfer* t, const struct cm_descriptor* code, target_ulong eip) {
    const bool good = cm_is_64bit_code(t->env, code) ? cm_is_canonical(eip) : eip <= cm_limit(code);
    if (!good) cm_fault(t, EXCP0D_GPF, 0);
}

void cm_check_code(const struct cm_transfer* t, uint32_t selector, const struct cm_descriptor* code,
                   bool gate) {
    const unsigned cpl = cm_cpl(t->env), dpl = cm_dpl(code);
    bool good = cm_is_code(code);
    if (gate || cm_is_conforming(code)) {
        good = good && dpl <= cpl;
    } else {
        good = good && cm_rpl(selector) <= cpl && dpl == cpl;
    }
    if (cm_long_mode(t->env)) {
        const bool l = code->high & DESC_L_MASK, d = code->high & DESC_B_MASK;
        good = good && !(l && d) && (l || !gate);
    }
    if (!good) cm_selector_fault(t, EXCP0D_GPF, selector);
    if (!cm_is_present(code)) cm_selector_fault(t, EXCP0B_NOSEG, selector);
}

// ---- stacks

static target_ulong mask_of(const CPUX86State* env, bool is_64bit, uint32_t flags) {
    if (is_64bit) return ~(target_ulong)0;
    return flags & DESC_B_MASK ? 0xffffffff : 0xffff;
}

struct cm_stack cm_current_stack(const CPUX86State* env) {
    const SegmentCache* ss = &env->segs[R_SS];
    const bool is_64bit = env->hflags & HF_CS64_MASK;
    return (struct cm_stack){
        .base = is_64bit ? 0 : ss->base,
        .pointer = env->regs[R_ESP],
        .mask = mask_of(env, is_64bit, ss->flags),
        .flags = ss->flags,
        .limit = ss->limit,
        .mmu_index = cpu_mmu_index((CPUX86State*)env, false),
        .code = 0,
    };
}

// SDM vol. 3A 5.3: the offsets of an expand-down segment lie above its limit.
static bool within(const struct cm_stack* stack, target_ulong offset, unsigned size) {
    const target_ulong last = offset + size - 1;
    const bool expands_down = stack->flags & DESC_E_MASK && !(stack->flags & DESC_CS_MASK);
    if (!expands_down) return last <= stack->limit;
    return offset > stack->limit && last <= (stack->flags & DESC_B_MASK ? 0xffffffff : 0xffff);
}

static target_ulong stack_address(const struct cm_transfer* t, const struct cm_stack* stack, unsigned size) {
    const target_ulong offset = stack->pointer & stack->mask;
    const bool good = ~stack->mask == 0 ? cm_is_canonical(offset) && cm_is_canonical(offset + size - 1)
                                        : within(stack, offset, size);
    if (!good) cm_selector_fault(t, EXCP0C_STACK, stack->code);
    return ~stack->mask == 0 ? offset : (uint32_t)(stack->base + offset);
}

void cm_push(const struct cm_transfer* t, struct cm_stack* stack, unsigned size, target_ulong value) {
    stack->pointer -= size;
    const target_ulong address = stack_address(t, stack, size);
    if (size == 8) {
        cpu_stq_mmuidx_ra(t->env, address, value, stack->mmu_index, t->ra);
    } else if (size == 4) {
        cpu_stl_mmuidx_ra(t->env, address, (uint32_t)value, stack->mmu_index, t->ra);
    } else {
        cpu_stw_mmuidx_ra(t->env, address, (uint16_t)value, stack->mmu_index, t->ra);
    }
}

target_ulong cm_pop(const struct cm_transfer* t, struct cm_stack* stack, unsigned size) {
    const target_ulong address = stack_address(t, stack, size);
    stack->pointer += size;
    return read_memory(t, address, size, stack->mmu_index);
}

void cm_set_stack_pointer(CPUX86State* env, const struct cm_stack* stack) {
    if (stack->mask == 0xffff) {
        env->regs[R_ESP] = (env->regs[R_ESP] & ~(target_ulong)0xffff) | (stack->pointer & 0xffff);
    } else {
        env->regs[R_ESP] = stack->pointer & stack->mask;
    }
}

// A field of the TSS, or #TS with its selector where the segment has no room for it.
static target_ulong tss_field(const struct cm_transfer* t, uint32_t offset, unsigned size) {
    const SegmentCache* tr = &t->env->tr;
    const bool usable = tr->flags & DESC_P_MASK;
    if (!usable || offset + size - 1 > tr->limit) cm_selector_fault(t, EXCP0A_TSS, tr->selector);
    if (size == 8) return cm_system_read64(t, tr->base + offset);
    if (size == 4) return cm_system_read32(t, tr->base + offset);
    return cm_system_read16(t, tr->base + offset);
}

struct cm_stack cm_inner_stack(const struct cm_transfer* t, unsigned dpl, unsigned ist, bool to_64bit,
                               uint32_t* selector, struct cm_descriptor* ss) {
    CPUX86State* env = t->env;
    struct cm_stack stack = {.mmu_index = dpl == 3 ? MMU_USER_IDX : system_index(env)};
    if (to_64bit) {
        // SDM vol. 3A figure 8-11: RSP0 at 4, IST1 at 36.
        stack.pointer = tss_field(t, ist ? ist * 8 + 28 : dpl * 8 + 4, 8);
        stack.mask = ~(target_ulong)0;
        *selector = dpl;
        *ss = (struct cm_descriptor){0};
        return stack;
    }
    const bool is_32bit = env->tr.flags >> DESC_TYPE_SHIFT & 8;
    if (is_32bit) {
        *selector = (uint32_t)tss_field(t, dpl * 8 + 8, 2);
        stack.pointer = tss_field(t, dpl * 8 + 4, 4);
    } else {
        *selector = (uint32_t)tss_field(t, dpl * 4 + 4, 2);
        stack.pointer = tss_field(t, dpl * 4 + 2, 2);
    }
    if (cm_is_null(*selector)) cm_fault(t, EXCP0A_TSS, 0);
    cm_read_descriptor(t, *selector, EXCP0A_TSS, ss);
    if (cm_rpl(*selector) != dpl || cm_dpl(ss) != dpl || !cm_is_writable_data(ss)) {
        cm_selector_fault(t, EXCP0A_TSS, *selector);
    }
    if (!cm_is_present(ss)) cm_selector_fault(t, EXCP0C_STACK, *selector);
    stack.base = cm_base(ss);
    stack.mask = mask_of(env, false, ss->high);
    stack.flags = ss->high;
    stack.limit = cm_limit(ss);
    stack.code = *selector;
    return stack;
}

// ---- registers

void cm_load_segment(CPUX86State* env, int reg, uint32_t selector, const struct cm_descriptor* d) {
    cpu_x86_load_seg_cache(env, reg, selector & 0xffff, cm_base(d), cm_limit(d), d->high);
    cm_note_segments(env);
}

void cm_load_null_stack_segment(CPUX86State* env, uint32_t selector, unsigned cpl) {
    cpu_x86_load_seg_cache(env, R_SS, selector, 0, 0, cpl << DESC_DPL_SHIFT);
    cm_note_segments(env);
}

void cm_load_virtual_8086_segment(CPUX86State* env, int reg, uint32_t selector) {
    selector &= 0xffff;
    cpu_x86_load_seg_cache(env, reg, selector, selector << 4, 0xffff,
                           DESC_P_MASK | DESC_S_MASK | DESC_W_MASK | DESC_A_MASK | 3 << DESC_DPL_SHIFT);
    cm_note_segments(env);
}

void cm_set_cpl(CPUX86State* env, unsigned cpl) { env->hflags = (env->hflags & ~HF_CPL_MASK) | cpl; }

void cm_enter_code(CPUX86State* env, uint32_t selector, const struct cm_descriptor* code, unsigned cpl,
                   target_ulong eip) {
    cm_load_segment(env, R_CS, (selector & 0xfffc) | cpl, code);
    cm_set_cpl(env, cpl);
    env->eip = eip;
}

void cm_drop_inner_segments(CPUX86State* env, unsigned cpl) {
    static const int data[] = {R_ES, R_DS, R_FS, R_GS};
    for (size_t i = 0; i < sizeof data / sizeof *data; i++) {
        const SegmentCache* segment = &env->segs[data[i]];
        if (cm_is_null(segment->selector)) continue;
        const uint32_t code = DESC_S_MASK | DESC_CS_MASK | DESC_C_MASK;
        const bool conforming = (segment->flags & code) == code;
        if (conforming || (segment->flags >> DESC_DPL_SHIFT & 3) >= cpl) continue;
        // Base and limit stay, which FS and GS show in 64-bit mode.
        cpu_x86_load_seg_cache(env, data[i], 0, segment->base, segment->limit, 0);
    }
    cm_note_segments(env);
}

// ---- MOV, POP and LxS to a segment register

void CM_WRAP(helper_load_seg)(CPUX86State* env, int reg, int selector32) {
    const struct cm_transfer t = {env, GETPC(), 0};
    const uint32_t selector = selector32 & 0xffff;
    const unsigned cpl = cm_cpl(env), rpl = cm_rpl(selector);
    struct cm_descriptor d;
    CM_HIT(helper_load_seg);
    if (reg == R_SS) cm_engine_of(env->uc)->target.last_sti = 0;  // debug_registers.c
    if (cm_is_null(selector)) {
        if (reg != R_SS) {
            cpu_x86_load_seg_cache(env, reg, selector, 0, 0, 0);
            cm_note_segments(env);
            return;
        }
        // SDM vol. 2B, MOV: only 64-bit code of an inner ring runs without a stack segment.
        if (!(env->hflags & HF_CS64_MASK) || cpl == 3 || rpl != cpl) cm_fault(&t, EXCP0D_GPF, 0);
        cm_load_null_stack_segment(env, selector, cpl);
        return;
    }
    cm_read_descriptor(&t, selector, EXCP0D_GPF, &d);
    if (reg == R_SS) {
        if (!cm_is_writable_data(&d) || rpl != cpl || cm_dpl(&d) != cpl) {
            cm_selector_fault(&t, EXCP0D_GPF, selector);
        }
        if (!cm_is_present(&d)) cm_selector_fault(&t, EXCP0C_STACK, selector);
    } else {
        const bool readable = !cm_is_system(&d) && (!cm_is_code(&d) || (d.high & DESC_R_MASK));
        const bool allowed = cm_is_conforming(&d) || (rpl <= cm_dpl(&d) && cpl <= cm_dpl(&d));
        if (!readable || !allowed) cm_selector_fault(&t, EXCP0D_GPF, selector);
        if (!cm_is_present(&d)) cm_selector_fault(&t, EXCP0B_NOSEG, selector);
    }
    cm_mark_accessed(&t, &d);
    cm_load_segment(env, reg, selector, &d);
}

// ---- LLDT, LTR

// A table or task segment lies where addresses are canonical.
static void check_base(const struct cm_transfer* t, uint32_t selector, const struct cm_descriptor* d) {
    if (cm_long_mode(t->env) && !cm_is_canonical(cm_base(d))) cm_selector_fault(t, EXCP0D_GPF, selector);
}

static void load_system_segment(SegmentCache* to, uint32_t selector, const struct cm_descriptor* d) {
    *to = (SegmentCache){.selector = selector, .base = cm_base(d), .limit = cm_limit(d), .flags = d->high};
}

void CM_WRAP(helper_lldt)(CPUX86State* env, int selector32) {
    const struct cm_transfer t = {env, GETPC(), 0};
    const uint32_t selector = selector32 & 0xffff;
    struct cm_descriptor d;
    CM_HIT(helper_lldt);
    if (cm_is_null(selector)) {
        env->ldt = (SegmentCache){.selector = selector};
        return;
    }
    if (selector & 4) cm_selector_fault(&t, EXCP0D_GPF, selector);
    cm_read_wide_descriptor(&t, selector, EXCP0D_GPF, &d);
    if (!cm_is_system(&d) || cm_system_type(&d) != CM_LDT) cm_selector_fault(&t, EXCP0D_GPF, selector);
    if (!cm_is_present(&d)) cm_selector_fault(&t, EXCP0B_NOSEG, selector);
    check_base(&t, selector, &d);
    load_system_segment(&env->ldt, selector, &d);
}

void CM_WRAP(helper_ltr)(CPUX86State* env, int selector32) {
    const struct cm_transfer t = {env, GETPC(), 0};
    const uint32_t selector = selector32 & 0xffff;
    struct cm_descriptor d;
    CM_HIT(helper_ltr);
    if (cm_is_null(selector)) cm_fault(&t, EXCP0D_GPF, 0);
    if (selector & 4) cm_selector_fault(&t, EXCP0D_GPF, selector);
    cm_read_wide_descriptor(&t, selector, EXCP0D_GPF, &d);
    const unsigned type = cm_system_type(&d);
    const bool available = type == CM_TSS32 || (type == CM_TSS16 && !cm_long_mode(env));
    if (!cm_is_system(&d) || !available) cm_selector_fault(&t, EXCP0D_GPF, selector);
    if (!cm_is_present(&d)) cm_selector_fault(&t, EXCP0B_NOSEG, selector);
    check_base(&t, selector, &d);
    cm_set_tss_busy(&t, selector, true);
    load_system_segment(&env->tr, selector, &d);
    env->tr.flags |= DESC_TSS_BUSY_MASK;
}

// ---- LAR, LSL

// Whether a program may know of the descriptor (SDM vol. 2A, LAR and LSL).
static bool may_look(CPUX86State* env, uint32_t selector, uint32_t types, struct cm_descriptor* d,
                     uintptr_t ra) {
    const struct cm_transfer t = {env, ra, 0};
    const SegmentCache* table = selector & 4 ? &env->ldt : &env->gdt;
    if (cm_is_null(selector) || (selector & 0xfff8) + 7 > table->limit) return false;
    cm_read_descriptor(&t, selector, EXCP0D_GPF, d);
    if (cm_is_conforming(d)) return true;
    if (cm_is_system(d) && !(types >> cm_system_type(d) & 1)) return false;
    return cm_dpl(d) >= cm_cpl(env) && cm_dpl(d) >= cm_rpl(selector);
}

// ZF alone changes.
static void set_zero_flag(CPUX86State* env, bool set) {
    const uint32_t flags = cpu_cc_compute_all(env, CC_OP);
    CC_SRC = set ? flags | CC_Z : flags & ~CC_Z;
}

target_ulong CM_WRAP(helper_lsl)(CPUX86State* env, target_ulong selector) {
    const uint32_t always = 1u << CM_LDT | 1u << CM_TSS32 | 1u << CM_TSS32_BUSY;
    const uint32_t types = cm_long_mode(env) ? always : always | 1u << CM_TSS16 | 1u << CM_TSS16_BUSY;
    struct cm_descriptor d;
    CM_HIT(helper_lsl);
    const bool found = may_look(env, selector & 0xffff, types, &d, GETPC());
    set_zero_flag(env, found);
    return found ? cm_limit(&d) : 0;
}

target_ulong CM_WRAP(helper_lar)(CPUX86State* env, target_ulong selector) {
    const uint32_t always = 1u << CM_LDT | 1u << CM_TSS32 | 1u << CM_TSS32_BUSY | 1u << CM_CALL_GATE32;
    const uint32_t types = cm_long_mode(env) ? always
                                             : always | 1u << CM_TSS16 | 1u << CM_TSS16_BUSY |
                                                   1u << CM_CALL_GATE16 | 1u << CM_TASK_GATE;
    struct cm_descriptor d;
    CM_HIT(helper_lar);
    const bool found = may_look(env, selector & 0xffff, types, &d, GETPC());
    set_zero_flag(env, found);
    return found ? d.high & 0x00f0ff00 : 0;
}
