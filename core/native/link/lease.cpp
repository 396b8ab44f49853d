// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/lease.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <ctime>
#include <utility>

namespace coremesh::link {
namespace {

constexpr uint32_t kMagic = 0x54414542;  // "BEAT"
constexpr int64_t kSilences = 3;         // a lease lasts three of the longest silences

}  // namespace

int64_t lease_clock_ns() noexcept {
    timespec now{};
    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

// 0 u32 magic, 4 u32 flags (bit 0: fenced), 8 u64 number, 16 u64 echo, 24 u64 unheard, 32 i64 lease.
void Beat::encode(std::span<uint8_t, kBytes> to) const noexcept {
    const uint32_t flags = fenced ? 1 : 0;
    std::memcpy(to.data(), &kMagic, 4);
    std::memcpy(to.data() + 4, &flags, 4);
    std::memcpy(to.data() + 8, &number, 8);
    std::memcpy(to.data() + 16, &echo, 8);
    std::memcpy(to.data() + 24, &unheard, 8);
    std::memcpy(to.data() + 32, &lease_ns, 8);
}

std::optional<Beat> Beat::decode(std::span<const uint8_t> from) noexcept {
    if (from.size() != kBytes) return std::nullopt;
    uint32_t magic = 0, flags = 0;
    Beat beat;
    std::memcpy(&magic, from.data(), 4);
    std::memcpy(&flags, from.data() + 4, 4);
    std::memcpy(&beat.number, from.data() + 8, 8);
    std::memcpy(&beat.echo, from.data() + 16, 8);
    std::memcpy(&beat.unheard, from.data() + 24, 8);
    std::memcpy(&beat.lease_ns, from.data() + 32, 8);
    if (magic != kMagic || flags > 1 || beat.number == 0 || beat.lease_ns < 0) return std::nullopt;
    beat.fenced = flags == 1;
    return beat;
}

Lease::Lease(HostId self, unsigned hosts, int64_t now_ns, LeaseTimes times) noexcept
    : self_(self),
      hosts_(hosts),
      times_(times),
      start_(now_ns),
      last_tick_(now_ns),
      beat_at_(now_ns),
      lease_(times.lease_ns),
      window_end_(now_ns + times.window_ns) {
    for (Peer& peer : peers_) peer.heard_at = now_ns;
}

uint64_t Lease::everybody() const noexcept { return all_hosts(hosts_) & ~bit(self_); }

uint64_t Lease::unheard(int64_t now_ns) const noexcept {
    uint64_t mask = 0;
    for (uint64_t rest = everybody(); rest != 0; rest &= rest - 1) {
        const auto host = static_cast<unsigned>(std::countr_zero(rest));
        const Peer& peer = peers_[host];
        if (now_ns - peer.heard_at >= (peer.joined ? lease_ : times_.join_ns)) mask |= bit(host);
    }
    return mask;
}

void Lease::learn(int64_t silence_ns, int64_t now_ns) noexcept {
    if (now_ns >= window_end_) {
        longest_before_ = std::exchange(longest_, 0);
        window_end_ = now_ns + times_.window_ns;
    }
    longest_ = std::max(longest_, silence_ns);
    const int64_t wanted = kSilences * std::max(longest_, longest_before_);
    lease_ = std::clamp(wanted, times_.lease_ns, std::max(times_.lease_ns, times_.most_ns));
}

int64_t Lease::shortest_granted() const noexcept {
    int64_t shortest = INT64_MAX;
    for (uint64_t rest = everybody(); rest != 0; rest &= rest - 1) {
        const Peer& peer = peers_[static_cast<unsigned>(std::countr_zero(rest))];
        if (peer.joined) shortest = std::min(shortest, peer.granted);
    }
    return shortest;
}

void Lease::fence(Fence why, Orders& orders) noexcept {
    if (fence_ != Fence::kNone) return;
    fence_ = why;
    orders.fence = why;
    orders.send |= everybody();  // a host that hears it need not wait for the silence
}

void Lease::give_up(HostId peer, Orders& orders) noexcept {
    if (lost_ & bit(peer)) return;
    lost_ |= bit(peer);
    orders.lost |= bit(peer);
    fence(Fence::kPeerLost, orders);
}

Lease::Orders Lease::tick(int64_t now_ns) noexcept {
    Orders orders;
    const int64_t gap = now_ns - last_tick_;
    last_tick_ = std::max(last_tick_, now_ns);
    if (fence_ != Fence::kNone) return orders;

    const bool joining = now_ns - start_ < times_.join_ns;
    if (self_ == 0) {
        uint64_t absent = 0;
        for (uint64_t rest = everybody(); rest != 0; rest &= rest - 1) {
            const auto host = static_cast<unsigned>(std::countr_zero(rest));
            if (!peers_[host].joined) absent |= bit(host);
        }
        if (gap >= shortest_granted()) {
            // A host did not hear us for as long as its lease runs: it has stopped.
            fence(Fence::kStopped, orders);
        } else if (absent != 0 && !joining) {
            lost_ |= absent;
            orders.lost |= absent;
            fence(Fence::kNotJoined, orders);
        } else {
            for (uint64_t rest = everybody() & ~absent; rest != 0; rest &= rest - 1) {
                const auto host = static_cast<HostId>(std::countr_zero(rest));
                if (now_ns >= peers_[host].kept_until) give_up(host, orders);
            }
        }
    } else if (lease_end_ < 0) {
        if (!joining) fence(Fence::kNotJoined, orders);
    } else if (now_ns >= lease_end_) {
        fence(gap >= lease_ ? Fence::kStopped : Fence::kExpired, orders);
    }
    if (fence_ == Fence::kNone && now_ns >= beat_at_) {
        orders.send |= everybody();
        beat_late_longest_ = std::max(beat_late_longest_, now_ns - beat_at_);
        // From the moment it was due, unless that is long ago: beats are not made up for.
        beat_at_ = std::max(beat_at_ + times_.beat_ns, now_ns + times_.beat_ns / 2);
    }
    return orders;
}

Lease::Orders Lease::heard(HostId from, const Beat& beat, int64_t now_ns) noexcept {
    Orders orders = tick(now_ns);  // what has expired stays expired, whatever comes now
    if (from >= hosts_ || from == self_ || fence_ != Fence::kNone) return orders;
    Peer& peer = peers_[from];
    if (beat.number <= peer.heard || beat.echo > peer.sent) return orders;
    const bool is_first = !peer.joined;
    if (!is_first) {
        silence_longest_ = std::max(silence_longest_, now_ns - peer.heard_at);
        if (self_ == 0) learn(now_ns - peer.heard_at, now_ns);
    }
    peer.heard = beat.number;
    peer.heard_at = now_ns;
    peer.unheard = beat.unheard & everybody();
    peer.joined = true;

    if (self_ == 0) {
        if (is_first) peer.granted = lease_;
        peer.kept_until = std::max(peer.kept_until, now_ns + lost_after_ns(lease_));
        if (beat.fenced) {
            give_up(from, orders);
        } else {
            // Two others do not hear each other, and both hear us. One must be named: the greater number.
            for (uint64_t rest = peer.unheard & ~bit(from); rest != 0; rest &= rest - 1) {
                const auto other = static_cast<HostId>(std::countr_zero(rest));
                if (now_ns - peers_[other].heard_at < lease_ / 2) give_up(std::max(from, other), orders);
            }
        }
    } else if (from == 0) {
        if (beat.fenced) {
            lost_ |= beat.unheard;
            fence(Fence::kToldSo, orders);
        } else if (beat.echo != 0 && peer.sent - beat.echo < kEchoes) {
            lease_ = std::clamp(beat.lease_ns, int64_t{0}, std::max(times_.lease_ns, times_.most_ns));
            lease_end_ = std::max(lease_end_, peer.sent_times[beat.echo % kEchoes] + lease_);
        }
    }
    if (is_first && fence_ == Fence::kNone) orders.send |= bit(from);  // the sooner all have joined
    return orders;
}

Beat Lease::beat(HostId to, int64_t now_ns) noexcept {
    Peer& peer = peers_[to];
    ++peer.sent;
    peer.sent_times[peer.sent % kEchoes] = now_ns;
    if (self_ == 0 && peer.joined) {
        peer.granted = lease_;
        peer.kept_until = std::max(peer.kept_until, peer.heard_at + lost_after_ns(lease_));
    }
    return {.number = peer.sent,
            .echo = peer.heard,
            .unheard = self_ == 0 && fenced() ? lost_ : unheard(now_ns),
            .lease_ns = self_ == 0 ? lease_ : 0,
            .fenced = fenced()};
}

int64_t Lease::next() const noexcept {
    if (fence_ != Fence::kNone) return INT64_MAX;
    int64_t at = beat_at_;
    if (self_ != 0) {
        at = std::min(at, lease_end_ < 0 ? start_ + times_.join_ns : lease_end_);
    } else {
        for (uint64_t rest = everybody(); rest != 0; rest &= rest - 1) {
            const Peer& peer = peers_[static_cast<unsigned>(std::countr_zero(rest))];
            at = std::min(at, peer.joined ? peer.kept_until : start_ + times_.join_ns);
        }
    }
    return at;
}

bool Lease::held(int64_t now_ns) const noexcept {
    if (fence_ != Fence::kNone) return false;
    if (self_ != 0) return lease_end_ >= 0 && now_ns < lease_end_;
    for (uint64_t rest = everybody(); rest != 0; rest &= rest - 1) {
        if (!peers_[static_cast<unsigned>(std::countr_zero(rest))].joined) return false;
    }
    return true;
}

}  // namespace coremesh::link
