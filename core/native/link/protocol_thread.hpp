// SPDX-License-Identifier: GPL-2.0-or-later
// The one thread of a host that receives from the other hosts and runs the protocol's timers.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "link/link.hpp"

namespace coremesh::link {

/// Puts the calling thread above those of ordinary priority: SCHED_FIFO at `level` (1 = least), else nice
/// -20; else, what needs no privilege, it asks for a short slice, with which it waits less for its turn.
/// Returns which: "fifo", "nice", "slice", or "none" where the kernel is older than 6.12. A host that may do
/// neither of the first two still works; its page moves are slower when its cores are busy, as the protocol
/// thread waits for its turn beside the vCPUs.
const char* raise_priority(int level) noexcept;

/// Whether a thread of such a priority gets a CPU at once, so that it may stay on one.
bool outranks(std::string_view priority) noexcept;

/// What raise_priority would answer, without changing the calling thread.
const char* probe_priority();

/// Sleeps until a file descriptor is readable, wake() was called, or a deadline comes; then does the work.
///
/// ## State that two threads touch
///
/// `pending_` and `sleeping_`, seq_cst: a waker sets the first and reads the second, the thread sets the
/// second and reads the first, so one of the two sees the other and no wake-up is lost. The thread clears
/// `pending_` before it looks at `stopping_` and for work: a waker has changed those before. `until_` is
/// written before `sleeping_` and says when the sleep ends by itself. `armed_` is what the timer is set to,
/// or shall be: a thread that lowers it sets the timer, and sets it again if another has lowered it
/// meanwhile; the thread clears it before it looks for what is due.
class ProtocolThread {
  public:
    /// What a drain found: nothing; something and then nothing; or something, and it stopped before the end.
    enum class Drained : uint8_t { kNothing, kAll, kSome };

    class Work {
      public:
        /// Takes what has arrived. Bit n of `ready`: descriptor n ended the sleep before.
        virtual Drained drain(int64_t now_ns, unsigned ready) noexcept = 0;
        /// Runs timers; returns the next deadline in ns on CLOCK_MONOTONIC, -1 for none.
        virtual int64_t due(int64_t now_ns) noexcept = 0;
        /// Before the first drain, on the thread.
        virtual void begins() noexcept {}
        /// Just before a sleep: what arrives from now on must make a descriptor readable. False when
        /// something has arrived since the last drain. awake() follows in any case.
        virtual bool arm() noexcept { return true; }
        virtual void awake() noexcept {}

      protected:
        ~Work() = default;
    };

    /// Throws std::system_error when the host has no descriptor left.
    ProtocolThread();
    ~ProtocolThread();
    ProtocolThread(const ProtocolThread&) = delete;
    ProtocolThread& operator=(const ProtocolThread&) = delete;

    /// @param descriptors ends a sleep when one of them is readable.
    /// @param spin_ns     how long to go on draining before sleeping.
    /// @param cpu         where to stay, if the thread gets to outrank others; -1: anywhere.
    /// Once. Throws std::system_error.
    void start(Work& work, std::span<const int> descriptors, int64_t spin_ns = 0, int cpu = -1);
    /// Idempotent; not from the thread itself.
    void stop() noexcept;

    /// Any thread, also in a synchronous fault handler, also before start and after stop.
    void wake() noexcept;
    /// The same when `deadline_ns` has come, on CLOCK_MONOTONIC. What is due then must be known to due()
    /// already.
    void wake_at(int64_t deadline_ns) noexcept;

    const char* priority() const noexcept { return priority_.load(std::memory_order_acquire); }
    uint64_t wakeups() const noexcept { return wakeups_.load(std::memory_order_relaxed); }
    uint64_t spins() const noexcept { return spins_.load(std::memory_order_relaxed); }

  private:
    void run(Work& work) noexcept;
    bool spin(Work& work) noexcept;
    unsigned sleep(Work& work, int64_t deadline_ns) noexcept;

    static constexpr int64_t kNever = INT64_MAX;

    int event_;
    int timer_;
    std::vector<int> descriptors_;
    int64_t spin_ns_ = 0;
    int cpu_ = -1;
    std::atomic<bool> pending_{false};
    std::atomic<bool> sleeping_{false};
    std::atomic<int64_t> until_{kNever};
    std::atomic<int64_t> armed_{kNever};
    std::atomic<bool> stopping_{false};
    std::atomic<const char*> priority_{"none"};
    std::atomic<uint64_t> wakeups_{0};
    std::atomic<uint64_t> spins_{0};
    std::thread thread_;
};

}  // namespace coremesh::link
