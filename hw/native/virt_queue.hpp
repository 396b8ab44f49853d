// SPDX-License-Identifier: GPL-2.0-or-later
// A virtqueue between the threads that use it: vCPUs ring, a transport starts and stops it, one worker
// serves.
#pragma once

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bus/device_meter.hpp"
#include "bus/doorbell.hpp"
#include "hw/native/interrupts.hpp"
#include "hw/native/remote_queue.hpp"
#include "hw/native/split_queue.hpp"

namespace coremesh::virtio {

/// ## State that two threads touch
///
///  - `word_`: 1 when the bell has been rung since the worker last looked. seq_cst; the worker sleeps on it.
///  - `enabled_`, `held_`, `inside_`: the thread that stops or holds the queue changes one of the first two
///  and
///    then looks at the third; one that enters counts itself there and then looks at the first two. seq_cst.
///  - `driver_`: threads that ring, and a worker that found that host unwilling. Only a hint.
///  - `queue_`: under `mutex_`, which is held for one step of the state machine. Such a step may wait for a
///    page of another host; no vCPU ever takes this lock.
class VirtQueue final : public Doorbell {
  public:
    VirtQueue(std::shared_ptr<BusMaster> bus, std::shared_ptr<Interrupts> interrupts)
        : bus_(std::move(bus)), interrupts_(std::move(interrupts)), queue_(*bus_) {}

    // ---- the transport

    void start(const SplitQueue::Layout& layout, const SplitQueue::Position& position = {}) noexcept;
    /// No request is begun any more. What is under way ends by itself: `idle` tells when.
    void stop() noexcept {
        enabled_.store(false, std::memory_order_seq_cst);
        wake();
    }
    /// Whether the function may not use the bus: then nothing is taken, answered or looked at, and the worker
    /// sleeps. `idle` tells when what is under way has ended.
    void hold(bool held) noexcept {
        held_.store(held, std::memory_order_seq_cst);
        wake();
    }
    bool held() const noexcept { return held_.load(std::memory_order_seq_cst); }
    /// Enabled, and not held: requests may be begun.
    bool running() const noexcept { return enabled() && !held(); }
    /// The device was reset: no layout, no vector, no fault.
    void reset() noexcept {
        const std::lock_guard lock(mutex_);
        queue_.configure({});
        broken_.store(false, std::memory_order_relaxed);
        vector_.store(kNoVector, std::memory_order_relaxed);
    }
    bool enabled() const noexcept { return enabled_.load(std::memory_order_seq_cst); }
    bool idle() const noexcept { return inside_.load(std::memory_order_seq_cst) == 0; }
    void set_vector(uint16_t vector) noexcept { vector_.store(vector, std::memory_order_relaxed); }
    SplitQueue::Position position() noexcept {
        const std::lock_guard lock(mutex_);
        return queue_.position();
    }

    // ---- vCPUs

    void ring() noexcept override {
        kicks_[thread_vcpu % kKickWords].count.fetch_add(1, std::memory_order_relaxed);
        // The driver's index is there before the word is looked at. Where the worker has not looked since the
        // last ring, it will: then nothing is written, and the word stays in the caches of all that ring.
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (word_.load(std::memory_order_seq_cst) == 0) wake();
    }
    void ring_from(HostId host, uint64_t address) noexcept override;

    // ---- the worker

    /// Sleeps until the bell rings, at most until `deadline_ns` (CLOCK_MONOTONIC; negative: for ever). Also
    /// returns after `wake`.
    void wait(int64_t deadline_ns) noexcept;
    /// As the bell, but not counted: something else for the worker to look at.
    void wake() noexcept;

    /// Within its life requests may be taken and guest memory touched; `open` tells whether it may.
    class Visit {
      public:
        explicit Visit(VirtQueue& queue) noexcept : queue_(queue) {
            queue_.inside_.fetch_add(1, std::memory_order_seq_cst);
            open_ = queue_.running();
        }
        ~Visit() { queue_.inside_.fetch_sub(1, std::memory_order_seq_cst); }
        Visit(const Visit&) = delete;
        Visit& operator=(const Visit&) = delete;
        bool open() const noexcept { return open_; }

      private:
        VirtQueue& queue_;
        bool open_;
    };

    SplitQueue::Next pop(Chain& chain) noexcept;
    bool push(uint16_t head, uint32_t written) noexcept;
    /// Tells the driver of what was pushed, if it wants to be told.
    void notify() noexcept;
    void suppress_notifications() noexcept;
    bool allow_notifications() noexcept;
    QueueFault fault() noexcept {
        const std::lock_guard lock(mutex_);
        return queue_.fault();
    }
    /// The device found a request that no driver makes: the queue is broken.
    void fail(QueueFault fault) noexcept;
    /// Whether a fault was found since the queue was started or reset. Takes no lock.
    bool broken() const noexcept { return broken_.load(std::memory_order_relaxed); }
    /// How often the queue was started: a request of an earlier life is not answered.
    uint64_t life() const noexcept { return life_.load(std::memory_order_relaxed); }

    /// Copies between a chain's buffers, from their byte `offset` on, and `data`. The number of bytes copied:
    /// less than `length` where the buffers end; nothing where they are not RAM.
    std::optional<uint64_t> gather(const std::vector<Segment>& segments, uint64_t offset, void* data,
                                   uint64_t length) noexcept;
    std::optional<uint64_t> scatter(const std::vector<Segment>& segments, uint64_t offset, const void* data,
                                    uint64_t length) noexcept;

    /// The same bytes as places in this process, for the host's kernel to move, if all of them are RAM that
    /// this host has alone. False: copy instead. After the kernel has written there, `wrote`.
    bool direct(const std::vector<Segment>& segments, uint64_t offset, uint64_t length, bool to_write,
                std::vector<iovec>& places) noexcept;
    void wrote(const std::vector<Segment>& segments, uint64_t offset, uint64_t length) noexcept;

    // The same on the host of the driver, if that is another one (remote_queue.hpp). False: that host did not
    // do it; from now on it is done here.

    /// The host that rang last, if it is not this one.
    std::optional<HostId> driver_elsewhere() const noexcept;
    /// As take_text (bytes.hpp) after its first wait.
    bool take_text_there(size_t most, int64_t linger_ns, std::string& bytes) noexcept;
    /// All requests, or many, and then there are `more`. Else the driver is to ring again.
    bool take_there(std::vector<RemoteChain>& chains, bool& more) noexcept;
    /// As take_frames and deliver_frames (frames.hpp), in one call each.
    bool take_frames_there(size_t most, std::vector<std::string>& frames, size_t& refused,
                           bool& more) noexcept;
    bool deliver_frames_there(std::span<const std::string_view> frames, size_t& done,
                              size_t& refused) noexcept;
    /// They go back to the driver, by that host or this one, and it is told if it wants to be. False: the
    /// queue is broken.
    bool give_there(std::span<const RemoteChain> chains) noexcept;

    struct Counters {
        uint64_t kicks = 0, requests = 0, interrupts = 0, faults = 0;
    };
    Counters counters() const noexcept {
        uint64_t kicks = 0;
        for (const Kicks& each : kicks_) kicks += each.count.load(std::memory_order_relaxed);
        return {kicks, requests_.load(), notified_.load(), faults_.load()};
    }

  private:
    void interrupt_driver() noexcept;
    bool give_here(std::span<const RemoteChain> chains) noexcept;
    template <typename Put, typename Get>
    bool at_driver(RemoteStep step, Put put, Get get) noexcept;
    /// Counts a fault once. With the lock held.
    void look_for_fault() noexcept;

    const std::shared_ptr<BusMaster> bus_;
    const std::shared_ptr<Interrupts> interrupts_;
    alignas(64) std::atomic<uint32_t> word_{0};
    alignas(64) std::atomic<bool> enabled_{false}, held_{false}, broken_{false};
    std::atomic<unsigned> inside_{0};
    std::atomic<uint16_t> vector_{kNoVector};
    std::atomic<uint64_t> life_{0};
    std::mutex mutex_;
    SplitQueue queue_;
    std::atomic<uint64_t> driver_{kNoHost};  // address of the bell << 8 | host that rang it last
    /// Counted apart for different vCPUs, which else would wait for each other's write of one word.
    struct alignas(64) Kicks {
        std::atomic<uint64_t> count{0};
    };
    static constexpr size_t kKickWords = 16;
    std::array<Kicks, kKickWords> kicks_;
    alignas(64) std::atomic<uint64_t> requests_{0}, notified_{0}, faults_{0};
};

}  // namespace coremesh::virtio
