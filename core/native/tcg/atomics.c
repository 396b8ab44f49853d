// SPDX-License-Identifier: GPL-2.0-or-later
// LOCK-prefixed and implicitly locked instructions: host atomics on the shared frame.
//
// The engine's own helpers refuse an address that is not a multiple of its size, and exchange is a plain load
// and store (U2, U3). Here each operation finds the host address and does one host atomic there. On an x86
// host that is exact for any alignment within a page, lines crossed or not (SDM vol. 3A 9.1.2.2). An access
// over two pages, which need not be neighbours in host memory, stops the other vCPUs for its moment.
#include "internals.h"

// What a lookup found: one host address, or two for an access that crosses a page or goes to I/O space.
struct target {
    uint8_t* host;  // NULL when the access must be made in an exclusive section
    struct cm_engine* engine;
};

static bool entry_serves(const CPUTLBEntry* entry, target_ulong addr) {
    // Flags in the low bits (MMIO, watchpoint, invalid) make the comparison fail.
    return entry->addr_write == (addr & TARGET_PAGE_MASK) && entry->addr_read == entry->addr_write;
}

static struct target find(CPUArchState* env, target_ulong addr, unsigned size, TCGMemOpIdx oi, uintptr_t ra) {
    struct target target = {NULL, cm_engine_of(env->uc)};
    unsigned mmu_idx = get_mmuidx(oi);
    CPUTLBEntry* entry = tlb_entry(env, mmu_idx, addr);
    struct cm_engine_counters* counters = &target.engine->counters;
    counters->atomics[__builtin_ctz(size)]++;
    if (unlikely(addr & (size - 1))) {
        unsigned alignment = get_alignment_bits(get_memop(oi));
        if (alignment && (addr & ((1u << alignment) - 1))) {
            cpu_unaligned_access(env_cpu(env), addr, MMU_DATA_STORE, mmu_idx, ra);
        }
        counters->atomics_misaligned++;
        if ((addr & ~TARGET_PAGE_MASK) + size > TARGET_PAGE_SIZE) {
            counters->atomics_crossing++;
            // Both pages must be writable before anything is changed. The probe raises the guest's fault.
            probe_write(env, addr, (int)(TARGET_PAGE_SIZE - (addr & ~TARGET_PAGE_MASK)), mmu_idx, ra);
            target_ulong second = (addr & TARGET_PAGE_MASK) + TARGET_PAGE_SIZE;
            probe_write(env, second, (int)(addr + size - second), mmu_idx, ra);
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

static unsigned __int128 load_bytes(CPUArchState* env, target_ulong addr, unsigned size, TCGMemOpIdx oi,
                                    uintptr_t ra) {
    unsigned __int128 value = 0;
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
        value |= (unsigned __int128)cpu_ldub_mmuidx_ra(env, addr + i, get_mmuidx(oi), ra) << (8 * i);
    }
    return value;
}

static void store_bytes(CPUArchState* env, target_ulong addr, unsigned size, unsigned __int128 value,
                        TCGMemOpIdx oi, uintptr_t ra) {
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
#define EXCLUSIVELY(T, size, expression)                                      \
    do {                                                                      \
        target.engine->ops->exclusive_begin(target.engine->opaque);           \
        T old = (T)load_bytes(env, addr, size, oi, ra);                       \
        T replacement = (expression);                                         \
        store_bytes(env, addr, size, (unsigned __int128)replacement, oi, ra); \
        target.engine->ops->exclusive_end(target.engine->opaque);             \
        exclusive_old = old;                                                  \
        exclusive_new = replacement;                                          \
    } while (0)

#define FETCH_OP(name, T, A, suffix, size, host_result, expression, result)                         \
    static A name##suffix##_at(CPUArchState* env, target_ulong addr, A value, TCGMemOpIdx oi,       \
                               uintptr_t ra) {                                                      \
        struct target target = find(env, addr, size, oi, ra);                                       \
        if (likely(target.host)) return (A)(T)(host_result);                                        \
        T exclusive_old, exclusive_new;                                                             \
        EXCLUSIVELY(T, size, expression);                                                           \
        (void)exclusive_old, (void)exclusive_new;                                                   \
        return (A)(result);                                                                         \
    }                                                                                               \
    A CM_WRAP_SIZED(name, suffix)(CPUArchState * env, target_ulong addr, A value, TCGMemOpIdx oi) { \
        CM_HIT(helper_atomic_##name##suffix);                                                       \
        return name##suffix##_at(env, addr, value, oi, GETPC());                                    \
    }

#define CM_WRAP_SIZED(name, suffix) __wrap_helper_atomic_##name##suffix##_x86_64
#define HOST(T) ((T*)target.host)

#define CMPXCHG(T, A, suffix, size)                                                                       \
    static A cmpxchg##suffix##_at(CPUArchState* env, target_ulong addr, A expected, A desired,            \
                                  TCGMemOpIdx oi, uintptr_t ra) {                                         \
        struct target target = find(env, addr, size, oi, ra);                                             \
        if (likely(target.host)) return (A)__sync_val_compare_and_swap(HOST(T), (T)expected, (T)desired); \
        T exclusive_old, exclusive_new;                                                                   \
        /* The bus sees a write in either case (SDM vol. 2A, CMPXCHG). */                                 \
        EXCLUSIVELY(T, size, old == (T)expected ? (T)desired : old);                                      \
        (void)exclusive_new;                                                                              \
        return (A)exclusive_old;                                                                          \
    }                                                                                                     \
    A CM_WRAP_SIZED(cmpxchg, suffix)(CPUArchState * env, target_ulong addr, A expected, A desired,        \
                                     TCGMemOpIdx oi) {                                                    \
        CM_HIT(helper_atomic_cmpxchg##suffix);                                                            \
        return cmpxchg##suffix##_at(env, addr, expected, desired, oi, GETPC());                           \
    }

#define ALL_OPS(T, A, suffix, size)                                                                        \
    CMPXCHG(T, A, suffix, size)                                                                            \
    FETCH_OP(xchg, T, A, suffix, size, __atomic_exchange_n(HOST(T), (T)value, __ATOMIC_SEQ_CST), (T)value, \
             exclusive_old)                                                                                \
    FETCH_OP(fetch_add, T, A, suffix, size, __sync_fetch_and_add(HOST(T), (T)value), (T)(old + value),     \
             exclusive_old)                                                                                \
    FETCH_OP(fetch_and, T, A, suffix, size, __sync_fetch_and_and(HOST(T), (T)value), (T)(old & value),     \
             exclusive_old)                                                                                \
    FETCH_OP(fetch_or, T, A, suffix, size, __sync_fetch_and_or(HOST(T), (T)value), (T)(old | value),       \
             exclusive_old)                                                                                \
    FETCH_OP(fetch_xor, T, A, suffix, size, __sync_fetch_and_xor(HOST(T), (T)value), (T)(old ^ value),     \
             exclusive_old)                                                                                \
    FETCH_OP(add_fetch, T, A, suffix, size, __sync_add_and_fetch(HOST(T), (T)value), (T)(old + value),     \
             exclusive_new)                                                                                \
    FETCH_OP(and_fetch, T, A, suffix, size, __sync_and_and_fetch(HOST(T), (T)value), (T)(old & value),     \
             exclusive_new)                                                                                \
    FETCH_OP(or_fetch, T, A, suffix, size, __sync_or_and_fetch(HOST(T), (T)value), (T)(old | value),       \
             exclusive_new)                                                                                \
    FETCH_OP(xor_fetch, T, A, suffix, size, __sync_xor_and_fetch(HOST(T), (T)value), (T)(old ^ value),     \
             exclusive_new)

ALL_OPS(uint8_t, uint32_t, b, 1)
ALL_OPS(uint16_t, uint32_t, w_le, 2)
ALL_OPS(uint32_t, uint32_t, l_le, 4)
ALL_OPS(uint64_t, uint64_t, q_le, 8)

// CMPXCHG8B reaches its atomic through another door, with the return address as an argument.
uint64_t __wrap_helper_atomic_cmpxchgq_le_mmu_x86_64(CPUArchState* env, target_ulong addr, uint64_t expected,
                                                     uint64_t desired, TCGMemOpIdx oi, uintptr_t ra) {
    CM_HIT(helper_atomic_cmpxchgq_le_mmu);
    return cmpxchgq_le_at(env, addr, expected, desired, oi, ra);
}

// CMPXCHG16B: its address is a multiple of 16 or it has raised #GP before.
Int128 __real_helper_atomic_cmpxchgo_le_mmu_x86_64(CPUArchState* env, target_ulong addr, Int128 expected,
                                                   Int128 desired, TCGMemOpIdx oi, uintptr_t ra);

Int128 __wrap_helper_atomic_cmpxchgo_le_mmu_x86_64(CPUArchState* env, target_ulong addr, Int128 expected,
                                                   Int128 desired, TCGMemOpIdx oi, uintptr_t ra) {
    CM_HIT(helper_atomic_cmpxchgo_le_mmu);
    struct target target = find(env, addr, 16, oi, ra);
    typedef unsigned __int128 T;
    if (likely(target.host)) {
        return (Int128)__sync_val_compare_and_swap(HOST(T), (T)expected, (T)desired);
    }
    T exclusive_old, exclusive_new;
    EXCLUSIVELY(T, 16, old == (T)expected ? (T)desired : old);
    (void)exclusive_new;
    return (Int128)exclusive_old;
}
