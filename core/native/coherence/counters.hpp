// SPDX-License-Identifier: GPL-2.0-or-later
// What one host's part of the page protocol has done since the start.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/counters.hpp"

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

#define COREMESH_PROTOCOL_COUNTERS(X)                                                       \
    /* As the user of pages. */                                                             \
    X(read_fetches, "pages", "copies received for a thread that waited")                    \
    X(write_fetches, "pages", "pages received to write")                                    \
    X(upgrades, "pages", "from read to write without data")                                 \
    X(prefetches, "pages", "copies received before a thread wanted them")                   \
    X(first_touches, "pages", "never used, received to write before a thread wanted them")  \
    X(prefetches_declined, "pages", "of these two, what the home declined")                 \
    X(pages_sent, "pages", "copies and pages given to other hosts")                         \
    X(downgrades, "pages", "from write to read, for another host")                          \
    X(invalidations, "pages", "given up for another host")                                  \
    X(deferred, "times", "of these two, put off until a hold ended")                        \
    X(losses, "pages", "asked for again soon after they were lost")                         \
    /* Memory transactions of this host's threads, and those done for others. */            \
    X(atomics_here, "operations", "asked of the protocol, and the page had come meanwhile") \
    X(atomics_remote, "operations", "executed at the owner of the page")                    \
    X(atomics_retried, "operations", "the page was moved here, or was on its way")          \
    X(atomics_executed, "operations", "executed here for other hosts")                      \
    /* As the home. */                                                                      \
    X(home_requests, "messages", "requests to this home, of all hosts, this one too")       \
    X(home_queued, "messages", "of these, had to wait for one before")                      \
    X(owner_moves, "pages", "the right to write went to another host")                      \
    X(atomics_forwarded, "operations", "sent to an owner by this home")                     \
    X(migrations, "pages", "reads that were given the right to write at once")              \
    X(migrations_unwritten, "pages", "of these, came back as they had gone")                \
    X(contended_marks, "pages", "pages that became contended")                              \
    X(returned_moves, "pages", "contended pages moved to the one host that used them")      \
    X(violations, "messages", "dropped, because no host that keeps to the protocol sends them")

struct Counters {
    COREMESH_COUNTER_WORDS(COREMESH_PROTOCOL_COUNTERS)
    /// Of `violations`, by reason.
    std::array<uint64_t, kProtocolViolations> reasons{};

    void reject(ProtocolViolation why) noexcept {
        ++violations;
        ++reasons[static_cast<size_t>(why)];
    }
};
COREMESH_VISIT_COUNTERS(Counters, COREMESH_PROTOCOL_COUNTERS)

/// One page as this host's threads met it. Sums over all hosts say which of them contend for it.
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
