// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/wired_link.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "link/peers.hpp"
#include "link/sender.hpp"

namespace coremesh::link {
namespace {

using Drained = ProtocolThread::Drained;

class WiredLink final : public Link, private ProtocolThread::Work, private Wire::Sink {
  public:
    WiredLink(const LinkOptions& options, std::unique_ptr<Wire> wire, std::shared_ptr<ProtocolThread> thread)
        : options_(options),
          wire_(std::move(wire)),
          peers_(options.identity),
          sender_(peers_, *wire_, options.overflow_limit),
          thread_(thread ? std::move(thread) : std::make_shared<ProtocolThread>()) {}

    ~WiredLink() override { WiredLink::stop(); }

    bool send(HostId to, Type type, std::span<const uint8_t> head,
              std::span<const uint8_t> body) noexcept override {
        return sender_.send(to, type, head, body);
    }
    bool post(HostId to, Type type, std::span<const uint8_t> head,
              std::span<const uint8_t> body) noexcept override {
        return sender_.post(to, type, head, body);
    }
    void flush(HostId to) noexcept override { sender_.flush(to); }
    uint64_t congested() const noexcept override { return sender_.congested(); }
    void wake() noexcept override { thread_->wake(); }
    void wake_at(int64_t deadline_ns) noexcept override { thread_->wake_at(deadline_ns); }
    void disown(HostId peer) noexcept override { peers_.give_up(peer, std::nullopt); }

    void start(Receiver& receiver) override {
        if (receiver_ != nullptr) throw std::logic_error("a link starts once");
        receiver_ = &receiver;
        sender_.start(receiver, *thread_);
        thread_->start(*this, wire_->descriptors(), options_.spin_ns, options_.cpu);
    }

    void stop() override {
        sender_.close();
        thread_->stop();
        sender_.clear();
        wire_->close();
    }

    LinkCounters counters(HostId peer) const override { return peers_.counters(peer); }

    LinkFacts facts() const override {
        LinkFacts facts;
        facts.priority = thread_->priority();
        facts.wakeups = thread_->wakeups();
        facts.spins = thread_->spins();
        wire_->describe(facts);
        peers_.strangers(facts);
        return facts;
    }

  private:
    // ProtocolThread::Work
    void begins() noexcept override { wire_->begins(); }
    bool arm() noexcept override { return wire_->arm(); }
    void awake() noexcept override { wire_->awake(); }
    Drained drain(int64_t now_ns, unsigned ready) noexcept override {
        const Drained drained = wire_->drain(now_ns, ready, *this);
        peers_.report(*receiver_);
        return drained;
    }
    int64_t due(int64_t now_ns) noexcept override {
        int64_t soonest = -1;
        for (const int64_t at : {receiver_->due(now_ns), sender_.retry(now_ns), wire_->next_arrival()}) {
            if (at >= 0 && (soonest < 0 || at < soonest)) soonest = at;
        }
        return soonest;
    }
    // Wire::Sink
    void arrived(std::span<const uint8_t> frame, std::optional<HostId> key_of) noexcept override {
        peers_.admit(frame, key_of, *receiver_);
    }
    void stranger(Refusal why) noexcept override { peers_.count_stranger(why); }

    const LinkOptions options_;
    const std::unique_ptr<Wire> wire_;
    Peers peers_;
    Sender sender_;
    Receiver* receiver_ = nullptr;            // set once, before the thread starts
    std::shared_ptr<ProtocolThread> thread_;  // last: it stops before anything that it uses goes
};

}  // namespace

std::unique_ptr<Link> make_link(const LinkOptions& options, std::unique_ptr<Wire> wire,
                                std::shared_ptr<ProtocolThread> thread) {
    const Identity& identity = options.identity;
    if (identity.hosts < 2 || identity.hosts > kMaxHosts || identity.self >= identity.hosts) {
        throw std::invalid_argument("2 to 64 hosts, and self one of them");
    }
    if (options.overflow_limit == 0) throw std::invalid_argument("the overflow must hold a frame");
    return std::make_unique<WiredLink>(options, std::move(wire), std::move(thread));
}

}  // namespace coremesh::link
