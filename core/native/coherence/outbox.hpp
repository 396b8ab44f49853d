// SPDX-License-Identifier: GPL-2.0-or-later
// Where the messages of a host's agent and directory go: to another host, or round to itself.
#pragma once

#include <cstddef>
#include <vector>

#include "coherence/action.hpp"
#include "coherence/messages.hpp"

namespace coremesh::coherence {

/// A message of a host to itself never leaves it, and is not handled where it is sent, but after the handler
/// that sent it has ended: in order, as if it had travelled.
class Outbox {
  public:
    explicit Outbox(HostId self) : self_(self) { to_self_.reserve(64); }

    HostId self() const noexcept { return self_; }

    /// Guesses keep off these hosts (Node::congested).
    void note_congested(uint64_t hosts) noexcept { congested_ = hosts; }
    bool congested(HostId host) const noexcept { return (congested_ & bit(host)) != 0; }

    void send(HostId to, const Message& message, Actions& out) {
        if (to == self_) {
            to_self_.push_back(message);
            return;
        }
        Action& action = out.add(Action::Kind::kSend, message.page);
        action.to = to;
        action.message = message;
    }

    /// Calls handle(message) for each message of this host to itself, those sent meanwhile too.
    template <typename Handle>
    void loop(Handle&& handle) {
        for (size_t next = 0; next < to_self_.size(); ++next) {
            const Message message = to_self_[next];  // a copy: the list may grow
            handle(message);
        }
        to_self_.clear();
    }

  private:
    HostId self_;
    uint64_t congested_ = 0;
    std::vector<Message> to_self_;
};

}  // namespace coremesh::coherence
