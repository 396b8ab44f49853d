// SPDX-License-Identifier: GPL-2.0-or-later
// Keeps one host's clock with host 0's, by messages of the protocol thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>

#include "base/clock.hpp"
#include "base/clock_sync.hpp"
#include "base/host_set.hpp"
#include "base/pi_mutex.hpp"

namespace coremesh {

/// Host 0 answers, every other host asks. `received` and `due` are for the protocol thread; the rest for any.
class ClockFollower {
  public:
    /// Sends to another host; may drop. Called on the protocol thread with no lock of this class held.
    using Send = std::function<void(HostId to, std::span<const uint8_t> payload)>;

    /// @param clock a following one; it and what `send` uses outlive this.
    ClockFollower(Clock& clock, HostId self, Send send);

    /// A message of the clock's kind, as early after its arrival as can be.
    void received(HostId from, std::span<const uint8_t> payload) noexcept;

    /// Asks if it is time. Returns the next moment to be called, in ns on CLOCK_MONOTONIC; -1 on host 0.
    int64_t due(int64_t now_ns) noexcept;

    /// Whether a guest may see this clock: on host 0 at once, elsewhere after the first exchanges.
    bool settled() const noexcept { return settled_.load(std::memory_order_acquire); }

    /// vCPUs run from now on: `Clock::set` is over, the clock never turns back any more.
    void guest_runs() noexcept { running_.store(true, std::memory_order_release); }

    struct Facts : ClockSync::Facts {
        uint64_t answers_given = 0;
        uint64_t garbage = 0;  ///< messages that were none, or not for this host
        Clock::Changes changes;
    };
    Facts facts() const;

  private:
    void correct(const ClockSync::Correction& correction) noexcept;

    Clock& clock_;
    const HostId self_;
    const Send send_;
    mutable PiMutex mutex_;  // sync_, answers_given_, garbage_
    ClockSync sync_;
    uint64_t answers_given_ = 0;
    uint64_t garbage_ = 0;
    std::atomic<bool> settled_{false};
    std::atomic<bool> running_{false};
};

}  // namespace coremesh
