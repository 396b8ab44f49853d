// SPDX-License-Identifier: GPL-2.0-or-later
#include "coherence/node.hpp"

#include <stdexcept>

#include "coherence/agent.hpp"
#include "coherence/directory.hpp"
#include "coherence/outbox.hpp"

namespace coremesh::coherence {

namespace {

const Options& checked(const Options& options) {
    if (options.hosts == 0 || options.hosts > kMaxHosts || options.self >= options.hosts) {
        throw std::invalid_argument("a machine has 1 to 64 hosts, and this is one of them");
    }
    if (options.hold_cap_us > 1'000'000) throw std::invalid_argument("a hold is at most a second");
    return options;
}

}  // namespace

struct Node::Parts {
    Parts(const Options& options, const Homes& homes, AccessTable& access)
        : outbox(options.self),
          agent(options, homes, access, outbox, counters),
          directory(options, homes, outbox, counters) {}

    Counters counters;
    Outbox outbox;
    Agent agent;
    Directory directory;
};

Node::Node(const Options& options)
    : self_(checked(options).self),
      hosts_(options.hosts),
      homes_(options.homes, options.pages, options.hosts),
      access_(homes_, self_),
      parts_(std::make_unique<Parts>(options, homes_, access_)) {}

Node::~Node() = default;

void Node::congested(uint64_t hosts) noexcept { parts_->outbox.note_congested(hosts); }

bool Node::need(uint64_t page, Access want, bool atomic, uint64_t now_us, Actions& out) {
    if (page >= homes_.pages()) return false;
    parts_->agent.need(page, want, atomic, now_us, out);
    loop(now_us, out);
    return access(page) < want;
}

void Node::rmw(uint64_t page, const Operation& operation, uint64_t ticket, uint64_t now_us, Actions& out) {
    if (page >= homes_.pages() || !valid(operation) || ticket == 0) {
        Action& action = out.add(Action::Kind::kComplete, page);
        action.ticket = ticket;
        action.outcome = Outcome::kRetry;
        return;
    }
    parts_->agent.rmw(page, operation, ticket, now_us, out);
    loop(now_us, out);
}

void Node::receive(HostId from, const Message& message, uint64_t now_us, Actions& out) {
    ProtocolViolation why = ProtocolViolation::kHost;
    if (from < hosts_ && from != self_ && message.requester < hosts_) {
        if (message.page < homes_.pages()) {
            dispatch(from, message, now_us, out);
            return loop(now_us, out);
        }
        why = ProtocolViolation::kPage;
    }
    parts_->counters.reject(why);
}

void Node::dispatch(HostId from, const Message& message, uint64_t now_us, Actions& out) {
    switch (message.kind) {
        case Message::Kind::kGetS:
        case Message::Kind::kGetM:
        case Message::Kind::kRmw:
        case Message::Kind::kDone:
            if (homes_.of(message.page) != self_) {
                parts_->counters.reject(ProtocolViolation::kNotHome);
                return;
            }
            return parts_->directory.receive(from, message, now_us, out);
        default:
            return parts_->agent.receive(from, message, now_us, out);
    }
}

void Node::loop(uint64_t now_us, Actions& out) {
    parts_->outbox.loop([&](const Message& message) { dispatch(self_, message, now_us, out); });
}

void Node::resumed(uint64_t page, uint64_t now_us, Actions& out) {
    if (page >= homes_.pages()) return;
    parts_->agent.resumed(page, now_us, out);
    loop(now_us, out);
}

void Node::timer(uint64_t page, uint64_t now_us, Actions& out) {
    if (page >= homes_.pages()) return;
    parts_->agent.timer(page, now_us, out);
    loop(now_us, out);
}

Counters Node::counters() const noexcept { return parts_->counters; }

uint64_t Node::violations() const noexcept { return parts_->counters.violations; }

void Node::used(uint64_t page, uint64_t place) noexcept { parts_->agent.used(page, place); }

std::vector<ContendedPage> Node::contended(size_t count) const { return parts_->agent.contended(count); }

Holders Node::holders(uint64_t page) const noexcept {
    if (page >= homes_.pages() || homes_.of(page) != self_) return {};
    return parts_->directory.holders(page);
}

bool Node::idle() const noexcept { return parts_->agent.idle() && parts_->directory.idle(); }

}  // namespace coremesh::coherence
