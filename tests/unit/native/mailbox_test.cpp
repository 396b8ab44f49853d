// SPDX-License-Identifier: GPL-2.0-or-later
// The mailbox when several threads post to one vCPU at once. Where an order matters, the wrong order is tried
// beside the right one: a test that cannot fail proves nothing.
#include "vcpu/mailbox.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "check.hpp"
#include "guest/x86/signals.hpp"

using namespace coremesh;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

/// Between none and a few hundred steps, now and then the whole CPU: what may come between any two steps of a
/// thread.
void dawdle(std::minstd_rand& random) {
    const unsigned steps = random() % 64 * (random() % 8);
    for (unsigned i = 0; i < steps; i++) asm volatile("");
    if (random() % 64 == 0) std::this_thread::yield();
}

/// False when `word` does not become `wanted` within `patience`.
bool becomes(const std::atomic<uint64_t>& word, uint64_t wanted, milliseconds patience) {
    const auto end = steady_clock::now() + patience;
    for (unsigned spins = 0; word != wanted; ++spins) {
        if (spins % 256 == 255) {
            if (steady_clock::now() > end) return false;
            std::this_thread::yield();
        }
    }
    return true;
}

}  // namespace

STORY("given a full mailbox, when one more page is posted, then it says so once and works on") {
    constexpr uint64_t kPlaces = 256;
    Mailbox mailbox;
    uint64_t page;
    for (unsigned round = 0; round < 3; ++round) {
        for (uint64_t n = 0; n < kPlaces; ++n) mailbox.post_page(n);
        CHECK(mailbox.take(kRequestPages));
        CHECK(!mailbox.take_overflow());
        mailbox.post_page(kPlaces);
        mailbox.post_page(kPlaces + 1);
        CHECK(mailbox.take(kRequestPages));
        for (uint64_t n = 0; n < kPlaces; ++n) {
            CHECK(mailbox.next_page(page));
            CHECK_EQ(page, n);
        }
        CHECK(!mailbox.next_page(page));
        CHECK(!mailbox.entry_under_way());
        CHECK(mailbox.take_overflow());
        CHECK(!mailbox.take_overflow());
        CHECK_EQ(mailbox.pending(), 0u);
    }
}

STORY("given writers that never overfill it, when all post at once, then each page comes once and in order") {
    constexpr unsigned kWriters = 4;
    constexpr uint64_t kPages = 60'000, kOutstanding = 60;  // 4 * 60 fit
    Mailbox mailbox;
    std::array<std::atomic<uint64_t>, kWriters> taken{};
    std::vector<std::thread> writers;
    for (unsigned id = 0; id < kWriters; id++) {
        writers.emplace_back([&, id] {
            std::minstd_rand random(id + 1);
            for (uint64_t n = 1; n <= kPages; n++) {
                while (n > taken[id] + kOutstanding) std::this_thread::yield();
                mailbox.post_page(uint64_t{id} << 32 | n);
                if (n % 32 == 0) dawdle(random);
            }
        });
    }
    uint64_t left = kWriters * kPages;
    while (left) {
        // As the vCPU does it: the queue is looked at when the bit says so, and never otherwise.
        if (!mailbox.take(kRequestPages)) {
            std::this_thread::yield();
            continue;
        }
        for (uint64_t page; mailbox.next_page(page); --left) {
            const auto id = static_cast<unsigned>(page >> 32);
            CHECK_EQ(page & 0xFFFF'FFFF, taken[id] + 1);
            taken[id]++;
        }
        CHECK(!mailbox.take_overflow());
    }
    for (auto& writer : writers) writer.join();
    CHECK(!mailbox.entry_under_way());
}

STORY(
    "given writers that post pages, when one loses the CPU inside its post, then the others' pages are known "
    "to be due") {
    constexpr unsigned kWriters = 4;
    Mailbox mailbox;
    // Each writer counts its posts before and after: when it is counted after, the write that it announces
    // goes on.
    std::array<std::atomic<uint64_t>, kWriters> begun{};
    std::array<std::atomic<uint64_t>, kWriters> written{};
    std::atomic<bool> stop{false};
    std::vector<std::thread> writers;
    for (unsigned id = 0; id < kWriters; id++) {
        writers.emplace_back([&, id] {
            for (uint64_t post = 1; !stop; post++) {
                begun[id] = post;
                mailbox.post_page(id);
                written[id] = post;
                for (volatile int pace = 0; pace < 20;) pace = pace + 1;
            }
        });
    }
    std::array<uint64_t, kWriters> dropped{};  // the last post that the page's code was dropped for
    uint64_t lost = 0;
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(700);
    while (std::chrono::steady_clock::now() < end) {
        std::array<uint64_t, kWriters> seen;
        for (unsigned id = 0; id < kWriters; id++) seen[id] = written[id];
        std::array<bool, kWriters> due{};
        if (mailbox.pending() & kRequestPages) {
            mailbox.take(kRequestPages);
            for (uint64_t page; mailbox.next_page(page);) due[page] = true;
            if (mailbox.take_overflow() || mailbox.entry_under_way()) due.fill(true);
        }
        for (unsigned id = 0; id < kWriters; id++) {
            if (due[id]) dropped[id] = begun[id];
            lost += dropped[id] < seen[id];
        }
    }
    stop = true;
    for (auto& writer : writers) writer.join();
    CHECK_EQ(lost, 0u);
}

namespace {

enum class Drain { kBitFirst, kQueueFirst };

/// Handshakes over one page each, until `budget` is over; the number of the one that was lost, or 0.
uint64_t page_handshakes(Drain order, milliseconds budget, milliseconds patience) {
    Mailbox mailbox;
    std::atomic<uint64_t> seen{0};
    std::atomic<bool> stop{false};
    std::thread vcpu([&] {
        std::minstd_rand random(7);
        while (!stop) {
            if (!(mailbox.pending() & kRequestPages)) continue;
            if (order == Drain::kBitFirst) mailbox.take(kRequestPages);
            for (uint64_t page; mailbox.next_page(page);) seen = page;
            dawdle(random);
            if (order == Drain::kQueueFirst) mailbox.take(kRequestPages);
        }
    });
    uint64_t lost = 0, number = 0;
    const auto end = steady_clock::now() + budget;
    while (!lost && steady_clock::now() < end) {
        mailbox.post_page(++number);
        if (!becomes(seen, number, patience)) lost = number;
    }
    stop = true;
    vcpu.join();
    return lost;
}

}  // namespace

STORY(
    "given a consumer that takes the bit and then the queue, when pages come at any moment, then none "
    "stays") {
    CHECK_EQ(page_handshakes(Drain::kBitFirst, milliseconds(400), milliseconds(20'000)), 0u);
}

STORY("given a consumer in the wrong order, when pages come at any moment, then the test notices one lost") {
    CHECK(page_handshakes(Drain::kQueueFirst, milliseconds(20'000), milliseconds(300)) != 0);
}

namespace {

enum class Pair { kTogether, kApart };

struct Starts {
    uint64_t pairs = 0;
    bool lost = false;   ///< a core that was sent INIT and SIPI never started
    bool stray = false;  ///< a core was started by a SIPI that came before its INIT
};

/// One thread resets and starts a core over and over; the core is the vCPU's state machine as it stands in
/// vcpu.cpp (sleeps left out).
Starts reset_and_start(Pair taking, milliseconds budget, milliseconds patience) {
    Mailbox mailbox;
    x86::Signals signals(mailbox);
    // How often the core was started, and by which vector: start << 8 | vector.
    std::atomic<uint64_t> started{0};
    std::atomic<bool> stop{false};
    std::thread core([&] {
        std::minstd_rand random(3);
        bool waiting = true;
        while (!stop) {
            if (waiting) {
                mailbox.take(x86::Signals::kInit);
                // The window of the mistake, held open so that it is found at once.
                if (taking == Pair::kApart)
                    std::this_thread::sleep_for(std::chrono::microseconds(random() % 50));
                if (taking == Pair::kTogether ? signals.take_sipi_unless_init()
                                              : mailbox.take(x86::Signals::kSipi) != 0) {
                    started = ((started >> 8) + 1) << 8 | signals.sipi_vector();
                    waiting = false;
                }
            } else {
                signals.drop_sipi_unless_init();
                dawdle(random);
                waiting = mailbox.take(x86::Signals::kInit) != 0;
            }
        }
    });
    Starts result;
    std::minstd_rand random(5);
    const auto end = steady_clock::now() + budget;
    while (!result.lost && !result.stray && steady_clock::now() < end) {
        const auto vector = static_cast<uint8_t>(1 + random() % 255);
        // A core that waits takes a SIPI rightly; one that runs must let the INIT undo it.
        if (result.pairs && random() % 2) signals.post_sipi(0);
        signals.post_init();
        dawdle(random);
        if (random() % 2) signals.post_init();  // also before the first was taken
        signals.post_sipi(vector);
        const uint64_t expected = ++result.pairs << 8 | vector;
        if (!becomes(started, expected, patience)) {
            result.stray = started >> 8 > result.pairs || (started & 0xFF) == 0;
            result.lost = !result.stray;
        }
    }
    stop = true;
    core.join();
    return result;
}

}  // namespace

STORY("given a core, when INIT and SIPI come at any moment, then the SIPI starts it after the INIT") {
    const Starts starts = reset_and_start(Pair::kTogether, milliseconds(500), milliseconds(20'000));
    CHECK(!starts.lost);
    CHECK(!starts.stray);
    CHECK(starts.pairs > 100);
}

STORY(
    "given a core that looks at INIT and SIPI apart, when they come at any moment, then the test notices "
    "it") {
    const Starts starts = reset_and_start(Pair::kApart, milliseconds(20'000), milliseconds(300));
    CHECK(starts.lost || starts.stray);
}

STORY("given a SIPI that nobody took, when an INIT comes after it, then only a SIPI after that counts") {
    Mailbox mailbox;
    x86::Signals signals(mailbox);
    signals.post_sipi(0x10);
    signals.post_init();
    CHECK_EQ(mailbox.pending(), uint32_t{x86::Signals::kInit});
    signals.post_sipi(0x20);
    signals.drop_sipi_unless_init();
    CHECK_EQ(mailbox.pending(), uint32_t{x86::Signals::kInit | x86::Signals::kSipi});
    CHECK(!signals.take_sipi_unless_init());
    CHECK(mailbox.take(x86::Signals::kInit));
    CHECK(signals.take_sipi_unless_init());
    CHECK_EQ(signals.sipi_vector(), 0x20);
    CHECK_EQ(mailbox.pending(), 0u);
}

RUN_STORIES()
