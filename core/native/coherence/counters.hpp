// SPDX-License-Identifier: GPL-2.0-or-later
// What one host's part of the page protocol has done since the start.
#pragma once

#include <array>
#include <cstdint>

namespace coremesh::coherence {

/// Why a message was dropped. None of them happens between hosts that keep to the protocol.
enum class ProtocolViolation : uint8_t {
    kPage,       ///< no such page
    kHost,       ///< from nowhere, or it speaks for another host
    kNotHome,    ///< a request to a host that is not the page's home, or an order from one
    kState,      ///< nothing that this page waits for, or can do
    kOperation,  ///< not a valid operation
    kTooMany,    ///< more requests than a host has threads
};
inline constexpr unsigned kProtocolViolations = 6;

struct Counters {
    // As the user of pages.
    uint64_t read_fetches = 0;   ///< copies received for somebody who waited
    uint64_t write_fetches = 0;  ///< pages received to write
    uint64_t upgrades = 0;       ///< from read to write without data
    uint64_t prefetches = 0;     ///< copies received for nobody yet
    uint64_t prefetches_declined = 0;
    uint64_t pages_sent = 0;     ///< copies and pages given to others
    uint64_t downgrades = 0;     ///< write to read, for another host
    uint64_t invalidations = 0;  ///< to none, for another host
    uint64_t deferred = 0;       ///< of these, put off until a hold ended
    uint64_t losses = 0;         ///< pages asked for again soon after they were lost
    // Memory transactions of this host's threads, and those done for others.
    uint64_t rmw_local = 0;     ///< the page was here
    uint64_t rmw_remote = 0;    ///< executed at the owner
    uint64_t rmw_retried = 0;   ///< the page was moved here, or was on its way
    uint64_t rmw_executed = 0;  ///< for other hosts
    // As the home.
    uint64_t requests = 0;         ///< of all hosts, this one too
    uint64_t queued = 0;           ///< of these, had to wait for one before
    uint64_t owner_moves = 0;      ///< the right to write went to another host
    uint64_t forwarded_execs = 0;  ///< transactions sent to an owner
    uint64_t migrations = 0;       ///< of these, reads that were given the right to write at once
    uint64_t contended_marks = 0;  ///< pages that became contended
    uint64_t returned_moves = 0;   ///< contended pages moved to the one host that used them
    std::array<uint64_t, kProtocolViolations> violations{};

    uint64_t violations_total() const noexcept {
        uint64_t total = 0;
        for (uint64_t one : violations) total += one;
        return total;
    }
};

/// One page as this host's threads met it. Sums over all hosts say who fights for it.
struct ContendedPage {
    uint64_t page = 0;
    uint64_t local = 0;    ///< transactions that found the page here
    uint64_t remote = 0;   ///< executed at the owner
    uint64_t retried = 0;  ///< the page came here instead
    uint64_t moves = 0;    ///< times this host got the right to write from another

    /// Where in the guest's code it was needed from. Of the many that come by once each, the last ones; of
    /// those that come often, about how often (Metwally's Space-Saving: never too few).
    struct User {
        uint64_t place = 0;  ///< guest-virtual address of an instruction; 0: none
        uint64_t times = 0;
    };
    std::array<User, 4> users{};

    void used(uint64_t place) noexcept {
        User* least = &users[0];
        for (User& user : users) {
            if (user.place == place) {
                ++user.times;
                return;
            }
            if (user.times < least->times) least = &user;
        }
        *least = {place, least->times + 1};
    }

    uint64_t total() const noexcept { return local + remote + retried + moves; }
};

}  // namespace coremesh::coherence
