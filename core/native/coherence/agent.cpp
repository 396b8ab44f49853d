// SPDX-License-Identifier: GPL-2.0-or-later
// The user's side of the agent: what threads ask for, and the answers. agent_orders.cpp has what homes ask of
// it.
#include "coherence/agent.hpp"

#include <algorithm>

namespace coremesh::coherence {

namespace {

using Kind = Message::Kind;

constexpr uint8_t kLosingStreak = 3;

}  // namespace

Agent::Agent(const Options& options, const Homes& homes, AccessTable& access, Outbox& outbox,
             Counters& counters)
    : unchanged_(options.unchanged),
      hold_us_(std::min(options.hold_us, options.hold_cap_us)),
      hold_cap_us_(options.hold_cap_us),
      homes_(homes),
      access_(access),
      outbox_(outbox),
      counters_(counters),
      pages_(homes.pages()),
      slots_(256),
      readers_(options.prefetch),
      writers_(options.first_touch) {
    tickets_.reserve(512);
}

// ---- what threads want

void Agent::need(uint64_t page, Access want, bool atomic, uint64_t now_us, Actions& out) {
    const Access has = access_.get(page);
    if (has >= want) return;
    Slot& slot = open(page);
    slot.want = std::max(slot.want, want);
    slot.atomic |= atomic;
    wait(slot, true);
    if (slot.sent != Access::kNone) return;  // its answer will wake this thread too
    ask(slot, want, false, now_us, out);
    if (has != Access::kNone) return;  // an upgrade says nothing of the pages behind it
    ask_ahead(want == Access::kRead ? readers_ : writers_, page, want, now_us, out);
}

void Agent::rmw(uint64_t page, const Operation& operation, uint64_t ticket, uint64_t now_us, Actions& out) {
    const Access enough = operation.reads_only() ? Access::kRead : Access::kWrite;
    if (access_.get(page) >= enough) {
        ++counters_.atomics_here;
        ++contended_.of(page).local;
        return complete(page, ticket, Outcome::kRetry, 0, out);
    }
    tickets_.push_back({ticket, page});
    Message message;
    message.kind = Kind::kRmw;
    message.requester = outbox_.self();
    message.flags = came_back(page, now_us) ? Message::kLosing : uint8_t{0};
    message.page = page;
    message.ticket = ticket;
    message.operation = operation;
    outbox_.send(homes_.of(page), message, out);
}

void Agent::ask(Slot& slot, Access want, bool prefetch, uint64_t now_us, Actions& out) {
    slot.sent = want;
    slot.prefetch = prefetch;
    slot.sent_us = now_us;
    Message message;
    message.requester = outbox_.self();
    message.page = slot.page;
    if (want == Access::kRead) {
        message.kind = Kind::kGetS;
    } else {
        message.kind = Kind::kGetM;
        if (slot.atomic) message.flags = Message::kAtomic;
    }
    if (prefetch) message.flags = Message::kPrefetch;
    if (!prefetch) came_back(slot.page, now_us);
    outbox_.send(homes_.of(slot.page), message, out);
}

/// The pages behind one that a thread needs, when it is the next of a row. A home gives copies; to write,
/// only pages that were never used (an operating system clears its memory, and builds its tables of it, in
/// rows).
void Agent::ask_ahead(Prefetch& streams, uint64_t page, Access want, uint64_t now_us, Actions& out) {
    const unsigned ahead = streams.missed(page);
    for (uint64_t next = page + 1; next <= page + ahead && next < homes_.pages(); ++next) {
        if (access_.get(next) != Access::kNone || slot_of(next) != nullptr) continue;
        if (outbox_.congested(homes_.of(next))) continue;
        ask(open(next), want, true, now_us, out);
    }
}

/// Whether a page that is asked for again was lost again and again, each time soon after it had come.
bool Agent::came_back(uint64_t page, uint64_t now_us) noexcept {
    Page& entry = pages_[page];
    const auto now_ms = static_cast<uint32_t>(now_us / 1000);
    if (entry.lost_ms != 0 && now_ms - entry.lost_ms <= soon_us() / 1000) {
        if (entry.streak != UINT8_MAX) ++entry.streak;
        ++counters_.losses;
    } else {
        entry.streak = 0;
    }
    entry.lost_ms = 0;
    return entry.streak >= kLosingStreak;
}

// ---- answers

void Agent::receive(HostId from, const Message& message, uint64_t now_us, Actions& out) {
    switch (message.kind) {
        case Kind::kFwdS:
        case Kind::kFwdM:
        case Kind::kInv:
            return on_order(from, message, now_us, out);
        case Kind::kExec:
            return on_execute(from, message, out);
        case Kind::kDataS:
        case Kind::kDataM:
        case Kind::kGrant:
            return on_answer(from, message, now_us, out);
        case Kind::kInvAck:
            return on_acknowledgement(from, message, now_us, out);
        case Kind::kHave:
            return on_have(from, message, now_us, out);
        case Kind::kDecline:
            return on_decline(from, message, now_us, out);
        case Kind::kRetry:
        case Kind::kResult:
            return on_outcome(from, message, out);
        default:
            return reject(ProtocolViolation::kState);
    }
}

void Agent::on_answer(HostId from, const Message& message, uint64_t now_us, Actions& out) {
    const bool grant = message.kind == Kind::kGrant;
    const Access granting = message.kind == Kind::kDataS ? Access::kRead : Access::kWrite;
    if (grant ? from != homes_.of(message.page) : from == outbox_.self())
        return reject(ProtocolViolation::kHost);
    if (message.requester != outbox_.self() || (message.sharers & bit(outbox_.self())) != 0) {
        return reject(ProtocolViolation::kHost);
    }
    // Bytes come only to a page that this host may not even read; a grant only for bytes that are here.
    if (access_.get(message.page) != (grant ? Access::kRead : Access::kNone))
        return reject(ProtocolViolation::kState);
    Slot* slot = slot_of(message.page);
    const bool asked = message.ticket != 0 ? has_ticket(message.ticket, message.page)
                                           : slot != nullptr && slot->sent != Access::kNone &&
                                                 granting >= slot->sent;  // more, of a page that migrates
    if (!asked || message.serial == 0) return reject(ProtocolViolation::kState);
    if (slot != nullptr && (slot->collecting || slot->deferred)) return reject(ProtocolViolation::kState);

    if (slot == nullptr) slot = &open(message.page);
    if (!grant) out.add(Action::Kind::kInstall, message.page);
    // Those of a later transaction of this host may be here: they came from others than what comes now.
    if (slot->acknowledging < message.serial) slot->acknowledged = 0;
    slot->acknowledging = std::max(slot->acknowledging, message.serial);
    slot->serial = message.serial;
    slot->collecting = true;
    slot->granting = granting;
    slot->ticket = message.ticket;
    slot->expected = message.kind == Kind::kDataS ? 0 : message.sharers;
    slot->settled = settles(from == homes_.of(message.page), slot->expected);
    slot->done_flags = message.flags;
    const bool awaited = slot->waiting || message.ticket != 0;
    if (grant) {
        ++counters_.upgrades;
    } else if (granting == Access::kWrite) {
        ++(awaited ? counters_.write_fetches : counters_.first_touches);
    } else {
        ++(awaited ? counters_.read_fetches : counters_.prefetches);
    }
    finish(*slot, now_us, out);
}

/// Acknowledgements come from other hosts than the bytes, so perhaps before them.
void Agent::on_acknowledgement(HostId from, const Message& message, uint64_t now_us, Actions& out) {
    if (message.requester != outbox_.self() || from == outbox_.self())
        return reject(ProtocolViolation::kHost);
    Slot* slot = slot_of(message.page);
    const bool expecting =
        (slot != nullptr && (slot->sent == Access::kWrite || slot->collecting)) || any_ticket(message.page);
    if (!expecting || message.serial == 0) return reject(ProtocolViolation::kState);
    if (slot == nullptr) slot = &open(message.page);
    if (slot->collecting) {
        if (message.serial != slot->serial || (slot->expected & bit(from)) == 0)
            return reject(ProtocolViolation::kState);
    } else if (slot->acknowledging != message.serial) {
        if (message.serial < slot->acknowledging) return reject(ProtocolViolation::kState);
        slot->acknowledging = message.serial;
        slot->acknowledged = 0;
    }
    slot->acknowledged |= bit(from);
    finish(*slot, now_us, out);
}

/// The access is granted when the bytes are here and every other copy is known to be gone.
void Agent::finish(Slot& slot, uint64_t now_us, Actions& out) {
    // A later transaction begins only where this one waits for no other host.
    if (!slot.collecting || (slot.acknowledged & slot.expected) != slot.expected) return;
    const uint64_t page = slot.page;
    const Access granted = slot.granting;
    Page& entry = pages_[page];
    entry.passed_on = slot.ticket == 0 && slot.sent == Access::kRead && granted == Access::kWrite;
    if (entry.passed_on) out.add(Action::Kind::kRemember, page);
    access_.set(page, granted);
    out.add(Action::Kind::kSetAccess, page).access = granted;
    const bool awaited = slot.waiting || slot.ticket != 0;
    if (granted == Access::kWrite && awaited) ++contended_.of(page).moves;

    // A prefetched page has no waiter, so it gets no hold time.
    entry.fresh = awaited;
    entry.granted_us = now_us;
    entry.hold_us = entry.fresh ? hold_cap_us_ : 0;
    entry.kept = false;

    // Wake the waiter before telling the home: waking takes longer than the message.
    if (slot.waiting) out.add(Action::Kind::kWake, page);
    if (slot.ticket != 0) {
        if (take_ticket(slot.ticket, page)) {
            ++counters_.atomics_retried;
            ++contended_.of(page).retried;
            complete(page, slot.ticket, Outcome::kRetry, 0, out);
        }
    } else {
        slot.sent = Access::kNone;
        if (now_us >= slot.sent_us) fetch_us_ = (7 * fetch_us_ + (now_us - slot.sent_us)) / 8;
    }
    if (!slot.settled) send(homes_.of(page), Kind::kDone, page, slot.serial, out, slot.done_flags);
    slot.collecting = slot.settled = false;
    if (slot.acknowledging == slot.serial) slot.acknowledging = slot.acknowledged = 0;
    slot.serial = slot.ticket = slot.expected = 0;
    settle(slot, now_us, out);
}

/// Threads that wait for more than has come: it is asked for.
void Agent::settle(Slot& slot, uint64_t now_us, Actions& out) {
    if (access_.get(slot.page) >= slot.want) {
        wait(slot, false);
        slot.want = Access::kNone;
        slot.atomic = false;
    } else if (slot.waiting && slot.sent == Access::kNone) {
        ask(slot, slot.want, false, now_us, out);
    }
    close_if_done(slot.page);
}

void Agent::on_have(HostId from, const Message& message, uint64_t now_us, Actions& out) {
    if (from != homes_.of(message.page)) return reject(ProtocolViolation::kNotHome);
    Slot* const slot = slot_of(message.page);
    if (slot == nullptr || slot->sent == Access::kNone || slot->collecting ||
        access_.get(message.page) < slot->sent) {
        return reject(ProtocolViolation::kState);
    }
    slot->sent = Access::kNone;
    if (slot->waiting) out.add(Action::Kind::kWake, message.page);
    settle(*slot, now_us, out);
}

void Agent::on_decline(HostId from, const Message& message, uint64_t now_us, Actions& out) {
    if (from != homes_.of(message.page)) return reject(ProtocolViolation::kNotHome);
    Slot* const slot = slot_of(message.page);
    // The answer to a memory transaction may wait for acknowledgements meanwhile; `finish` settles then.
    const bool of_ticket = slot != nullptr && slot->collecting && slot->ticket != 0;
    if (slot == nullptr || slot->sent == Access::kNone || !slot->prefetch ||
        (slot->collecting && !of_ticket)) {
        return reject(ProtocolViolation::kState);
    }
    ++counters_.prefetches_declined;
    slot->sent = Access::kNone;
    if (of_ticket) return;
    if (slot->waiting) out.add(Action::Kind::kWake, message.page);
    settle(*slot, now_us, out);
}

void Agent::on_outcome(HostId from, const Message& message, Actions& out) {
    const bool executed = message.kind == Kind::kResult;
    if (!executed && from != homes_.of(message.page)) return reject(ProtocolViolation::kNotHome);
    if (message.requester != outbox_.self()) return reject(ProtocolViolation::kHost);
    Slot* const slot = slot_of(message.page);
    // The home has answered this ticket with the page itself.
    if (slot != nullptr && slot->collecting && slot->ticket == message.ticket)
        return reject(ProtocolViolation::kState);
    if (!take_ticket(message.ticket, message.page)) return reject(ProtocolViolation::kState);
    ContendedPage& entry = contended_.of(message.page);
    if (executed) {
        ++counters_.atomics_remote;
        ++entry.remote;
        complete(message.page, message.ticket, Outcome::kValue, message.value, out);
    } else {
        ++counters_.atomics_retried;
        ++entry.retried;
        complete(message.page, message.ticket, Outcome::kRetry, 0, out);
    }
    if (slot != nullptr && !slot->collecting && slot->sent == Access::kNone && !any_ticket(message.page)) {
        slot->acknowledging = slot->acknowledged = 0;  // of nothing
        close_if_done(message.page);
    }
}

// ---- records

Agent::Slot* Agent::slot_of(uint64_t page) noexcept {
    const uint32_t number = pages_[page].slot;
    return number == 0 ? nullptr : &slots_[number];
}

Agent::Slot& Agent::open(uint64_t page) {
    Page& entry = pages_[page];
    if (entry.slot == 0) {
        entry.slot = slots_.take();
        slots_[entry.slot].page = page;
    }
    return slots_[entry.slot];
}

void Agent::close_if_done(uint64_t page) {
    const Slot* const slot = slot_of(page);
    if (slot == nullptr || slot->sent != Access::kNone || slot->waiting || slot->collecting ||
        slot->deferred || slot->acknowledged != 0) {
        return;
    }
    slots_.give(pages_[page].slot);
    pages_[page].slot = 0;
}

void Agent::wait(Slot& slot, bool waiting) noexcept {
    if (slot.waiting == waiting) return;
    slot.waiting = waiting;
    waits_ += waiting ? 1u : ~0u;
}

void Agent::complete(uint64_t page, uint64_t ticket, Outcome outcome, Wide value, Actions& out) {
    Action& action = out.add(Action::Kind::kComplete, page);
    action.ticket = ticket;
    action.outcome = outcome;
    action.value = value;
}

bool Agent::has_ticket(uint64_t ticket, uint64_t page) const noexcept {
    return std::any_of(tickets_.begin(), tickets_.end(),
                       [&](const Ticket& one) { return one.ticket == ticket && one.page == page; });
}

bool Agent::any_ticket(uint64_t page) const noexcept {
    return std::any_of(tickets_.begin(), tickets_.end(), [&](const Ticket& one) { return one.page == page; });
}

bool Agent::take_ticket(uint64_t ticket, uint64_t page) noexcept {
    for (Ticket& one : tickets_) {
        if (one.ticket != ticket || one.page != page) continue;
        one = tickets_.back();
        tickets_.pop_back();
        return true;
    }
    return false;
}

void Agent::send(HostId to, Kind kind, uint64_t page, uint64_t serial, Actions& out, uint8_t flags) {
    Message message;
    message.kind = kind;
    message.flags = flags;
    message.requester = outbox_.self();
    message.page = page;
    message.serial = serial;
    outbox_.send(to, message, out);
}

}  // namespace coremesh::coherence
