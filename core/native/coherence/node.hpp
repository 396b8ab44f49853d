// SPDX-License-Identifier: GPL-2.0-or-later
// One host's part of the page protocol: the agent (this host's copies) and the directory of the pages whose
// home this host is.
//
// Pure: no thread, clock, socket or kernel call. Something happens, a method is called with the time, and it
// appends what is to be done to a list of actions. The same compiled code runs under the scripted network of
// the unit tests, the random schedules of tests/unit/model and the real links.
//
// Threads: `access` from any thread at any time; everything else under one lock of the host (the protocol
// lock), and the actions are done in order, all of them, before that lock is given up.
//
// README.md in this folder has the states, the messages and the races one by one.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/access.hpp"
#include "coherence/access_table.hpp"
#include "coherence/action.hpp"
#include "coherence/counters.hpp"
#include "coherence/holders.hpp"
#include "coherence/homes.hpp"
#include "coherence/messages.hpp"
#include "coherence/options.hpp"

namespace coremesh::coherence {

class Node {
  public:
    /// std::invalid_argument for options that make no machine; PlatformError without address space for the
    /// page tables (about 70 bytes a page, committed only for pages that ever came or went).
    explicit Node(const Options& options);
    ~Node();
    Node(const Node&) = delete;
    Node& operator=(const Node&) = delete;

    /// What this host may do with the page. Lock-free, and so a hint: the actions that make it true in the
    /// kernel, or bring the bytes, may still be under way. Exact under the protocol lock. At the start kWrite
    /// for the pages homed here. A page above the end of RAM is kNone.
    Access access(uint64_t page) const noexcept { return access_.get(page); }
    /// See AccessTable::bytes.
    const uint8_t* access_bytes() const noexcept { return access_.bytes(); }

    /// A thread wants `want` (not kNone). Returns whether it must wait: true, until kWake for the page, then
    /// it looks again; false when the access is there. Idempotent while it is under way. `atomic`: for an
    /// atomic instruction (a hint for the home).
    bool need(uint64_t page, Access want, bool atomic, uint64_t now_us, Actions& out);

    /// A thread wants a valid operation done. Exactly one kComplete with the ticket follows, maybe at once.
    /// The ticket is not 0 and not one of those under way. An operation that is not valid, or a page that is
    /// none, is completed as kRetry.
    void rmw(uint64_t page, const Operation& operation, uint64_t ticket, uint64_t now_us, Actions& out);

    /// A message has come, in the order in which `from` sent it. One that makes no sense is counted and
    /// dropped. `kInstall` in the actions means the page that came with this message: the driver has checked
    /// it (valid_page) before.
    void receive(HostId from, const Message& message, uint64_t now_us, Actions& out);

    /// A thread that waited for the page is about to run its instruction again: from here the hold counts.
    void resumed(uint64_t page, uint64_t now_us, Actions& out);

    /// The links to these hosts (bit n: host n) have more to carry than they can: until this is called again,
    /// pages that no thread has asked for are not fetched from them, nor sent to them.
    void congested(uint64_t hosts) noexcept;

    /// The time of a kTimer is over.
    void timer(uint64_t page, uint64_t now_us, Actions& out);

    HostId home(uint64_t page) const noexcept { return homes_.of(page); }
    const Homes& homes() const noexcept { return homes_; }
    HostId self() const noexcept { return self_; }
    Counters counters() const noexcept;
    /// Messages that were dropped: counters().violations.
    uint64_t violations() const noexcept;
    /// A thread at this place (not 0) of the guest's code needed the page: kept for the most contended pages.
    void used(uint64_t page, uint64_t place) noexcept;
    /// The pages that this host's threads contend for most, the most contended first, at most `count` of 512.
    std::vector<ContendedPage> contended(size_t count) const;
    /// As the home, of a page of its own; all zero of another. For tests and for people.
    Holders holders(uint64_t page) const noexcept;
    /// Whether nothing is under way here: no request, no transaction, nothing put off.
    bool idle() const noexcept;

  private:
    struct Parts;  ///< agent.hpp, directory.hpp

    void dispatch(HostId from, const Message& message, uint64_t now_us, Actions& out);
    void loop(uint64_t now_us, Actions& out);

    HostId self_;
    unsigned hosts_;
    Homes homes_;
    AccessTable access_;
    std::unique_ptr<Parts> parts_;
};

}  // namespace coremesh::coherence
