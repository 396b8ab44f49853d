// SPDX-License-Identifier: GPL-2.0-or-later
// Links in one process: order, counting, timers, losses and ends, under real threads.
#include "link/in_process.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <ctime>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "check.hpp"
#include "link/frame.hpp"
#include "probe/link_probe.hpp"

using coremesh::HostId;
using coremesh::kMaxHosts;
using namespace coremesh::link;
using namespace std::chrono_literals;

namespace {

int64_t monotonic_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

template <typename Condition>
bool soon(Condition&& condition) {
    for (int tries = 0; tries < 20'000; ++tries) {
        if (condition()) return true;
        std::this_thread::sleep_for(1ms);
    }
    return false;
}

/// A receiver that checks that the numbers of each sending thread come in order.
class Ledger final : public Receiver {
  public:
    struct Entry {
        uint32_t thread, number;
    };
    static constexpr unsigned kThreads = 4;

    void received(HostId from, Type, uint64_t tsc, std::span<const uint8_t> payload) noexcept override {
        if (payload.size() < sizeof(Entry)) return;
        Entry entry;
        std::memcpy(&entry, payload.data(), sizeof entry);
        uint32_t& next = next_[from][entry.thread];
        if (entry.number != next++) disorder = true;
        if (tsc < last_stamp_[from]) disorder = true;
        last_stamp_[from] = tsc;
        ++count;
    }
    int64_t due(int64_t now) noexcept override {
        const int64_t wanted = deadline.load();
        if (wanted < 0) return -1;
        if (now < wanted) return wanted;
        deadline = -1;
        fired_at = now;
        return -1;
    }
    uint64_t stamp() noexcept override { return static_cast<uint64_t>(monotonic_ns()); }
    void peer_lost(HostId peer, Loss) noexcept override { lost |= uint64_t{1} << peer; }

    std::atomic<uint64_t> count{0}, lost{0};
    std::atomic<bool> disorder{false};
    std::atomic<int64_t> deadline{-1}, fired_at{-1};

  private:
    std::array<std::array<uint32_t, kThreads>, kMaxHosts> next_{};
    std::array<uint64_t, kMaxHosts> last_stamp_{};
};

/// Several hosts, each with a ledger and a link that runs.
struct Hosts {
    explicit Hosts(const Switch::Options& options) : wires(options), ledgers(options.hosts) {
        for (unsigned host = 0; host < options.hosts; ++host) {
            links.push_back(wires.link(static_cast<HostId>(host)));
            links.back()->start(ledgers[host]);
        }
    }
    ~Hosts() {
        for (const auto& link : links) link->stop();
    }
    Switch wires;
    std::vector<Ledger> ledgers;
    std::vector<std::shared_ptr<Link>> links;
};

std::span<const uint8_t> bytes_of(const Ledger::Entry& entry) {
    return {reinterpret_cast<const uint8_t*>(&entry), sizeof entry};
}

}  // namespace

STORY(
    "given four hosts with four sending threads each, when frames are delayed at random, then each arrives "
    "once and "
    "in its order") {
    constexpr unsigned kHosts = 4, kFrames = 300;
    Hosts hosts({.hosts = kHosts, .max_delay_ns = 300'000, .seed = 5});
    std::vector<std::thread> threads;
    for (unsigned host = 0; host < kHosts; ++host) {
        for (uint32_t thread = 0; thread < Ledger::kThreads; ++thread) {
            threads.emplace_back([&, host, thread] {
                const std::array<uint8_t, 64> body{};
                for (uint32_t number = 0; number < kFrames; ++number) {
                    for (HostId to = 0; to < kHosts; ++to) {
                        if (to == host) continue;
                        const Ledger::Entry entry{thread, number};
                        CHECK(hosts.links[host]->send(to, Type::kCoherence, bytes_of(entry), body));
                    }
                }
            });
        }
    }
    for (std::thread& thread : threads) thread.join();
    constexpr uint64_t kEach = uint64_t{kFrames} * Ledger::kThreads;
    for (unsigned host = 0; host < kHosts; ++host) {
        CHECK(soon([&] { return hosts.ledgers[host].count == kEach * (kHosts - 1); }));
        CHECK(!hosts.ledgers[host].disorder);
        for (HostId peer = 0; peer < kHosts; ++peer) {
            if (peer == host) continue;
            const LinkCounters counters = hosts.links[host]->counters(peer);
            CHECK_EQ(counters.received_frames, kEach);
            CHECK_EQ(counters.sent[static_cast<size_t>(Type::kCoherence)], kEach);
            CHECK_EQ(counters.sent_bytes, kEach * (kHeaderBytes + sizeof(Ledger::Entry) + 64));
        }
    }
}

STORY("given two probes, when one pings the other ten thousand times, then no wake-up is lost") {
    Switch wires({.hosts = 2});
    LinkProbe left(wires.link(0)), right(wires.link(1));
    left.start();
    right.start();
    CHECK_EQ(left.ping(1, 10'000, 4096).size(), 10'000u);
    left.stop();
    right.stop();
}

STORY("given a timer, when wake() tells of it, then due() runs at its time and not long after") {
    Hosts hosts({.hosts = 2});
    std::vector<int64_t> late;
    for (int round = 0; round < 100; ++round) {
        const int64_t deadline = monotonic_ns() + 300'000;
        hosts.ledgers[0].fired_at = -1;
        hosts.ledgers[0].deadline = deadline;
        hosts.links[0]->wake();
        CHECK(soon([&] { return hosts.ledgers[0].fired_at >= 0; }));
        late.push_back(hosts.ledgers[0].fired_at - deadline);
        CHECK(late.back() >= 0);
    }
    std::sort(late.begin(), late.end());
    CHECK(late[50] < 20'000'000);  // on a busy host; on a quiet one it is tens of microseconds
}

STORY("given threads that set timers at once, when each tells its own moment, then none of them is missed") {
    // Each timer is a word of its own; due() hands back the soonest, as a heap of timers would.
    constexpr unsigned kSetters = 3, kRounds = 300;
    struct Timers final : Receiver {
        void received(HostId, Type, uint64_t, std::span<const uint8_t>) noexcept override {}
        uint64_t stamp() noexcept override { return 0; }
        int64_t due(int64_t now) noexcept override {
            int64_t soonest = -1;
            for (std::atomic<int64_t>& timer : at) {
                const int64_t deadline = timer.load();
                if (deadline < 0) continue;
                if (deadline <= now) {
                    timer = -1;
                } else if (soonest < 0 || deadline < soonest) {
                    soonest = deadline;
                }
            }
            return soonest;
        }
        std::array<std::atomic<int64_t>, kSetters> at{-1, -1, -1};
    } timers;
    Switch wires({.hosts = 2});
    const auto link = wires.link(0);
    link->start(timers);
    std::vector<std::thread> setters;
    for (unsigned setter = 0; setter < kSetters; ++setter) {
        setters.emplace_back([&, setter] {
            for (unsigned round = 0; round < kRounds; ++round) {
                const int64_t deadline = monotonic_ns() + (setter * 37 + round * 11) % 150 * 1000;
                timers.at[setter] = deadline;
                link->wake_at(deadline);
                CHECK(soon([&] { return timers.at[setter] < 0; }));
                CHECK(monotonic_ns() >= deadline);
            }
        });
    }
    for (std::thread& setter : setters) setter.join();
    link->stop();
}

STORY("given a link that does not run, or what cannot be sent, when send() is called, then it says so") {
    Switch wires({.hosts = 2});
    const auto link = wires.link(0);
    CHECK(!link->send(1, Type::kControl, {}));
    Ledger ledger;
    link->start(ledger);
    const std::vector<uint8_t> large(kMaxPayload + 1);
    CHECK(link->send(1, Type::kControl, {}));
    CHECK(link->send(1, Type::kControl, std::span(large).first(kMaxPayload)));
    CHECK(!link->send(1, Type::kControl, large));
    CHECK(!link->send(0, Type::kControl, {}));
    CHECK(!link->send(2, Type::kControl, {}));
    CHECK(!link->send(255, Type::kControl, {}));
    link->stop();
    CHECK(!link->send(1, Type::kControl, {}));
    CHECK_EQ(link->counters(1).sent_frames, 2u);
    CHECK_EQ(link->counters(1).not_sent, 3u);
}

STORY(
    "given frames that were forged, foreign or played again, when they come, then they are counted and no "
    "more") {
    Hosts hosts({.hosts = 3, .machine = 42, .epoch = 3});
    const Ledger::Entry first{0, 0};
    CHECK(hosts.links[1]->send(0, Type::kCoherence, bytes_of(first)));
    CHECK(soon([&] { return hosts.ledgers[0].count == 1; }));
    const Header header{.type = Type::kCoherence,
                        .source = 1,
                        .destination = 0,
                        .machine = 42,
                        .epoch = 3,
                        .length = 0,
                        .sequence = 1,
                        .guest_tsc = 0};
    const auto inject = [&](auto&& change) {
        Header other = header;
        change(other);
        std::array<uint8_t, kHeaderBytes> frame;
        encode(other, frame);
        hosts.wires.inject(0, frame);
    };
    inject([](Header&) {});
    inject([](Header& h) { h.machine = 43; });
    inject([](Header& h) { h.epoch = 2; });
    hosts.wires.inject(0, {});
    const auto facts = [&] { return hosts.links[0]->facts(); };
    const auto count = [](const auto& counters, Refusal why) { return counters[static_cast<size_t>(why)]; };
    CHECK(soon([&] { return count(facts().stranger_refused, Refusal::kTruncated) == 1; }));
    CHECK_EQ(count(facts().stranger_refused, Refusal::kMachine), 1u);
    CHECK_EQ(count(facts().stranger_refused, Refusal::kEpoch), 1u);
    CHECK_EQ(count(hosts.links[0]->counters(1).refused, Refusal::kReplayed), 1u);
    CHECK_EQ(hosts.ledgers[0].count, 1u);
    const Ledger::Entry second{0, 1};
    CHECK(hosts.links[1]->send(0, Type::kCoherence, bytes_of(second)));
    CHECK(soon([&] { return hosts.ledgers[0].count == 2; }));
}

STORY("given a cut that swallowed a frame, when it heals, then the receiver gives the sender up") {
    Hosts hosts({.hosts = 2});
    const Ledger::Entry entry{0, 0};
    hosts.wires.cut(0, 1);
    CHECK(hosts.links[0]->send(1, Type::kCoherence, bytes_of(entry)));
    hosts.wires.cut(0, 1, false);
    CHECK(hosts.links[0]->send(1, Type::kCoherence, bytes_of(entry)));
    CHECK(soon([&] { return hosts.ledgers[1].lost == 1; }));
    CHECK_EQ(hosts.ledgers[1].count, 0u);
    CHECK(!hosts.links[1]->send(0, Type::kCoherence, {}));
}

STORY(
    "given a peer that takes nothing, when the queue is full, then old news is dropped and what must arrive "
    "ends "
    "the peer") {
    Switch wires({.hosts = 2, .queue_limit = 90, .overflow_limit = 10});
    const auto link = wires.link(0);  // the other end is never started
    Ledger ledger;
    link->start(ledger);
    for (int frame = 0; frame < 90; ++frame) CHECK(link->send(1, Type::kHeartbeat, {}));
    CHECK(!link->send(1, Type::kHeartbeat, {}));
    CHECK_EQ(link->congested(), 0u);
    for (int frame = 0; frame < 10; ++frame) CHECK(link->send(1, Type::kPage, {}));
    CHECK_EQ(link->congested(), 2u);
    CHECK(!link->counters(1).lost);
    CHECK_EQ(link->counters(1).overflow_high_water, 10u);
    CHECK(!link->send(1, Type::kHeartbeat, {}));
    CHECK(!link->send(1, Type::kPage, {}));
    CHECK(link->counters(1).lost);
    CHECK(soon([&] { return ledger.lost == 2; }));
    link->stop();
}

STORY("given a wire that was full, when the peer takes frames again, then those that waited come in order") {
    Switch wires({.hosts = 2, .queue_limit = 5, .overflow_limit = 1000});
    const auto sender = wires.link(0), taker = wires.link(1);
    Ledger here, there;
    sender->start(here);
    for (uint32_t number = 0; number < 400; ++number) {
        const Ledger::Entry entry{0, number};
        // Every other frame goes in two steps, as the page protocol sends them.
        if (number % 2) {
            CHECK(sender->send(1, Type::kPage, bytes_of(entry)));
        } else {
            CHECK(sender->post(1, Type::kPage, bytes_of(entry)));
        }
    }
    sender->flush(1);
    CHECK_EQ(sender->congested(), 2u);
    taker->start(there);
    CHECK(soon([&] { return there.count == 400; }));
    CHECK(!there.disorder);
    CHECK(soon([&] { return sender->congested() == 0; }));
    sender->stop();
    taker->stop();
}

STORY(
    "given threads that post and send to one peer, when each flushes, then each one's frames keep their "
    "order") {
    Hosts hosts({.hosts = 2, .queue_limit = 40});
    std::vector<std::thread> threads;
    constexpr uint32_t kFrames = 3000;
    for (uint32_t thread = 0; thread < Ledger::kThreads; ++thread) {
        threads.emplace_back([&, thread] {
            for (uint32_t number = 0; number < kFrames; ++number) {
                const Ledger::Entry entry{thread, number};
                if (number % 3 == 0) {
                    CHECK(hosts.links[0]->send(1, Type::kCoherence, bytes_of(entry)));
                } else {
                    CHECK(hosts.links[0]->post(1, Type::kCoherence, bytes_of(entry)));
                    if (number % 3 == 2) hosts.links[0]->flush(1);
                }
            }
            hosts.links[0]->flush(1);
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(soon([&] { return hosts.ledgers[1].count == uint64_t{kFrames} * Ledger::kThreads; }));
    CHECK(!hosts.ledgers[1].disorder);
}

STORY("given a peer that was disowned, when it sends, then it is refused, and nobody reports it") {
    Hosts hosts({.hosts = 2});
    hosts.links[1]->disown(0);
    CHECK(hosts.links[0]->send(1, Type::kPage, {}));
    CHECK(
        soon([&] { return hosts.links[1]->counters(0).refused[static_cast<size_t>(Refusal::kLost)] == 1; }));
    CHECK(!hosts.links[1]->send(0, Type::kPage, {}));
    CHECK_EQ(hosts.ledgers[1].lost, 0u);
}

STORY(
    "given threads that send without a pause, when the links stop, then it is at once, and nothing is called "
    "after") {
    for (int round = 0; round < 20; ++round) {
        Switch wires({.hosts = 2});
        auto left = std::make_unique<Ledger>(), right = std::make_unique<Ledger>();
        const auto a = wires.link(0), b = wires.link(1);
        a->start(*left);
        b->start(*right);
        std::atomic<bool> over{false};
        std::vector<std::thread> threads;
        for (const auto& link : {a, b}) {
            threads.emplace_back([&over, link, to = static_cast<HostId>(link == a)] {
                while (!over) {
                    link->send(to, Type::kHeartbeat, {});
                    link->wake();
                }
            });
        }
        std::this_thread::sleep_for(2ms);
        a->stop();
        a->stop();
        left.reset();  // its memory is gone: a late callback would be seen by the sanitizer
        b->stop();
        over = true;
        for (std::thread& thread : threads) thread.join();
    }
}

RUN_STORIES()
