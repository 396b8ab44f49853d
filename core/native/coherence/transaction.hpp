// SPDX-License-Identifier: GPL-2.0-or-later
// A memory transaction: one atomic operation on 1..16 bytes of one page, executed where the page is.
#pragma once

#include <cstdint>

namespace coremesh::coherence {

/// 16 bytes as a number: CMPXCHG16B is the widest operation there is.
using Wide = unsigned __int128;

struct Operation {
    enum class Kind : uint8_t {
        kLoad,
        kStore,        ///< memory = operand
        kCompareSwap,  ///< if (memory == expected) memory = operand
        kExchange,     ///< memory = operand
        kAdd,          ///< memory += operand, modulo the size
        kAnd,
        kOr,
        kXor,
        kMinSigned,
        kMaxSigned,
        kMinUnsigned,
        kMaxUnsigned,
    };
    static constexpr uint8_t kKinds = 12;

    Kind kind = Kind::kLoad;
    uint8_t size = 1;     ///< bytes: 1, 2, 4, 8 or 16
    uint16_t offset = 0;  ///< of the first byte in the page; offset + size <= 4096
    Wide operand = 0;     ///< bits above `size` bytes do not count
    Wide expected = 0;    ///< kCompareSwap only

    bool operator==(const Operation&) const = default;

    /// Whether the page is as it was afterwards: a copy that may be read is enough for it.
    bool reads_only() const noexcept { return kind == Kind::kLoad; }
};

/// Whether `execute` takes it: known kind and size, inside one page. 16 bytes must be aligned to 16 (so must
/// the operand of CMPXCHG16B, SDM vol. 2); smaller ones need not be.
bool valid(const Operation& operation) noexcept;

/// Executes a valid operation on a page by a host atomic, while any thread may use the same bytes.
/// Sequentially consistent, as a LOCK-prefixed instruction is. Returns the value before, zero-extended
/// (kStore: 0, it looks at nothing). `host_page` is aligned to 4096 and writable, also for a load of 16
/// bytes.
Wide execute(const Operation& operation, void* host_page) noexcept;

}  // namespace coremesh::coherence
