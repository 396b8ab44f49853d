// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/peers.hpp"

#include <bit>

namespace coremesh::link {

bool Peers::admit(std::span<const uint8_t> frame, std::optional<HostId> key_of, Receiver& receiver,
                  bool lent) noexcept {
    Header header;
    Refusal refusal = decode(frame, header);
    if (refusal == Refusal::kNone) refusal = judge(header, identity_);
    if (refusal == Refusal::kNone && key_of && *key_of != header.source) refusal = Refusal::kSource;

    // Whom to blame: the owner of the key if there is one, since a header may lie.
    std::optional<HostId> peer = key_of;
    if (!peer && refusal == Refusal::kNone) peer = header.source;
    if (!peer || !is_peer(*peer)) {
        count_stranger(refusal == Refusal::kNone ? Refusal::kSource : refusal);
        return true;
    }

    Peer& from = peers_[*peer];
    if (refusal == Refusal::kNone && lost(*peer)) refusal = Refusal::kLost;
    if (refusal == Refusal::kNone && lent && !receiver.takes_waiting(header.type, header.guest_tsc))
        return false;
    if (refusal == Refusal::kNone) refusal = from.sequence.take(header.sequence);
    if (refusal != Refusal::kNone) {
        add(from.refused[static_cast<size_t>(refusal)]);
        // A protocol that assumes reliable channels cannot go on over a hole in one.
        if (refusal == Refusal::kGap) give_up(*peer, Loss::kGap);
        return true;
    }
    add(from.received[static_cast<size_t>(header.type)]);
    add(from.received_bytes, frame.size());
    const std::span<const uint8_t> payload = frame.subspan(kHeaderBytes);
    if (lent) {
        receiver.received_waiting(*peer, header.type, header.guest_tsc, payload);
    } else {
        receiver.received(*peer, header.type, header.guest_tsc, payload);
    }
    return true;
}

bool Peers::give_up(HostId peer, std::optional<Loss> why) noexcept {
    if (!is_peer(peer) || peers_[peer].lost.exchange(true, std::memory_order_acq_rel)) return false;
    if (why) unreported_[static_cast<size_t>(*why)].fetch_or(bit(peer), std::memory_order_release);
    return true;
}

void Peers::report(Receiver& receiver) noexcept {
    for (const Loss why : {Loss::kOverflow, Loss::kGap}) {
        auto& mask = unreported_[static_cast<size_t>(why)];
        if (mask.load(std::memory_order_relaxed) == 0) continue;
        for (uint64_t rest = mask.exchange(0, std::memory_order_acquire); rest != 0; rest &= rest - 1) {
            receiver.peer_lost(static_cast<HostId>(std::countr_zero(rest)), why);
        }
    }
}

void Peers::count_sent(HostId peer, Type type, size_t bytes) noexcept {
    add(peers_[peer].sent[static_cast<size_t>(type)]);
    add(peers_[peer].sent_bytes, bytes);
}

void Peers::count_overflow(HostId peer, size_t waiting, bool added) noexcept {
    Peer& to = peers_[peer];
    if (added) add(to.overflowed);
    to.overflow_now.store(waiting, std::memory_order_relaxed);
    if (waiting > read(to.overflow_high_water))
        to.overflow_high_water.store(waiting, std::memory_order_relaxed);
}

LinkCounters Peers::read_counters(const Peer& counters) noexcept {
    LinkCounters now;
    COREMESH_KEPT_LINK_COUNTERS(COREMESH_COUNTER_READ)
    return now;
}

LinkCounters Peers::counters(HostId peer) const noexcept {
    if (!is_peer(peer)) return {};
    const Peer& from = peers_[peer];
    LinkCounters counters = read_counters(from);
    for (size_t type = 0; type < kTypes; ++type) {
        counters.sent[type] = read(from.sent[type]);
        counters.received[type] = read(from.received[type]);
        counters.sent_frames += counters.sent[type];
        counters.received_frames += counters.received[type];
    }
    for (size_t why = 0; why < kRefusals; ++why) counters.refused[why] = read(from.refused[why]);
    counters.lost = lost(peer);
    return counters;
}

void Peers::strangers(LinkFacts& facts) const noexcept {
    for (size_t why = 0; why < kRefusals; ++why) facts.stranger_refused[why] = read(stranger_[why]);
}

}  // namespace coremesh::link
