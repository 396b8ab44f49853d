// SPDX-License-Identifier: GPL-2.0-or-later
// Code pages, one rule a story: who is told about a write, when, and what becomes of the page.
#include "ram/code_pages.hpp"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "check.hpp"
#include "ram/guest_ram.hpp"

using namespace coremesh;

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMiB = uint64_t{1} << 20;

/// Writes down what it is told; what a story wants to happen in self_write it puts into `on_self_write`.
class Diary final : public CodeSink {
  public:
    struct Post {
        unsigned engine;
        uint64_t page;
        uint8_t byte;  ///< what the page's watched byte was at the time of the post
    };
    std::vector<Post> posts;
    std::vector<uint64_t> becoming_mixed;
    std::vector<FaultContext> faults;
    const uint8_t* watched = nullptr;  ///< in the protocol view
    std::function<bool(const FaultContext&)> on_self_write = [](const FaultContext&) { return false; };

    void code_written(unsigned engine, uint64_t page) noexcept override {
        posts.push_back({engine, page, watched ? *watched : uint8_t{0}});
    }
    void page_becomes_mixed(uint64_t page) noexcept override { becoming_mixed.push_back(page); }
    bool self_write(const FaultContext& fault) noexcept override {
        faults.push_back(fault);
        return on_self_write(fault);
    }
};

struct Machine {
    explicit Machine(Protection protection, unsigned engines = 4, CodePages::Options options = {},
                     uint64_t size = 4 * kMiB)
        : ram(size, size / 2, protection), code(ram.track_code(diary, engines, options)) {}

    void store(uint64_t page, uint8_t byte, unsigned at = 0) {
        static_cast<volatile uint8_t*>(ram.guest_base())[page * kPage + at] = byte;
        std::atomic_signal_fence(
            std::memory_order_seq_cst);  // the handler may have run: the diary has changed
    }
    uint64_t faults() const { return code.counters().faults; }

    Diary diary;
    GuestRam ram;
    CodePages& code;
};

/// The story once for each protection that this host has.
void with_both(const std::function<void(Protection)>& story) {
    static const ProtectionProbe probe = probe_protection();
    if (probe.userfaultfd) story(Protection::userfaultfd);
    if (probe.mprotect) story(Protection::mprotect);
}

template <typename Error, typename Call>
bool throws(Call call) {
    try {
        call();
    } catch (const Error&) {
        return true;
    }
    return false;
}

}  // namespace

STORY(
    "given a page with code of two engines, when it is written, then both are told before the bytes change") {
    with_both([](Protection protection) {
        Machine machine(protection);
        machine.store(5, 0x11);
        machine.diary.watched = machine.ram.protocol_base() + 5 * kPage;
        CHECK(machine.code.begin_translation(1, 5));
        CHECK(machine.code.begin_translation(3, 5));
        CHECK_EQ(machine.code.owners(5)[0], 0b1010u);
        machine.store(5, 0x22);
        CHECK_EQ(machine.diary.posts.size(), 2u);
        for (const auto& post : machine.diary.posts) {
            CHECK_EQ(post.page, 5u);
            CHECK_EQ(int{post.byte}, 0x11);
        }
        CHECK_EQ(int{*machine.diary.watched}, 0x22);
        CHECK_EQ(machine.code.owners(5)[0], 0u);
        machine.store(5, 0x33);  // writable now
        CHECK_EQ(machine.faults(), 1u);
        CHECK_EQ(machine.diary.posts.size(), 2u);
    });
}

STORY(
    "given code on one page, when its neighbours or a page nobody translated are written, then nothing "
    "faults") {
    with_both([](Protection protection) {
        Machine machine(protection);
        CHECK(machine.code.begin_translation(0, 7));
        machine.store(6, 1, kPage - 1);
        machine.store(8, 1);
        machine.store(100, 1);
        CHECK_EQ(machine.faults(), 0u);
        CHECK(machine.diary.posts.empty());
    });
}

STORY("given pages never touched, touched by the guest, or filled by DMA, then each is guarded alike") {
    with_both([](Protection protection) {
        Machine machine(protection);
        machine.store(1, 1);
        CHECK(machine.ram.write(2 * kPage, "x", 1));
        for (const uint64_t page : {1, 2, 3}) {
            CHECK(machine.code.begin_translation(0, page));
            machine.store(page, 9);
        }
        CHECK_EQ(machine.faults(), 3u);
        CHECK_EQ(machine.diary.posts.size(), 3u);
    });
}

STORY("given an engine that translates from its page again, then the page is protected once") {
    with_both([](Protection protection) {
        Machine machine(protection);
        for (int i = 0; i < 100; i++) CHECK(machine.code.begin_translation(2, 9));
        CHECK(machine.code.begin_translation(0, 9));
        CHECK_EQ(machine.code.counters().protects, 1u);
        machine.store(9, 1);
        CHECK(machine.code.begin_translation(2, 9));
        CHECK_EQ(machine.code.counters().protects, 2u);
        machine.store(9, 2);
        CHECK_EQ(machine.diary.posts.size(), 3u);
    });
}

STORY("given 255 engines that translated from a page, when it is written, then every one is told once") {
    with_both([](Protection protection) {
        Machine machine(protection, 255);
        for (unsigned engine = 0; engine < 255; engine++) CHECK(machine.code.begin_translation(engine, 3));
        machine.store(3, 1);
        std::map<unsigned, int> told;
        for (const auto& post : machine.diary.posts) told[post.engine]++;
        CHECK_EQ(told.size(), 255u);
        CHECK_EQ(machine.diary.posts.size(), 255u);
    });
}

STORY(
    "given a disk that writes over code, then the owners are told before the bytes change and nothing "
    "faults") {
    with_both([](Protection protection) {
        Machine machine(protection);
        machine.diary.watched = machine.ram.protocol_base() + 4 * kPage;
        CHECK(machine.code.begin_translation(1, 4));
        CHECK(machine.code.begin_translation(2, 5));
        const std::vector<uint8_t> sector(2 * kPage, 0x77);
        CHECK(machine.ram.write(3 * kPage + 100, sector.data(),
                                sector.size()));  // pages 3, 4 and 100 bytes of 5
        CHECK_EQ(machine.diary.posts.size(), 2u);
        CHECK_EQ(int{machine.diary.posts[0].byte}, 0);
        CHECK_EQ(int{machine.ram.guest_base()[4 * kPage]}, 0x77);
        CHECK_EQ(machine.faults(), 0u);
        // Page 4 is still protected, for nobody: the guest's next write costs a fault and no post.
        machine.store(4, 1);
        CHECK_EQ(machine.faults(), 1u);
        CHECK(!machine.diary.faults[0].had_code);
        CHECK_EQ(machine.diary.posts.size(), 2u);
    });
}

STORY(
    "given a host that writes by itself, when it announces the write, then it learns whether code was hit") {
    with_both([](Protection protection) {
        Machine machine(protection);
        CHECK(!machine.ram.code_written_by_host(2 * kPage, 8));
        CHECK(machine.code.begin_translation(0, 2));
        CHECK(machine.ram.code_written_by_host(kPage, 2 * kPage));
        CHECK(!machine.ram.code_written_by_host(2 * kPage, 8));
        CHECK(!machine.ram.code_written_by_host(uint64_t{1} << 40, 8));
        CHECK_EQ(machine.diary.posts.size(), 1u);
    });
}

STORY(
    "given a fault above 4 GiB, then the sink is told the guest's address, the host's pc, and that code was "
    "there") {
    with_both([](Protection protection) {
        Machine machine(protection);
        const uint64_t gpa = RamLayout::kHighBase + 3 * kPage + 0x123;
        const uint64_t page = *machine.ram.offset_of(gpa) / kPage;
        CHECK(machine.code.begin_translation(0, page));
        machine.diary.on_self_write = [](const FaultContext&) { return true; };
        *static_cast<volatile uint8_t*>(machine.ram.guest_view(gpa)) = 1;
        CHECK_EQ(machine.diary.faults.size(), 1u);
        const FaultContext& fault = machine.diary.faults[0];
        CHECK_EQ(fault.gpa, gpa);
        CHECK_EQ(fault.ram_page, page);
        CHECK(fault.had_code);
        CHECK(fault.host_pc != 0);
        CHECK(fault.ucontext != nullptr);
        CHECK_EQ(machine.code.counters().self_writes, 1u);
    });
}

STORY(
    "given an engine that leaves the handler by siglongjmp, then it can fault and leave again, a thousand "
    "times") {
    with_both([](Protection protection) {
        static sigjmp_buf restart;
        static int left;
        left = 0;
        Machine machine(protection, 4, {.mixed_after = 0});
        machine.diary.on_self_write = [](const FaultContext&) -> bool { siglongjmp(restart, 1); };
        while (left < 1000) {
            CHECK(machine.code.begin_translation(0, 2));
            if (sigsetjmp(restart, 0) == 0) {
                machine.store(2, 0x11);
                CHECK(false);
            } else {
                left++;
            }
        }
        CHECK_EQ(machine.faults(), 1000u);
        machine.store(2, 0xee);  // the page was left writable: a restarted store goes through
        CHECK_EQ(int{machine.ram.protocol_base()[2 * kPage]}, 0xee);
        sigset_t blocked;
        pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
        CHECK(!sigismember(&blocked, SIGSEGV) && !sigismember(&blocked, SIGBUS));
    });
}

STORY(
    "given a page written again and again, then all engines are asked once, and it is guarded until all "
    "answered") {
    with_both([](Protection protection) {
        Machine machine(protection, 3, {.mixed_after = 8, .decay_ms = 60000});
        for (int i = 0; i < 20; i++) {
            CHECK(machine.code.begin_translation(0, 6));
            machine.store(6, 1);
        }
        CHECK_EQ(machine.diary.becoming_mixed.size(), 1u);
        CHECK_EQ(machine.diary.becoming_mixed.at(0), 6u);
        CHECK_EQ(machine.faults(), 20u);
        CHECK(machine.code.checks_stores(6));
        machine.code.acknowledge_mixed(0, 6);
        machine.code.acknowledge_mixed(0, 6);
        machine.code.acknowledge_mixed(2, 6);
        CHECK(!machine.code.is_mixed(6));
        CHECK(machine.code.begin_translation(1, 6));
        machine.diary.posts.clear();
        machine.code.acknowledge_mixed(1, 6);
        CHECK(machine.code.is_mixed(6));
        CHECK_EQ(machine.diary.posts.size(), 1u);  // translated under protection: no map of its bytes
        CHECK_EQ(machine.code.counters().mixed_pages, 1u);
        CHECK(machine.code.begin_translation(1, 6));
        machine.store(6, 2);
        CHECK_EQ(machine.faults(), 20u);  // never protected again
    });
}

STORY("given a page written now and then, then it does not become mixed") {
    with_both([](Protection protection) {
        Machine machine(protection, 1, {.mixed_after = 4, .decay_ms = 1});
        for (int i = 0; i < 12; i++) {
            CHECK(machine.code.begin_translation(0, 6));
            machine.store(6, 1);
            std::this_thread::sleep_for(
                std::chrono::milliseconds(12));  // the coarse clock ticks every 4 to 10 ms
        }
        CHECK(machine.diary.becoming_mixed.empty());
        CHECK(!machine.code.checks_stores(6));
    });
}

STORY(
    "given a mixed page, then a checked store to data tells nobody, and one to code tells its owners first") {
    with_both([](Protection protection) {
        Machine machine(protection, 2, {.mixed_after = 1, .decay_ms = 60000});
        CHECK(machine.code.begin_translation(0, 1));
        machine.store(1, 1);
        for (unsigned engine = 0; engine < 2; engine++) machine.code.acknowledge_mixed(engine, 1);
        CHECK(machine.code.is_mixed(1));
        machine.diary.posts.clear();

        CHECK(machine.code.begin_translation(1, 1));
        CHECK(machine.code.touches_code(1, 4000, 4000));  // being translated: all of it may be code
        machine.code.note_code_bytes(1, 1, 100, 163);
        CHECK(!machine.code.touches_code(1, 0, 99));
        CHECK(machine.code.touches_code(1, 96, 103));
        CHECK(machine.code.touches_code(1, 163, 163));
        CHECK(!machine.code.touches_code(1, 164, 4095));
        CHECK_EQ(machine.code.owners(1)[0], 0b10u);

        { CHECK(!CheckedStore(machine.code, kPage + 164, 8).hit()); }
        CHECK(machine.diary.posts.empty());
        machine.diary.watched = machine.ram.protocol_base() + kPage + 160;
        {
            const CheckedStore store(machine.code, kPage + 160, 8);
            CHECK(store.hit());
            std::memset(store.host(), 0x55, 8);
        }
        CHECK_EQ(machine.diary.posts.size(), 1u);
        CHECK_EQ(machine.diary.posts.at(0).engine, 1u);
        CHECK_EQ(int{machine.diary.posts.at(0).byte}, 0);
        CHECK_EQ(int{machine.ram.guest_base()[kPage + 160]}, 0x55);
        CHECK(!machine.code.touches_code(1, 0, 4095));

        CHECK(machine.code.begin_translation(0, 1));
        machine.code.note_code_bytes(0, 1, 0, 15);
        CHECK(!machine.ram.code_written_by_host(kPage + 16, 100));
        CHECK(machine.ram.write(kPage + 8, "12345678", 8));
        CHECK_EQ(machine.diary.posts.size(), 2u);
    });
}

STORY("given a checked store across two pages, then the code of both is invalidated") {
    with_both([](Protection protection) {
        Machine machine(protection);
        CHECK(machine.code.begin_translation(0, 10));
        CHECK(machine.code.begin_translation(1, 11));
        {
            const CheckedStore store(machine.code, 11 * kPage - 4, 8);
            std::memset(store.host(), 0x66, 8);
        }
        CHECK_EQ(machine.diary.posts.size(), 2u);
        CHECK_EQ(int{machine.ram.guest_base()[11 * kPage - 4]}, 0x66);
        CHECK_EQ(int{machine.ram.guest_base()[11 * kPage + 3]}, 0x66);
        CHECK_EQ(machine.faults(), 0u);
    });
}

STORY(
    "given more scattered code than mprotect has mappings for, then old pages are given up and their owners "
    "told") {
    constexpr uint64_t kRuns = 32;
    Machine machine(Protection::mprotect, 2, {.max_runs = kRuns}, 8 * kMiB);
    const uint64_t maps = map_count();
    for (uint64_t page = 0; page < 1000; page += 2) {
        CHECK(machine.code.begin_translation(0, page));
        CHECK(machine.code.runs() <= kRuns);
        CHECK(machine.code.owners(page)[0] == 1);
    }
    CHECK(map_count() <= maps + 2 * kRuns + 8);
    CHECK(machine.code.counters().evictions >= 500 - kRuns);
    CHECK_EQ(machine.diary.posts.size(), machine.code.counters().evictions);
    // A page that still has an owner is still guarded, and no other.
    uint64_t owned = 0;
    for (uint64_t page = 0; page < 1000; page += 2) owned += machine.code.owners(page)[0];
    for (uint64_t page = 0; page < 1000; page++) machine.store(page, 1);
    CHECK_EQ(machine.faults(), owned);
    CHECK_EQ(machine.diary.posts.size(), 500u);
    CHECK_EQ(machine.code.runs(), 0u);
}

STORY("given contiguous code, then it is one run whatever its size, and a write in its middle splits it") {
    Machine machine(Protection::mprotect, 1, {.max_runs = 4});
    for (uint64_t page = 100; page < 300; page++) CHECK(machine.code.begin_translation(0, page));
    CHECK_EQ(machine.code.runs(), 1u);
    CHECK_EQ(machine.code.counters().evictions, 0u);
    machine.store(200, 1);
    CHECK_EQ(machine.code.runs(), 2u);
    machine.store(100, 1);
    CHECK_EQ(machine.code.runs(), 2u);
    CHECK(machine.code.begin_translation(0, 200));
    CHECK_EQ(machine.code.runs(), 1u);
}

STORY(
    "given a process with no mapping left, when code in a run is written, then the whole run is given up at "
    "once") {
    Machine machine(Protection::mprotect, 1, {.max_runs = 1000});
    for (uint64_t page = 10; page < 20; page++) CHECK(machine.code.begin_translation(0, page));
    // Every second page read-only: the rest of what vm.max_map_count allows.
    const size_t length = (map_count_limit() + 1000) * kPage;
    void* const filler =
        mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(filler != MAP_FAILED);
    bool full = false;
    for (size_t at = kPage; at < length && !full; at += 2 * kPage) {
        full = mprotect(static_cast<uint8_t*>(filler) + at, kPage, PROT_READ) != 0;
    }
    // A split in two may still fit where one in three does not.
    full = full && mprotect(static_cast<uint8_t*>(filler) + length - kPage, kPage, PROT_READ) != 0;
    machine.store(15, 1);
    const auto posts = machine.diary.posts.size();
    const auto byte = machine.ram.protocol_base()[15 * kPage];
    munmap(filler, length);
    CHECK_EQ(posts, 10u);
    CHECK_EQ(int{byte}, 1);
    CHECK_EQ(machine.code.runs(), 0u);
    for (uint64_t page = 10; page < 20; page++) machine.store(page, 2);
    CHECK_EQ(machine.faults(), 1u);
    CHECK(machine.code.begin_translation(0, 15));
}

STORY("given machines that come and go beside one that runs, then its faults find it every time") {
    with_both([](Protection protection) {
        Machine machine(protection, 1, {.mixed_after = 0});
        std::atomic<bool> stop{false};
        std::thread others([&] {
            while (!stop) {
                Machine other(protection, 2, {.mixed_after = 0}, kMiB);
                for (uint64_t page = 0; page < 8; page++) {
                    if (!other.code.begin_translation(1, page)) stop = true;
                    other.store(page, 1);
                }
                CHECK_EQ(other.faults(), 8u);
            }
        });
        for (int i = 0; i < 3000; i++) {
            CHECK(machine.code.begin_translation(0, 5));
            machine.store(5, static_cast<uint8_t>(i));
        }
        stop = true;
        others.join();
        CHECK_EQ(machine.faults(), 3000u);
        CHECK_EQ(machine.diary.posts.size(), 3000u);
    });
}

STORY("given a count of engines that no machine has, then it is refused") {
    GuestRam ram(kMiB, kMiB, Protection::mprotect);
    Diary diary;
    CHECK(throws<std::invalid_argument>([&] { ram.track_code(diary, 0); }));
    CHECK(throws<std::invalid_argument>([&] { ram.track_code(diary, 257); }));
    CHECK(ram.code() == nullptr);
}

STORY("given a quiet host, then this is what the calls cost") {
    with_both([](Protection protection) {
        constexpr int kPages = 2000;
        using clock = std::chrono::steady_clock;
        Machine machine(protection, 255, {.mixed_after = 0}, 32 * kMiB);
        machine.diary.posts.reserve(kPages);
        machine.diary.faults.reserve(kPages);
        for (uint64_t page = 0; page < kPages; page++) machine.store(2 * page, 1);
        const auto start = clock::now();
        for (uint64_t page = 0; page < kPages; page++) CHECK(machine.code.begin_translation(0, 2 * page));
        const auto guarded = clock::now();
        for (uint64_t page = 0; page < kPages; page++) CHECK(machine.code.begin_translation(0, 2 * page));
        const auto again = clock::now();
        for (uint64_t page = 0; page < kPages; page++) machine.store(2 * page, 2);
        const auto faulted = clock::now();
        const auto ns = [](clock::duration time) {
            return std::chrono::duration<double, std::nano>(time).count() / kPages;
        };
        std::printf(
            "       %-12s first translation of a page %6.0f ns, later ones %4.1f ns, write fault %6.0f ns\n",
            std::string(name_of(protection)).c_str(), ns(guarded - start), ns(again - guarded),
            ns(faulted - again));
        CHECK_EQ(machine.faults(), uint64_t{kPages});
    });
}

RUN_STORIES()
