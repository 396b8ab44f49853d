// SPDX-License-Identifier: GPL-2.0-or-later
// A split virtqueue as the device sees it: a pure state machine over guest memory.
//
// Source: Virtual I/O Device (VIRTIO) 1.2, section 2.7. What the driver wrote is checked when it is used, not
// before: it may change at any time. Whatever it is, no call touches memory outside what it names, loops, or
// allocates more than a bounded amount.
#pragma once

#include <cstdint>
#include <vector>

#include "bus/bus_master.hpp"

namespace coremesh::virtio {

/// `length` bytes at a guest-physical address, as the driver wrote them: unchecked.
struct Segment {
    uint64_t gpa;
    uint32_t length;
};

/// One request: what the device may read, and what it is to write.
struct Chain {
    uint16_t head = 0;
    std::vector<Segment> readable, writable;
    uint64_t readable_bytes = 0, writable_bytes = 0;
};

/// What a driver did that no driver does. The device must be reset then (2.1.2, DEVICE_NEEDS_RESET).
enum class QueueFault : uint8_t {
    kNone,
    kMemory,    ///< a ring or a table that is not RAM
    kIndex,     ///< a descriptor number that is not below the queue's size
    kAhead,     ///< more available than the queue has entries
    kLoop,      ///< a chain longer than a queue can be
    kIndirect,  ///< an indirect table of a wrong size, within another one, or not negotiated
    kLength,    ///< a buffer of no bytes, or more than 4 GiB in one chain
    kOrder,     ///< a buffer to read behind one to write
};
const char* name_of(QueueFault fault) noexcept;

struct QueueLayout {
    uint16_t size = 0;
    uint64_t descriptors = 0, available = 0, used = 0;
    bool event_idx = false, indirect = false;
};

/// What goes on in a loaded machine.
struct QueuePosition {
    uint16_t next_available = 0, next_used = 0;
    uint16_t signalled = 0;  ///< the used index when the driver was last told, or did not want to be
};

/// No lock and no thread: the caller's, one at a time.
class SplitQueue {
  public:
    static constexpr uint16_t kLargest = 1024;

    using Layout = QueueLayout;
    using Position = QueuePosition;

    explicit SplitQueue(BusMaster& memory) noexcept : memory_(memory) {}

    /// `layout.size` is a power of two from 1 to kLargest, and the addresses are aligned (2.7): the transport
    /// has seen to that.
    void configure(const Layout& layout, const Position& position = {}) noexcept;
    const Position& position() const noexcept { return position_; }
    const Layout& layout() const noexcept { return layout_; }

    enum class Next { kChain, kEmpty, kBroken };
    /// The next request. After kBroken every call is kBroken until `configure`.
    Next pop(Chain& chain) noexcept;
    /// The chain goes back to the driver with `written` bytes. False: broken.
    bool push(uint16_t head, uint32_t written) noexcept;
    /// Whether the driver wants an interrupt for what was pushed since the last call.
    bool wants_interrupt() noexcept;
    /// The driver need not ring: the device is looking.
    void suppress_notifications() noexcept;
    /// The driver is to ring again. True: something came meanwhile, and the device must look itself.
    bool allow_notifications() noexcept;

    QueueFault fault() const noexcept { return fault_; }
    /// The device found a request that no driver makes: from now on kBroken.
    void fail(QueueFault fault) noexcept {
        if (fault_ == QueueFault::kNone) fault_ = fault;
    }

  private:
    struct Descriptor {
        uint64_t gpa;
        uint32_t length;
        uint16_t flags, next;
    };
    static_assert(sizeof(Descriptor) == 16);

    Next broken(QueueFault fault) noexcept {
        fault_ = fault;
        return Next::kBroken;
    }
    bool load(uint64_t gpa, uint16_t& value) noexcept { return memory_.read(gpa, &value, sizeof value); }
    bool store(uint64_t gpa, uint16_t value) noexcept { return memory_.write(gpa, &value, sizeof value); }
    uint64_t used_event() const noexcept { return layout_.available + 4 + 2 * uint64_t{layout_.size}; }
    uint64_t available_event() const noexcept { return layout_.used + 4 + 8 * uint64_t{layout_.size}; }
    QueueFault walk(Chain& chain) noexcept;
    QueueFault add(Chain& chain, const Descriptor& descriptor) noexcept;

    BusMaster& memory_;
    Layout layout_;
    Position position_;
    QueueFault fault_ = QueueFault::kNone;
    std::vector<Descriptor> table_;  // scratch: an indirect table
};

}  // namespace coremesh::virtio
