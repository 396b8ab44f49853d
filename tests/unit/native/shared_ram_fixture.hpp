// SPDX-License-Identifier: GPL-2.0-or-later
// A RAM that several hosts share, seen from one of them, and a home that has every page for the asking.
#pragma once

#include <unistd.h>

#include <atomic>
#include <csetjmp>
#include <cstring>
#include <functional>
#include <vector>

#include "page_table_fixture.hpp"

namespace coremesh {

/// ThreadSanitizer blocks every signal around a handler, so there a jump out of one must restore the mask.
#ifdef __SANITIZE_THREAD__
inline constexpr int kSaveMask = 1;
#else
inline constexpr int kSaveMask = 0;
#endif

/// Answers page_needed at once, in the faulting thread, with the bytes that it has.
class Home final : public PageSink {
  public:
    Home(GuestRam& ram, uint64_t size) : ram_(ram), bytes_(size) { asked.reserve(4096); }

    struct Ask {
        uint64_t page;
        Access want;
        bool had_code;
    };
    std::vector<Ask> asked;  ///< the first of them: nothing may be allocated in a signal handler
    std::atomic<uint64_t> asks{0};
    bool answer = true;
    unsigned pause_us = 0;         ///< before it returns without an answer
    sigjmp_buf* escape = nullptr;  ///< where to go instead of answering

    uint8_t* bytes(uint64_t page) { return bytes_.data() + page * kPage; }

    void page_needed(const FaultContext& fault, uint64_t page, Access want) noexcept override {
        if (asks++ < 4096) asked.push_back({page, want, fault.had_code});
        if (!answer) {
            if (escape) siglongjmp(*escape, 1);
            if (pause_us) usleep(pause_us);
            return;
        }
        if (ram_.page_table()->access(page) == Access::kNone) {
            std::memcpy(ram_.protocol_base() + page * kPage, bytes(page), kPage);
        }
        ram_.page_table()->set_access(page, want);
    }

  private:
    GuestRam& ram_;
    std::vector<uint8_t> bytes_;
};

struct SharedMachine {
    explicit SharedMachine(Protection protection, unsigned engines = 4, PageTable::Options options = {},
                           uint64_t size = 4 * kMiB)
        : ram(two_blocks(size, size / 2), protection, true),
          home(ram, size),
          table(ram.track_code(diary, engines, options)) {
        ram.set_page_sink(&home);
    }

    volatile uint8_t* at(uint64_t page, unsigned offset = 0) {
        return ram.guest_base() + page * kPage + offset;
    }
    void store(uint64_t page, uint8_t byte, unsigned offset = 0) {
        *at(page, offset) = byte;
        // The compiler does not see that the handler may have run, and written in the diary.
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    uint8_t load(uint64_t page, unsigned offset = 0) {
        const uint8_t byte = *at(page, offset);
        std::atomic_signal_fence(std::memory_order_seq_cst);
        return byte;
    }
    /// Relaxed, which is the same instruction: around others ThreadSanitizer holds a lock of its own, and
    /// they fault.
    void add(uint64_t page, uint64_t number) {
        reinterpret_cast<std::atomic<uint64_t>*>(ram.guest_base() + page * kPage)
            ->fetch_add(number, std::memory_order_relaxed);
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    /// Whether an access asks for the page; it is given up then. Writes what it reads.
    bool refused(uint64_t page, bool write) {
        sigjmp_buf out;
        home.escape = &out;
        bool asked = false;
        if (sigsetjmp(out, kSaveMask) == 0) {
            if (write) {
                add(page, 0);
            } else {
                load(page);
            }
        } else {
            asked = true;
        }
        home.escape = nullptr;
        return asked;
    }

    Diary diary;
    GuestRam ram;
    Home home;
    PageTable& table;
};

/// The story once for each way to guard shared memory that this host has.
inline void with_all(const std::function<void(Protection)>& story) {
    static const ProtectionProbe probe = probe_protection();
    if (probe.shared_userfaultfd.works) story(Protection::userfaultfd);
    if (probe.shared_userfaultfd_copy.works) story(Protection::userfaultfd_copy);
    if (probe.shared_mprotect.works) story(Protection::mprotect);
}

}  // namespace coremesh
