// SPDX-License-Identifier: GPL-2.0-or-later
// Which hosts are still part of the machine: heartbeats, the lease that host 0 grants, and how a host fences
// itself.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "link/link.hpp"

namespace coremesh::link {

struct LeaseTimes {
    int64_t beat_ns = 200'000'000;       // between two heartbeats to the same peer
    int64_t lease_ns = 1'500'000'000;    // how long a lease runs where hosts are heard when they should be
    int64_t most_ns = 6'000'000'000;     // and where they are late
    int64_t window_ns = 30'000'000'000;  // for which a silence is remembered, and up to twice that
    int64_t join_ns = 10'000'000'000;    // from the start to the first heartbeat of every host
};

/// The silence after which host 0 gives up a host whose lease is `lease_ns`. The third more is for clocks of
/// different rates.
constexpr int64_t lost_after_ns(int64_t lease_ns) noexcept { return lease_ns + lease_ns / 3; }

/// What one host says to another. `encode`/`decode` give it a fixed layout on the wire.
struct Beat {
    static constexpr size_t kBytes = 40;
    uint64_t number = 0;   // 1, 2, 3 .. by the sender for this peer
    uint64_t echo = 0;     // the greatest number the sender has heard from this peer
    uint64_t unheard = 0;  // mask of the hosts that the sender has not heard for as long as a lease runs
    int64_t lease_ns =
        0;                // (host 0) how long a host may run after it sent the heartbeat that this one echoes
    bool fenced = false;  // the sender has stopped its vCPUs for ever

    void encode(std::span<uint8_t, kBytes> to) const noexcept;
    /// Nothing when it is not a heartbeat.
    static std::optional<Beat> decode(std::span<const uint8_t> from) noexcept;
};

/// The part of one host in the lease. Pure: no thread, clock or socket; the times are given, in ns of
/// `lease_clock_ns()`, and never go backwards. Not thread-safe.
///
/// The lease of host k runs from the moment *k sent* the heartbeat whose echo it holds, for as long as that
/// echo says. Host 0 gives k up a third later than that after it *received* the heartbeat, which is later
/// than it was sent: so k has stopped before host 0 says that it is lost, whatever the network delays, loses
/// in one direction, or holds back, as long as the clocks' rates agree to within a third. A host that was
/// stopped finds its lease expired, because what it then reads from its socket echoes old heartbeats.
///
/// A host on a busy computer is late, most of all in a container, which may not put its protocol thread
/// before other threads and has one share of the computer for all of its own. It must not be taken for dead:
/// host 0 grants leases of three times the longest silence of the last minute, within the bounds of
/// LeaseTimes. Where hosts are heard when they should be, a dead one is noticed as soon as ever.
///
/// Host 0 has no one to grant it a lease. When it was stopped for lease_ns, all others have fenced
/// themselves: it does so as well. All pairs beat, and each tells host 0 whom it does not hear: a cut between
/// two other hosts is found too.
class Lease {
  public:
    enum class Fence : uint8_t {
        kNone,
        kExpired,    // host 0 was not heard in time
        kStopped,    // this process was stopped longer than a lease lasts: its peers have given it up
        kNotJoined,  // the first heartbeats never came
        kPeerLost,   // (host 0) another host is lost: memory is not whole any more
        kToldSo,     // host 0 has fenced itself
    };

    /// What to do now. Send first; then look at the others.
    struct Orders {
        uint64_t send = 0;           // mask of hosts that shall get beat(host)
        uint64_t lost = 0;           // mask of hosts given up just now (host 0 only)
        Fence fence = Fence::kNone;  // stop all vCPUs for ever; said once
    };

    Lease(HostId self, unsigned hosts, int64_t now_ns, LeaseTimes times = {}) noexcept;

    /// Call it first whenever the protocol thread runs, before any frame of this round is looked at.
    Orders tick(int64_t now_ns) noexcept;
    Orders heard(HostId from, const Beat& beat, int64_t now_ns) noexcept;

    /// The heartbeat to send to `to` now; counts it as sent.
    Beat beat(HostId to, int64_t now_ns) noexcept;

    /// When tick() must be called at the latest.
    int64_t next() const noexcept;

    /// This host may run vCPUs: it holds a lease (host 0: every host was heard) and has not fenced itself.
    bool held(int64_t now_ns) const noexcept;
    bool fenced() const noexcept { return fence_ != Fence::kNone; }
    Fence why() const noexcept { return fence_; }
    /// Mask of the hosts given up (host 0), or named by host 0.
    uint64_t lost() const noexcept { return lost_; }
    /// The longest, in ns, that the heartbeats of another host stayed out after its first; and the latest
    /// that one of this host was sent after it was due. The second tells whether the cause of the first is
    /// the other host's computer or the network.
    int64_t silence_longest() const noexcept { return silence_longest_; }
    int64_t beat_late_longest() const noexcept { return beat_late_longest_; }
    /// How long leases run at present.
    int64_t lease_ns() const noexcept { return lease_; }

  private:
    static constexpr size_t kEchoes = 64;  // heartbeats under way that are remembered: most_ns and more

    struct Peer {
        uint64_t sent = 0;  // number of the last heartbeat sent
        std::array<int64_t, kEchoes> sent_times{};
        uint64_t heard = 0;      // greatest number heard
        int64_t heard_at = 0;    // start of the machine until the first
        int64_t granted = 0;     // (host 0) the lease of the last heartbeat sent
        int64_t kept_until = 0;  // (host 0) no lease that it may hold ends later, by a third
        uint64_t unheard = 0;    // what it last said
        bool joined = false;
    };

    void fence(Fence why, Orders& orders) noexcept;
    void give_up(HostId peer, Orders& orders) noexcept;
    uint64_t everybody() const noexcept;
    uint64_t unheard(int64_t now_ns) const noexcept;
    /// (host 0) Remembers how long a host was silent, and sets the lease that is granted from now on.
    void learn(int64_t silence_ns, int64_t now_ns) noexcept;
    int64_t shortest_granted() const noexcept;

    const HostId self_;
    const unsigned hosts_;
    const LeaseTimes times_;
    const int64_t start_;
    int64_t last_tick_;
    int64_t beat_at_;
    int64_t lease_;  // granted now by host 0, or to this host
    int64_t window_end_;
    int64_t longest_ = 0, longest_before_ = 0;  // silences in this window, and in the one before
    int64_t lease_end_ = -1;                    // not host 0; -1 before the first echo
    uint64_t lost_ = 0;
    int64_t silence_longest_ = 0;
    int64_t beat_late_longest_ = 0;
    Fence fence_ = Fence::kNone;
    std::array<Peer, kMaxHosts> peers_{};
};

/// The clock of leases: CLOCK_BOOTTIME in ns, which also runs while the computer sleeps. Any thread.
int64_t lease_clock_ns() noexcept;

}  // namespace coremesh::link
