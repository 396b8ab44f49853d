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
#include "link/protocol_thread.hpp"
#include "link/wired_link.hpp"

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

/// What is on its way to one host. `lock` protects the queues and the generator.
struct Inbox {
    mutable PiMutex lock;
    std::vector<std::deque<Parcel>> from;
    std::atomic<uint64_t> cut{0};  // mask of sources whose frames are swallowed
    std::minstd_rand random;
    // Shared with the link, so that a sender may wake it whatever that link does.
    std::shared_ptr<ProtocolThread> thread = std::make_shared<ProtocolThread>();
};

}  // namespace

struct Wires {
    explicit Wires(const Switch::Options& chosen) : options(chosen) {
        for (unsigned host = 0; host < options.hosts; ++host) {
            auto& inbox = inboxes.emplace_back(std::make_unique<Inbox>());
            inbox->from.resize(options.hosts);
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
        }
        return true;
    }

    const Switch::Options options;
    std::vector<std::unique_ptr<Inbox>> inboxes;
};

/// One host's end: its inbox, and those of the others.
class InProcessWire final : public Wire {
  public:
    InProcessWire(std::shared_ptr<Wires> wires, HostId self)
        : wires_(std::move(wires)), inbox_(*wires_->inboxes[self]), self_(self) {}

    Put put(HostId to, std::span<const uint8_t> frame) noexcept override {
        return wires_->put(to, self_, {frame.begin(), frame.end()}, wires_->options.queue_limit) ? Put::kTaken
                                                                                                 : Put::kFull;
    }

    void notify(HostId to) noexcept override { wires_->inboxes[to]->thread->wake(); }

    Drained drain(int64_t now_ns, unsigned, Sink& sink) noexcept override {
        std::vector<Parcel> arrived;
        next_arrival_ = -1;
        bool more = false;
        {
            std::lock_guard guard(inbox_.lock);
            for (auto& queue : inbox_.from) {
                while (!queue.empty() && queue.front().arrives_at <= now_ns && arrived.size() < kBatch) {
                    arrived.push_back(std::move(queue.front()));
                    queue.pop_front();
                }
                if (queue.empty()) continue;
                if (queue.front().arrives_at <= now_ns) more = true;
                if (next_arrival_ < 0 || queue.front().arrives_at < next_arrival_) {
                    next_arrival_ = queue.front().arrives_at;
                }
            }
        }
        for (const Parcel& parcel : arrived) sink.arrived(parcel.bytes, std::nullopt);
        return more ? Drained::kSome : arrived.empty() ? Drained::kNothing : Drained::kAll;
    }

    int64_t next_arrival() const noexcept override { return next_arrival_; }

    void describe(LinkFacts& facts) const noexcept override { facts.wire = "in-process"; }

  private:
    const std::shared_ptr<Wires> wires_;
    Inbox& inbox_;
    const HostId self_;
    int64_t next_arrival_ = -1;  // protocol thread
};

Switch::Switch(const Options& options) : options_(options) {
    if (options.hosts < 2 || options.hosts > kMaxHosts) throw std::invalid_argument("2 to 64 hosts");
    if (options.min_delay_ns < 0 || options.max_delay_ns < options.min_delay_ns) {
        throw std::invalid_argument("0 <= min_delay_ns <= max_delay_ns");
    }
    wires_ = std::make_shared<Wires>(options);
    for (unsigned host = 0; host < options.hosts; ++host) {
        const auto self = static_cast<HostId>(host);
        const LinkOptions link{.identity = {self, options.hosts, options.machine, options.epoch},
                               .overflow_limit = options.overflow_limit,
                               .spin_ns = 0,
                               .cpu = -1};
        links_.push_back(
            make_link(link, std::make_unique<InProcessWire>(wires_, self), wires_->inboxes[host]->thread));
    }
}

Switch::~Switch() = default;

std::shared_ptr<Link> Switch::link(HostId host) const { return links_.at(host); }

void Switch::cut(HostId from, HostId to, bool is_cut) noexcept {
    auto& mask = wires_->inboxes[to]->cut;
    is_cut ? mask.fetch_or(bit(from), std::memory_order_acq_rel)
           : mask.fetch_and(~bit(from), std::memory_order_acq_rel);
}

void Switch::inject(HostId to, std::span<const uint8_t> frame) {
    // On the wire of host 0, or host 1's when it is host 0 itself that gets it: the envelope says which host
    // it is from.
    wires_->put(to, to == 0 ? 1 : 0, {frame.begin(), frame.end()}, SIZE_MAX);
    wires_->inboxes[to]->thread->wake();
}

}  // namespace coremesh::link
