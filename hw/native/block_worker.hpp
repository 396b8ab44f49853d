// SPDX-License-Identifier: GPL-2.0-or-later
// Serves one request queue of a virtio block device on a thread of its own.
//
// Source: VIRTIO 1.2, section 5.2.6.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "hw/native/block_store.hpp"
#include "hw/native/request_buffers.hpp"
#include "hw/native/virt_queue.hpp"

namespace coremesh::virtio {

/// What all queues of one disk share. Any thread.
struct BlockDisk {
    std::shared_ptr<BlockStore> store;
    uint64_t sectors = 0;  ///< of 512 bytes
    bool read_only = false;
    std::string serial;  ///< at most 20 bytes
    /// CONFIG_WCE: 1 write-back; 0 each write is durable before it is answered.
    std::atomic<bool> write_back{true};
};

class BlockWorker {
  public:
    static constexpr uint32_t kMostSegments = 254;
    static constexpr uint32_t kMostDiscardSectors = 1u << 22;  // 2 GiB
    static constexpr uint32_t kMostDiscardSegments = 64;

    /// `broken` is called on the worker's thread, with the queue stopped, when the driver has done what no
    /// driver does.
    BlockWorker(std::shared_ptr<VirtQueue> queue, std::shared_ptr<BlockDisk> disk,
                std::function<void()> broken)
        : queue_(std::move(queue)), disk_(std::move(disk)), broken_(std::move(broken)) {}
    ~BlockWorker() { stop(); }

    void start(const std::string& name);
    /// Returns when the thread has ended. Idempotent; not from the worker.
    void stop() noexcept;

    struct Counters {
        uint64_t reads = 0, writes = 0, flushes = 0, discards = 0, others = 0, errors = 0;
        uint64_t bytes_read = 0, bytes_written = 0;
        uint64_t service_ns = 0;  ///< all requests together, from taken to answered
        uint64_t deepest = 0;     ///< the most requests that were taken at one look
    };
    Counters counters() const noexcept;

  private:
    enum class Status : uint8_t { kOk = 0, kIoError = 1, kUnsupported = 2 };
    struct Words {
        std::atomic<uint64_t> reads{0}, writes{0}, flushes{0}, discards{0}, others{0}, errors{0};
        std::atomic<uint64_t> bytes_read{0}, bytes_written{0}, service_ns{0}, deepest{0};
    };

    void run() noexcept;
    /// Everything available. False: broken.
    bool serve() noexcept;
    /// The same where the driver is on another host. Nothing: that host will not help.
    std::optional<bool> serve_there() noexcept;
    bool answer_there(std::span<RemoteChain> chains) noexcept;
    /// False: the chain is no request at all, or names what is not RAM.
    bool execute(Buffers& buffers, uint32_t& written) noexcept;
    bool transfer_in(Buffers& buffers, uint64_t sector, uint64_t bytes, Status& status) noexcept;
    bool transfer_out(Buffers& buffers, uint64_t sector, uint64_t bytes, Status& status) noexcept;
    bool discard(Buffers& buffers, bool zeroes, uint64_t bytes, Status& status) noexcept;
    bool within(uint64_t sector, uint64_t bytes) const noexcept {
        return bytes % 512 == 0 && sector <= disk_->sectors && bytes / 512 <= disk_->sectors - sector;
    }

    const std::shared_ptr<VirtQueue> queue_;
    const std::shared_ptr<BlockDisk> disk_;
    const std::function<void()> broken_;
    std::vector<uint8_t> buffer_;  // the worker's, as the next
    std::vector<iovec> places_;
    std::vector<RemoteChain> taken_;
    std::atomic<bool> stopping_{false};
    Words words_;
    std::thread thread_;
};

}  // namespace coremesh::virtio
