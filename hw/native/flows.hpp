// SPDX-License-Identifier: GPL-2.0-or-later
// Which receive queue a frame goes to: that of the core which last sent in the same conversation.
//
// Source: VIRTIO 1.2, section 5.1.6.5.6 (automatic receive steering).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>

namespace coremesh::virtio {

/// A number that both directions of a TCP or UDP conversation have in common, and two conversations seldom;
/// of another frame, one that its pair of addresses has.
uint32_t flow_of(std::string_view frame) noexcept;

/// Any thread. What is remembered is a hint: two conversations that meet in one entry disturb each other's
/// order of queues, and nothing else.
class FlowTable {
  public:
    FlowTable() noexcept { forget(); }
    void forget() noexcept {
        for (auto& entry : queues_) entry.store(kNone, std::memory_order_relaxed);
    }
    /// The driver has sent this frame on the transmit queue of pair `pair`.
    void sent(std::string_view frame, uint8_t pair) noexcept {
        queues_[flow_of(frame) % kEntries].store(pair, std::memory_order_relaxed);
    }
    /// The pair, below `pairs`, whose receive queue this frame goes to.
    uint8_t pair_of(std::string_view frame, uint8_t pairs) const noexcept {
        const uint32_t flow = flow_of(frame);
        const uint8_t pair = queues_[flow % kEntries].load(std::memory_order_relaxed);
        return pair < pairs ? pair : static_cast<uint8_t>(flow % pairs);
    }

  private:
    static constexpr uint32_t kEntries = 4096;
    static constexpr uint8_t kNone = 0xFF;
    std::array<std::atomic<uint8_t>, kEntries> queues_;
};

}  // namespace coremesh::virtio
