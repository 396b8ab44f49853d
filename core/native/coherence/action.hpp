// SPDX-License-Identifier: GPL-2.0-or-later
// What the protocol asks its driver to do. The order is part of the meaning: each is done before the next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/access.hpp"
#include "coherence/messages.hpp"

namespace coremesh::coherence {

/// What became of a memory transaction.
enum class Outcome : uint8_t {
    kValue,  ///< executed elsewhere; the value is what was there before
    kRetry,  ///< not executed: the page is (or was a moment ago) here; execute it on the page, then `resumed`
};

struct Action {
    enum class Kind : uint8_t {
        kSend,       ///< encode `message`, send it to host `to` (never this host)
        kSendPage,   ///< the same with the bytes of message.page, read after all earlier actions
        kInstall,    ///< write the bytes that came with the message being received to `page`, protocol view
        kRemember,   ///< what the page holds now is what Options::unchanged compares with
        kSetAccess,  ///< let this host's CPUs have `access` to `page`; on return they have no more than that
        kExecute,    ///< message.value = execute(message.operation, page); then send `message` (kResult) to
                     ///< `to`
        kWake,       ///< wake every thread that sleeps for `page`
        kComplete,   ///< wake the thread of `ticket` with `outcome` and `value`
        kTimer,      ///< call Node::timer(page) in `delay_us`, once; later is allowed, earlier harmless
    };

    Kind kind;
    HostId to = 0;
    Access access = Access::kNone;
    Outcome outcome = Outcome::kValue;
    uint32_t delay_us = 0;
    uint64_t page = 0;
    uint64_t ticket = 0;
    Wide value = 0;
    Message message{};
};

/// A list to be used again and again: cleared, it keeps its memory.
class Actions {
  public:
    Actions() { list_.reserve(64); }

    Action& add(Action::Kind kind, uint64_t page) {
        Action& action = list_.emplace_back();
        action.kind = kind;
        action.page = page;
        return action;
    }
    void clear() noexcept { list_.clear(); }
    bool empty() const noexcept { return list_.empty(); }
    size_t size() const noexcept { return list_.size(); }
    Action& operator[](size_t index) noexcept { return list_[index]; }
    const Action& operator[](size_t index) const noexcept { return list_[index]; }
    auto begin() noexcept { return list_.begin(); }
    auto end() noexcept { return list_.end(); }
    auto begin() const noexcept { return list_.begin(); }
    auto end() const noexcept { return list_.end(); }

  private:
    std::vector<Action> list_;
};

}  // namespace coremesh::coherence
