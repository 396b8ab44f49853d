// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/virt_queue.hpp"

#include <algorithm>

#include "base/futex.hpp"

namespace coremesh::virtio {

void VirtQueue::start(const SplitQueue::Layout& layout, const SplitQueue::Position& position) noexcept {
    {
        const std::lock_guard lock(mutex_);
        queue_.configure(layout, position);
        broken_.store(false, std::memory_order_relaxed);
        life_.fetch_add(1, std::memory_order_relaxed);
    }
    enabled_.store(true, std::memory_order_seq_cst);
    wake();  // a driver may have made buffers available before the queue was enabled
}

void VirtQueue::wake() noexcept {
    if (word_.exchange(1, std::memory_order_seq_cst) == 0) futex_wake(word_);
}

void VirtQueue::wait(int64_t deadline_ns) noexcept {
    if (word_.load(std::memory_order_seq_cst) == 0) futex_wait_until(word_, 0, deadline_ns);
    word_.store(0, std::memory_order_seq_cst);
}

SplitQueue::Next VirtQueue::pop(Chain& chain) noexcept {
    const std::lock_guard lock(mutex_);
    const SplitQueue::Next next = queue_.pop(chain);
    if (next == SplitQueue::Next::kChain) requests_.fetch_add(1, std::memory_order_relaxed);
    look_for_fault();
    return next;
}

bool VirtQueue::push(uint16_t head, uint32_t written) noexcept {
    const std::lock_guard lock(mutex_);
    const bool pushed = queue_.push(head, written);
    look_for_fault();
    return pushed;
}

void VirtQueue::fail(QueueFault fault) noexcept {
    const std::lock_guard lock(mutex_);
    queue_.fail(fault);
    look_for_fault();
}

void VirtQueue::look_for_fault() noexcept {
    if (queue_.fault() == QueueFault::kNone || broken_.exchange(true, std::memory_order_relaxed)) return;
    faults_.fetch_add(1, std::memory_order_relaxed);
}

void VirtQueue::notify() noexcept {
    {
        const std::lock_guard lock(mutex_);
        if (!queue_.wants_interrupt()) return;
    }
    notified_.fetch_add(1, std::memory_order_relaxed);
    interrupts_->queue(vector_.load(std::memory_order_relaxed));
}

void VirtQueue::suppress_notifications() noexcept {
    if (held()) return;
    const std::lock_guard lock(mutex_);
    queue_.suppress_notifications();
}

bool VirtQueue::allow_notifications() noexcept {
    if (held()) return false;
    const std::lock_guard lock(mutex_);
    return queue_.allow_notifications();
}

namespace {

/// Calls `move(gpa, at, length)` for each piece of `segments` that lies in [offset, offset + length).
template <typename Move>
std::optional<uint64_t> each_piece(const std::vector<Segment>& segments, uint64_t offset, uint64_t length,
                                   Move move) {
    uint64_t done = 0;
    for (const Segment& segment : segments) {
        if (done == length) break;
        if (offset >= segment.length) {
            offset -= segment.length;
            continue;
        }
        const uint64_t piece = std::min<uint64_t>(segment.length - offset, length - done);
        // An address near 2^64 must not come out at the other end of memory.
        if (segment.gpa + offset < segment.gpa || !move(segment.gpa + offset, done, piece))
            return std::nullopt;
        done += piece;
        offset = 0;
    }
    return done;
}

}  // namespace

std::optional<uint64_t> VirtQueue::gather(const std::vector<Segment>& segments, uint64_t offset, void* data,
                                          uint64_t length) noexcept {
    auto* bytes = static_cast<uint8_t*>(data);
    return each_piece(segments, offset, length, [&](uint64_t gpa, uint64_t at, uint64_t piece) {
        return bus_->read(gpa, bytes + at, piece);
    });
}

std::optional<uint64_t> VirtQueue::scatter(const std::vector<Segment>& segments, uint64_t offset,
                                           const void* data, uint64_t length) noexcept {
    const auto* bytes = static_cast<const uint8_t*>(data);
    return each_piece(segments, offset, length, [&](uint64_t gpa, uint64_t at, uint64_t piece) {
        return bus_->write(gpa, bytes + at, piece);
    });
}

bool VirtQueue::direct(const std::vector<Segment>& segments, uint64_t offset, uint64_t length, bool to_write,
                       std::vector<iovec>& places) noexcept {
    places.clear();
    const auto done = each_piece(segments, offset, length, [&](uint64_t gpa, uint64_t, uint64_t piece) {
        uint8_t* const place = bus_->direct(gpa, piece, to_write);
        if (place != nullptr) places.push_back({place, piece});
        return place != nullptr;
    });
    return done == length;
}

void VirtQueue::wrote(const std::vector<Segment>& segments, uint64_t offset, uint64_t length) noexcept {
    each_piece(segments, offset, length, [&](uint64_t gpa, uint64_t, uint64_t piece) {
        bus_->wrote(gpa, piece);
        return true;
    });
}

}  // namespace coremesh::virtio
