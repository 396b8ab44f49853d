// SPDX-License-Identifier: GPL-2.0-or-later
// Clocks of hosts that drift apart over links that delay: how near to host 0's they are kept.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <random>
#include <vector>

#include "base/clock.hpp"
#include "base/clock_follower.hpp"
#include "base/clock_sync.hpp"
#include "check.hpp"

using coremesh::Clock;
using coremesh::ClockFollower;
using coremesh::ClockMessage;
using coremesh::ClockSync;

namespace {

constexpr uint64_t kHz = 2'445'424'000;

/// A guest clock over a made-up host counter; times are true nanoseconds.
struct SimulatedClock {
    double rate = 1;    // its crystal's truth
    double behind = 0;  // when it was switched on, in ns
    double from = 0, value = 0, slew_end = 0, slew_rate = 1, own_rate = 1;

    double unchanged(double now) const { return (now - behind) * rate * kHz / 1e9; }
    double tsc(double now) const {
        const double at = unchanged(now);
        const double slewed = std::min(at, slew_end) - from;
        return value + slewed * slew_rate + std::max(0.0, at - slew_end) * own_rate;
    }
    void start(double now) { from = slew_end = value = unchanged(now); }
    void apply(const ClockSync::Correction& correction, double now) {
        const double shows = tsc(now);
        value = correction.set ? static_cast<double>(correction.tsc)
                               : std::max(shows, correction.jump ? static_cast<double>(correction.tsc) : 0.0);
        from = unchanged(now);
        own_rate = 1 + static_cast<double>(correction.drift_ppb) * 1e-9;
        const auto over = static_cast<double>(correction.over);
        const double offset = std::clamp(static_cast<double>(correction.offset), -over / 2, over / 2);
        slew_rate = own_rate + (over > 0 ? offset / over : 0);
        slew_end = from + over;
    }
};

struct Path {
    double there_ns, back_ns;  // without jitter
    double jitter_ns;          // mean of what comes on top, each way
    double bursts = 0;         // share of messages that take 10 times the jitter
    double loss = 0;
};

/// One following host and host 0, as a story of `seconds`; notes the worst error after the first `warm_up`.
class Simulation {
  public:
    Simulation(uint32_t seed, Path path, double drift, double behind_ns)
        : chance_(seed), path_(path), sync_({.hz = kHz}) {
        own.rate = 1 + drift;
        own.behind = behind_ns;
        own.start(std::max(0.0, behind_ns));
        host0.start(0);
        now_ = std::max(0.0, behind_ns) + 1e6;
    }

    double error_ns() const { return (host0.tsc(now_) - own.tsc(now_)) * 1e9 / kHz; }

    void run(double seconds, double warm_up = 0) {
        const double begin = now_, end = now_ + seconds * 1e9;
        while (now_ < end) {
            now_ = std::max(now_, static_cast<double>(sync_.next_ns()));
            exchange();
            if (now_ - begin > warm_up * 1e9) worst = std::max(worst, std::abs(error_ns()));
            CHECK(own.tsc(now_) >= shown_ || !settled_before_);  // once shown to a guest: never back
            shown_ = own.tsc(now_);
            settled_before_ = sync_.facts().settled;
        }
    }

    const ClockSync::Facts& facts() const { return sync_.facts(); }
    double now() const { return now_; }

    SimulatedClock host0, own;
    double worst = 0;

  private:
    double one_way(double base) {
        std::exponential_distribution<double> more(1 / path_.jitter_ns);
        std::uniform_real_distribution<double> share(0, 1);
        return base + more(chance_) * (share(chance_) < path_.bursts ? 10 : 1);
    }

    void exchange() {
        const auto question = sync_.ask(static_cast<int64_t>(now_), word(own.unchanged(now_)));
        if (!question) {
            now_ += 1e3;
            return;
        }
        const double received = now_ + one_way(path_.there_ns);
        ClockMessage answer = *ClockMessage::decode(question->encode());
        answer.kind = ClockMessage::Kind::kAnswer;
        answer.received = word(host0.tsc(received));
        answer.answered = word(host0.tsc(received + 3'000));
        if (std::uniform_real_distribution<double>(0, 1)(chance_) < path_.loss) return;
        now_ = received + 3'000 + one_way(path_.back_ns);
        const auto correction = sync_.answered(*ClockMessage::decode(answer.encode()),
                                               word(own.unchanged(now_)), word(own.tsc(now_)));
        if (correction) own.apply(*correction, now_);
    }

    static uint64_t word(double ticks) { return static_cast<uint64_t>(static_cast<int64_t>(ticks)); }

    std::mt19937 chance_;
    Path path_;
    ClockSync sync_;
    double now_ = 0, shown_ = 0;
    bool settled_before_ = false;
};

}  // namespace

STORY("given links of 50 to 600 us with jitter and hosts that drift, then clocks stay within 50 us") {
    const Path paths[] = {{25e3, 25e3, 5e3},
                          {25e3, 25e3, 25e3, 0.05},
                          {92e3, 92e3, 20e3, 0.02},
                          {300e3, 300e3, 40e3},
                          {300e3, 300e3, 100e3, 0.02, 0.05}};
    for (const Path& path : paths) {
        for (const double drift : {-80e-6, -3e-6, 0.0, 40e-6, 100e-6}) {
            for (uint32_t seed = 1; seed <= 4; ++seed) {
                Simulation simulation(seed, path, drift, seed % 2 ? 3e9 : -2e9);
                simulation.run(60, 2);
                if (simulation.worst > 30e3) {
                    std::cout << "  path " << path.there_ns << " jitter " << path.jitter_ns << " drift "
                              << drift << " worst " << simulation.worst << " ns\n";
                }
                CHECK(simulation.facts().settled);
                CHECK(simulation.worst < 50e3);
            }
        }
    }
}

STORY(
    "given a machine that starts, then the clock is settled within 100 ms and never turns back after that") {
    for (uint32_t seed = 1; seed <= 50; ++seed) {
        Simulation simulation(seed, {90e3, 90e3, 30e3}, 50e-6, 1e9);
        simulation.run(0.1);
        CHECK(simulation.facts().settled);
        CHECK(std::abs(simulation.error_ns()) < 50e3);
    }
}

STORY("given a path that is slower one way, then the error is half of the difference and no more") {
    Simulation simulation(7, {100e3, 160e3, 5e3}, 20e-6, 0);
    simulation.run(30, 5);
    CHECK(simulation.worst > 20e3 && simulation.worst < 40e3);
    CHECK(static_cast<double>(simulation.facts().uncertainty_ns) > simulation.worst);
}

STORY("given host 0's clock jumps, then the past is forgotten and the clocks are together again in seconds") {
    for (const double jump_us : {200.0, 5'000.0, 2e6}) {
        Simulation simulation(3, {90e3, 90e3, 20e3}, 30e-6, 0);
        simulation.run(20, 3);
        CHECK(simulation.worst < 50e3);
        simulation.host0.value += jump_us * 1e-6 * kHz;
        simulation.run(1);
        CHECK_EQ(simulation.facts().restarts, 1u);
        simulation.worst = 0;
        simulation.run(20, 2);
        CHECK(simulation.worst < 50e3);
        CHECK_EQ(simulation.facts().restarts, 1u);
    }
}

STORY("given the own clock was carried ahead by a message, then it is slowed until host 0's has come up") {
    Simulation simulation(3, {90e3, 90e3, 20e3}, 30e-6, 0);
    simulation.run(10, 3);
    simulation.own.value += 300e-6 * kHz;  // run() checks that it never turns back
    simulation.run(1);
    simulation.worst = 0;
    simulation.run(10);
    CHECK(simulation.worst < 50e3);
}

STORY("given host 0 does not answer, then it is asked again and the clock goes on at its last rate") {
    Simulation simulation(9, {90e3, 90e3, 20e3, 0, 0}, 70e-6, 0);
    simulation.run(30, 3);
    ClockSync sync({.hz = kHz});
    int asked = 0;
    for (int64_t now = 0; now < 5'000'000'000; now += 1'000'000) asked += sync.ask(now, 0) ? 1 : 0;
    CHECK_EQ(asked, 25);
    CHECK_EQ(sync.facts().unanswered, 24u);
    CHECK(!sync.facts().settled);
    // Ten seconds alone: at the rate that was measured, a few us a second.
    const double later = simulation.now() + 10e9;
    const double apart = simulation.host0.tsc(later) - simulation.own.tsc(later);
    CHECK(std::abs(apart) * 1e9 / kHz < 60e3);
}

STORY(
    "given an answer that fits no question, or that no clock can have given, then it is counted and "
    "ignored") {
    ClockSync sync({.hz = kHz});
    const auto question = sync.ask(0, 1000);
    CHECK(question.has_value());
    ClockMessage answer = *question;
    answer.kind = ClockMessage::Kind::kAnswer;
    ClockMessage wrong = answer;
    wrong.sequence ^= 1;
    CHECK(!sync.answered(wrong, 2000, 0));
    wrong = answer;
    wrong.asked = 999;
    CHECK(!sync.answered(wrong, 2000, 0));
    CHECK(!sync.answered(*question, 2000, 0));  // an echo
    CHECK(!sync.answered(answer, 999, 0));      // before it was asked
    wrong = answer;
    wrong.answered = kHz;  // took a second, between two moments of 1 us
    CHECK(!sync.answered(wrong, 3445, 0));
    CHECK(!sync.answered(answer, 3445, 0));  // and this question is over
    CHECK_EQ(sync.facts().refused, 6u);
    CHECK_EQ(sync.facts().exchanges, 0u);
}

STORY("given clocks half a range apart, then their difference is taken modulo 2^64") {
    ClockSync sync({.hz = kHz});
    uint64_t own = (uint64_t{1} << 63) + 7, theirs = 5;
    int64_t now = 0;
    for (int round = 0; round < 20; ++round) {
        now = sync.next_ns();
        ClockMessage answer = *sync.ask(now, own);
        own += 200'000, theirs += 200'000;
        answer.kind = ClockMessage::Kind::kAnswer;
        answer.received = theirs - 100'000;
        answer.answered = theirs - 100'000;
        const auto correction = sync.answered(answer, own, theirs);
        CHECK(correction.has_value());
        CHECK(std::llabs(static_cast<int64_t>(correction->tsc - theirs)) < 100);
    }
    CHECK(sync.facts().settled && std::llabs(sync.facts().error_ns) < 100);
}

STORY("given any bytes, then they are a message, or refused, and never both ways round") {
    const ClockMessage message{ClockMessage::Kind::kAnswer, 7, 1, 2, 3};
    const auto bytes = message.encode();
    const auto again = ClockMessage::decode(bytes);
    CHECK(again && again->sequence == 7 && again->asked == 1 && again->received == 2 && again->answered == 3);
    for (size_t length = 0; length < bytes.size(); ++length) {
        CHECK(!ClockMessage::decode(std::span(bytes).first(length)));
    }
    std::mt19937 chance(1);
    for (int round = 0; round < 200'000; ++round) {
        std::array<uint8_t, ClockMessage::kBytes> fuzzed = bytes;
        for (unsigned flips = 1 + chance() % 4; flips > 0; --flips) {
            fuzzed[chance() % fuzzed.size()] = static_cast<uint8_t>(chance());
        }
        const auto read = ClockMessage::decode(fuzzed);
        if (read) CHECK(read->encode() == fuzzed);
    }
}

STORY("given two hosts of this process, then the follower brings its clock to host 0's, and says so") {
    Clock first(kHz, kHz * 100, true), second(kHz, 0, true);
    std::vector<std::pair<int, std::vector<uint8_t>>> wire;
    const auto sender = [&wire](uint8_t, std::span<const uint8_t> bytes) {
        wire.emplace_back(0, std::vector<uint8_t>(bytes.begin(), bytes.end()));
    };
    ClockFollower host0(first, 0, sender), host1(second, 1, sender);
    CHECK(host0.settled() && !host1.settled());
    CHECK_EQ(host0.due(Clock::monotonic_ns()), -1);
    // The two never run at the same time, so a preemption only makes an exchange longer.
    const auto exchange = [&] {
        const int64_t next = host1.due(Clock::monotonic_ns());
        while (Clock::monotonic_ns() < next && wire.empty()) host1.due(Clock::monotonic_ns());
        while (!wire.empty()) {
            auto [_, bytes] = std::move(wire.front());
            wire.erase(wire.begin());
            (bytes[0] == 1 ? host0 : host1).received(bytes[0] == 1 ? 1 : 0, bytes);
        }
    };
    for (int round = 0; round < 500 && !host1.settled(); ++round) exchange();
    CHECK(host1.settled());
    host1.guest_runs();
    for (int round = 0; round < 8; ++round) exchange();
    bool close = false;
    for (int attempt = 0; attempt < 20 && !close; ++attempt) {
        const uint64_t before = first.tsc(), own = second.tsc(), after = first.tsc();
        close = own + first.ticks(20'000) > before && own < after + first.ticks(20'000);
    }
    CHECK(close);
    const auto facts = host1.facts();
    std::cout << "  error " << facts.error_ns << " ns, uncertainty " << facts.uncertainty_ns << " ns, drift "
              << facts.drift_ppb << " ppb\n";

    // What is none, or not for it, is counted and changes nothing.
    const auto answer = ClockMessage{ClockMessage::Kind::kAnswer, 1, 1, 2, 3}.encode();
    host0.received(1, answer);
    host1.received(2, answer);
    host1.received(0, std::span(answer).first(8));
    CHECK_EQ(host0.facts().garbage, 1u);
    CHECK_EQ(host1.facts().garbage, 2u);
}

RUN_STORIES()
