// SPDX-License-Identifier: GPL-2.0-or-later
// An IDE channel between its threads: vCPUs access it, a worker does what takes time.
//
// **Order.** The worker works on the medium and on the guest's memory without the lock. It takes the lock to
// say so, and changes, in this order: the data in RAM or in the buffer (before the lock), the bus master's
// status, the drive's status, and last the interrupt line. So at the moment when the line rises, every
// register that any vCPU can read has its final value.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bus/native_device.hpp"
#include "hw/native/ata/channel.hpp"

namespace coremesh::ata {

/// A drive and what stands behind it.
struct Unit {
    std::unique_ptr<Drive> drive;
    std::shared_ptr<BlockStore> store;  ///< may be null: a CD-ROM drive without a disc
    uint64_t sectors = 0;
    /// The 512 bytes of an identification; nothing: a mistake of ours. On the worker's thread, without a
    /// lock.
    std::function<std::optional<std::vector<uint8_t>>(const Settings&)> identify;
    /// A packet device's: what a packet is answered with, and that the medium failed. As above.
    std::function<std::optional<PacketAnswer>(const std::vector<uint8_t>&)> packet;
    std::function<void()> unreadable;
};

/// ## State that two threads touch
///
///  - `mutex_` guards the channel, the drives and the counters. It is held while the line is driven, so that
///    accesses and the line leave in one order; never while the medium or guest memory is touched.
///  - `moving_`: work is under way, of `next` and not yet `done`. Under `mutex_`; `idle_` tells of its end.
///  - `alternate_status_`: a copy of that register, changed under `mutex_` before the line is. Reading it has
///  no
///    effect, so drivers poll it, and take no lock for that.
///  - `word_`: 1 when the worker is to look. seq_cst; it sleeps on that.
class IdeChannel : public NativeDevice {
  public:
    struct Line {
        std::function<void(bool)> drive;  ///< sets the interrupt line; it must not call back
        std::function<void()> bus_error;  ///< the bus master found no RAM; on the worker's thread, no lock
        std::function<void()> thread_begins;  ///< on the worker's thread, first and last
        std::function<void()> thread_ends;
    };
    struct Counters {
        uint64_t commands = 0, bytes_moved = 0, busy_ns = 0, contended = 0, waited_ns = 0, faults = 0;
    };
    struct Saved {
        ChannelState channel;
        std::vector<DriveState> drives;  ///< of those that there are
    };

    /// `units` has at most two drives, device 0 first; a null pointer stands for a drive that is not there.
    IdeChannel(std::shared_ptr<BusMaster> memory, std::vector<std::shared_ptr<Unit>> units, Line line);
    ~IdeChannel() override { stop(); }

    // Any thread. A write that stops what is under way returns when nothing is any more.
    uint32_t read(unsigned offset, unsigned size) noexcept override;
    void write(unsigned offset, unsigned size, uint32_t value) noexcept override;

    /// Whether the bus master may use the bus. When it may not, it does not any more when this returns.
    void allow(bool allowed) noexcept;
    /// RESET-. Any thread.
    void reset() noexcept;

    void start(const std::string& name);
    /// Returns when the worker has ended; work that was begun is done. Idempotent; not from the worker.
    void stop() noexcept;
    /// All the work that there is, on this thread: for an owner without a worker.
    void serve() noexcept;

    /// A moment's state; whole while no worker and no vCPU runs.
    Saved save() noexcept;
    /// False: it is not the state of this channel. `line` is the level that the line has.
    bool load(const Saved& saved, bool line) noexcept;
    /// Counted since the start. Any thread.
    Counters counters() noexcept;

  private:
    using Lock = std::unique_lock<std::mutex>;

    Lock lock() noexcept;
    /// After every change, with the lock held: the line, and whether the worker has something to do.
    bool settle() noexcept;
    /// The registers that are read without the lock. After every change, with the lock held.
    void publish() noexcept;
    void wake() noexcept;
    void run() noexcept;
    JobResult work(const Unit& unit, Job& job) noexcept;
    JobResult identify(const Unit& unit, const Settings& settings) noexcept;
    int verify(BlockStore& store, uint64_t offset, uint64_t length) noexcept;

    const std::vector<std::shared_ptr<Unit>> units_;
    const Line line_;
    std::mutex mutex_;
    std::condition_variable idle_;
    Channel channel_;
    bool moving_ = false;
    Counters counters_;
    alignas(64) std::atomic<uint8_t> alternate_status_{0};
    alignas(64) std::atomic<uint32_t> word_{0};
    std::atomic<bool> stopping_{false};
    Mover mover_;  // the worker's, as the next
    std::vector<uint8_t> buffer_;
    const std::shared_ptr<BusMaster> memory_;
    std::thread thread_;
};

}  // namespace coremesh::ata
