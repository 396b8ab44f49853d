// SPDX-License-Identifier: GPL-2.0-or-later
// The agent's other side: what homes ask of this host's copies, and the hold that puts it off.
#include <algorithm>
#include <utility>

#include "coherence/agent.hpp"

namespace coremesh::coherence {

namespace {

using Kind = Message::Kind;

constexpr uint64_t kLongestUs = 20'000;
constexpr uint8_t kStuckStreak = 8;

/// Deterministic, but not in step on two hosts.
uint64_t scatter(uint64_t value) noexcept {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

}  // namespace

void Agent::on_order(HostId from, const Message& message, uint64_t now_us, Actions& out) {
    if (from != homes_.of(message.page)) return reject(ProtocolViolation::kNotHome);
    if (message.requester == outbox_.self() || message.serial == 0) return reject(ProtocolViolation::kHost);
    const Access has = access_.get(message.page);
    if (has == Access::kNone || (message.kind == Kind::kInv && has != Access::kRead)) {
        return reject(ProtocolViolation::kState);
    }
    Slot* slot = slot_of(message.page);
    if (slot != nullptr && (slot->deferred || slot->collecting)) return reject(ProtocolViolation::kState);
    Page& entry = pages_[message.page];
    const bool takes = message.kind != Kind::kFwdS || has == Access::kWrite;
    if (takes && put_off(entry, slot, now_us)) {
        if (slot == nullptr) slot = &open(message.page);
        slot->deferred = true;
        slot->order = message;
        ++counters_.deferred;
        return set_timer(message.page, hold_left(entry, now_us), out);
    }
    obey(message, now_us, out);
}

void Agent::resumed(uint64_t page, uint64_t now_us, Actions& out) {
    Page& entry = pages_[page];
    if (!entry.fresh) return;  // only the first thread's: else those of a busy host add up
    entry.fresh = false;
    const uint64_t elapsed = now_us > entry.granted_us ? now_us - entry.granted_us : 0;
    entry.hold_us = static_cast<uint32_t>(std::min<uint64_t>(elapsed + hold_us_, hold_cap_us_));
    timer(page, now_us, out);
}

void Agent::timer(uint64_t page, uint64_t now_us, Actions& out) {
    Slot* const slot = slot_of(page);
    if (slot == nullptr || !slot->deferred) return;
    Page& entry = pages_[page];
    if (put_off(entry, slot, now_us)) {
        return set_timer(page, hold_left(entry, now_us), out);
    }
    slot->deferred = false;
    const Message order = slot->order;
    obey(order, now_us, out);
    close_if_done(page);
}

/// The access goes first: what is sent is read from a page that no CPU of this host can write any more.
void Agent::obey(const Message& message, uint64_t now_us, Actions& out) {
    const uint64_t page = message.page;
    Message answer;
    answer.requester = message.requester;
    answer.page = page;
    answer.serial = message.serial;
    answer.ticket = message.ticket;
    if (message.kind == Kind::kInv) {
        lose(page, Access::kNone, now_us, out);
        answer.kind = Kind::kInvAck;
        answer.ticket = 0;
        return outbox_.send(message.requester, answer, out);
    }
    Page& entry = pages_[page];
    if (std::exchange(entry.passed_on, false) && unchanged_ && unchanged_(page)) {
        answer.flags = Message::kUnwritten;
    }
    if (message.kind == Kind::kFwdM) {
        lose(page, Access::kNone, now_us, out);
        answer.kind = Kind::kDataM;
        answer.sharers = message.sharers;
    } else {
        if (access_.get(page) == Access::kWrite) lose(page, Access::kRead, now_us, out);
        answer.kind = Kind::kDataS;
    }
    if ((message.flags & Message::kGranting) != 0) {
        answer.kind = Kind::kGrant;
        outbox_.send(message.requester, answer, out);
    } else {
        ++counters_.pages_sent;
        Action& action = out.add(Action::Kind::kSendPage, page);
        action.to = message.requester;
        action.message = answer;
    }
    // To the directory of this host, after the answer: so is what the directory sends next.
    if (settles(homes_.of(page) == outbox_.self(), answer.sharers)) {
        send(outbox_.self(), Kind::kDone, page, message.serial, out, answer.flags);
    }
}

void Agent::lose(uint64_t page, Access left, uint64_t now_us, Actions& out) {
    access_.set(page, left);
    out.add(Action::Kind::kSetAccess, page).access = left;
    ++(left == Access::kNone ? counters_.invalidations : counters_.downgrades);
    Page& entry = pages_[page];
    const bool soon = entry.hold_us != 0 && now_us - entry.granted_us < soon_us();
    entry.lost_ms = soon ? std::max<uint32_t>(static_cast<uint32_t>(now_us / 1000), 1) : 0;
    entry.hold_us = 0;
    entry.fresh = false;
}

uint64_t Agent::hold_left(const Page& page, uint64_t now_us) const noexcept {
    const uint64_t elapsed = now_us > page.granted_us ? now_us - page.granted_us : 0;
    return elapsed < page.hold_us ? page.hold_us - elapsed : 0;
}

bool Agent::put_off(Page& page, const Slot* slot, uint64_t now_us) noexcept {
    return page.hold_us != 0 && (hold_left(page, now_us) != 0 || hold_on(page, slot, now_us));
}

/// An instruction that needs two pages at once could lose each while it fetches the other, for ever, when
/// another host does the same in step. So a page that is lost all the time, on a host that waits for another
/// page, now and then stays for as long as two answers take: that host has both then.
bool Agent::hold_on(Page& page, const Slot* slot, uint64_t now_us) noexcept {
    const unsigned own = slot != nullptr && slot->waiting ? 1 : 0;
    if (page.streak < kStuckStreak || page.kept || waits_ <= own) return false;
    page.kept = true;
    if ((scatter(++tries_ * kMaxHosts + outbox_.self()) & 3) != 0) return false;
    const uint64_t elapsed = now_us > page.granted_us ? now_us - page.granted_us : 0;
    const uint64_t longer = std::min(std::max<uint64_t>(hold_cap_us_, 2 * fetch_us_), kLongestUs);
    page.hold_us = static_cast<uint32_t>(std::min<uint64_t>(elapsed + longer, 2 * kLongestUs));
    return hold_left(page, now_us) != 0;
}

void Agent::set_timer(uint64_t page, uint64_t left_us, Actions& out) {
    out.add(Action::Kind::kTimer, page).delay_us = static_cast<uint32_t>(left_us);
}

/// An owner executes for others at once, hold or not: its own threads run on meanwhile, and lose nothing.
void Agent::on_execute(HostId from, const Message& message, Actions& out) {
    if (from != homes_.of(message.page)) return reject(ProtocolViolation::kNotHome);
    if (message.requester == outbox_.self()) return reject(ProtocolViolation::kHost);
    if (!valid(message.operation)) return reject(ProtocolViolation::kOperation);
    if (access_.get(message.page) != Access::kWrite) return reject(ProtocolViolation::kState);
    ++counters_.atomics_executed;
    Action& action = out.add(Action::Kind::kExecute, message.page);
    action.to = message.requester;
    action.message = message;
    action.message.kind = Kind::kResult;
}

}  // namespace coremesh::coherence
