// SPDX-License-Identifier: GPL-2.0-or-later
// Stress on real memory: hosts in one process that count in the same pages, and translate from them too.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "shared_ram_fixture.hpp"
#include "toy_protocol.hpp"

using namespace coremesh;

namespace {

constexpr unsigned kHosts = 3;
constexpr unsigned kThreads = 2;  ///< vCPUs a host
constexpr uint64_t kPages = 6;
constexpr std::chrono::milliseconds kStress{400};

class NoEngines final : public CodeSink {
    void code_written(unsigned, uint64_t) noexcept override {
        if (posts_.fetch_add(1, std::memory_order_relaxed) % 4 == 0) std::this_thread::yield();
    }
    void self_write(const FaultContext&) noexcept override {}
    std::atomic<uint64_t> posts_{0};
};

struct Result {
    uint64_t done = 0;
    uint64_t found = 0;
    uint64_t backwards = 0;  ///< a counter read smaller than the same thread had read before
    uint64_t moves = 0;
    PageCounters counters;
};

class Counting {
  public:
    Counting(Protection protection, ToyProtocol::Flaw flaw, PageTable::Options options) : protocol_(flaw) {
        for (unsigned host = 0; host < kHosts; host++) {
            rams_.push_back(std::make_unique<GuestRam>(one_block(kPages * kPage), protection, true));
            rams_.back()->track_code(sink_, kThreads, options);
            protocol_.join(*rams_.back());
        }
    }

    Result run() {
        std::vector<std::thread> threads;
        for (unsigned id = 0; id < kHosts * kThreads; id++) threads.emplace_back([this, id] { vcpu(id); });
        const auto start = std::chrono::steady_clock::now();
        const auto gone = [&] { return std::chrono::steady_clock::now() - start; };
        do {
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        } while (gone() < kStress || (done_ < 2000 && gone() < 10 * kStress));
        stop_ = true;
        for (auto& thread : threads) thread.join();
        Result result{done_, 0, backwards_, protocol_.moves(), rams_[0]->page_table()->counters()};
        for (uint64_t page = 0; page < kPages; page++)
            result.found += counter(0, page).load(std::memory_order_relaxed);
        return result;
    }

  private:
    /// For relaxed accesses, which on x86 are the same instructions: around others ThreadSanitizer holds a
    /// lock of its own, and they fault.
    std::atomic<uint64_t>& counter(unsigned host, uint64_t page) {
        return *reinterpret_cast<std::atomic<uint64_t>*>(rams_[host]->guest_base() + page * kPage + 8 * page);
    }

    void vcpu(unsigned id) {
        const unsigned host = id / kThreads;
        std::array<uint64_t, kPages> seen{};
        uint64_t done = 0;
        uint32_t random = id + 1;
        while (!stop_.load(std::memory_order_relaxed)) {
            random = random * 1664525 + 1013904223;  // Numerical Recipes, 7.1
            const uint64_t page = (random >> 16) % kPages;
            const unsigned what = random >> 27;
            if (what < 2) (void)rams_[host]->page_table()->begin_translation(id % kThreads, page);
            // Reading alone, writing alone, or a read that becomes a write.
            const uint64_t now = what < 16 ? counter(host, page).load(std::memory_order_relaxed) : seen[page];
            backwards_ += now < seen[page];
            seen[page] = now;
            if (what >= 8) {
                seen[page] = counter(host, page).fetch_add(1, std::memory_order_relaxed) + 1;
                done++;
                if (done % 64 == 0) done_.fetch_add(64, std::memory_order_relaxed);
            }
        }
        done_.fetch_add(done % 64, std::memory_order_relaxed);
    }

    NoEngines sink_;
    ToyProtocol protocol_;
    std::vector<std::unique_ptr<GuestRam>> rams_;
    std::atomic<uint64_t> done_{0}, backwards_{0};
    std::atomic<bool> stop_{false};
};

Result stress(Protection protection, ToyProtocol::Flaw flaw, PageTable::Options options = {}) {
    options.mixed_after = 0;
    const Result result = std::make_unique<Counting>(protection, flaw, options)->run();
    const auto lost = static_cast<long long>(result.done) - static_cast<long long>(result.found);
    std::printf(
        "       %-16s %8llu increments, %6llu page moves, host 0: %llu asked, %llu mapped late, "
        "%llu code faults, %llu spurious, %llu evictions; %lld lost, %llu backwards\n",
        std::string(name_of(protection)).c_str(), (unsigned long long)result.done,
        (unsigned long long)result.moves, (unsigned long long)result.counters.pages_needed,
        (unsigned long long)result.counters.pages_mapped_late, (unsigned long long)result.counters.faults,
        (unsigned long long)result.counters.spurious, (unsigned long long)result.counters.evictions, lost,
        (unsigned long long)result.backwards);
    return result;
}

}  // namespace

STORY("given hosts that count in the same pages with locked additions, then no increment is lost") {
    with_all([](Protection protection) {
        const Result result = stress(protection, ToyProtocol::Flaw::none);
        CHECK_EQ(result.found, result.done);
        CHECK_EQ(result.backwards, 0u);
        CHECK(result.done >= 2000 && result.moves >= 500);
    });
}

STORY(
    "given hardly any mappings, when pages are mapped with less than was granted, then none is lost either") {
    const Result result = stress(Protection::mprotect, ToyProtocol::Flaw::none, {.max_runs = 2});
    CHECK_EQ(result.found, result.done);
    CHECK_EQ(result.backwards, 0u);
    CHECK(result.counters.evictions > 0);
}

STORY(
    "given a protocol that copies a page before it takes it away, then increments are lost: the check can "
    "fail") {
    with_all([](Protection protection) {
        const Result result = stress(protection, ToyProtocol::Flaw::copy_before_revoke);
        CHECK(result.found < result.done || result.backwards > 0);
    });
}

RUN_STORIES()
