// SPDX-License-Identifier: GPL-2.0-or-later
// The home's judgement: is a page contended, so that moving the operation costs less than moving the page?
//
// Heat rises with each move of the page for an atomic and halves every 8 ms; above a threshold the page is
// *contended*, and atomics go to the owner. What the owner does with the page cannot be seen from the home.
// So a host that has asked many times in a row, with no other host asking, gets the page: if it is the only
// user left, that was right, and it never asks again. If another host asks at once, it was wrong, and the
// next such try needs twice as long a row. The cost of trying is bounded: one move in 8, then 16, 32, 64
// operations.
//
// Fairness: an owner that never stops does a thousand operations for each that another host sends it. So the
// page goes to the host that asks after a number of them has been sent, in a row or not: each has its turn.
// Rows and turns are some milliseconds long, which is what the shares of hosts are even over.
#pragma once

#include <cstdint>

#include "coherence/messages.hpp"

namespace coremesh::coherence {

/// Of one page. All zeros: never asked for.
struct Heat {
    uint32_t cooled_ms = 0;    ///< heat is as of this moment
    uint32_t asked_ms = 0;     ///< the last request of any kind
    uint32_t returned_ms = 0;  ///< when the page was last moved to the host of `run`
    uint16_t heat = 0;
    uint16_t run = 0;      ///< transactions in a row of `runner`, while contended
    uint16_t sent = 0;     ///< transactions executed at the owner since the page came to it
    HostId runner = 0;     ///< the host that asked last
    uint8_t patience = 0;  ///< a row must be 8 << patience long
    bool contended = false;
    bool returned = false;  ///< moved to the host of the row, and no other host has asked since
};

class Contention {
  public:
    static constexpr uint16_t kPerMove = 16;
    static constexpr uint16_t kContended = 4 * kPerMove;
    static constexpr uint32_t kHalfLifeMs = 8;
    static constexpr uint32_t kForgetMs = 250;  ///< without a request: the page is not contended any more
    static constexpr uint32_t kSoonMs = 4;      ///< about ten moves: a page kept shorter was not worth moving
    static constexpr uint16_t kRow = 8;
    static constexpr uint8_t kMaxPatience = 3;
    static constexpr uint16_t kTurn = 128;

    /// A host asks for the page, for any access: to be called first.
    static void asked(Heat& heat, HostId requester, uint32_t now_ms) noexcept;
    /// Whether a transaction of `requester` shall be executed at the owner, another host. `losing`: the
    /// requester got the page several times and lost it before it could use it, or soon after.
    /// `returns` is set when the answer is no because the requester is the only one left, or has its turn.
    static bool remote(Heat& heat, HostId requester, bool losing, uint32_t now_ms, bool& marked,
                       bool& returns) noexcept;
    /// The right to write goes to another host for an atomic.
    static void moved(Heat& heat, uint32_t now_ms) noexcept;
    /// Whether a guess (a prefetch) should keep off.
    static bool warm(Heat& heat, uint32_t now_ms) noexcept;

  private:
    static void cool(Heat& heat, uint32_t now_ms) noexcept;
};

}  // namespace coremesh::coherence
