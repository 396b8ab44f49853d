// SPDX-License-Identifier: GPL-2.0-or-later
// The page protocol under thousands of random schedules: any message may be late, any thread slow. After
// every step a page has one writer or readers, and whoever sees it sees the last write.
#include <cstdint>
#include <iostream>
#include <random>

#include "check.hpp"
#include "coherence_network.hpp"

using namespace coherence_network;

namespace {

using Does = Thread::Does;

struct Mix {
    unsigned hosts;
    uint64_t pages;
    unsigned threads;
    Policy policy;
    unsigned prefetch;
};

/// One random schedule of `steps` steps and then rest. Returns the instructions that ended.
uint64_t run_schedule(const Mix& mix, uint64_t seed, unsigned steps) {
    std::mt19937_64 random(seed);
    const auto below = [&](uint64_t bound) { return random() % bound; };
    Options options;
    options.policy = mix.policy;
    options.prefetch = options.first_touch = mix.prefetch;
    Network network(mix.hosts, mix.pages, options);
    for (unsigned number = 0; number < mix.threads; ++number) network.add_thread(number % mix.hosts);
    for (unsigned step = 0; step < steps && network.broken().empty(); ++step) {
        const auto number = static_cast<unsigned>(below(mix.threads));
        switch (below(8)) {
            case 0:
            case 1:
                network.begin(number, static_cast<Does>(1 + below(4)), below(mix.pages), below(mix.pages));
                break;
            case 2:
                network.run(number);
                break;
            case 3:
                network.advance(below(40));
                network.fire();
                break;
            default:
                network.deliver(static_cast<unsigned>(below(mix.hosts)),
                                static_cast<unsigned>(below(mix.hosts)));
        }
        network.check();
    }
    if (network.broken().empty()) {
        network.finish();
        network.check();
    }
    if (!network.broken().empty()) {
        std::cout << "seed " << seed << " with " << mix.hosts << " hosts: " << network.broken() << std::endl;
    }
    CHECK(network.broken().empty());
    CHECK_EQ(network.violations(), 0u);
    uint64_t done = 0;
    for (const Thread& thread : network.threads()) done += thread.done;
    return done;
}

void run_all(Policy policy) {
    uint64_t done = 0;
    for (uint64_t seed = 0; seed < 150; ++seed) {
        done += run_schedule({2, 2, 4, policy, 0}, seed, 600);
        done += run_schedule({3, 2, 6, policy, 0}, seed, 600);
        done += run_schedule({3, 12, 6, policy, 4}, seed, 600);
        done += run_schedule({5, 5, 15, policy, 2}, seed, 600);
    }
    std::cout << "  " << done << " instructions" << std::endl;
    CHECK(done > 10'000);
}

}  // namespace

STORY("given hosts that move every page, when anything may be late, then every read sees the last write") {
    run_all(Policy::kNever);
}

STORY(
    "given hosts that never move an owned page for an atomic, when anything may be late, then none is lost") {
    run_all(Policy::kAlways);
}

STORY("given hosts that judge for themselves, when anything may be late, then none is lost") {
    run_all(Policy::kAdaptive);
}

RUN_STORIES()
