// SPDX-License-Identifier: GPL-2.0-or-later
// The IRR's bitmap under many producers, beside one whose two steps are in the wrong order.
#include "guest/x86/vector_bitmap.hpp"

#include <atomic>
#include <array>
#include <barrier>
#include <bit>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "check.hpp"

using coremesh::x86::VectorBitmap;

namespace {

/// The same two words, but a producer announces the word before it sets the vector: the consumer can find the
/// word empty and take the announcement back in between.
class AnnouncesFirst {
  public:
    bool set(uint8_t vector) noexcept {
        const uint64_t bit = uint64_t{1} << (vector & 63);
        summary_.fetch_or(1u << (vector >> 6));
        if (++calls_ % 64 == 0) std::this_thread::yield();  // as a host that preempts would do in time
        return !(words_[vector >> 6].fetch_or(bit) & bit);
    }
    int highest() noexcept {
        for (unsigned word = 4; word-- > 0;) {
            if (!(summary_.load() & (1u << word))) continue;
            if (const uint64_t bits = words_[word].load())
                return static_cast<int>(word * 64 + std::bit_width(bits) - 1);
            retire(word);
        }
        return -1;
    }
    void clear(uint8_t vector) noexcept {
        const uint64_t bit = uint64_t{1} << (vector & 63);
        if ((words_[vector >> 6].fetch_and(~bit) & ~bit) == 0) retire(vector >> 6);
    }

  private:
    void retire(unsigned word) {
        summary_.fetch_and(~(1u << word));
        if (words_[word].load() != 0) summary_.fetch_or(1u << word);
    }
    std::atomic<uint32_t> summary_{0};
    std::array<std::atomic<uint64_t>, 4> words_{};
    static inline thread_local unsigned calls_ = 0;
};

struct Outcome {
    uint64_t sets = 0;
    uint64_t lost = 0;  ///< vectors that the consumer did not find although their producer was done
};

/// Producers set random vectors of their own in short rounds; after each round the consumer, who took vectors
/// all the while, looks once more and must have seen each vector's last number.
template <typename Bitmap>
Outcome stress(std::chrono::milliseconds budget, unsigned burst) {
    constexpr unsigned kProducers = 3;
    auto bitmap = std::make_unique<Bitmap>();
    std::array<std::atomic<uint32_t>, 256> published{};
    std::array<uint32_t, 256> seen{};
    std::atomic<unsigned> working{0};
    std::atomic<bool> over{false};
    std::barrier round(kProducers + 1);
    Outcome outcome;

    std::vector<std::thread> producers;
    for (unsigned producer = 0; producer < kProducers; ++producer) {
        producers.emplace_back([&, producer] {
            std::minstd_rand random(producer + 1);
            for (;;) {
                round.arrive_and_wait();
                if (over.load()) return;
                for (unsigned count = 0; count < burst; ++count) {
                    const auto vector = static_cast<uint8_t>(16 + producer + kProducers * (random() % 80));
                    published[vector].fetch_add(1, std::memory_order_relaxed);
                    bitmap->set(vector);
                }
                working.fetch_sub(1);
            }
        });
    }
    const auto take_all = [&] {
        for (int vector; (vector = bitmap->highest()) >= 0;) {
            bitmap->clear(static_cast<uint8_t>(vector));
            // Relaxed: the bitmap itself must order it after the producer's increment.
            seen[static_cast<unsigned>(vector)] =
                published[static_cast<unsigned>(vector)].load(std::memory_order_relaxed);
        }
    };
    const auto end = std::chrono::steady_clock::now() + budget;
    while (std::chrono::steady_clock::now() < end && outcome.lost == 0) {
        working.store(kProducers);
        round.arrive_and_wait();
        while (working.load() != 0) take_all();
        take_all();
        for (unsigned vector = 0; vector < 256; ++vector) {
            if (seen[vector] != published[vector].load()) {
                ++outcome.lost;
                seen[vector] = published[vector].load();
                bitmap->clear(static_cast<uint8_t>(vector));
            }
        }
        outcome.sets += uint64_t{kProducers} * burst;
    }
    over.store(true);
    round.arrive_and_wait();
    for (std::thread& producer : producers) producer.join();
    return outcome;
}

}  // namespace

STORY("given vectors set one by one, then highest finds the highest, and nothing when all are taken") {
    VectorBitmap bitmap;
    CHECK_EQ(bitmap.highest(), -1);
    for (unsigned vector = 0; vector < 256; ++vector) {
        CHECK(bitmap.set(static_cast<uint8_t>(vector)));
        CHECK(!bitmap.set(static_cast<uint8_t>(vector)));
        CHECK_EQ(bitmap.highest(), static_cast<int>(vector));
    }
    for (unsigned index = 0; index < 8; ++index) CHECK_EQ(bitmap.register32(index), 0xFFFF'FFFFu);
    for (unsigned vector = 256; vector-- > 0;) {
        CHECK_EQ(bitmap.highest(), static_cast<int>(vector));
        bitmap.clear(static_cast<uint8_t>(vector));
    }
    CHECK_EQ(bitmap.highest(), -1);
    bitmap.set(0x42);
    bitmap.set(0xF1);
    bitmap.clear_all();
    CHECK_EQ(bitmap.highest(), -1);
}

STORY("given three producers and one consumer, when they meet millions of times, then no vector is lost") {
    const Outcome outcome = stress<VectorBitmap>(std::chrono::milliseconds(2000), 4000);
    std::cout << "  " << outcome.sets << " sets\n";
    CHECK_EQ(outcome.lost, 0u);
    CHECK(outcome.sets > 10'000);
}

STORY(
    "given the same in short rounds, so that each round's last vectors are nobody's to find but the "
    "consumer's, then none is lost") {
    const Outcome outcome = stress<VectorBitmap>(std::chrono::milliseconds(1500), 24);
    std::cout << "  " << outcome.sets << " sets\n";
    CHECK_EQ(outcome.lost, 0u);
}

STORY("control: given the two steps in the wrong order, then the same stress does lose vectors") {
    const Outcome outcome = stress<AnnouncesFirst>(std::chrono::seconds(20), 24);
    std::cout << "  " << outcome.lost << " lost after " << outcome.sets << " sets\n";
    CHECK(outcome.lost > 0);
}

RUN_STORIES()
