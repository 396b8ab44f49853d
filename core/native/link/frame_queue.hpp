// SPDX-License-Identifier: GPL-2.0-or-later
// Frames that wait: a ring of byte buffers, first in first out.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

#include "link/link.hpp"

namespace coremesh::link {

/// The bytes of one frame, in memory that is kept for the next one. Failing to get memory is an answer, not
/// an exception: frames are made in fault handlers too.
class FrameBuffer {
  public:
    FrameBuffer() = default;
    ~FrameBuffer() { std::free(bytes_); }
    FrameBuffer(const FrameBuffer&) = delete;
    FrameBuffer& operator=(const FrameBuffer&) = delete;

    /// Room for `size` bytes, whose contents are not defined; false when there is no memory.
    bool resize(size_t size) noexcept {
        if (size > capacity_) {
            auto* const grown = static_cast<uint8_t*>(std::realloc(bytes_, size));
            if (grown == nullptr) return false;
            bytes_ = grown;
            capacity_ = size;
        }
        size_ = size;
        return true;
    }
    void swap(FrameBuffer& other) noexcept {
        std::swap(type, other.type);
        std::swap(bytes_, other.bytes_);
        std::swap(size_, other.size_);
        std::swap(capacity_, other.capacity_);
    }
    void release() noexcept {
        std::free(std::exchange(bytes_, nullptr));
        size_ = capacity_ = 0;
    }
    uint8_t* data() noexcept { return bytes_; }
    std::span<uint8_t> bytes() noexcept { return {bytes_, size_}; }

    Type type{};

  private:
    uint8_t* bytes_ = nullptr;
    size_t size_ = 0, capacity_ = 0;
};

/// A ring with a fixed number of places. Not thread-safe. `keeps` buffers for the next frames, for a short
/// queue that is always in use; a long one gives their memory back.
class FrameQueue {
  public:
    FrameQueue(size_t places, bool keeps)
        : places_(places), keeps_(keeps), ring_(std::make_unique<FrameBuffer[]>(places)) {}

    size_t size() const noexcept { return size_; }
    bool full() const noexcept { return size_ == places_; }

    /// The place behind the last frame; only when not full(). push() takes it.
    FrameBuffer& back() noexcept { return ring_[(first_ + size_) % places_]; }
    void push() noexcept { ++size_; }
    /// The oldest; only when size() != 0.
    FrameBuffer& front() noexcept { return ring_[first_]; }
    void pop() noexcept {
        if (!keeps_) front().release();
        first_ = (first_ + 1) % places_;
        --size_;
    }
    void clear() noexcept {
        while (size_ != 0) pop();
    }

  private:
    const size_t places_;
    const bool keeps_;
    const std::unique_ptr<FrameBuffer[]> ring_;
    size_t first_ = 0, size_ = 0;
};

}  // namespace coremesh::link
