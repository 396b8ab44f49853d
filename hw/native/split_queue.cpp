// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/split_queue.hpp"

#include <atomic>

namespace coremesh::virtio {
namespace {

constexpr uint16_t kNext = 1, kWrite = 2, kIndirect = 4;  // 2.7.5, flags of a descriptor
constexpr uint16_t kNoInterrupt = 1;                      // 2.7.6, flags of the available ring
constexpr uint16_t kNoNotify = 1;                         // 2.7.8, flags of the used ring
constexpr uint64_t kMostBytes = uint64_t{1} << 32;        // 2.7.5: of one chain

/// Stores to guest memory before it are seen before what is loaded from guest memory after it.
void fence() noexcept { std::atomic_thread_fence(std::memory_order_seq_cst); }

}  // namespace

const char* name_of(QueueFault fault) noexcept {
    switch (fault) {
        case QueueFault::kNone:
            return "";
        case QueueFault::kMemory:
            return "memory";
        case QueueFault::kIndex:
            return "index";
        case QueueFault::kAhead:
            return "ahead";
        case QueueFault::kLoop:
            return "loop";
        case QueueFault::kIndirect:
            return "indirect";
        case QueueFault::kLength:
            return "length";
        case QueueFault::kOrder:
            return "order";
    }
    return "";
}

void SplitQueue::configure(const Layout& layout, const Position& position) noexcept {
    layout_ = layout;
    position_ = position;
    fault_ = QueueFault::kNone;
}

SplitQueue::Next SplitQueue::pop(Chain& chain) noexcept {
    if (fault_ != QueueFault::kNone || layout_.size == 0) return Next::kBroken;
    uint16_t available;
    if (!load(layout_.available + 2, available)) return broken(QueueFault::kMemory);
    const auto waiting = static_cast<uint16_t>(available - position_.next_available);
    if (waiting == 0) return Next::kEmpty;
    // Without this a driver could make the device run through the same chains again and again.
    if (waiting > layout_.size) return broken(QueueFault::kAhead);
    std::atomic_thread_fence(std::memory_order_acquire);
    const uint64_t slot = position_.next_available & (layout_.size - 1);
    if (!load(layout_.available + 4 + 2 * slot, chain.head)) return broken(QueueFault::kMemory);
    chain.readable.clear();
    chain.writable.clear();
    chain.readable_bytes = chain.writable_bytes = 0;
    if (const QueueFault fault = walk(chain); fault != QueueFault::kNone) return broken(fault);
    ++position_.next_available;
    return Next::kChain;
}

QueueFault SplitQueue::add(Chain& chain, const Descriptor& descriptor) noexcept {
    if (descriptor.length == 0) return QueueFault::kLength;
    const bool writes = descriptor.flags & kWrite;
    if (!writes && !chain.writable.empty()) return QueueFault::kOrder;
    uint64_t& bytes = writes ? chain.writable_bytes : chain.readable_bytes;
    bytes += descriptor.length;
    if (chain.readable_bytes + chain.writable_bytes > kMostBytes) return QueueFault::kLength;
    (writes ? chain.writable : chain.readable).push_back({descriptor.gpa, descriptor.length});
    return QueueFault::kNone;
}

QueueFault SplitQueue::walk(Chain& chain) noexcept {
    uint16_t index = chain.head;
    for (unsigned steps = 0;; ++steps) {
        if (index >= layout_.size) return QueueFault::kIndex;
        if (steps == layout_.size) return QueueFault::kLoop;
        Descriptor descriptor;
        if (!memory_.read(layout_.descriptors + 16 * uint64_t{index}, &descriptor, sizeof descriptor)) {
            return QueueFault::kMemory;
        }
        if (!(descriptor.flags & kIndirect)) {
            if (const QueueFault fault = add(chain, descriptor); fault != QueueFault::kNone) return fault;
            if (!(descriptor.flags & kNext)) return QueueFault::kNone;
            index = descriptor.next;
            continue;
        }
        // 2.7.5.3: one table ends the chain; it holds no second one.
        const uint32_t entries = descriptor.length / sizeof(Descriptor);
        if (!layout_.indirect || (descriptor.flags & kNext) || entries == 0 || entries > kLargest ||
            descriptor.length % sizeof(Descriptor) != 0) {
            return QueueFault::kIndirect;
        }
        table_.resize(entries);
        if (!memory_.read(descriptor.gpa, table_.data(), descriptor.length)) return QueueFault::kMemory;
        uint32_t next = 0;
        for (uint32_t taken = 0;; ++taken) {
            if (next >= entries) return QueueFault::kIndex;
            if (taken == entries) return QueueFault::kLoop;
            const Descriptor& inner = table_[next];
            if (inner.flags & kIndirect) return QueueFault::kIndirect;
            if (const QueueFault fault = add(chain, inner); fault != QueueFault::kNone) return fault;
            if (!(inner.flags & kNext)) return QueueFault::kNone;
            next = inner.next;
        }
    }
}

bool SplitQueue::push(uint16_t head, uint32_t written) noexcept {
    if (fault_ != QueueFault::kNone || layout_.size == 0) return false;
    const uint32_t element[2] = {head, written};
    const uint64_t slot = position_.next_used & (layout_.size - 1);
    bool good = memory_.write(layout_.used + 4 + 8 * slot, element, sizeof element);
    // 2.7.8.2: the element is there before the index says so, and so is all that the device has written.
    std::atomic_thread_fence(std::memory_order_release);
    good = good && store(layout_.used + 2, static_cast<uint16_t>(position_.next_used + 1));
    if (!good) {
        broken(QueueFault::kMemory);
        return false;
    }
    ++position_.next_used;
    return true;
}

bool SplitQueue::wants_interrupt() noexcept {
    if (fault_ != QueueFault::kNone || layout_.size == 0) return false;
    const uint16_t now = position_.next_used;
    const auto since = static_cast<uint16_t>(now - position_.signalled);
    if (since == 0) return false;
    position_.signalled = now;
    fence();
    uint16_t word;
    if (!layout_.event_idx) return load(layout_.available, word) && !(word & kNoInterrupt);
    // 2.7.7.2: the driver wants one when an element with index `word` has become used since the last one.
    return load(used_event(), word) && static_cast<uint16_t>(now - word - 1) < since;
}

void SplitQueue::suppress_notifications() noexcept {
    // With EVENT_IDX the index that was written last lies behind what the driver adds: it does not ring.
    if (fault_ == QueueFault::kNone && layout_.size != 0 && !layout_.event_idx)
        store(layout_.used, kNoNotify);
}

bool SplitQueue::allow_notifications() noexcept {
    if (fault_ != QueueFault::kNone || layout_.size == 0) return false;
    if (layout_.event_idx) {
        store(available_event(), position_.next_available);
    } else {
        store(layout_.used, 0);
    }
    // The driver writes its index and then looks here; the device writes here and then looks at the index.
    fence();
    uint16_t available;
    return load(layout_.available + 2, available) && available != position_.next_available;
}

}  // namespace coremesh::virtio
