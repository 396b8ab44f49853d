// SPDX-License-Identifier: GPL-2.0-or-later
// What every link keeps of its peers, whatever the wire: counters, sequence numbers, which were given up.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <span>

#include "link/frame.hpp"
#include "link/link.hpp"

namespace coremesh::link {

/// ## State that two threads touch
///
/// Counters are relaxed atomics: senders write theirs under the peer's send lock, the thread with the
/// receiver's role the rest, any thread reads. `lost` is set by any thread and never cleared; the Receiver
/// hears of it on the protocol thread, once, from `report`.
class Peers {
  public:
    explicit Peers(const Identity& identity) noexcept : identity_(identity) {}

    const Identity& identity() const noexcept { return identity_; }
    /// Of a frame from this host.
    Header header(HostId to, Type type, size_t length, uint64_t sequence, uint64_t guest_tsc) const noexcept {
        return {.type = type,
                .source = identity_.self,
                .destination = to,
                .machine = identity_.machine,
                .epoch = identity_.epoch,
                .length = static_cast<uint32_t>(length),
                .sequence = sequence,
                .guest_tsc = guest_tsc};
    }
    bool is_peer(HostId host) const noexcept { return host < identity_.hosts && host != identity_.self; }
    bool lost(HostId peer) const noexcept { return peers_[peer].lost.load(std::memory_order_acquire); }

    /// Hands a frame on, or counts why not. With the receiver's role.
    /// @param key_of the host whose key the connection was opened with; nothing when the wire does not say.
    /// @param lent   by a thread that waits; false: the receiver leaves the frame to the protocol thread, and
    ///               nothing has changed.
    bool admit(std::span<const uint8_t> frame, std::optional<HostId> key_of, Receiver& receiver,
               bool lent) noexcept;

    /// Gives a peer up. Any thread; true the first time. `report` will say it unless there is no reason.
    bool give_up(HostId peer, std::optional<Loss> why) noexcept;
    /// Tells the receiver of peers given up since. Protocol thread.
    void report(Receiver& receiver) noexcept;
    /// There is something to report. Any thread.
    bool unreported() const noexcept {
        return (unreported_[0].load(std::memory_order_relaxed) |
                unreported_[1].load(std::memory_order_relaxed)) != 0;
    }

    // Under the peer's send lock.
    void count_sent(HostId peer, Type type, size_t bytes) noexcept;
    void count_overflow(HostId peer, size_t waiting, bool added) noexcept;
    // Any thread.
    void count_not_sent(HostId peer) noexcept { add(peers_[peer].not_sent); }
    void count_stranger(Refusal refusal) noexcept { add(stranger_[static_cast<size_t>(refusal)]); }

    /// All zero for a host that is no peer.
    LinkCounters counters(HostId peer) const noexcept;
    void strangers(LinkFacts& facts) const noexcept;

  private:
    using Counter = std::atomic<uint64_t>;
    struct Peer {
        Sequence sequence;  // with the receiver's role
        std::atomic<bool> lost{false};
        COREMESH_COUNTER_ATOMICS(COREMESH_KEPT_LINK_COUNTERS)
        std::array<Counter, kTypes> sent{}, received{};
        std::array<Counter, kRefusals> refused{};
    };

    static void add(Counter& counter, uint64_t by = 1) noexcept {
        counter.fetch_add(by, std::memory_order_relaxed);
    }
    static LinkCounters read_counters(const Peer& counters) noexcept;
    static uint64_t read(const Counter& counter) noexcept { return counter.load(std::memory_order_relaxed); }

    const Identity identity_;
    std::array<Peer, kMaxHosts> peers_{};
    std::array<Counter, kRefusals> stranger_{};
    std::array<std::atomic<uint64_t>, 2> unreported_{};  // mask of peers, by Loss
};

}  // namespace coremesh::link
