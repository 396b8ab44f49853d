// SPDX-License-Identifier: GPL-2.0-or-later
// Stress: vCPUs that write code and vCPUs that run it, with the engine reduced to what matters for coherence.
//
// A page's code is one number, its generation. Its writer stores generation g into the page and then
// publishes g elsewhere, as a guest does that patches code and then tells others to run it. A vCPU that has
// seen g published and then runs the page must run generation g or later. A cached translation is the number
// as it was read; a block head is the place where the mailbox is looked at. The vCPUs are of one host, or of
// two that share the RAM by the smallest page protocol there is.
#include <sys/types.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "ram_layouts.hpp"
#include "ram/page_table.hpp"
#include "ram/guest_ram.hpp"
#include "toy_protocol.hpp"

using namespace coremesh;

namespace {

constexpr uint64_t kPage = 4096;
constexpr unsigned kVcpus = 4;
constexpr unsigned kPages = 8;  ///< page p is written by vCPU p % kVcpus
constexpr unsigned kCodeAt = 512;
constexpr unsigned kDataAt = 2048;
constexpr uint64_t kEnough = 1000;  ///< generations, before a run may say that all is well

/// What a run is allowed to leave out. Each but `none` must be found out by the same check.
enum class Flaw { none, no_protection, no_self_check, post_after_write, revoke_without_post };

class Coherence final : public CodeSink {
  public:
    struct Result {
        uint64_t stale = 0;
        uint64_t runs = 0;
        uint64_t generations = 0;
        uint64_t moves = 0;  ///< of pages between hosts
        PageCounters counters;
    };

    Coherence(Protection protection, unsigned mixed_after, Flaw flaw, bool disk, unsigned hosts)
        : flaw_(flaw), disk_(disk) {
        for (unsigned host = 0; host < hosts; host++) {
            rams_.push_back(std::make_unique<GuestRam>(one_block(kPages * kPage), protection, hosts > 1));
            rams_.back()->track_code(*this, kVcpus, {.mixed_after = mixed_after, .max_runs = 3});
            if (hosts > 1) protocol_.join(*rams_.back());
        }
    }

    Result run(std::chrono::milliseconds time) {
        std::vector<std::thread> threads;
        for (unsigned id = 0; id < kVcpus; id++) threads.emplace_back([this, id] { vcpu(id); });
        const auto start = std::chrono::steady_clock::now();
        const auto gone = [&] { return std::chrono::steady_clock::now() - start; };
        do {  // on a busy host for as long as it takes to have tried anything
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        } while (gone() < time || (generations() < kEnough && gone() < 10 * time));
        stop_ = true;
        for (auto& thread : threads) thread.join();
        return {stale_, runs_, generations(), protocol_.moves(), rams_[0]->page_table()->counters()};
    }
    uint64_t generations() const {
        uint64_t sum = 0;
        for (const auto& generation : published_) sum += generation;
        return sum;
    }

    void code_written(unsigned engine, uint64_t page) noexcept override {
        if (flaw_ == Flaw::revoke_without_post && ToyProtocol::revoking) return;
        // Dawdle now and then: what must not happen between a post and its write gets its chance.
        if (posts_.fetch_add(1, std::memory_order_relaxed) % 4 == 0) std::this_thread::yield();
        vcpus_[engine].written.fetch_or(1u << page);
        vcpus_[engine].kick.store(true);
    }
    void self_write(const FaultContext&) noexcept override {}

  private:
    struct Translation {
        uint64_t generation;
        bool checks_itself;
    };
    struct alignas(64) Vcpu {
        std::atomic<uint32_t> written{0};  ///< the mailbox: pages whose translations must go
        std::atomic<bool> kick{false};
        // The vCPU's own from here on.
        std::array<std::optional<Translation>, kPages> translation;
        uint32_t random = 1;
    };

    /// vCPUs take turns at the hosts.
    unsigned host_of(unsigned id) const { return id % static_cast<unsigned>(rams_.size()); }
    GuestRam& ram_of(unsigned id) const { return *rams_[host_of(id)]; }

    uint64_t code(unsigned id, unsigned page) const {
        return reinterpret_cast<std::atomic<uint64_t>*>(ram_of(id).guest_base() + page * kPage + kCodeAt)
            ->load(std::memory_order_relaxed);
    }

    void block_head(unsigned id) {
        Vcpu& self = vcpus_[id];
        if (!self.kick.load(std::memory_order_relaxed) || !self.kick.exchange(false)) return;
        const uint32_t written = self.written.exchange(0);
        for (unsigned page = 0; page < kPages; page++) {
            if (written >> page & 1) self.translation[page].reset();
        }
    }

    void store(unsigned id, unsigned page, unsigned at, uint64_t value) {
        reinterpret_cast<std::atomic<uint64_t>*>(ram_of(id).guest_base() + page * kPage + at)
            ->store(value, std::memory_order_relaxed);
    }

    void patch(unsigned id, unsigned page) {
        const Vcpu& self = vcpus_[id];
        GuestRam& ram = ram_of(id);
        const uint64_t generation = published_[page].load(std::memory_order_relaxed) + 1;
        if (flaw_ == Flaw::post_after_write) {
            reinterpret_cast<std::atomic<uint64_t>*>(ram.protocol_base() + page * kPage + kCodeAt)
                ->store(generation, std::memory_order_relaxed);
            published_[page].store(generation, std::memory_order_release);
            std::this_thread::yield();
            ram.page_table()->announce_write(page * kPage + kCodeAt, 8);
            return;
        }
        if (disk_ && self.random & 64) {
            const uint64_t offset = page * kPage + kCodeAt;
            if (rams_.size() > 1) {
                protocol_.write(host_of(id), offset, &generation, sizeof(generation));
            } else {
                ram.write(offset, &generation, sizeof(generation));
            }
        } else {
            store(id, page, kCodeAt, generation);
        }
        published_[page].store(generation, std::memory_order_release);
    }

    void run_code(unsigned id, unsigned page) {
        Vcpu& self = vcpus_[id];
        const uint64_t seen = published_[page].load(std::memory_order_acquire);
        for (;;) {
            block_head(id);
            auto& translation = self.translation[page];
            if (translation && translation->checks_itself && translation->generation != code(id, page)) {
                translation.reset();
            }
            if (translation) break;
            const bool guarded =
                flaw_ == Flaw::no_protection || ram_of(id).page_table()->begin_translation(id, page);
            translation = {code(id, page), !guarded && flaw_ != Flaw::no_self_check};
        }
        if (self.translation[page]->generation < seen) stale_.fetch_add(1, std::memory_order_relaxed);
        runs_.fetch_add(1, std::memory_order_relaxed);
    }

    void vcpu(unsigned id) {
        Vcpu& self = vcpus_[id];
        self.random = id + 1;
        while (!stop_.load(std::memory_order_relaxed)) {
            self.random = self.random * 1664525 + 1013904223;  // Numerical Recipes, 7.1
            const unsigned page = self.random >> 16 & (kPages - 1);
            const unsigned what = self.random >> 24 & 31;
            if (what == 0) patch(id, page / kVcpus * kVcpus + id);
            if (what == 1) store(id, page, kDataAt + id * 8, self.random);
            run_code(id, page);
        }
    }

    std::vector<std::unique_ptr<GuestRam>> rams_;  ///< one a host
    ToyProtocol protocol_;
    const Flaw flaw_;
    const bool disk_;
    std::array<Vcpu, kVcpus> vcpus_;
    std::array<std::atomic<uint64_t>, kPages> published_{};
    std::atomic<uint64_t> stale_{0}, runs_{0}, posts_{0};
    std::atomic<bool> stop_{false};
};

constexpr std::chrono::milliseconds kStress{500};

Coherence::Result stress(Protection protection, unsigned mixed_after, Flaw flaw, bool disk,
                         unsigned hosts = 1) {
    auto machine = std::make_unique<Coherence>(protection, mixed_after, flaw, disk, hosts);
    const auto result = machine->run(kStress);
    std::printf(
        "       %-12s %8llu runs, %6llu generations, %6llu faults (%llu spurious), %6llu posts, %llu mixed, "
        "%llu moves, %llu stale\n",
        std::string(name_of(protection)).c_str(), (unsigned long long)result.runs,
        (unsigned long long)result.generations, (unsigned long long)result.counters.faults,
        (unsigned long long)result.counters.spurious, (unsigned long long)result.counters.invalidations,
        (unsigned long long)result.counters.mixed_pages, (unsigned long long)result.moves,
        (unsigned long long)result.stale);
    return result;
}

std::vector<Protection> protections() {
    const ProtectionProbe probe = probe_protection();
    std::vector<Protection> all{Protection::mprotect};
    if (probe.userfaultfd) all.push_back(Protection::userfaultfd);
    return all;
}

/// The ways to guard memory that several hosts share.
std::vector<Protection> shared_protections() {
    const ProtectionProbe probe = probe_protection();
    std::vector<Protection> all{Protection::mprotect};
    if (probe.shared_userfaultfd.works) all.push_back(Protection::userfaultfd);
    if (probe.shared_userfaultfd_copy.works) all.push_back(Protection::userfaultfd_copy);
    return all;
}

}  // namespace

STORY("given vCPUs that patch code the others run, then none runs old code after it saw the new announced") {
    for (const Protection protection : protections()) {
        const auto result = stress(protection, 0, Flaw::none, false);
        CHECK_EQ(result.stale, 0u);
        CHECK(result.generations >= kEnough);
        CHECK(result.counters.faults > 100);
    }
}

STORY("given a disk that patches code too, then none runs old code") {
    for (const Protection protection : protections()) {
        const auto result = stress(protection, 0, Flaw::none, true);
        CHECK_EQ(result.stale, 0u);
        CHECK(result.generations >= kEnough);
    }
}

STORY("given pages that mix hot data and code, when they become mixed under way, then none runs old code") {
    for (const Protection protection : protections()) {
        const auto result = stress(protection, 16, Flaw::none, true);
        CHECK_EQ(result.stale, 0u);
        CHECK_EQ(result.counters.mixed_pages, uint64_t{kPages});
        CHECK(result.generations >= kEnough);
    }
}

STORY("given blocks of mixed pages that do not check themselves, then old code is run") {
    for (const Protection protection : protections()) {
        CHECK(stress(protection, 16, Flaw::no_self_check, false).stale > 0);
    }
}

STORY("given the same without protection, then old code is run: the check can fail") {
    for (const Protection protection : protections()) {
        CHECK(stress(protection, 0, Flaw::no_protection, false).stale > 0);
    }
}

STORY("given writes that are posted after they are done, then old code is run: the order matters") {
    for (const Protection protection : protections()) {
        CHECK(stress(protection, 0, Flaw::post_after_write, false).stale > 0);
    }
}

STORY(
    "given vCPUs of two hosts, when one patches code that the other has translated, then none runs old "
    "code") {
    for (const Protection protection : shared_protections()) {
        const auto result = stress(protection, 0, Flaw::none, true, 2);
        CHECK_EQ(result.stale, 0u);
        CHECK(result.generations >= kEnough);
        CHECK(result.moves > 100);
    }
}

STORY("given two hosts whose pages become mixed, when they move on between them, then none runs old code") {
    for (const Protection protection : shared_protections()) {
        const auto result = stress(protection, 16, Flaw::none, true, 2);
        CHECK_EQ(result.stale, 0u);
        CHECK(result.counters.mixed_pages > 0);
        CHECK(result.moves > 100);
    }
}

STORY(
    "given a page that is taken from a host without a word to those who translated from it, then old code is "
    "run") {
    for (const Protection protection : shared_protections()) {
        CHECK(stress(protection, 0, Flaw::revoke_without_post, false, 2).stale > 0);
    }
}

RUN_STORIES()
