// SPDX-License-Identifier: GPL-2.0-or-later
// What carries messages between the hosts of one machine: one interface, whatever the wire (wire.hpp).
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/counters.hpp"
#include "base/host_set.hpp"

namespace coremesh::link {

/// Bytes that a frame may carry, head and body together. A page is 4096.
inline constexpr size_t kMaxPayload = 65536;

enum class Type : uint8_t { kCoherence, kPage, kInterrupt, kDevice, kClock, kHeartbeat, kControl, kCall };
inline constexpr size_t kTypes = 8;
inline constexpr std::array<const char*, kTypes> kTypeNames = {
    "coherence", "page", "interrupt", "device", "clock", "heartbeat", "control", "call"};

/// True when losing one frame of the type would break the guest: such a frame is queued, never dropped. The
/// others are sent again by their own timers, and an old one is worth nothing.
constexpr bool must_arrive(Type type) noexcept { return type != Type::kClock && type != Type::kHeartbeat; }

/// Why a frame was not handed on.
enum class Refusal : uint8_t {
    kNone,
    kTruncated,    // shorter than a header
    kNotAFrame,    // magic or version
    kOversized,    // says or has more than kMaxPayload
    kLength,       // what it says and what came differ
    kType,         // no such type
    kSource,       // no such host, oneself, or not the host whose key the connection was opened with
    kDestination,  // meant for another host
    kMachine,      // of another machine
    kEpoch,        // of another life of this machine
    kReplayed,     // its number came before
    kGap,          // its number is not the next: a frame was lost, and so is the peer
    kLost,         // the peer was given up before
};
inline constexpr size_t kRefusals = 13;
inline constexpr std::array<const char*, kRefusals> kRefusalNames = {
    "none",        "truncated", "not_a_frame", "oversized", "length", "type", "source",
    "destination", "machine",   "epoch",       "replayed",  "gap",    "lost"};

/// Why a peer was given up by the link itself. Missing heartbeats are not the link's affair (link/lease.hpp).
enum class Loss : uint8_t { kOverflow, kGap };

#define COREMESH_KEPT_LINK_COUNTERS(X)                                   \
    X(sent_bytes, "bytes", "sent, headers included")                     \
    X(received_bytes, "bytes", "received, headers included")             \
    X(overflowed, "frames", "that had to wait in this host's own queue") \
    X(overflow_now, "frames", "that wait there at this moment")          \
    X(overflow_high_water, "frames", "the most that ever waited")        \
    X(not_sent, "frames", "that were not taken: the peer is gone, or the queue full")

#define COREMESH_LINK_COUNTERS(X)                          \
    X(sent_frames, "frames", "sent, of all types")         \
    X(received_frames, "frames", "received, of all types") \
    COREMESH_KEPT_LINK_COUNTERS(X)                         \
    X(lost, "peers", "given up")

/// What passed between this host and one peer. A snapshot: each number is exact, they are not of one moment.
struct LinkCounters {
    COREMESH_COUNTER_WORDS(COREMESH_LINK_COUNTERS)
    std::array<uint64_t, kTypes> sent{};      // frames by type
    std::array<uint64_t, kTypes> received{};  // frames by type
    std::array<uint64_t, kRefusals> refused{};
};
COREMESH_VISIT_COUNTERS(LinkCounters, COREMESH_LINK_COUNTERS)

/// What is true of the link as a whole.
struct LinkFacts {
    const char* wire = "";  // "zmq", "shm", "tcp" or "in-process"
    /// "fifo", "nice", "slice" or "none": how the protocol thread gets before the vCPUs.
    const char* priority = "none";
    uint64_t wakeups = 0;                                // times the protocol thread slept and woke
    uint64_t spins = 0;                                  // times it found work before it slept
    uint64_t lent = 0;                                   // times a thread that waited received in its place
    uint64_t returned = 0;                               // ... and had to leave it a frame
    std::array<uint64_t, kRefusals> stranger_refused{};  // frames that no peer could be blamed for
    uint64_t keys_accepted = 0;                          // handshakes of listed keys
    uint64_t keys_refused = 0;                           // handshakes of unknown keys
};

/// The machine's side of a link. All but stamp() and the two for threads that wait run on the protocol
/// thread, one at a time, and must not block: nothing arrives meanwhile.
class Receiver {
  public:
    /// @param guest_tsc the sender's stamp().
    /// @param payload   valid during the call only; its bytes are the peer's and must be validated.
    virtual void received(HostId from, Type type, uint64_t guest_tsc,
                          std::span<const uint8_t> payload) noexcept = 0;

    /// Runs the timers that are due. Returns the next deadline in ns on CLOCK_MONOTONIC, -1 when there is
    /// none. Called after every batch of frames, after wake(), and at the deadline.
    virtual int64_t due(int64_t now_ns) noexcept = 0;

    /// Whether a thread in Link::receive_while() may hand on a frame of this type and time now, by
    /// received_waiting(). On that thread, with the receiver's role.
    virtual bool takes_waiting(Type, uint64_t /*guest_tsc*/) noexcept { return false; }
    /// received(), on a thread in Link::receive_while(), which may be inside a fault handler. Never at the
    /// same time as received().
    virtual void received_waiting(HostId /*from*/, Type, uint64_t /*guest_tsc*/,
                                  std::span<const uint8_t> /*payload*/) noexcept {}

    /// The guest's TSC, put into each frame. Any thread, inside send().
    virtual uint64_t stamp() noexcept = 0;

    /// The link gave a peer up, once each: frames to it can no longer be kept, or one from it is missing.
    virtual void peer_lost(HostId, Loss) noexcept {}

  protected:
    ~Receiver() = default;
};

class Link {
  public:
    virtual ~Link() = default;

    /// Sends `head` followed by `body` as one frame; both are copied before it returns. Frames to one peer
    /// arrive in the order in which send() was entered. Any thread, also inside a synchronous fault handler
    /// as long as the interrupted code holds no lock of the C library or of the link. Never blocks on the
    /// peer.
    ///
    /// False: the peer is gone or unknown, the payload is larger than kMaxPayload, the link does not run, or
    /// (only types that need not arrive) its queue is full. Nothing was sent then. A frame that must arrive
    /// waits in a bounded queue; when that is full as well the peer is given up.
    virtual bool send(HostId to, Type type, std::span<const uint8_t> head,
                      std::span<const uint8_t> body = {}) noexcept = 0;

    /// The same in two steps: post() gives the frame its place behind those before it, flush() lets all that
    /// was posted go. For a caller whose lock others want: a send wakes a thread, which may take the CPU from
    /// the caller at once. Each post is followed by a flush of its thread, without that lock.
    virtual bool post(HostId to, Type type, std::span<const uint8_t> head,
                      std::span<const uint8_t> body = {}) noexcept = 0;
    virtual void flush(HostId to) noexcept = 0;

    /// Bit n while frames wait for a slow host n: a sender that need not send (a prefetch)
    /// holds back. Any thread.
    virtual uint64_t congested() const noexcept = 0;

    /// The protocol thread calls due() soon. Any thread, also inside a synchronous fault handler. Cheap when
    /// the thread is awake. Better without the lock that due() takes: the thread outranks its caller and
    /// would run into it at once.
    virtual void wake() noexcept = 0;

    /// The same for a timer: the thread calls due() when `deadline_ns` (CLOCK_MONOTONIC) has come, unless it
    /// does so before. The timer must be in its place already. Unlike wake() it costs no context switch
    /// now.
    virtual void wake_at(int64_t deadline_ns) noexcept = 0;

    /// A thread that waits for an answer of another host receives in the protocol thread's place, as long as
    /// `word` holds `value`: so the answer wakes one thread less. Meanwhile it hands on what arrives for
    /// others too, as far as the Receiver lets it. May return for no reason. False, at once: another thread
    /// receives, or the wire does not do this; the caller sleeps as ever. Any thread, also inside a
    /// synchronous fault handler, without a lock that the Receiver takes.
    virtual bool receive_while(const std::atomic<uint32_t>& /*word*/, uint32_t /*value*/) noexcept {
        return false;
    }
    /// `word` has changed (seq_cst): a thread that receives while it does not returns. Any thread.
    virtual void word_changed(const std::atomic<uint32_t>& /*word*/) noexcept {}

    /// Gives a peer up: its frames are refused from now on and send() to it says false. Any thread.
    virtual void disown(HostId peer) noexcept = 0;

    /// Starts the protocol thread. `receiver` must outlive stop(). Once.
    virtual void start(Receiver& receiver) = 0;

    /// Ends it; no callback runs after it returns, whatever the peers do. Idempotent; not from a callback,
    /// and not with a lock held that a callback takes.
    virtual void stop() = 0;

    /// Any thread.
    virtual LinkCounters counters(HostId peer) const = 0;
    virtual LinkFacts facts() const = 0;
};

}  // namespace coremesh::link
