// SPDX-License-Identifier: GPL-2.0-or-later
// Ethernet frames in and out of the queues of a virtio network device, many in one call.
//
// Source: VIRTIO 1.2, section 5.1.6. No offload is offered, so the header before each frame says nothing.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "hw/native/virt_queue.hpp"

namespace coremesh::virtio {

constexpr size_t kFrameHeader = 12;
constexpr size_t kLongestFrame = 65550;

struct Sent {
    std::vector<std::string> frames;
    size_t refused = 0;   ///< requests that held no frame, or one that is too long
    bool broken = false;  ///< the driver did what no driver does; the queue is stopped
    bool more = false;    ///< `most` were taken and there may be more
};

/// Takes at most `most` frames that the driver has put into its transmit queue, and gives the buffers back.
/// When the queue is empty the driver is asked to ring again. Any thread, one at a time.
Sent take_frames(VirtQueue& queue, size_t most) noexcept;

struct Delivered {
    size_t frames = 0;    ///< of those given, from the first on, how many are with the driver or were dropped
    size_t refused = 0;   ///< of these, dropped: longer than the driver's buffer
    bool broken = false;  ///< as above
};

/// Lays frames into the buffers of the driver's receive queue, as many as it has. When it has none, it is
/// asked to ring as soon as there is one. Any thread, one at a time.
Delivered deliver_frames(VirtQueue& queue, const std::vector<std::string_view>& frames) noexcept;

/// The same on the driver's host, for a device of another one; the driver is not told.
Sent drain_frames(SplitQueue& queue, BusMaster& bus, size_t most) noexcept;
Delivered fill_frames(SplitQueue& queue, BusMaster& bus,
                      const std::vector<std::string_view>& frames) noexcept;

}  // namespace coremesh::virtio
