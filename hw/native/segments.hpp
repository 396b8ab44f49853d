// SPDX-License-Identifier: GPL-2.0-or-later
// The bytes of a request's buffers, wherever in guest memory they lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "bus/bus_master.hpp"
#include "hw/native/split_queue.hpp"

namespace coremesh::virtio {

/// Calls `move(gpa, at, length)` for each piece of `segments` that lies in [offset, offset + length). The
/// number of bytes in all; nothing when a call was false.
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

/// Copies between buffers, from their byte `offset` on, and `data`. The number of bytes copied: less than
/// `length` where the buffers end; nothing where they are not RAM.
inline std::optional<uint64_t> gather(BusMaster& bus, const std::vector<Segment>& segments, uint64_t offset,
                                      void* data, uint64_t length) noexcept {
    auto* bytes = static_cast<uint8_t*>(data);
    return each_piece(segments, offset, length, [&](uint64_t gpa, uint64_t at, uint64_t piece) {
        return bus.read(gpa, bytes + at, piece);
    });
}
inline std::optional<uint64_t> scatter(BusMaster& bus, const std::vector<Segment>& segments, uint64_t offset,
                                       const void* data, uint64_t length) noexcept {
    const auto* bytes = static_cast<const uint8_t*>(data);
    return each_piece(segments, offset, length, [&](uint64_t gpa, uint64_t at, uint64_t piece) {
        return bus.write(gpa, bytes + at, piece);
    });
}

}  // namespace coremesh::virtio
