// SPDX-License-Identifier: GPL-2.0-or-later
// Code pages, one rule a story: who is told about a write, when, and what becomes of the page.
#include "ram/page_table.hpp"

#include <chrono>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "page_table_fixture.hpp"

using namespace coremesh;

namespace {

/// ThreadSanitizer blocks every signal around a handler, so there a jump out of one must restore the mask.
#ifdef __SANITIZE_THREAD__
constexpr int kSaveMask = 1;
#else
constexpr int kSaveMask = 0;
#endif

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
    "given a fault above 4 GiB, then the sink is told the offset, the host's pc, and that code was "
    "there") {
    with_both([](Protection protection) {
        Machine machine(protection);
        const uint64_t gpa = (uint64_t{4} << 30) + 3 * kPage + 0x123;
        const uint64_t page = *machine.ram.offset_of(gpa) / kPage;
        CHECK(machine.code.begin_translation(0, page));
        *static_cast<volatile uint8_t*>(machine.ram.guest_view(gpa)) = 1;
        CHECK_EQ(machine.diary.faults.size(), 1u);
        const FaultContext& fault = machine.diary.faults[0];
        CHECK_EQ(fault.offset, *machine.ram.offset_of(gpa));
        CHECK_EQ(fault.ram_page, page);
        CHECK(fault.had_code);
        CHECK(fault.host_pc != 0);
        CHECK(fault.ucontext != nullptr);
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
        machine.diary.on_self_write = [](const FaultContext&) { siglongjmp(restart, 1); };
        while (left < 1000) {
            CHECK(machine.code.begin_translation(0, 2));
            if (sigsetjmp(restart, kSaveMask) == 0) {
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
    GuestRam ram(one_block(kMiB), Protection::mprotect);
    Diary diary;
    CHECK(check::throws<std::invalid_argument>([&] { ram.track_code(diary, 0); }));
    CHECK(check::throws<std::invalid_argument>([&] { ram.track_code(diary, 257); }));
    CHECK(ram.page_table() == nullptr);
}

STORY("given a quiet host, then this is what the calls cost") {
    with_both([](Protection protection) {
        constexpr int kPages = 2000;
        using clock = std::chrono::steady_clock;
        Machine machine(protection, 255, {.mixed_after = 0}, 32 * kMiB);
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
