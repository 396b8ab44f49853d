// SPDX-License-Identifier: GPL-2.0-or-later
#include "coherence/transaction.hpp"

#include <type_traits>

namespace coremesh::coherence {

namespace {

#if defined(__x86_64__)
// CMPXCHG16B. The compiler's own 16-byte atomics call libatomic, which may use a lock instead: then the
// host's CPUs, which know no such lock, would not be excluded.
bool compare_swap_16(void* at, Wide& expected, Wide desired) noexcept {
    bool swapped;
    uint64_t low = static_cast<uint64_t>(expected);
    uint64_t high = static_cast<uint64_t>(expected >> 64);
    asm volatile("lock cmpxchg16b %1"
                 : "=@ccz"(swapped), "+m"(*static_cast<Wide*>(at)), "+a"(low), "+d"(high)
                 : "b"(static_cast<uint64_t>(desired)), "c"(static_cast<uint64_t>(desired >> 64))
                 : "memory");
    expected = static_cast<Wide>(high) << 64 | low;
    return swapped;
}
#else
bool compare_swap_16(void* at, Wide& expected, Wide desired) noexcept {
    return __atomic_compare_exchange_n(static_cast<Wide*>(at), &expected, desired, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}
#endif

/// What memory holds after an operation that found `old`; every kind but load and compare-and-swap.
template <typename T>
T after(Operation::Kind kind, T old, T operand) noexcept {
    // Signed in the width of the operation; for 16 bytes too (std::make_signed knows it with GNU extensions).
    using Signed = std::conditional_t<sizeof(T) == 16, __int128, std::make_signed<T>>;
    const auto below = [](T a, T b) {
        if constexpr (sizeof(T) == 16) {
            return static_cast<Signed>(a) < static_cast<Signed>(b);
        } else {
            return static_cast<typename Signed::type>(a) < static_cast<typename Signed::type>(b);
        }
    };
    switch (kind) {
        case Operation::Kind::kStore:
        case Operation::Kind::kExchange:
            return operand;
        case Operation::Kind::kAdd:
            return static_cast<T>(old + operand);
        case Operation::Kind::kAnd:
            return static_cast<T>(old & operand);
        case Operation::Kind::kOr:
            return static_cast<T>(old | operand);
        case Operation::Kind::kXor:
            return static_cast<T>(old ^ operand);
        case Operation::Kind::kMinSigned:
            return below(operand, old) ? operand : old;
        case Operation::Kind::kMaxSigned:
            return below(old, operand) ? operand : old;
        case Operation::Kind::kMinUnsigned:
            return operand < old ? operand : old;
        case Operation::Kind::kMaxUnsigned:
            return old < operand ? operand : old;
        default:
            return old;
    }
}

Wide execute_16(const Operation& operation, void* at) noexcept {
    Wide old = 0;
    if (operation.kind == Operation::Kind::kCompareSwap) {
        old = operation.expected;
        compare_swap_16(at, old, operation.operand);
        return old;
    }
    // The first try guesses; each later one has what memory held then. A load writes back what it read.
    while (!compare_swap_16(at, old, after<Wide>(operation.kind, old, operation.operand))) {
    }
    return operation.kind == Operation::Kind::kStore ? 0 : old;
}

template <typename T>
Wide execute_as(const Operation& operation, void* at) noexcept {
    // LOCK-prefixed instructions take any alignment (SDM 3A, 9.1.2.2); the type must not promise one.
    typedef T __attribute__((aligned(1), may_alias)) Any;
    Any* const memory = static_cast<Any*>(at);
    const T operand = static_cast<T>(operation.operand);
    T old;
    switch (operation.kind) {
        case Operation::Kind::kLoad:
            if ((reinterpret_cast<uintptr_t>(at) & (sizeof(T) - 1)) == 0) {
                return __atomic_load_n(memory, __ATOMIC_SEQ_CST);
            }
            return __atomic_fetch_or(memory, T{0}, __ATOMIC_SEQ_CST);  // a plain misaligned load may tear
        case Operation::Kind::kStore:
            __atomic_exchange_n(memory, operand, __ATOMIC_SEQ_CST);
            return 0;
        case Operation::Kind::kCompareSwap:
            old = static_cast<T>(operation.expected);
            __atomic_compare_exchange_n(memory, &old, operand, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
            return old;
        case Operation::Kind::kExchange:
            return __atomic_exchange_n(memory, operand, __ATOMIC_SEQ_CST);
        case Operation::Kind::kAdd:
            return __atomic_fetch_add(memory, operand, __ATOMIC_SEQ_CST);
        case Operation::Kind::kAnd:
            return __atomic_fetch_and(memory, operand, __ATOMIC_SEQ_CST);
        case Operation::Kind::kOr:
            return __atomic_fetch_or(memory, operand, __ATOMIC_SEQ_CST);
        case Operation::Kind::kXor:
            return __atomic_fetch_xor(memory, operand, __ATOMIC_SEQ_CST);
        default:
            break;
    }
    old = __atomic_load_n(memory, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(memory, &old, after<T>(operation.kind, old, operand), false,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return old;
}

}  // namespace

bool valid(const Operation& operation) noexcept {
    if (static_cast<uint8_t>(operation.kind) >= Operation::kKinds) return false;
    switch (operation.size) {
        case 1:
        case 2:
        case 4:
        case 8:
            return operation.offset + operation.size <= 4096;
        case 16:
            return operation.offset % 16 == 0 && operation.offset < 4096;
        default:
            return false;
    }
}

Wide execute(const Operation& operation, void* host_page) noexcept {
    void* const at = static_cast<uint8_t*>(host_page) + operation.offset;
    switch (operation.size) {
        case 1:
            return execute_as<uint8_t>(operation, at);
        case 2:
            return execute_as<uint16_t>(operation, at);
        case 4:
            return execute_as<uint32_t>(operation, at);
        case 8:
            return execute_as<uint64_t>(operation, at);
        default:
            return execute_16(operation, at);
    }
}

}  // namespace coremesh::coherence
