// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/wired_link.hpp"

#include <algorithm>
#include <atomic>
#include <ctime>
#include <stdexcept>
#include <thread>

#include "link/peers.hpp"
#include "link/receiver_role.hpp"
#include "link/sender.hpp"

namespace coremesh::link {
namespace {

using Drained = ProtocolThread::Drained;

int64_t monotonic_ns() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

class WiredLink final : public Link, private ProtocolThread::Work, private Wire::Sink {
  public:
    WiredLink(const LinkOptions& options, std::unique_ptr<Wire> wire, std::shared_ptr<ProtocolThread> thread)
        : options_(options),
          wire_(std::move(wire)),
          lends_(options.lends && wire_->lends()),
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
        stopping_.store(true, std::memory_order_seq_cst);
        thread_->stop();
        // The role stays with this object: a thread that still receives gives it up, and no other gets it.
        if (!holds_) role_.claim();
        while (!holds_ && !(holds_ = role_.take())) {
            wire_->recall();
            std::this_thread::yield();
        }
        sender_.clear();
        wire_->close();
    }

    bool receive_while(const std::atomic<uint32_t>& word, uint32_t value) noexcept override {
        if (!lends_ || stopping_.load(std::memory_order_seq_cst) || !role_.borrow()) return false;
        lent_ = true;
        awaited_.store(&word, std::memory_order_seq_cst);
        const auto over = [&] {
            return word.load(std::memory_order_seq_cst) != value || stopping_.load(std::memory_order_seq_cst);
        };
        while (!over()) {
            if (wire_->arm_lent()) {
                if (over()) break;
                wire_->sleep_lent();
            }
            if (wire_->drain_lent(monotonic_ns(), *this) == Wire::Lent::kKept) {
                role_.claim();
                count(returned_);
                break;
            }
        }
        awaited_.store(nullptr, std::memory_order_seq_cst);
        lent_ = false;
        count(lent_count_);
        // In this order (receiver_role.hpp).
        wire_->give_back();
        role_.give();
        if (role_.claimed() || wire_->pending() || peers_.unreported()) thread_->wake();
        return true;
    }

    void word_changed(const std::atomic<uint32_t>& word) noexcept override {
        if (awaited_.load(std::memory_order_seq_cst) == &word) wire_->recall();
    }

    LinkCounters counters(HostId peer) const override { return peers_.counters(peer); }

    LinkFacts facts() const override {
        LinkFacts facts;
        facts.priority = thread_->priority();
        facts.wakeups = thread_->wakeups();
        facts.spins = thread_->spins();
        facts.lent = lent_count_.load(std::memory_order_relaxed);
        facts.returned = returned_.load(std::memory_order_relaxed);
        wire_->describe(facts);
        peers_.strangers(facts);
        return facts;
    }

  private:
    // ProtocolThread::Work
    void begins() noexcept override {
        holds_ = role_.take();
        wire_->begins();
    }
    /// With arrivals on their way to this thread, the role is free until it wakes.
    bool arm() noexcept override {
        if (!holds_) return true;
        if (!wire_->arm()) return false;
        if (lends_) {
            holds_ = false;
            role_.give();
        }
        return true;
    }
    void awake() noexcept override {
        if (holds_) wire_->awake();
    }
    Drained drain(int64_t now_ns, unsigned ready) noexcept override {
        const Drained drained = take_role(ready) ? wire_->drain(now_ns, ready, *this) : Drained::kNothing;
        peers_.report(*receiver_);
        return drained;
    }
    int64_t due(int64_t now_ns) noexcept override {
        if (holds_) next_arrival_ = wire_->next_arrival();
        int64_t soonest = -1;
        for (const int64_t at :
             {receiver_->due(now_ns), sender_.retry(now_ns), holds_ ? next_arrival_ : int64_t{-1}}) {
            if (at >= 0 && (soonest < 0 || at < soonest)) soonest = at;
        }
        return soonest;
    }

    bool take_role(unsigned ready) noexcept {
        if (holds_) return true;
        holds_ = role_.take();
        // The wire has timers, which a thread that waits does not run.
        if (!holds_ && (wire_->silence(ready) || next_arrival_ >= 0)) {
            role_.claim();
            holds_ = role_.take();
        }
        if (holds_) wire_->awake();
        return holds_;
    }

    // Wire::Sink
    bool arrived(std::span<const uint8_t> frame, std::optional<HostId> key_of) noexcept override {
        return peers_.admit(frame, key_of, *receiver_, lent_);
    }
    static void count(std::atomic<uint64_t>& counter) noexcept {
        counter.fetch_add(1, std::memory_order_relaxed);
    }
    void stranger(Refusal why) noexcept override { peers_.count_stranger(why); }

    const LinkOptions options_;
    const std::unique_ptr<Wire> wire_;
    const bool lends_;
    Peers peers_;
    Sender sender_;
    Receiver* receiver_ = nullptr;  // set once, before the thread starts
    ReceiverRole role_;
    bool lent_ = false;          // with the role: a thread that waits has it
    bool holds_ = false;         // protocol thread: it has the role
    int64_t next_arrival_ = -1;  // protocol thread: what the wire said when that had the role last
    std::atomic<bool> stopping_{false};
    std::atomic<const std::atomic<uint32_t>*> awaited_{nullptr};  // what receive_while() waits for
    std::atomic<uint64_t> lent_count_{0}, returned_{0};
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
