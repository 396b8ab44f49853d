// SPDX-License-Identifier: GPL-2.0-or-later
// What carries the bytes of frames. Order, queues, counters and refusals are not its affair (sender.hpp,
// peers.hpp).
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "link/link.hpp"
#include "link/protocol_thread.hpp"

namespace coremesh::link {

class Wire {
  public:
    /// What became of a frame that was to be put on the wire.
    enum class Put : uint8_t {
        kTaken,   // its bytes were copied
        kFull,    // no room now: the sender keeps it and tries again
        kBroken,  // this peer takes no frame any more
    };

    /// Gets what arrived, on the protocol thread. `frame` is valid during the call only, and no other process
    /// can change it meanwhile. `key_of` is the host whose key the way was opened with, if the wire checks
    /// keys.
    class Sink {
      public:
        virtual void arrived(std::span<const uint8_t> frame, std::optional<HostId> key_of) noexcept = 0;
        /// Bytes that no peer can be blamed for.
        virtual void stranger(Refusal why) noexcept = 0;

      protected:
        ~Sink() = default;
    };

    virtual ~Wire() = default;

    /// Puts one frame, header included, on the way to `to`. One thread at a time for each peer; also inside a
    /// synchronous fault handler. Never blocks.
    virtual Put put(HostId to, std::span<const uint8_t> frame) noexcept = 0;

    /// The frames put to `to` so far must reach it without a further call. One thread at a time for each
    /// peer.
    virtual void notify(HostId) noexcept {}

    /// Descriptors that end the protocol thread's sleep. Asked for once, before start.
    virtual std::span<const int> descriptors() const noexcept { return {}; }

    /// Protocol thread: before the first drain.
    virtual void begins() noexcept {}
    /// Protocol thread: hands on what has arrived, a batch at most. Bit n of `ready`: descriptor n ended the
    /// sleep before.
    virtual ProtocolThread::Drained drain(int64_t now_ns, unsigned ready, Sink& sink) noexcept = 0;
    /// Protocol thread, just before it sleeps: what arrives from now on wakes it by a descriptor. False when
    /// something has arrived already. awake() follows in any case.
    virtual bool arm() noexcept { return true; }
    virtual void awake() noexcept {}
    /// Protocol thread: the time of the next frame that is on its way already, -1 without one.
    virtual int64_t next_arrival() const noexcept { return -1; }

    /// The protocol thread has stopped, and no thread puts any more. Idempotent.
    virtual void close() noexcept {}

    /// The wire's part of the facts. Any thread.
    virtual void describe(LinkFacts&) const noexcept {}
};

}  // namespace coremesh::link
