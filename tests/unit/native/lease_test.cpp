// SPDX-License-Identifier: GPL-2.0-or-later
// Leases on a network that delays, cuts, and stops hosts: nobody is said to be lost while he still runs.
#include "link/lease.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "check.hpp"

using coremesh::HostId;
using namespace coremesh::link;

namespace {

constexpr int64_t kMs = 1'000'000;
constexpr int64_t kSecond = 1000 * kMs;

/// Hosts with clocks of their own rates, on a network that holds a message as long as a story likes.
class World {
  public:
    World(unsigned hosts, uint32_t seed, double drift = 0, LeaseTimes times = {}) : random_(seed) {
        for (unsigned id = 0; id < hosts; ++id) {
            Host& host = hosts_.emplace_back();
            host.rate = 1.0 + drift * (id % 2 ? 1 : -1);
            host.offset = static_cast<int64_t>(random_() % 1000) * kSecond;
            host.lease = std::make_unique<Lease>(static_cast<HostId>(id), hosts, clock(id), times);
            host.heard_zero = clock(id);
        }
    }

    struct Host {
        double rate = 1;
        int64_t offset = 0;
        std::unique_ptr<Lease> lease;
        int64_t stopped_until = 0;
        int64_t heard_zero = 0;     // own time; what a naive lease would go by
        int64_t said_lost_at = -1;  // true time at which host 0 gave it up
        std::vector<std::pair<HostId, std::vector<uint8_t>>> socket;
    };

    int64_t now() const { return now_; }
    int64_t clock(unsigned id) const {
        return hosts_[id].offset + static_cast<int64_t>(static_cast<double>(now_) * hosts_[id].rate);
    }
    Lease& lease(unsigned id) { return *hosts_[id].lease; }
    bool runs(unsigned id) { return lease(id).held(clock(id)); }
    bool naively_runs(unsigned id) { return clock(id) - hosts_[id].heard_zero < 1500 * kMs; }
    int64_t said_lost_at(unsigned id) const { return hosts_[id].said_lost_at; }
    bool anybody_lost() const {
        return std::any_of(hosts_.begin(), hosts_.end(), [](const Host& h) { return h.said_lost_at >= 0; });
    }
    unsigned running() {
        unsigned count = 0;
        for (unsigned id = 0; id < hosts_.size(); ++id) count += runs(id);
        return count;
    }

    void cut(HostId from, HostId to, bool is_cut = true) { cut_[{from, to}] = is_cut; }
    void stop(HostId id, int64_t time) { hosts_[id].stopped_until = now_ + time; }
    /// By default a message takes 0.1 to 1 ms.
    std::function<int64_t(HostId from, HostId to)> delay;
    /// What is looked at after every step; default: whoever is given up after a silence does not run.
    std::function<void(HostId lost)> on_lost;

    void run(int64_t time) {
        for (const int64_t end = now_ + time; now_ < end; now_ += kMs) step();
    }

  private:
    void step() {
        for (auto packet = wire_.begin(); packet != wire_.end() && packet->first <= now_;) {
            auto& [to, from, bytes] = packet->second;
            hosts_[to].socket.emplace_back(from, bytes);
            packet = wire_.erase(packet);
        }
        for (HostId id = 0; id < hosts_.size(); ++id) {
            Host& host = hosts_[id];
            if (now_ < host.stopped_until) continue;
            // The socket is read first, as a thread does that was stopped inside its poll.
            for (const auto& [from, bytes] : std::exchange(host.socket, {})) {
                const auto beat = Beat::decode(bytes);
                CHECK(beat.has_value());
                if (from == 0) host.heard_zero = clock(id);
                obey(id, host.lease->heard(from, *beat, clock(id)));
            }
            obey(id, host.lease->tick(clock(id)));
            CHECK(host.lease->next() > clock(id));
        }
    }

    void obey(HostId id, const Lease::Orders& orders) {
        for (HostId to = 0; to < hosts_.size(); ++to) {
            if (orders.lost >> to & 1) {
                CHECK_EQ(id, 0);
                hosts_[to].said_lost_at = now_;
                if (on_lost) on_lost(to);
            }
            if (!(orders.send >> to & 1)) continue;
            std::vector<uint8_t> bytes(Beat::kBytes);
            hosts_[id].lease->beat(to, clock(id)).encode(std::span<uint8_t, Beat::kBytes>(bytes));
            if (cut_[{id, to}]) continue;
            const int64_t takes = delay ? delay(id, to) : kMs / 10 + static_cast<int64_t>(random_() % kMs);
            // TCP keeps the order of one direction.
            int64_t& last = last_arrival_[{id, to}];
            last = std::max(last, now_ + takes);
            wire_.emplace(last, std::tuple(to, id, bytes));
        }
    }

    int64_t now_ = 0;
    std::minstd_rand random_;
    std::vector<Host> hosts_;
    std::map<std::pair<HostId, HostId>, bool> cut_;
    std::map<std::pair<HostId, HostId>, int64_t> last_arrival_;
    std::multimap<int64_t, std::tuple<HostId, HostId, std::vector<uint8_t>>> wire_;
};

/// A machine that has run for a while.
struct Running : World {
    explicit Running(unsigned hosts, uint32_t seed = 1, double drift = 0, LeaseTimes times = {})
        : World(hosts, seed, drift, times) {
        run(2 * kSecond);
        CHECK_EQ(running(), hosts);
        on_lost = [this](HostId lost) { CHECK(!runs(lost)); };
    }
};

}  // namespace

STORY("given a heartbeat, when it is encoded and decoded, then it is the same, and other bytes are none") {
    std::vector<uint8_t> bytes(Beat::kBytes);
    Beat{.number = 5, .echo = 4, .unheard = 8, .lease_ns = 7, .fenced = true}.encode(
        std::span<uint8_t, Beat::kBytes>(bytes));
    const auto beat = Beat::decode(bytes);
    CHECK(beat && beat->number == 5 && beat->echo == 4 && beat->unheard == 8 && beat->fenced &&
          beat->lease_ns == 7);
    for (size_t length = 0; length < bytes.size(); ++length) {
        CHECK(!Beat::decode(std::span(bytes).first(length)));
    }
    for (size_t at = 0; at < 8; ++at) {
        auto other = bytes;
        other[at] ^= 0x82;
        CHECK(!Beat::decode(other));
    }
}

STORY("given hosts that all live, when they start, then all hold a lease after a few milliseconds") {
    World world(4, 3);
    CHECK_EQ(world.running(), 0u);
    world.run(20 * kMs);
    CHECK_EQ(world.running(), 4u);
}

STORY("given hosts that all live, when a minute passes on clocks that differ by 2 %, then nobody stops") {
    for (const unsigned hosts : {2u, 5u}) {
        Running world(hosts, 7, 0.02);
        world.run(60 * kSecond);
        CHECK_EQ(world.running(), hosts);
        CHECK(!world.anybody_lost());
    }
}

STORY("given a host that never comes, when the time to join is over, then it is lost and nobody runs") {
    World world(3, 1);
    world.stop(2, 100 * kSecond);
    world.run(9 * kSecond);
    CHECK(!world.anybody_lost());
    CHECK(!world.runs(0));
    world.run(2 * kSecond);
    CHECK(world.said_lost_at(2) >= 0);
    CHECK_EQ(world.said_lost_at(1), -1);
    CHECK_EQ(world.running(), 0u);
    CHECK_EQ(world.lease(0).why(), Lease::Fence::kNotJoined);
}

STORY(
    "given a running machine, when one host dies, then it is said to be lost within three seconds and all "
    "stop") {
    for (const HostId victim : {1, 2}) {
        Running world(3);
        const int64_t at = world.now();
        world.stop(victim, 1000 * kSecond);
        world.run(3 * kSecond);
        CHECK(world.said_lost_at(victim) >= 0);
        CHECK(world.said_lost_at(victim) - at < 3 * kSecond);
        CHECK_EQ(world.said_lost_at(3 - victim), -1);  // the one that only misses its neighbour is not blamed
        CHECK_EQ(world.running(), 0u);
        CHECK(world.lease(3 - victim).lost() >> victim & 1);  // and has been told whom it misses
    }
}

STORY("given a running machine, when host 0 dies, then all others stop by themselves") {
    Running world(4);
    world.stop(0, 1000 * kSecond);
    world.run(1700 * kMs);
    for (HostId id = 1; id < 4; ++id) {
        CHECK(!world.runs(id));
        CHECK_EQ(world.lease(id).why(), Lease::Fence::kExpired);
    }
}

STORY(
    "given a cut in one direction or both, when host 0 says that a host is lost, then that host has "
    "stopped") {
    for (const unsigned directions : {1u, 2u, 3u}) {
        Running world(2);
        const int64_t at = world.now();
        world.cut(0, 1, directions & 1);
        world.cut(1, 0, directions & 2);
        world.run(3 * kSecond);
        CHECK(world.said_lost_at(1) >= 0);
        CHECK(world.said_lost_at(1) - at < 3 * kSecond);
        CHECK_EQ(world.running(), 0u);
        if (directions == 2) {
            // The mistake that the echoes avoid: to live on because host 0 can still be heard.
            CHECK(world.naively_runs(1));
        }
    }
}

STORY("given a cut shorter than a second, when it heals, then nobody has noticed") {
    Running world(3);
    for (int time = 0; time < 5; ++time) {
        world.cut(0, 1);
        world.cut(1, 0);
        world.run(900 * kMs);
        world.cut(0, 1, false);
        world.cut(1, 0, false);
        world.run(kSecond);
    }
    CHECK_EQ(world.running(), 3u);
    CHECK(!world.anybody_lost());
}

STORY(
    "given two hosts that both hear host 0 but not each other, when time passes, then one of them is named") {
    Running world(4);
    world.on_lost = nullptr;  // neither is silent, so the one that is named is told so, not waited for
    const int64_t at = world.now();
    world.cut(1, 3);
    world.run(3 * kSecond);
    CHECK(world.said_lost_at(3) >= 0);
    CHECK(world.said_lost_at(3) - at < 3 * kSecond);
    CHECK_EQ(world.said_lost_at(1), -1);
    CHECK_EQ(world.running(), 0u);
}

STORY(
    "given a host that is stopped for long, when it goes on, then it finds its lease expired before it looks "
    "at "
    "what came meanwhile") {
    for (const int64_t time : {1600 * kMs, 2500 * kMs, 20 * kSecond}) {
        Running world(3);
        world.stop(1, time);
        world.run(time + 10 * kMs);
        CHECK(!world.runs(1));
        CHECK_EQ(world.lease(1).why(), Lease::Fence::kStopped);
        world.run(3 * kSecond);
        CHECK(world.said_lost_at(1) >= 0);
        CHECK_EQ(world.running(), 0u);
    }
}

STORY("given a host that is stopped for a second, when it goes on, then the machine does") {
    for (const HostId id : {0, 1}) {
        Running world(3);
        world.stop(id, kSecond);
        world.run(10 * kSecond);
        CHECK_EQ(world.running(), 3u);
    }
}

STORY(
    "given that host 0 is stopped for longer than a lease, when it goes on, then it knows that it is alone") {
    for (const int64_t time : {1800 * kMs, 20 * kSecond}) {
        Running world(3);
        world.stop(0, time);
        world.run(time + 2 * kMs);
        CHECK_EQ(world.running(), 0u);
        CHECK_EQ(world.lease(0).why(), Lease::Fence::kStopped);
    }
}

STORY("given old heartbeats that are played again, when a lease has expired, then they do not give it back") {
    Lease lease(1, 2, 0);
    Beat mine = lease.beat(0, 10);
    constexpr int64_t kGranted = 1500 * kMs;
    lease.heard(0, {.number = 1, .echo = mine.number, .lease_ns = kGranted}, 20);
    CHECK(lease.held(20));
    CHECK(lease.held(10 + 1499 * kMs));
    lease.heard(0, {.number = 1, .echo = mine.number, .lease_ns = 4 * kGranted}, 1400 * kMs);  // again
    // An echo of what was never said, and a host that there is not.
    lease.heard(0, {.number = 2, .echo = mine.number + 9, .lease_ns = kGranted}, 1400 * kMs);
    lease.heard(7, {.number = 1, .echo = 0, .lease_ns = kGranted}, 1400 * kMs);
    CHECK(!lease.held(10 + 1500 * kMs));
    CHECK_EQ(lease.tick(10 + 1500 * kMs).fence, Lease::Fence::kExpired);
    CHECK_EQ(lease.tick(11 + 1500 * kMs).fence, Lease::Fence::kNone);  // said once
}

STORY(
    "given delays, cuts, stops and clocks at random, when a host is given up for its silence, then it does "
    "not "
    "run; and a fault that stays ends the machine") {
    unsigned ended = 0, naive_mistakes = 0;
    for (uint32_t seed = 1; seed <= 400; ++seed) {
        std::minstd_rand random(seed * 7919);
        const unsigned hosts = 2 + random() % 3;
        Running world(hosts, seed, 0.05);
        bool pair_cut = false;
        world.on_lost = [&](HostId lost) {
            // Two hosts cut from each other are both alive: the one that is named is told.
            if (!pair_cut) CHECK(!world.runs(lost));
            if (world.naively_runs(lost)) ++naive_mistakes;
        };
        int64_t slowest = 1 + random() % 900;
        world.delay = [&](HostId, HostId) { return static_cast<int64_t>(random() % slowest) * kMs; };
        for (unsigned event = 0; event < 12 && !world.anybody_lost(); ++event) {
            const auto a = static_cast<HostId>(random() % hosts), b = static_cast<HostId>(random() % hosts);
            switch (random() % 4) {
                case 0:
                    world.stop(a, static_cast<int64_t>(random() % 4000) * kMs);
                    break;
                case 1:
                    if (a != b) world.cut(a, b, random() % 2);
                    if (a != 0 && b != 0) pair_cut = true;
                    break;
                case 2:
                    slowest = 1 + random() % 4000;
                    if (hosts > 2) pair_cut = true;  // such delays look like cuts between two
                    break;
                default:
                    break;
            }
            world.run(static_cast<int64_t>(random() % 3000) * kMs);
        }
        for (HostId a = 0; a < hosts; ++a) {
            for (HostId b = 0; b < hosts; ++b) world.cut(a, b);
        }
        world.run(9 * kSecond);
        CHECK_EQ(world.running(), 0u);
        ended += world.anybody_lost();
    }
    CHECK(ended > 100);
    CHECK(naive_mistakes > 0);
}

STORY("given heartbeats that stay out and ticks that come late, then the longest of each is known") {
    Lease lease(0, 2, 0);
    lease.heard(1, {.number = 1}, 0);
    CHECK_EQ(lease.silence_longest(), 0);  // before its first nothing was silent
    lease.heard(1, {.number = 2}, 700 * kMs);
    lease.heard(1, {.number = 3}, 900 * kMs);
    CHECK_EQ(lease.silence_longest(), 700 * kMs);
    CHECK(lease.beat_late_longest() >= 500 * kMs);  // one was due at 200 ms, and nothing ran until 700
}

STORY("given a computer that becomes ever busier, when its hosts come late, then none is taken for dead") {
    // A control: leases that stay as short as on an idle computer.
    LeaseTimes never_more;
    never_more.most_ns = never_more.lease_ns;
    for (const bool learns : {true, false}) {
        Running world(3, 5, 0.02, learns ? LeaseTimes{} : never_more);
        for (int64_t late = 300; late <= 1600 && !world.anybody_lost(); late += 50) {
            for (HostId id = 0; id < 3; ++id) {
                world.stop(id, late * kMs);
                world.run((late / 2 + 100 * id) * kMs);
            }
            world.run(300 * kMs);
        }
        CHECK_EQ(world.running(), learns ? 3u : 0u);
        CHECK_EQ(world.anybody_lost(), !learns);
        if (!learns) continue;
        CHECK(world.lease(0).lease_ns() > 4 * kSecond);
        CHECK(world.lease(0).silence_longest() > kSecond);
        CHECK(world.lease(0).beat_late_longest() > kSecond);
        // A host that dies now is noticed later, and has stopped by then as ever.
        world.run(61 * kSecond);
        CHECK_EQ(world.lease(0).lease_ns(), 1500 * kMs);
        const int64_t at = world.now();
        world.stop(1, 1000 * kSecond);
        world.run(3 * kSecond);
        CHECK(world.said_lost_at(1) - at < 3 * kSecond);
        CHECK_EQ(world.running(), 0u);
    }
}

STORY("given a busy computer, when a host dies, then it is said to be lost within eight seconds") {
    Running world(2);
    for (const int64_t late : {kSecond, 3 * kSecond}) {
        world.stop(1, late);
        world.run(late + kSecond);
        CHECK_EQ(world.running(), 2u);
    }
    const int64_t at = world.now();
    world.stop(1, 1000 * kSecond);
    world.run(3 * kSecond);
    CHECK_EQ(world.said_lost_at(1), -1);
    world.run(5 * kSecond);
    CHECK(world.said_lost_at(1) - at < 8 * kSecond);
    CHECK_EQ(world.running(), 0u);
}

RUN_STORIES()
