// SPDX-License-Identifier: GPL-2.0-or-later
// Frames that libzmq's queue had no room for.
#pragma once

#include <cstddef>
#include <memory>

#include "link/libzmq.hpp"

namespace coremesh::link {

/// A ring of messages, first in first out, with a fixed number of places. Not thread-safe.
class Overflow {
  public:
    /// The places are reserved, and memory is used for those that ever hold a message.
    Overflow(const LibZmq& zmq, size_t places)
        : zmq_(zmq), places_(places), ring_(std::make_unique_for_overwrite<ZmqMessage[]>(places)) {}
    ~Overflow() { clear(); }
    Overflow(const Overflow&) = delete;
    Overflow& operator=(const Overflow&) = delete;

    size_t size() const noexcept { return size_; }

    /// Takes the message over; false, and nothing done, when all places are taken.
    bool push(ZmqMessage& message) noexcept {
        if (size_ == places_) return false;
        ZmqMessage& place = ring_[(first_ + size_) % places_];
        zmq_.init(&place);
        zmq_.move(&place, &message);
        zmq_.close(&message);
        ++size_;
        return true;
    }

    /// The oldest; only when size() != 0. pop() after it was sent, which leaves it empty.
    ZmqMessage& front() noexcept { return ring_[first_]; }
    void pop() noexcept {
        zmq_.close(&ring_[first_]);
        first_ = (first_ + 1) % places_;
        --size_;
    }

    void clear() noexcept {
        while (size_ != 0) pop();
    }

  private:
    const LibZmq& zmq_;
    const size_t places_;
    const std::unique_ptr<ZmqMessage[]> ring_;
    size_t first_ = 0;
    size_t size_ = 0;
};

}  // namespace coremesh::link
