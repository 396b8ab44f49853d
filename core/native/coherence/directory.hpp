// SPDX-License-Identifier: GPL-2.0-or-later
// The directory of the pages whose home is this host: which host has each page, and which gets it next.
//
// One transaction at a time for a page; a host that asks meanwhile queues behind it, first come, first
// served. A transaction ends with kDone from its requester, so that whatever the next one sends finds every
// host in the state that stands here; or when this host has sent the whole answer itself, since what it sends
// next comes after that. Under the protocol lock.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "coherence/contention.hpp"
#include "coherence/homes.hpp"
#include "coherence/counters.hpp"
#include "coherence/holders.hpp"
#include "coherence/options.hpp"
#include "coherence/outbox.hpp"
#include "coherence/pool.hpp"
#include "base/lazy_array.hpp"

namespace coremesh::coherence {

class Directory {
  public:
    /// Requests of one host that may be under way at once. A host has at most one for a page, and one
    /// transaction for each of its threads.
    static constexpr uint32_t kMostRequests = 16384;

    Directory(const Options& options, const Homes& homes, Outbox& outbox, Counters& counters);

    /// kGetS, kGetM, kRmw, kDone for a page of this home, from the host that speaks for itself.
    void receive(HostId from, const Message& message, uint64_t now_us, Actions& out);

    Holders holders(uint64_t page) const noexcept;
    bool idle() const noexcept { return requests_.in_use() == 0; }

  private:
    enum class State : uint8_t {
        kInitial = 0,  ///< as at the start: this host may write
        kOwned,        ///< `owner` may write
        kShared,       ///< `sharers` may read
    };
    struct Page {
        uint64_t sharers = 0;
        uint64_t asking = 0;   ///< hosts with a kGetS or kGetM under way
        uint64_t writers = 0;  ///< hosts that wrote the page after they had last read it
        uint32_t active = 0;   ///< the request being served; those behind it are chained to it
        uint32_t last = 0;     ///< of the chain
        State state = State::kInitial;
        HostId owner = 0;
        Heat heat;
    };
    struct Request {
        Message message;
        uint64_t serial = 0;
        uint32_t next = 0;
        bool writes = false;  ///< what the requester will have
    };

    void request(const Message& message, uint64_t now_us, Actions& out);
    void done(HostId from, const Message& message, uint64_t now_us, Actions& out);
    bool declines(Page& page, const Message& message, uint64_t now_us);
    /// Whether it has become the page's transaction; if not, it has been answered.
    bool serve(Page& page, uint32_t number, uint64_t now_us, Actions& out);
    bool migrates(const Page& page, const Message& message) const noexcept;
    bool serve_rmw(Page& page, Request& request, uint32_t now_ms, Actions& out);
    void start_read(Page& page, Request& request, Actions& out);
    void start_write(Page& page, Request& request, bool atomic, uint32_t now_ms, Actions& out);
    void answered(Page& page, const Message& message) noexcept;
    void reply(Message::Kind kind, const Message& to, Actions& out);
    void order(Message::Kind kind, HostId to, const Request& request, uint64_t sharers, Actions& out,
               uint8_t flags = 0);
    void end(const Request& request, Actions& out);
    void reject(ProtocolViolation why) noexcept { counters_.reject(why); }

    bool owned(const Page& page) const noexcept { return page.state != State::kShared; }
    HostId owner(const Page& page) const noexcept {
        return page.state == State::kInitial ? outbox_.self() : page.owner;
    }
    uint64_t readers(const Page& page) const noexcept {
        return owned(page) ? bit(owner(page)) : page.sharers;
    }
    HostId source(const Page& page) const noexcept;

    Policy policy_;
    bool pass_on_;
    std::function<bool(uint64_t)> unused_;
    Outbox& outbox_;
    Counters& counters_;
    LazyArray<Page> pages_;
    Pool<Request> requests_;
    std::array<uint32_t, kMaxHosts> under_way_{};
    uint64_t serial_ = 0;  ///< of the last transaction
};

}  // namespace coremesh::coherence
