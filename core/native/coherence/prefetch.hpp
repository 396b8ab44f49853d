// SPDX-License-Identifier: GPL-2.0-or-later
// Finds sequential readers by the pages they miss.
#pragma once

#include <array>
#include <cstdint>

namespace coremesh::coherence {

class Prefetch {
  public:
    explicit Prefetch(unsigned depth) : depth_(depth) {}

    /// A thread misses `page`. How many pages behind it to fetch as well: 0 at first, then 2, 4, ... up to
    /// the depth, as long as each miss is just behind what was fetched for the last.
    unsigned missed(uint64_t page) noexcept;

  private:
    struct Stream {
        uint64_t next = 0;   ///< where the reader misses next
        uint64_t stamp = 0;  ///< of the last miss; 0: never used
        uint32_t run = 0;
    };
    static constexpr unsigned kStreams =
        16;  ///< readers at the same time; a new one takes the oldest's place

    unsigned depth_;
    uint64_t stamp_ = 0;
    std::array<Stream, kStreams> streams_{};
};

}  // namespace coremesh::coherence
