// SPDX-License-Identifier: GPL-2.0-or-later
#include "coherence/directory.hpp"

#include <algorithm>
#include <bit>

namespace coremesh::coherence {

namespace {

using Kind = Message::Kind;

uint32_t milliseconds(uint64_t us) noexcept { return static_cast<uint32_t>(us / 1000); }

}  // namespace

Directory::Directory(const Options& options, const Homes& homes, Outbox& outbox, Counters& counters)
    : policy_(options.policy),
      pass_on_(options.pass_on),
      unused_(options.unused),
      outbox_(outbox),
      counters_(counters),
      pages_(homes.pages()),
      requests_(256) {}

void Directory::receive(HostId from, const Message& message, uint64_t now_us, Actions& out) {
    if (message.kind == Kind::kDone) return done(from, message, now_us, out);
    if (message.requester != from) return reject(ProtocolViolation::kHost);
    request(message, now_us, out);
}

void Directory::request(const Message& message, uint64_t now_us, Actions& out) {
    Page& page = pages_[message.page];
    const HostId from = message.requester;
    if (message.kind == Kind::kRmw) {
        if (!valid(message.operation) || message.ticket == 0) return reject(ProtocolViolation::kOperation);
    } else if ((page.asking & bit(from)) != 0) {
        return reject(ProtocolViolation::kState);  // it has asked already, and is to be answered once
    }
    if (under_way_[from] >= kMostRequests) return reject(ProtocolViolation::kTooMany);
    ++counters_.home_requests;
    if (declines(page, message, now_us)) return reply(Kind::kDecline, message, out);
    if (message.kind != Kind::kRmw) page.asking |= bit(from);
    ++under_way_[from];
    const uint32_t number = requests_.take();
    requests_[number].message = message;
    if (page.active != 0) {
        ++counters_.home_queued;
        requests_[page.last].next = number;
        page.last = number;
        return;
    }
    if (serve(page, number, now_us, out)) {
        page.active = page.last = number;
    } else {
        requests_.give(number);
    }
}

void Directory::done(HostId from, const Message& message, uint64_t now_us, Actions& out) {
    Page& page = pages_[message.page];
    if (page.active == 0) return reject(ProtocolViolation::kState);
    const Request& ended = requests_[page.active];
    const HostId requester = ended.message.requester;
    if (from != requester && from != outbox_.self()) return reject(ProtocolViolation::kHost);
    if (ended.serial != message.serial) return reject(ProtocolViolation::kState);
    if ((message.flags & Message::kUnwritten) != 0 && owned(page)) {
        ++counters_.migrations_unwritten;
        page.writers &= ~bit(owner(page));
    }
    if (ended.writes) {
        page.state = State::kOwned;
        page.owner = requester;
        page.sharers = 0;
    } else {
        page.sharers = readers(page) | bit(requester);
        page.state = State::kShared;
    }
    answered(page, ended.message);

    uint32_t next = ended.next;
    requests_.give(page.active);
    while (next != 0) {
        const uint32_t number = next;
        next = requests_[number].next;
        if (serve(page, number, now_us, out)) {
            page.active = number;  // the chain behind it, and its end, are as they were
            return;
        }
        requests_.give(number);
    }
    page.active = page.last = 0;
}

/// A guess takes nothing from a host that needs the page: there is a copy for it, or the page was never used.
bool Directory::declines(Page& page, const Message& message, uint64_t now_us) {
    if ((message.flags & Message::kPrefetch) == 0 || message.kind == Kind::kRmw) return false;
    if (page.active != 0 || outbox_.congested(message.requester)) return true;
    if (message.kind == Kind::kGetS) return Contention::warm(page.heat, milliseconds(now_us));
    return page.state != State::kInitial || !unused_ || !unused_(message.page);
}

bool Directory::serve(Page& page, uint32_t number, uint64_t now_us, Actions& out) {
    Request& request = requests_[number];
    const Message& message = request.message;
    const uint32_t now_ms = milliseconds(now_us);
    Contention::asked(page.heat, message.requester, now_ms);
    switch (message.kind) {
        case Kind::kRmw:
            return serve_rmw(page, request, now_ms, out);
        case Kind::kGetS:
            if ((readers(page) & bit(message.requester)) != 0) break;
            if (migrates(page, message)) {
                ++counters_.migrations;
                start_write(page, request, false, now_ms, out);
            } else {
                start_read(page, request, out);
            }
            return true;
        default:
            if (owned(page) && owner(page) == message.requester) break;
            start_write(page, request, (message.flags & Message::kAtomic) != 0, now_ms, out);
            return true;
    }
    // A memory transaction of another of its threads has brought the page meanwhile.
    answered(page, message);
    reply(Kind::kHave, message, out);
    return false;
}

/// A page that is read and then written by one host after the other (a lock's data, a list's head) costs each
/// of them two transactions: a copy, and the right to write. A reader is sent both at once where it wrote the
/// page after it had last read it (Stenstroem, Brorsson and Sandberg, ISCA 1993, have one guess for all
/// hosts). The host that gives the page up says whether it was written: if not, the next read there gets a
/// copy.
bool Directory::migrates(const Page& page, const Message& message) const noexcept {
    return pass_on_ && owned(page) && (page.writers & bit(message.requester)) != 0 &&
           (message.flags & Message::kPrefetch) == 0;
}

bool Directory::serve_rmw(Page& page, Request& request, uint32_t now_ms, Actions& out) {
    const Message& message = request.message;
    const bool reads = message.operation.reads_only();
    const bool has = reads ? (readers(page) & bit(message.requester)) != 0
                           : owned(page) && owner(page) == message.requester;
    if (has) {
        answered(page, message);
        reply(Kind::kRetry, message, out);
        return false;
    }
    bool remote = false;
    if (owned(page) && policy_ != Policy::kNever) {
        remote = policy_ == Policy::kAlways;
        if (policy_ == Policy::kAdaptive) {
            bool marked = false;
            bool returns = false;
            remote = Contention::remote(page.heat, message.requester, (message.flags & Message::kLosing) != 0,
                                        now_ms, marked, returns);
            counters_.contended_marks += marked;
            counters_.returned_moves += returns;
        }
    }
    if (remote) {
        // The page need not be busy: what the home sends to this owner later arrives later, so it is still
        // the owner when this arrives.
        ++counters_.atomics_forwarded;
        order(Kind::kExec, owner(page), request, 0, out);
        answered(page, message);
        return false;
    }
    if (reads) {
        start_read(page, request, out);
    } else {
        start_write(page, request, true, now_ms, out);
    }
    return true;
}

void Directory::start_read(Page& page, Request& request, Actions& out) {
    request.serial = ++serial_;
    request.writes = false;
    order(Kind::kFwdS, source(page), request, 0, out);
}

void Directory::start_write(Page& page, Request& request, bool atomic, uint32_t now_ms, Actions& out) {
    request.serial = ++serial_;
    request.writes = true;
    const HostId requester = request.message.requester;
    ++counters_.owner_moves;
    if (atomic) Contention::moved(page.heat, now_ms);
    if (owned(page)) return order(Kind::kFwdM, owner(page), request, 0, out);

    page.writers |= page.sharers & bit(requester);
    uint64_t others = page.sharers & ~bit(requester);
    if ((page.sharers & bit(requester)) != 0 && (others & bit(outbox_.self())) != 0) {
        // This host gives its copy up first, and then grants: that says as much as its acknowledgement.
        others &= ~bit(outbox_.self());
        order(Kind::kFwdM, outbox_.self(), request, others, out, Message::kGranting);
    } else if ((page.sharers & bit(requester)) != 0) {
        order(Kind::kGrant, requester, request, others, out);
        if (settles(true, others)) end(request, out);
    } else {
        const HostId from = source(page);
        others &= ~bit(from);
        order(Kind::kFwdM, from, request, others, out);
    }
    for (uint64_t rest = others; rest != 0; rest &= rest - 1) {
        order(Kind::kInv, static_cast<HostId>(std::countr_zero(rest)), request, 0, out);
    }
}

HostId Directory::source(const Page& page) const noexcept {
    if (owned(page)) return owner(page);
    if ((page.sharers & bit(outbox_.self())) != 0) return outbox_.self();  // two hops instead of three
    // Sharers take turns: one popular page does not make one host serve all others.
    const unsigned turn = serial_ % kMaxHosts;
    const int steps = std::countr_zero(std::rotr(page.sharers, static_cast<int>(turn)));
    return static_cast<HostId>((turn + static_cast<unsigned>(steps)) % kMaxHosts);
}

void Directory::answered(Page& page, const Message& message) noexcept {
    if (message.kind != Kind::kRmw) page.asking &= ~bit(message.requester);
    --under_way_[message.requester];
}

void Directory::reply(Kind kind, const Message& to, Actions& out) {
    Message message;
    message.kind = kind;
    message.requester = to.requester;
    message.page = to.page;
    message.ticket = to.ticket;
    outbox_.send(to.requester, message, out);
}

/// After what was just sent.
void Directory::end(const Request& request, Actions& out) {
    Message message;
    message.kind = Kind::kDone;
    message.requester = outbox_.self();
    message.page = request.message.page;
    message.serial = request.serial;
    outbox_.send(outbox_.self(), message, out);
}

void Directory::order(Kind kind, HostId to, const Request& request, uint64_t sharers, Actions& out,
                      uint8_t flags) {
    Message message;
    message.kind = kind;
    message.flags = flags;
    message.requester = request.message.requester;
    message.page = request.message.page;
    message.serial = request.serial;
    // Only a memory transaction's: a kGet with a ticket would be answered as one.
    message.ticket = request.message.kind == Kind::kRmw ? request.message.ticket : 0;
    message.sharers = sharers;
    if (kind == Kind::kExec) message.operation = request.message.operation;
    outbox_.send(to, message, out);
}

Holders Directory::holders(uint64_t page) const noexcept {
    const Page& entry = pages_[page];
    return {owned(entry), readers(entry), entry.active != 0};
}

}  // namespace coremesh::coherence
