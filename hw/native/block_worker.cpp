// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/block_worker.hpp"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

#include "base/clock.hpp"
#include "base/masked_signals.hpp"

namespace coremesh::virtio {
namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kPiece = uint64_t{1} << 20;  // moved at a time
constexpr uint32_t kIn = 0, kOut = 1, kFlush = 4, kGetId = 8, kDiscard = 11, kWriteZeroes = 13;
constexpr size_t kIdBytes = 20;
constexpr size_t kAnswerBytes = 256 << 10;  // that wait to go to another host in one message

struct Header {
    uint32_t type, reserved;
    uint64_t sector;
};
static_assert(sizeof(Header) == 16);

struct Range {
    uint64_t sector;
    uint32_t sectors, flags;
};
static_assert(sizeof(Range) == 16);

void add(std::atomic<uint64_t>& word, uint64_t value = 1) noexcept {
    word.fetch_add(value, std::memory_order_relaxed);
}

}  // namespace

void BlockWorker::start(const std::string& name) {
    if (thread_.joinable()) return;
    stopping_.store(false);
    const MaskedSignals masked;
    thread_ = std::thread([this, name] {
        pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
        run();
    });
}

void BlockWorker::stop() noexcept {
    stopping_.store(true);
    queue_->wake();
    if (thread_.joinable()) thread_.join();
}

void BlockWorker::run() noexcept {
    queue_->wake();  // whatever came while no worker ran
    while (!stopping_.load()) {
        queue_->wait(-1);
        bool whole = true;
        {
            const VirtQueue::Visit visit(*queue_);
            if (!visit.open() || stopping_.load()) continue;
            whole = serve();
            if (!whole) {
                queue_->fail(QueueFault::kMemory);
                queue_->stop();
            }
        }
        if (!whole) broken_();
    }
}

bool BlockWorker::serve() noexcept {
    if (queue_->driver_elsewhere()) {
        if (const auto served = serve_there()) return *served;
    }
    Chain chain;
    do {
        queue_->suppress_notifications();
        uint64_t taken = 0;
        for (;;) {
            if (!queue_->running() || stopping_.load()) return true;
            const SplitQueue::Next next = queue_->pop(chain);
            if (next == SplitQueue::Next::kBroken) return false;
            if (next == SplitQueue::Next::kEmpty) break;
            const int64_t begin = Clock::monotonic_ns();
            uint32_t written = 0;
            Buffers buffers(*queue_, chain);
            if (!execute(buffers, written) || !queue_->push(chain.head, written)) return false;
            queue_->notify();
            add(words_.service_ns, static_cast<uint64_t>(Clock::monotonic_ns() - begin));
            ++taken;
        }
        if (taken > words_.deepest.load(std::memory_order_relaxed)) words_.deepest.store(taken);
    } while (queue_->allow_notifications());
    return true;
}

std::optional<bool> BlockWorker::serve_there() noexcept {
    for (bool more = true; more;) {
        if (!queue_->running() || stopping_.load()) return true;
        if (!queue_->take_there(taken_, more)) return std::nullopt;
        if (taken_.size() > words_.deepest.load(std::memory_order_relaxed))
            words_.deepest.store(taken_.size());
        // What the other host took before it found a fault is answered.
        if (!answer_there(taken_) || queue_->broken()) return false;
    }
    return true;
}

bool BlockWorker::answer_there(std::span<RemoteChain> chains) noexcept {
    size_t begun = 0, bytes = 0;
    for (size_t done = 0; done < chains.size();) {
        RemoteChain& remote = chains[done];
        const int64_t begin = Clock::monotonic_ns();
        Buffers buffers(*queue_, remote);
        if (!execute(buffers, remote.written)) return false;
        for (const Written& piece : remote.answers) bytes += piece.bytes.size();
        add(words_.service_ns, static_cast<uint64_t>(Clock::monotonic_ns() - begin));
        ++done;
        // The driver has the first of them while the rest is read; small ones share a message.
        if (bytes < kAnswerBytes && done != chains.size()) continue;
        if (!queue_->give_there(chains.subspan(begun, done - begun))) return false;
        begun = done;
        bytes = 0;
    }
    return true;
}

bool BlockWorker::execute(Buffers& buffers, uint32_t& written) noexcept {
    const Chain& chain = buffers.chain();
    Header header;
    // 5.2.6: a header to read, and at the end of all a byte for the status.
    if (chain.writable_bytes == 0) return false;
    const auto got = buffers.gather(0, &header, sizeof header);
    if (!got || *got < sizeof header) return false;
    const uint64_t bytes_in = chain.writable_bytes - 1, bytes_out = chain.readable_bytes - sizeof header;

    Status status = Status::kUnsupported;
    bool sound = true;
    switch (header.type) {
        case kIn:
            add(words_.reads);
            sound = transfer_in(buffers, header.sector, bytes_in, status);
            break;
        case kOut:
            add(words_.writes);
            sound = transfer_out(buffers, header.sector, bytes_out, status);
            break;
        case kFlush:
            add(words_.flushes);
            status = disk_->store->flush() == 0 ? Status::kOk : Status::kIoError;
            break;
        case kGetId: {
            add(words_.others);
            std::array<char, kIdBytes> id{};
            std::copy_n(disk_->serial.begin(), std::min(disk_->serial.size(), kIdBytes), id.begin());
            sound = buffers.scatter(0, id.data(), std::min<uint64_t>(bytes_in, kIdBytes)).has_value();
            status = Status::kOk;
            break;
        }
        case kDiscard:
        case kWriteZeroes:
            add(words_.discards);
            sound = discard(buffers, header.type == kWriteZeroes, bytes_out, status);
            break;
        default:
            add(words_.others);
            break;
    }
    if (!sound) return false;
    if (status != Status::kOk) add(words_.errors);
    // 2.7.8.2: the number of bytes written from the first on. A read that failed has written none.
    const bool filled = bytes_in == 0 || (status == Status::kOk && header.type != kOut);
    written = static_cast<uint32_t>(filled ? std::min<uint64_t>(bytes_in + 1, 0xFFFF'FFFF) : 0);
    return buffers.scatter(bytes_in, &status, 1).has_value();
}

bool BlockWorker::transfer_in(Buffers& buffers, uint64_t sector, uint64_t bytes, Status& status) noexcept {
    status = Status::kIoError;
    if (!within(sector, bytes)) return true;
    if (bytes != 0 && buffers.direct_in(bytes, places_)) {
        const int error = disk_->store->read(sector * kSector, places_);
        buffers.wrote(bytes, error == 0);
        if (error != -ENOTSUP) {
            if (error == 0) {
                add(words_.bytes_read, bytes);
                status = Status::kOk;
            }
            return true;
        }
    }
    buffer_.resize(std::min(bytes, kPiece));
    for (uint64_t done = 0; done < bytes; done += kPiece) {
        const uint64_t piece = std::min(kPiece, bytes - done);
        if (disk_->store->read(sector * kSector + done, buffer_.data(), piece) != 0) return true;
        if (!buffers.scatter(done, buffer_.data(), piece)) return false;
    }
    add(words_.bytes_read, bytes);
    status = Status::kOk;
    return true;
}

bool BlockWorker::transfer_out(Buffers& buffers, uint64_t sector, uint64_t bytes, Status& status) noexcept {
    status = Status::kIoError;
    if (disk_->read_only || !within(sector, bytes)) return true;
    int moved = -ENOTSUP;
    if (bytes != 0 && buffers.direct_out(sizeof(Header), bytes, places_)) {
        moved = disk_->store->write(sector * kSector, places_);
        if (moved != 0 && moved != -ENOTSUP) return true;
    }
    if (moved != 0) buffer_.resize(std::min(bytes, kPiece));
    for (uint64_t done = 0; moved != 0 && done < bytes; done += kPiece) {
        const uint64_t piece = std::min(kPiece, bytes - done);
        if (!buffers.gather(sizeof(Header) + done, buffer_.data(), piece)) return false;
        if (disk_->store->write(sector * kSector + done, buffer_.data(), piece) != 0) return true;
    }
    if (!disk_->write_back.load() && disk_->store->flush() != 0) return true;
    add(words_.bytes_written, bytes);
    status = Status::kOk;
    return true;
}

bool BlockWorker::discard(Buffers& buffers, bool zeroes, uint64_t bytes, Status& status) noexcept {
    status = Status::kIoError;
    if (disk_->read_only) return true;
    // 5.2.6.2: a whole number of segments, not more than the configuration says.
    if (bytes == 0 || bytes % sizeof(Range) != 0 || bytes / sizeof(Range) > kMostDiscardSegments) {
        status = Status::kUnsupported;
        return true;
    }
    std::array<Range, kMostDiscardSegments> ranges;
    if (!buffers.gather(sizeof(Header), ranges.data(), bytes)) return false;
    for (uint64_t i = 0; i < bytes / sizeof(Range); ++i) {
        const Range& range = ranges[i];
        // Unmap is bit 0, and for write zeroes only; the others are reserved.
        if (range.flags & (zeroes ? ~1u : ~0u)) {
            status = Status::kUnsupported;
            return true;
        }
        const uint64_t length = uint64_t{range.sectors} * kSector;
        if (range.sectors > kMostDiscardSectors || !within(range.sector, length)) return true;
        const uint64_t offset = range.sector * kSector;
        // A discard that fails has done no harm: the data is still there.
        if (!zeroes) {
            disk_->store->discard(offset, length);
        } else if (disk_->store->zeroes(offset, length, range.flags & 1) != 0) {
            return true;
        }
    }
    if (zeroes && !disk_->write_back.load() && disk_->store->flush() != 0) return true;
    status = Status::kOk;
    return true;
}

BlockWorker::Counters BlockWorker::counters() const noexcept {
    const auto read = [](const std::atomic<uint64_t>& word) { return word.load(std::memory_order_relaxed); };
    return {read(words_.reads),      read(words_.writes), read(words_.flushes),    read(words_.discards),
            read(words_.others),     read(words_.errors), read(words_.bytes_read), read(words_.bytes_written),
            read(words_.service_ns), read(words_.deepest)};
}

}  // namespace coremesh::virtio
