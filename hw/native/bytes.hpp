// SPDX-License-Identifier: GPL-2.0-or-later
// Bytes that a driver sends through a queue, as a console's port does: taken and answered without Python,
// many buffers in one call.
//
// Source: VIRTIO 1.2, section 5.3.6.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "hw/native/virt_queue.hpp"

namespace coremesh::virtio {

/// More than this in one buffer is sent by no driver (Linux: 32 KiB).
constexpr uint64_t kLongestText = uint64_t{1} << 20;

struct Text {
    std::string bytes;
    bool broken = false;  ///< the driver did what no driver does: the queue is stopped
};

/// Sleeps until the driver has sent something, and goes on taking for `linger_ns` after the first byte, or
/// until there are `most`. A driver that prints waits for each buffer, busily: it is answered from here,
/// while the thread that called does not hold the interpreter's lock. Returns nothing after
/// `VirtQueue::wake`.
Text take_text(VirtQueue& queue, size_t most, int64_t linger_ns) noexcept;

/// Everything available in `queue`, at most about `most` bytes; the driver is to ring again. False: broken.
bool drain_text(SplitQueue& queue, BusMaster& bus, size_t most, std::string& bytes) noexcept;

}  // namespace coremesh::virtio
