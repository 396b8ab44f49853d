// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/in_process.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <ctime>
#include <deque>
#include <mutex>
#include <random>
#include <stdexcept>

#include "base/pi_mutex.hpp"
#include "link/peers.hpp"
#include "link/protocol_thread.hpp"

namespace coremesh::link {
namespace {

constexpr size_t kBatch = 64;  // frames handed on before the timers are looked at
using Drained = ProtocolThread::Drained;

int64_t monotonic_ns() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

struct Parcel {
    int64_t arrives_at;
    std::vector<uint8_t> bytes;
};

/// What is on its way to one host. `lock` protects the queues and the generator; `counts` may be read
/// without.
struct Inbox {
    mutable PiMutex lock;
    std::vector<std::deque<Parcel>> from;
    std::vector<std::atomic<size_t>> counts;
    std::atomic<uint64_t> cut{0};  // mask of sources whose frames are swallowed
    std::minstd_rand random;
    ProtocolThread thread;  // lives here, so that a sender may wake it whatever its link does
};

}  // namespace

struct Wires {
    explicit Wires(const Switch::Options& chosen) : options(chosen) {
        for (unsigned host = 0; host < options.hosts; ++host) {
            auto& inbox = inboxes.emplace_back(std::make_unique<Inbox>());
            inbox->from.resize(options.hosts);
            inbox->counts = std::vector<std::atomic<size_t>>(options.hosts);
            inbox->random.seed(static_cast<uint32_t>(options.seed * 64 + host + 1));
        }
    }

    int64_t arrival(Inbox& inbox, const std::deque<Parcel>& before) const {
        if (options.max_delay_ns == 0) return 0;
        std::uniform_int_distribution<int64_t> delay(options.min_delay_ns, options.max_delay_ns);
        const int64_t at = monotonic_ns() + delay(inbox.random);
        return before.empty() ? at : std::max(at, before.back().arrives_at);
    }

    /// False when `limit` frames wait already.
    bool put(HostId to, HostId from, std::vector<uint8_t> bytes, size_t limit) {
        Inbox& inbox = *inboxes[to];
        if (inbox.cut.load(std::memory_order_acquire) >> from & 1) return true;
        {
            std::lock_guard guard(inbox.lock);
            auto& queue = inbox.from[from];
            if (queue.size() >= limit) return false;
            queue.push_back({arrival(inbox, queue), std::move(bytes)});
            inbox.counts[from].store(queue.size(), std::memory_order_relaxed);
        }
        inbox.thread.wake();
        return true;
    }

    const Switch::Options options;
    std::vector<std::unique_ptr<Inbox>> inboxes;
};

class InProcessLink final : public Link, private ProtocolThread::Work {
  public:
    InProcessLink(std::shared_ptr<Wires> wires, HostId self)
        : wires_(std::move(wires)),
          inbox_(*wires_->inboxes[self]),
          peers_({self, wires_->options.hosts, wires_->options.machine, wires_->options.epoch}),
          outgoing_(wires_->options.hosts) {}

    ~InProcessLink() override { InProcessLink::stop(); }

    bool send(HostId to, Type type, std::span<const uint8_t> head,
              std::span<const uint8_t> body) noexcept override {
        if (!peers_.is_peer(to)) return false;
        if (!deliver(to, type, head, body)) {
            peers_.count_not_sent(to);
            return false;
        }
        return true;
    }

    uint64_t congested() const noexcept override {
        uint64_t slow = 0;
        for (unsigned host = 0; host < wires_->options.hosts; ++host) {
            const auto to = static_cast<HostId>(host);
            if (peers_.is_peer(to) && waiting(to) > wires_->options.queue_limit / 4)
                slow |= uint64_t{1} << to;
        }
        return slow;
    }

    void wake() noexcept override { inbox_.thread.wake(); }
    void wake_at(int64_t deadline_ns) noexcept override { inbox_.thread.wake_at(deadline_ns); }

    void disown(HostId peer) noexcept override { peers_.give_up(peer, std::nullopt); }

    void start(Receiver& receiver) override {
        if (receiver_.exchange(&receiver) != nullptr) throw std::logic_error("a link starts once");
        inbox_.thread.start(*this, {});
    }

    void stop() override {
        for (Outgoing& outgoing : outgoing_) {
            std::lock_guard guard(outgoing.lock);
            outgoing.open = false;
        }
        inbox_.thread.stop();
    }

    LinkCounters counters(HostId peer) const override { return peers_.counters(peer); }

    LinkFacts facts() const override {
        LinkFacts facts;
        facts.priority = inbox_.thread.priority();
        facts.wakeups = inbox_.thread.wakeups();
        facts.spins = inbox_.thread.spins();
        peers_.strangers(facts);
        return facts;
    }

  private:
    struct Outgoing {
        PiMutex lock;  // before the inbox's
        bool open = true;
        uint64_t sequence = 0;
    };

    size_t waiting(HostId to) const noexcept {
        return wires_->inboxes[to]->counts[peers_.identity().self].load(std::memory_order_relaxed);
    }

    bool deliver(HostId to, Type type, std::span<const uint8_t> head,
                 std::span<const uint8_t> body) noexcept {
        const size_t length = head.size() + body.size();
        Receiver* const receiver = receiver_.load(std::memory_order_acquire);
        if (receiver == nullptr || length > kMaxPayload || peers_.lost(to)) return false;
        std::vector<uint8_t> frame(kHeaderBytes + length);
        std::copy(head.begin(), head.end(), frame.begin() + kHeaderBytes);
        std::copy(body.begin(), body.end(),
                  frame.begin() + static_cast<ptrdiff_t>(kHeaderBytes + head.size()));

        Outgoing& outgoing = outgoing_[to];
        const Identity& self = peers_.identity();
        std::lock_guard guard(outgoing.lock);
        if (!outgoing.open) return false;
        const Header header = peers_.header(to, type, length, outgoing.sequence + 1, receiver->stamp());
        encode(header, std::span<uint8_t, kHeaderBytes>(frame.data(), kHeaderBytes));
        if (!wires_->put(to, self.self, std::move(frame), wires_->options.queue_limit)) {
            if (must_arrive(type) && peers_.give_up(to, Loss::kOverflow)) wake();
            return false;
        }
        ++outgoing.sequence;
        peers_.count_sent(to, type, kHeaderBytes + length);
        peers_.count_overflow(to, waiting(to), false);
        return true;
    }

    Drained drain(int64_t now_ns, unsigned) noexcept override {
        std::vector<Parcel> arrived;
        next_arrival_ = -1;
        bool more = false;
        {
            std::lock_guard guard(inbox_.lock);
            for (size_t source = 0; source < inbox_.from.size(); ++source) {
                auto& queue = inbox_.from[source];
                while (!queue.empty() && queue.front().arrives_at <= now_ns && arrived.size() < kBatch) {
                    arrived.push_back(std::move(queue.front()));
                    queue.pop_front();
                }
                inbox_.counts[source].store(queue.size(), std::memory_order_relaxed);
                if (queue.empty()) continue;
                if (queue.front().arrives_at <= now_ns) more = true;
                if (next_arrival_ < 0 || queue.front().arrives_at < next_arrival_) {
                    next_arrival_ = queue.front().arrives_at;
                }
            }
        }
        Receiver& receiver = *receiver_.load(std::memory_order_relaxed);
        for (const Parcel& parcel : arrived) peers_.admit(parcel.bytes, std::nullopt, receiver);
        peers_.report(receiver);
        return more ? Drained::kSome : arrived.empty() ? Drained::kNothing : Drained::kAll;
    }

    int64_t due(int64_t now_ns) noexcept override {
        const int64_t deadline = receiver_.load(std::memory_order_relaxed)->due(now_ns);
        if (deadline < 0 || next_arrival_ < 0) return std::max(deadline, next_arrival_);
        return std::min(deadline, next_arrival_);
    }

    const std::shared_ptr<Wires> wires_;
    Inbox& inbox_;
    Peers peers_;
    std::vector<Outgoing> outgoing_;
    std::atomic<Receiver*> receiver_{nullptr};
    int64_t next_arrival_ = -1;  // protocol thread
};

Switch::Switch(const Options& options) : options_(options) {
    if (options.hosts < 2 || options.hosts > kMaxHosts) throw std::invalid_argument("2 to 64 hosts");
    if (options.min_delay_ns < 0 || options.max_delay_ns < options.min_delay_ns) {
        throw std::invalid_argument("0 <= min_delay_ns <= max_delay_ns");
    }
    wires_ = std::make_shared<Wires>(options);
    for (unsigned host = 0; host < options.hosts; ++host) {
        links_.push_back(std::make_shared<InProcessLink>(wires_, static_cast<HostId>(host)));
    }
}

Switch::~Switch() = default;

std::shared_ptr<Link> Switch::link(HostId host) const { return links_.at(host); }

void Switch::cut(HostId from, HostId to, bool is_cut) noexcept {
    auto& mask = wires_->inboxes[to]->cut;
    const uint64_t bit = uint64_t{1} << from;
    is_cut ? mask.fetch_or(bit, std::memory_order_acq_rel) : mask.fetch_and(~bit, std::memory_order_acq_rel);
}

void Switch::inject(HostId to, std::span<const uint8_t> frame) {
    // On the wire of host 0, or host 1's when it is host 0 itself that gets it: the envelope says who it is
    // from.
    wires_->put(to, to == 0 ? 1 : 0, {frame.begin(), frame.end()}, SIZE_MAX);
}

}  // namespace coremesh::link
