// SPDX-License-Identifier: GPL-2.0-or-later
// The last messages of the page protocol that this host received and sent, kept for the day on which a
// machine ends badly.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/access.hpp"
#include "coherence/messages.hpp"

namespace coremesh::coherence {

/// One message. `before` and `after`: what this host may do with the page, around what the message did here;
/// of a sent one both are the access at the moment of sending.
struct TraceEntry {
    int64_t time_ns = 0;  ///< CLOCK_MONOTONIC, of the event in which it came or was sent
    uint64_t page = 0;
    uint64_t serial = 0;  ///< the home's number of the transaction; 0 in requests
    uint8_t kind = 0;     ///< Message::Kind; 0: bytes that are no message
    bool sent = false;
    bool rejected = false;  ///< received, and against the protocol: counted and dropped
    HostId peer = 0;        ///< the other host
    HostId requester = 0;   ///< the host that the transaction is for
    uint8_t flags = 0;
    Access before = Access::kNone, after = Access::kNone;

    bool operator==(const TraceEntry&) const = default;
};

/// A ring without locks. `note`: one thread at a time (the protocol lock orders them); some ten stores and no
/// locked instruction. `last`: any thread at any time; an entry that is being overwritten is left out.
///
/// ## State that two threads touch
///
/// A slot's version is 0 while its words are written, else the number of the entry plus one. The writer
/// stores 0, and then each word with release; the reader loads the words with acquire between two looks at
/// the version. A reader that has seen a new word sees the 0 too, or a later version.
class Trace {
  public:
    static constexpr size_t kEntries = 1024;

    void note(const TraceEntry& entry) noexcept {
        const uint64_t number = next_.load(std::memory_order_relaxed);
        Slot& slot = slots_[number % kEntries];
        slot.version.store(0, std::memory_order_relaxed);
        slot.words[0].store(static_cast<uint64_t>(entry.time_ns), std::memory_order_release);
        slot.words[1].store(entry.page, std::memory_order_release);
        slot.words[2].store(entry.serial, std::memory_order_release);
        slot.words[3].store(pack(entry), std::memory_order_release);
        slot.version.store(number + 1, std::memory_order_release);
        next_.store(number + 1, std::memory_order_release);
    }

    /// The last `count` entries at most, oldest first.
    std::vector<TraceEntry> last(size_t count) const {
        const uint64_t end = next_.load(std::memory_order_acquire);
        const uint64_t length = std::min<uint64_t>({end, kEntries, count});
        std::vector<TraceEntry> entries;
        entries.reserve(length);
        for (uint64_t number = end - length; number < end; ++number) {
            const Slot& slot = slots_[number % kEntries];
            if (slot.version.load(std::memory_order_acquire) != number + 1) continue;
            std::array<uint64_t, kWords> words;
            for (size_t word = 0; word < kWords; ++word) {
                words[word] = slot.words[word].load(std::memory_order_acquire);
            }
            if (slot.version.load(std::memory_order_relaxed) != number + 1) continue;
            entries.push_back(unpack(words));
        }
        return entries;
    }

    /// How many messages were noted since the start. Any thread.
    uint64_t noted() const noexcept { return next_.load(std::memory_order_relaxed); }

  private:
    static constexpr size_t kWords = 4;
    struct Slot {
        std::atomic<uint64_t> version{0};
        std::array<std::atomic<uint64_t>, kWords> words{};
    };

    static uint64_t pack(const TraceEntry& e) noexcept {
        return uint64_t{e.kind} | uint64_t{e.peer} << 8 | uint64_t{e.requester} << 16 |
               uint64_t{e.flags} << 24 | uint64_t{static_cast<uint8_t>(e.before)} << 32 |
               uint64_t{static_cast<uint8_t>(e.after)} << 40 | uint64_t{e.sent} << 48 |
               uint64_t{e.rejected} << 49;
    }
    static TraceEntry unpack(const std::array<uint64_t, kWords>& words) noexcept {
        const uint64_t packed = words[3];
        const auto byte = [&](unsigned shift) { return static_cast<uint8_t>(packed >> shift); };
        return {.time_ns = static_cast<int64_t>(words[0]),
                .page = words[1],
                .serial = words[2],
                .kind = byte(0),
                .sent = (packed >> 48 & 1) != 0,
                .rejected = (packed >> 49 & 1) != 0,
                .peer = byte(8),
                .requester = byte(16),
                .flags = byte(24),
                .before = static_cast<Access>(byte(32)),
                .after = static_cast<Access>(byte(40))};
    }

    std::atomic<uint64_t> next_{0};
    std::array<Slot, kEntries> slots_{};
};

}  // namespace coremesh::coherence
