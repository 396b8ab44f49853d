// SPDX-License-Identifier: GPL-2.0-or-later
// This host's copies of pages: what its threads wait for, and what the homes ask it to give up.
//
// A granted page stays until the instruction that asked for it has had its chance (the *hold*); an order to
// give it up is put off until then, never longer than the cap. Under the protocol lock.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "coherence/contended_pages.hpp"
#include "coherence/homes.hpp"
#include "coherence/access_table.hpp"
#include "coherence/options.hpp"
#include "coherence/outbox.hpp"
#include "coherence/pool.hpp"
#include "coherence/prefetch.hpp"
#include "base/lazy_array.hpp"

namespace coremesh::coherence {

class Agent {
  public:
    Agent(const Options& options, const Homes& homes, AccessTable& access, Outbox& outbox,
          Counters& counters);

    void need(uint64_t page, Access want, bool atomic, uint64_t now_us, Actions& out);
    void rmw(uint64_t page, const Operation& operation, uint64_t ticket, uint64_t now_us, Actions& out);
    /// Every kind but those for a home.
    void receive(HostId from, const Message& message, uint64_t now_us, Actions& out);
    void resumed(uint64_t page, uint64_t now_us, Actions& out);
    void timer(uint64_t page, uint64_t now_us, Actions& out);

    void used(uint64_t page, uint64_t place) noexcept { contended_.used(page, place); }
    std::vector<ContendedPage> contended(size_t count) const { return contended_.most(count); }
    bool idle() const noexcept { return slots_.in_use() == 0 && tickets_.empty(); }

  private:
    /// Of each page that ever came or went.
    struct Page {
        uint64_t granted_us = 0;
        uint32_t hold_us = 0;    ///< from granted_us; 0: none
        uint32_t lost_ms = 0;    ///< when it was given up soon after it came; 0: it was not
        uint32_t slot = 0;       ///< what is under way; 0: nothing
        uint8_t streak = 0;      ///< times in a row that it was asked for again soon after it was lost
        bool fresh = false;      ///< granted, and no thread has resumed yet
        bool passed_on = false;  ///< read, and given the right to write unasked
        bool kept = false;       ///< hold_on has already put it off
    };
    /// Of a page with something under way.
    struct Slot {
        uint64_t page = 0;
        // The request at the home.
        Access sent = Access::kNone;  ///< kNone: none
        Access want = Access::kNone;  ///< the most that a thread waits for
        bool prefetch = false;
        bool waiting = false;  ///< a thread waits
        bool atomic = false;
        uint64_t sent_us = 0;
        // The transaction that answers this host.
        bool collecting = false;          ///< the bytes or the grant are here
        bool settled = false;             ///< ... and the home waits for no kDone
        uint8_t done_flags = 0;           ///< of the kDone that it waits for else
        Access granting = Access::kNone;  ///< when all have acknowledged
        uint64_t serial = 0;              ///< 0: nothing of it has come
        uint64_t ticket = 0;              ///< of the memory transaction that it answers
        uint64_t acknowledging = 0;       ///< the transaction that `acknowledged` is of
        uint64_t acknowledged = 0;
        uint64_t expected = 0;
        // An order of the home that waits for the end of the hold.
        bool deferred = false;
        Message order;
    };
    struct Ticket {
        uint64_t ticket;
        uint64_t page;
    };

    Slot& open(uint64_t page);
    void close_if_done(uint64_t page);
    Slot* slot_of(uint64_t page) noexcept;
    void ask(Slot& slot, Access want, bool prefetch, uint64_t now_us, Actions& out);
    void ask_ahead(Prefetch& streams, uint64_t page, Access want, uint64_t now_us, Actions& out);
    bool came_back(uint64_t page, uint64_t now_us) noexcept;

    void on_order(HostId from, const Message& message, uint64_t now_us, Actions& out);
    void obey(const Message& message, uint64_t now_us, Actions& out);
    void lose(uint64_t page, Access left, uint64_t now_us, Actions& out);
    uint64_t hold_left(const Page& page, uint64_t now_us) const noexcept;
    bool hold_on(Page& page, const Slot* slot, uint64_t now_us) noexcept;
    bool put_off(Page& page, const Slot* slot, uint64_t now_us) noexcept;
    /// A page lost and asked for within this time is contended.
    uint64_t soon_us() const noexcept { return std::max<uint64_t>(4000, 4 * fetch_us_); }
    void set_timer(uint64_t page, uint64_t left_us, Actions& out);

    void on_answer(HostId from, const Message& message, uint64_t now_us, Actions& out);
    void on_acknowledgement(HostId from, const Message& message, uint64_t now_us, Actions& out);
    void finish(Slot& slot, uint64_t now_us, Actions& out);
    void settle(Slot& slot, uint64_t now_us, Actions& out);
    void wait(Slot& slot, bool waiting) noexcept;
    void on_have(HostId from, const Message& message, uint64_t now_us, Actions& out);
    void on_decline(HostId from, const Message& message, uint64_t now_us, Actions& out);
    void on_execute(HostId from, const Message& message, Actions& out);
    void on_outcome(HostId from, const Message& message, Actions& out);

    void complete(uint64_t page, uint64_t ticket, Outcome outcome, Wide value, Actions& out);
    bool take_ticket(uint64_t ticket, uint64_t page) noexcept;
    bool has_ticket(uint64_t ticket, uint64_t page) const noexcept;
    bool any_ticket(uint64_t page) const noexcept;
    void send(HostId to, Message::Kind kind, uint64_t page, uint64_t serial, Actions& out, uint8_t flags = 0);
    void reject(ProtocolViolation why) noexcept { counters_.reject(why); }

    const std::function<bool(uint64_t)> unchanged_;
    const uint32_t hold_us_;
    const uint32_t hold_cap_us_;
    const Homes& homes_;
    AccessTable& access_;
    Outbox& outbox_;
    Counters& counters_;
    LazyArray<Page> pages_;
    Pool<Slot> slots_;
    std::vector<Ticket> tickets_;  ///< as many as threads at most
    Prefetch readers_;             ///< sequential ones
    Prefetch writers_;
    ContendedPages contended_;
    unsigned waits_ = 0;     ///< slots that a thread waits for
    uint64_t tries_ = 0;     ///< of hold_on
    uint64_t fetch_us_ = 0;  ///< how long an answer takes, a moving average
};

}  // namespace coremesh::coherence
