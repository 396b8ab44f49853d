// SPDX-License-Identifier: GPL-2.0-or-later
// LOCK-prefixed and implicitly locked instructions: host atomics on the shared frame.
//
// The engine's own helpers refuse an address that is not a multiple of its size, and exchange is a plain load
// and store (U2, U3). Here each operation finds the host address and does one host atomic there. On an x86
// host that is exact for any alignment within a page, lines crossed or not (SDM vol. 3A 9.1.2.2). An access
// over two pages, which need not be neighbours in host memory, stops the other vCPUs for its moment.
#include "internals.h"

typedef unsigned __int128 wide;

// The functions that touch the guest's memory lie together, so that a fault in them is known (own_code.c).
#define ATOMIC_CODE __attribute__((section("cm_atomic_code")))
extern const char __start_cm_atomic_code[] __attribute__((visibility("hidden")));
extern const char __stop_cm_atomic_code[] __attribute__((visibility("hidden")));

bool cm_engine_is_locked_operation(uintptr_t host_pc) {
    return host_pc >= (uintptr_t)__start_cm_atomic_code && host_pc < (uintptr_t)__stop_cm_atomic_code;
}

// What a lookup found: one host address, or none for an access that crosses a page or goes to I/O space.
struct target {
    uint8_t* host;  // NULL when the access must be made in an exclusive section
    struct cm_engine* engine;
    uint64_t pages[2];  // RAM pages of the exclusive section
};

static bool entry_serves(const CPUTLBEntry* entry, target_ulong addr) {
    // Flags in the low bits (MMIO, watchpoint, invalid) make the comparison fail.
    return entry->addr_write == (addr & TARGET_PAGE_MASK) && entry->addr_read == entry->addr_write;
}

static uint64_t page_of(const struct cm_engine* engine, const uint8_t* host) {
    return host ? (uint64_t)(host - engine->guest_view) >> TARGET_PAGE_BITS : UINT64_MAX;
}

// This host may write the page at this moment. Where another host takes it before the operation, that faults.
static inline bool may_write(const struct cm_engine* engine, uint64_t offset) {
    const uint8_t* const access = engine->page_access;
    if (likely(!access)) return true;
    if (unlikely(offset >= engine->ram_size)) return false;  // shown by cm_engine_steer: `transact` knows
    return __atomic_load_n(&access[offset >> TARGET_PAGE_BITS], __ATOMIC_ACQUIRE) == CM_PAGE_WRITABLE;
}

// Whether the operation was executed on another host, which has the page; `*old` is what it found then.
static bool elsewhere(const struct target* target, enum cm_operation operation, unsigned size, wide operand,
                      wide expected, wide* old) {
    const struct cm_engine* engine = target->engine;
    const uint64_t offset = (uint64_t)(target->host - engine->guest_view);
    if (likely(may_write(engine, offset))) return false;
    // What it changes may be the code that follows: here that is noticed.
    if (cm_runs_from_page(engine, engine->atomic_from, offset >> TARGET_PAGE_BITS)) return false;
    return engine->ops->transact(engine->opaque, operation, offset, size, &operand, &expected, old);
}

static inline uint64_t* count_of(struct cm_engine_counters* counters, unsigned size) {
    _Static_assert(offsetof(struct cm_engine_counters, atomics_16) ==
                       offsetof(struct cm_engine_counters, atomics_1) + 4 * sizeof(uint64_t),
                   "by the logarithm of the size");
    return (uint64_t*)((char*)counters + offsetof(struct cm_engine_counters, atomics_1)) +
           __builtin_ctz(size);
}

static struct target find(CPUArchState* env, target_ulong addr, unsigned size, TCGMemOpIdx oi, uintptr_t ra) {
    struct target target = {NULL, cm_engine_of(env->uc), {UINT64_MAX, UINT64_MAX}};
    unsigned mmu_idx = get_mmuidx(oi);
    CPUTLBEntry* entry = tlb_entry(env, mmu_idx, addr);
    struct cm_engine_counters* counters = &target.engine->counters;
    (*count_of(counters, size))++;
    counters->atomics_long_way++;
    target.engine->atomic_from = ra;
    if (unlikely(addr & (size - 1))) {
        unsigned alignment = get_alignment_bits(get_memop(oi));
        if (alignment && (addr & ((1u << alignment) - 1))) {
            cpu_unaligned_access(env_cpu(env), addr, MMU_DATA_STORE, mmu_idx, ra);
        }
        const bool crosses = (addr & ~TARGET_PAGE_MASK) + size > TARGET_PAGE_SIZE;
        if (unlikely(crosses || cm_checks_alignment(env))) {
            const MemOp aligned = (MemOp)__builtin_ctz(size) | MO_ALIGN;
            cm_check_access(env, addr, make_memop_idx(aligned, mmu_idx), MMU_DATA_STORE, ra);
        }
        counters->atomics_misaligned++;
        if (crosses) {
            counters->atomics_crossing++;
            // Both pages must be writable before anything is changed. The probe raises the guest's fault.
            target_ulong second = (addr & TARGET_PAGE_MASK) + TARGET_PAGE_SIZE;
            int first_size = (int)(second - addr);
            target.pages[0] = page_of(target.engine, probe_write(env, addr, first_size, mmu_idx, ra));
            target.pages[1] =
                page_of(target.engine, probe_write(env, second, (int)size - first_size, mmu_idx, ra));
            return target;
        }
    }
    if (likely(entry_serves(entry, addr))) {
        target.host = (uint8_t*)(addr + entry->addend);
        return target;
    }
    target.host = probe_write(env, addr, (int)size, mmu_idx, ra);  // NULL: I/O space
    return target;
}

// The common case, kept apart so that it saves no registers and needs no frame: RAM that this host may write,
// in one page that the TLB knows. NULL: the operation takes the long way, and is counted there.
static inline __attribute__((always_inline)) uint8_t* at_once(CPUArchState* env, target_ulong addr,
                                                              unsigned size, TCGMemOpIdx oi, uintptr_t ra) {
    struct cm_engine* engine = cm_engine_of(env->uc);
    const CPUTLBEntry* entry = tlb_entry(env, get_mmuidx(oi), addr);
    if (unlikely(!entry_serves(entry, addr))) return NULL;
    uint8_t* const host = (uint8_t*)(addr + entry->addend);
    if (unlikely(!may_write(engine, (uint64_t)(host - engine->guest_view)))) return NULL;
    if (unlikely(addr & (size - 1))) {
        if (get_alignment_bits(get_memop(oi)) || (addr & ~TARGET_PAGE_MASK) + size > TARGET_PAGE_SIZE ||
            cm_checks_alignment(env)) {
            return NULL;
        }
        engine->counters.atomics_misaligned++;
    }
    (*count_of(&engine->counters, size))++;
    engine->atomic_from = ra;
    return host;
}

static wide load_bytes(CPUArchState* env, target_ulong addr, unsigned size, TCGMemOpIdx oi, uintptr_t ra) {
    wide value = 0;
    if ((addr & (size - 1)) == 0 && size <= 8) {  // I/O space: one access of its size
        switch (size) {
            case 1:
                return cpu_ldub_mmuidx_ra(env, addr, get_mmuidx(oi), ra);
            case 2:
                return cpu_lduw_mmuidx_ra(env, addr, get_mmuidx(oi), ra);
            case 4:
                return cpu_ldl_mmuidx_ra(env, addr, get_mmuidx(oi), ra);
            default:
                return cpu_ldq_mmuidx_ra(env, addr, get_mmuidx(oi), ra);
        }
    }
    for (unsigned i = 0; i < size; i++) {
        value |= (wide)cpu_ldub_mmuidx_ra(env, addr + i, get_mmuidx(oi), ra) << (8 * i);
    }
    return value;
}

static void store_bytes(CPUArchState* env, target_ulong addr, unsigned size, wide value, TCGMemOpIdx oi,
                        uintptr_t ra) {
    if ((addr & (size - 1)) == 0 && size <= 8) {
        switch (size) {
            case 1:
                cpu_stb_mmuidx_ra(env, addr, (uint32_t)value, get_mmuidx(oi), ra);
                return;
            case 2:
                cpu_stw_mmuidx_ra(env, addr, (uint32_t)value, get_mmuidx(oi), ra);
                return;
            case 4:
                cpu_stl_mmuidx_ra(env, addr, (uint32_t)value, get_mmuidx(oi), ra);
                return;
            default:
                cpu_stq_mmuidx_ra(env, addr, (uint64_t)value, get_mmuidx(oi), ra);
                return;
        }
    }
    for (unsigned i = 0; i < size; i++) {
        cpu_stb_mmuidx_ra(env, addr + i, (uint8_t)(value >> (8 * i)), get_mmuidx(oi), ra);
    }
}

// `expression` computes the new value from `old`; within an exclusive section.
#define EXCLUSIVELY(T, size, expression)                                                              \
    do {                                                                                              \
        if (target.pages[0] != UINT64_MAX) cm_ask_for_both_pages(env, addr, (int)get_mmuidx(oi), ra); \
        target.engine->ops->exclusive_begin(target.engine->opaque, target.pages[0], target.pages[1]); \
        target.engine->exclusive = true;                                                              \
        T old = (T)load_bytes(env, addr, size, oi, ra);                                               \
        T replacement = (expression);                                                                 \
        store_bytes(env, addr, size, (wide)replacement, oi, ra);                                      \
        target.engine->exclusive = false;                                                             \
        target.engine->ops->exclusive_end(target.engine->opaque);                                     \
        before = old;                                                                                 \
        after = replacement;                                                                          \
    } while (0)

#define FETCH_OP(name, OPERATION, T, A, suffix, size, host_result, expression, result)                 \
    static LONG_WAY A name##suffix##_at(CPUArchState* env, target_ulong addr, A value, TCGMemOpIdx oi, \
                                        uintptr_t ra) {                                                \
        struct target target = find(env, addr, size, oi, ra);                                          \
        uint8_t* const host = target.host;                                                             \
        T before, after;                                                                               \
        if (likely(host)) {                                                                            \
            wide found;                                                                                \
            if (likely(!elsewhere(&target, OPERATION, size, (T)value, 0, &found)))                     \
                return (A)(T)(host_result);                                                            \
            T old = (T)found;                                                                          \
            before = old;                                                                              \
            after = (expression);                                                                      \
        } else {                                                                                       \
            EXCLUSIVELY(T, size, expression);                                                          \
        }                                                                                              \
        (void)before, (void)after;                                                                     \
        return (A)(result);                                                                            \
    }                                                                                                  \
    ATOMIC_CODE A CM_WRAP_SIZED(name, suffix)(CPUArchState * env, target_ulong addr, A value,          \
                                              TCGMemOpIdx oi) {                                        \
        CM_HIT(helper_atomic_##name##suffix);                                                          \
        uint8_t* const host = at_once(env, addr, size, oi, GETPC());                                   \
        if (likely(host)) return (A)(T)(host_result);                                                  \
        return name##suffix##_at(env, addr, value, oi, GETPC());                                       \
    }

#define CM_WRAP_SIZED(name, suffix) CM_SUFFIXED(__wrap_helper_atomic_##name##suffix)
#define HOST(T) ((T*)host)
#define LONG_WAY ATOMIC_CODE __attribute__((noinline, cold))

#define CMPXCHG(T, A, suffix, size)                                                                          \
    static LONG_WAY A cmpxchg##suffix##_at(CPUArchState* env, target_ulong addr, A expected, A desired,      \
                                           TCGMemOpIdx oi, uintptr_t ra) {                                   \
        struct target target = find(env, addr, size, oi, ra);                                                \
        uint8_t* const host = target.host;                                                                   \
        if (likely(host)) {                                                                                  \
            wide found;                                                                                      \
            if (unlikely(                                                                                    \
                    elsewhere(&target, CM_OPERATION_COMPARE_SWAP, size, (T)desired, (T)expected, &found))) { \
                return (A)(T)found;                                                                          \
            }                                                                                                \
            return (A)__sync_val_compare_and_swap(HOST(T), (T)expected, (T)desired);                         \
        }                                                                                                    \
        T before, after;                                                                                     \
        /* The bus sees a write in either case (SDM vol. 2A, CMPXCHG). */                                    \
        EXCLUSIVELY(T, size, old == (T)expected ? (T)desired : old);                                         \
        (void)after;                                                                                         \
        return (A)before;                                                                                    \
    }                                                                                                        \
    ATOMIC_CODE A CM_WRAP_SIZED(cmpxchg, suffix)(CPUArchState * env, target_ulong addr, A expected,          \
                                                 A desired, TCGMemOpIdx oi) {                                \
        CM_HIT(helper_atomic_cmpxchg##suffix);                                                               \
        uint8_t* const host = at_once(env, addr, size, oi, GETPC());                                         \
        if (likely(host)) return (A)__sync_val_compare_and_swap(HOST(T), (T)expected, (T)desired);           \
        return cmpxchg##suffix##_at(env, addr, expected, desired, oi, GETPC());                              \
    }

#define ALL_OPS(T, A, suffix, size)                                                                    \
    CMPXCHG(T, A, suffix, size)                                                                        \
    FETCH_OP(xchg, CM_OPERATION_EXCHANGE, T, A, suffix, size,                                          \
             __atomic_exchange_n(HOST(T), (T)value, __ATOMIC_SEQ_CST), (T)value, before)               \
    FETCH_OP(fetch_add, CM_OPERATION_ADD, T, A, suffix, size, __sync_fetch_and_add(HOST(T), (T)value), \
             (T)(old + value), before)                                                                 \
    FETCH_OP(fetch_and, CM_OPERATION_AND, T, A, suffix, size, __sync_fetch_and_and(HOST(T), (T)value), \
             (T)(old & value), before)                                                                 \
    FETCH_OP(fetch_or, CM_OPERATION_OR, T, A, suffix, size, __sync_fetch_and_or(HOST(T), (T)value),    \
             (T)(old | value), before)                                                                 \
    FETCH_OP(fetch_xor, CM_OPERATION_XOR, T, A, suffix, size, __sync_fetch_and_xor(HOST(T), (T)value), \
             (T)(old ^ value), before)                                                                 \
    FETCH_OP(add_fetch, CM_OPERATION_ADD, T, A, suffix, size, __sync_add_and_fetch(HOST(T), (T)value), \
             (T)(old + value), after)                                                                  \
    FETCH_OP(and_fetch, CM_OPERATION_AND, T, A, suffix, size, __sync_and_and_fetch(HOST(T), (T)value), \
             (T)(old & value), after)                                                                  \
    FETCH_OP(or_fetch, CM_OPERATION_OR, T, A, suffix, size, __sync_or_and_fetch(HOST(T), (T)value),    \
             (T)(old | value), after)                                                                  \
    FETCH_OP(xor_fetch, CM_OPERATION_XOR, T, A, suffix, size, __sync_xor_and_fetch(HOST(T), (T)value), \
             (T)(old ^ value), after)

ALL_OPS(uint8_t, uint32_t, b, 1)
ALL_OPS(uint16_t, uint32_t, w_le, 2)
ALL_OPS(uint32_t, uint32_t, l_le, 4)
ALL_OPS(uint64_t, uint64_t, q_le, 8)

// CMPXCHG8B reaches its atomic through another door, with the return address as an argument.
uint64_t CM_SUFFIXED(__wrap_helper_atomic_cmpxchgq_le_mmu)(CPUArchState* env, target_ulong addr,
                                                           uint64_t expected, uint64_t desired,
                                                           TCGMemOpIdx oi, uintptr_t ra) {
    CM_HIT(helper_atomic_cmpxchgq_le_mmu);
    return cmpxchgq_le_at(env, addr, expected, desired, oi, ra);
}

// CMPXCHG16B: its address is a multiple of 16 or it has raised #GP before.
Int128 CM_SUFFIXED(__real_helper_atomic_cmpxchgo_le_mmu)(CPUArchState* env, target_ulong addr,
                                                         Int128 expected, Int128 desired, TCGMemOpIdx oi,
                                                         uintptr_t ra);

ATOMIC_CODE Int128 CM_SUFFIXED(__wrap_helper_atomic_cmpxchgo_le_mmu)(CPUArchState* env, target_ulong addr,
                                                                     Int128 expected, Int128 desired,
                                                                     TCGMemOpIdx oi, uintptr_t ra) {
    CM_HIT(helper_atomic_cmpxchgo_le_mmu);
    struct target target = find(env, addr, 16, oi, ra);
    uint8_t* const host = target.host;
    typedef wide T;
    if (likely(host)) {
        wide found;
        if (unlikely(elsewhere(&target, CM_OPERATION_COMPARE_SWAP, 16, (T)desired, (T)expected, &found))) {
            return (Int128)found;
        }
        return (Int128)__sync_val_compare_and_swap(HOST(T), (T)expected, (T)desired);
    }
    T before, after;
    EXCLUSIVELY(T, 16, old == (T)expected ? (T)desired : old);
    (void)after;
    return (Int128)before;
}
