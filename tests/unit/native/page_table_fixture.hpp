// SPDX-License-Identifier: GPL-2.0-or-later
// A RAM with code pages, and a sink that writes down what it is told.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "ram/page_table.hpp"
#include "ram/guest_ram.hpp"
#include "ram_layouts.hpp"

namespace coremesh {

inline constexpr uint64_t kPage = 4096;
inline constexpr uint64_t kMiB = uint64_t{1} << 20;

/// Writes down what it is told; what a story wants to happen then it puts into `on_post` and `on_self_write`.
class Diary final : public CodeSink {
  public:
    Diary() {
        // Written inside a signal handler, where nothing may be allocated.
        posts.reserve(4096);  // the most that a story makes
        faults.reserve(4096);
    }
    struct Post {
        unsigned engine;
        uint64_t page;
        uint8_t byte;  ///< what the page's watched byte was at the time of the post
    };
    std::vector<Post> posts;
    std::vector<FaultContext> faults;
    const uint8_t* watched = nullptr;  ///< in the protocol view
    std::function<void(uint64_t page)> on_post = [](uint64_t) {};
    std::function<void(const FaultContext&)> on_self_write = [](const FaultContext&) {};

    void code_written(unsigned engine, uint64_t page) noexcept override {
        if (posts.size() < posts.capacity()) posts.push_back({engine, page, watched ? *watched : uint8_t{0}});
        on_post(page);
    }
    void self_write(const FaultContext& fault) noexcept override {
        // In a signal handler no memory may be asked for; what a story looks at comes first.
        if (faults.size() < faults.capacity()) faults.push_back(fault);
        on_self_write(fault);
    }
};

struct Machine {
    explicit Machine(Protection protection, unsigned engines = 4, PageTable::Options options = {},
                     uint64_t size = 4 * kMiB)
        : ram(two_blocks(size, size / 2), protection), code(ram.track_code(diary, engines, options)) {}

    void store(uint64_t page, uint8_t byte, unsigned at = 0) {
        static_cast<volatile uint8_t*>(ram.guest_base())[page * kPage + at] = byte;
        // The compiler does not see that the handler may have run, and written in the diary.
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    uint64_t faults() const { return code.counters().faults; }

    Diary diary;
    GuestRam ram;
    PageTable& code;
};

/// While it lives the process has as many mappings as vm.max_map_count allows.
class NoMappingsLeft {
  public:
    NoMappingsLeft() : length_((map_count_limit() + 1000) * kPage) {
        at_ = static_cast<uint8_t*>(mmap(nullptr, length_, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        for (size_t page = kPage; page < length_; page += 2 * kPage) {
            if (mprotect(at_ + page, kPage, PROT_READ) != 0) break;
        }
        // A split in two may still fit where one in three does not.
        (void)mprotect(at_ + length_ - kPage, kPage, PROT_READ);
    }
    ~NoMappingsLeft() { munmap(at_, length_); }

  private:
    size_t length_;
    uint8_t* at_;
};

/// The story once for each protection that this host has.
inline void with_both(const std::function<void(Protection)>& story) {
    static const ProtectionProbe probe = probe_protection();
    if (probe.userfaultfd) story(Protection::userfaultfd);
    if (probe.mprotect) story(Protection::mprotect);
}

}  // namespace coremesh
