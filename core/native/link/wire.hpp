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

    /// Gets what arrived, on the thread that has the receiver's role. `frame` is valid during the call only,
    /// and no other process can change it meanwhile. `key_of` is the host whose key the way was opened with,
    /// if the wire checks keys.
    class Sink {
      public:
        /// False, in drain_lent() only: the frame is for the protocol thread. The wire keeps it, and drains
        /// no more.
        virtual bool arrived(std::span<const uint8_t> frame, std::optional<HostId> key_of) noexcept = 0;
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

    // --- for a thread that waits for an answer and receives it itself (receiver_role.hpp). It has the role:
    // --- the protocol thread sleeps, or runs timers, and calls none of the above but descriptors().

    /// Whether the wire can wake another thread than the protocol thread.
    virtual bool lends() const noexcept { return false; }
    /// What arrives from now on ends sleep_lent() and does not wake the protocol thread. False when something
    /// has arrived already. One of drain_lent() and give_back() follows.
    virtual bool arm_lent() noexcept { return true; }
    /// Sleeps until something arrives or recall() is called; may return for no reason.
    virtual void sleep_lent() noexcept {}
    enum class Lent : uint8_t { kNothing, kSome, kKept };
    /// Hands on what has arrived, a batch at most. kKept: the sink did not take a frame, or the wire has work
    /// that only the protocol thread does.
    virtual Lent drain_lent(int64_t /*now_ns*/, Sink&) noexcept { return Lent::kKept; }
    /// What arrives from now on wakes the protocol thread.
    virtual void give_back() noexcept {}
    /// Any thread, with the role or without: something has arrived that was not handed on.
    virtual bool pending() const noexcept { return false; }
    /// Any thread: the thread in sleep_lent() or on its way there wakes up.
    virtual void recall() noexcept {}
    /// Protocol thread, without the role: makes its descriptors unreadable, so that it can sleep. Returns
    /// true if a sender now takes this thread for woken and will not wake it again.
    virtual bool silence(unsigned /*ready*/) noexcept { return false; }

    /// The protocol thread has stopped, and no thread puts any more. Idempotent.
    virtual void close() noexcept {}

    /// The wire's part of the facts. Any thread.
    virtual void describe(LinkFacts&) const noexcept {}
};

}  // namespace coremesh::link
