// SPDX-License-Identifier: GPL-2.0-or-later
// Guest RAM: its layout, its two views, what it refuses, and what it gives back.
#include "ram/guest_ram.hpp"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "check.hpp"
#include "child_process.hpp"
#include "ram_layouts.hpp"

using namespace coremesh;

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr Protection kBoth[] = {Protection::userfaultfd, Protection::mprotect};

bool usable(Protection protection) {
    static const ProtectionProbe probe = probe_protection();
    return protection == Protection::userfaultfd ? probe.userfaultfd : probe.mprotect;
}

class NoEngines final : public CodeSink {
    void code_written(unsigned, uint64_t) noexcept override {}
    void self_write(const FaultContext&) noexcept override {}
};

/// Field of /proc/self/status in KiB.
uint64_t status_kib(const std::string& field) {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with(field + ":")) return std::stoull(line.substr(field.size() + 1));
    }
    return 0;
}

long open_files() {
    long count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) count++;
    return count;
}

}  // namespace

STORY("given 4 GiB of RAM, 3 of them low, then the guest sees the rest at 4 GiB and a hole between") {
    const RamLayout layout = two_blocks(4 * kGiB, 3 * kGiB);
    CHECK(layout.offset_of(0) == 0u);
    CHECK(layout.offset_of(3 * kGiB - 1) == 3 * kGiB - 1);
    CHECK(!layout.offset_of(3 * kGiB));
    CHECK(!layout.offset_of(4 * kGiB - 1));
    CHECK(layout.offset_of(4 * kGiB) == 3 * kGiB);
    CHECK(layout.offset_of(5 * kGiB - 1) == 4 * kGiB - 1);
    CHECK(!layout.offset_of(5 * kGiB));
    CHECK(!layout.offset_of(~uint64_t{0}));
    CHECK_EQ(layout.gpa_of(3 * kGiB + 5), 4 * kGiB + 5);
    CHECK_EQ(layout.gpa_of(7), uint64_t{7});
}

STORY("given a range that leaves its block of RAM by one byte, or wraps, then it has no offset") {
    const RamLayout layout = two_blocks(4 * kGiB, 3 * kGiB);
    CHECK(layout.offset_of(3 * kGiB - 8, 8).has_value());
    CHECK(!layout.offset_of(3 * kGiB - 8, 9));
    CHECK(layout.offset_of(5 * kGiB - 8, 8).has_value());
    CHECK(!layout.offset_of(5 * kGiB - 8, 9));
    CHECK(!layout.offset_of(16, ~uint64_t{0}));
    CHECK(!layout.offset_of(4 * kGiB + 16, ~uint64_t{0} - 8));
    CHECK(!layout.offset_of(0, 0));
    const RamLayout all_low = one_block(kMiB);
    CHECK(!all_low.offset_of(4 * kGiB));
}

STORY("given what is written in one view, then the other view has it, low and high") {
    GuestRam ram(two_blocks(2 * kMiB, kMiB), Protection::automatic);
    ram.guest_view(0x1234)[0] = 0x5a;
    CHECK_EQ(int{ram.protocol_view(0x1234)[0]}, 0x5a);
    ram.protocol_view(4 * kGiB + 8)[0] = 0xa5;
    CHECK_EQ(int{ram.guest_view(4 * kGiB + 8)[0]}, 0xa5);
    CHECK_EQ(int{ram.guest_base()[kMiB + 8]}, 0xa5);
    CHECK(ram.guest_view(kMiB) == nullptr);
    CHECK(ram.protocol_view(4 * kGiB + kMiB) == nullptr);
}

STORY("given a copy that is not all RAM, then nothing of it is done") {
    GuestRam ram(two_blocks(2 * kMiB, kMiB), Protection::automatic);
    char bytes[16] = "fifteen letters";
    CHECK(ram.write(kMiB - 16, bytes, 16));
    CHECK(!ram.write(kMiB - 15, bytes, 16));
    CHECK(!ram.write(kMiB, bytes, 1));
    char back[16] = {};
    CHECK(ram.read(kMiB - 16, back, 16));
    CHECK(std::memcmp(bytes, back, 16) == 0);
    CHECK(!ram.read(kMiB - 8, back, 9));
    CHECK(ram.read(kMiB, back, 0));
}

STORY("given ROM at the top of 4 GiB and in a hole of RAM, then it has an offset, and none for a write") {
    const uint64_t top = 4 * kGiB - 256 * 1024, shadow = 0xE0000;
    const RamLayout layout({{top, 256 * 1024, 4 * kMiB, true},
                            {0, shadow, 0},
                            {shadow, 0x20000, 4 * kMiB + 256 * 1024, true},
                            {kMiB, 4 * kMiB - shadow, shadow}});
    CHECK_EQ(layout.size(), 4 * kMiB + 384 * 1024);
    CHECK(layout.offset_of(top + 5, 10) == 4 * kMiB + 5);
    CHECK(!layout.writable_offset_of(top + 5, 10));
    CHECK(layout.offset_of(top, 256 * 1024).has_value());
    CHECK(!layout.offset_of(top, 256 * 1024 + 1));
    CHECK(layout.writable_offset_of(shadow - 8, 8) == shadow - 8);
    CHECK(!layout.offset_of(shadow - 8, 9));  // ROM follows, from elsewhere in the file
    CHECK_EQ(layout.gpa_of(4 * kMiB + 7), top + 7);
    CHECK_EQ(layout.gpa_of(shadow), kMiB);
    CHECK_EQ(layout.regions().front().gpa, 0u);
}

STORY("given regions that follow each other, then a range may lie over both, but is ROM if one is") {
    const RamLayout layout({{0, 0x8000, 0}, {0x8000, 0x8000, 0x8000}, {0x10000, 0x8000, 0x10000, true}});
    CHECK(layout.writable_offset_of(0x7ff8, 16) == 0x7ff8u);
    CHECK(layout.offset_of(0x7ff8, 0x8010) == 0x7ff8u);
    CHECK(!layout.writable_offset_of(0x7ff8, 0x8010));
    CHECK(!layout.offset_of(0x7ff8, 0x10010));
    CHECK(!layout.offset_of(0x7ff8, ~uint64_t{0}));
}

STORY("given regions no machine can have, then the error names what would be right") {
    const std::vector<std::vector<RamRegion>> refused = {
        {},
        std::vector<RamRegion>(RamLayout::kMaxRegions + 1, {0, 4096, 0}),
        {{0, 0, 0}},
        {{0, 4097, 0}},
        {{0x800, 4096, 0}},
        {{0, 4096, 4096}},
        {{0, 8192, 0}, {8192, 4096, 4096}},
        {{0, 4096, 0}, {8192, 4096, 8192}},
        {{0, 8192, 0}, {4096, 4096, 8192, true}},
        {{0, RamLayout::kAddressEnd + 4096, 0}},
        {{4096, RamLayout::kAddressEnd, 0}},
        {{~uint64_t{4095}, 4096, 0}},
        {{4096, ~uint64_t{4095}, 0}},
    };
    for (const auto& regions : refused) {
        try {
            const RamLayout layout(regions);
            CHECK(false);
        } catch (const RamSizeError& error) {
            const std::string text = error.what();
            CHECK(text.find("give") != std::string::npos || text.find("leave no gap") != std::string::npos);
        }
    }
}

STORY("given a machine with ROM, then a loader writes it, a bus master reads it and cannot write it") {
    GuestRam ram(RamLayout({{0, kMiB, 0}, {4 * kGiB - kMiB, kMiB, kMiB, true}}), Protection::automatic);
    const uint64_t reset_vector = 4 * kGiB - 16;
    char bytes[16] = "fifteen letters";
    CHECK(!ram.write(reset_vector, bytes, 16));
    CHECK(ram.load(reset_vector, bytes, 16));
    CHECK(!ram.load(reset_vector, bytes, 17));
    char back[16] = {};
    CHECK(ram.read(reset_vector, back, 16));
    CHECK(std::memcmp(bytes, back, 16) == 0);
}

STORY("given an address-space limit below the size, then the error says which limits to look at") {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    return;  // the sanitizer itself needs the address space
#endif
    const int status = in_a_child([] {
        const rlimit limit{2 * kGiB, 2 * kGiB};
        setrlimit(RLIMIT_AS, &limit);
        try {
            GuestRam ram(two_blocks(64 * kGiB, 3 * kGiB), Protection::automatic);
        } catch (const PlatformError& error) {
            _exit(std::strstr(error.what(), "ulimit -v") ? 7 : 1);
        }
    });
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

STORY("given 256 GiB of RAM of which two pages are touched, then two pages are paid for") {
    const uint64_t before = status_kib("VmRSS");
    GuestRam ram(two_blocks(256 * kGiB, 3 * kGiB), Protection::automatic);
    NoEngines sink;
    PageTable& code = ram.track_code(sink, 255);
    ram.guest_view(kGiB)[0] = 1;
    ram.guest_view(200 * kGiB)[0] = 1;
    CHECK(code.begin_translation(254, *ram.offset_of(200 * kGiB) / 4096));
    ram.guest_view(200 * kGiB)[0] = 2;
    CHECK(status_kib("VmRSS") - before < 1024);
}

STORY("given RAM that was used and destroyed, then its address space and files are given back") {
    for (const Protection protection : kBoth) {
        if (!usable(protection)) continue;
        { const GuestRam warm(one_block(kMiB), protection); }
        const uint64_t size = status_kib("VmSize");
        const long files = open_files();
        for (int i = 0; i < 20; i++) {
            GuestRam ram(one_block(64 * kMiB), protection);
            NoEngines sink;
            PageTable& code = ram.track_code(sink, 3);
            for (uint64_t page = 0; page < 100; page += 2) CHECK(code.begin_translation(0, page));
            ram.guest_base()[0] = 1;
        }
        CHECK(status_kib("VmSize") < size + 64 * 1024);  // one machine's views alone are 128 MiB
        CHECK_EQ(open_files(), files);
    }
}

STORY("given 64 machines in one process, then one more is refused with the way out, and room comes back") {
    std::vector<std::unique_ptr<GuestRam>> machines;
    NoEngines sink;
    bool refused = false;
    for (int i = 0; i < 65 && !refused; i++) {
        auto ram = std::make_unique<GuestRam>(one_block(kMiB), Protection::mprotect);
        try {
            ram->track_code(sink, 1);
            machines.push_back(std::move(ram));
        } catch (const PlatformError&) {
            refused = true;
        }
    }
    CHECK(refused);
    CHECK_EQ(machines.size(), size_t{64});
    machines.pop_back();
    GuestRam ram(one_block(kMiB), Protection::mprotect);
    ram.track_code(sink, 1);
}

STORY(
    "given a host, when protections are probed, then the report says what works, what is chosen and the "
    "limit") {
    const ProtectionProbe probe = probe_protection();
    CHECK(probe.mprotect);
    CHECK(!probe.mprotect_detail.empty() && !probe.userfaultfd_detail.empty());
    CHECK(probe.chosen == (probe.userfaultfd ? Protection::userfaultfd : Protection::mprotect));
    CHECK(probe.max_map_count > 0);
    CHECK(probe.shared_mprotect.works);
    const auto better = probe.shared_userfaultfd.works        ? Protection::userfaultfd
                        : probe.shared_userfaultfd_copy.works ? Protection::userfaultfd_copy
                                                              : Protection::mprotect;
    CHECK(probe.chosen_shared == better);
    for (const auto* way :
         {&probe.shared_userfaultfd, &probe.shared_userfaultfd_copy, &probe.shared_mprotect}) {
        CHECK(!way->detail.empty());
    }
    CHECK(GuestRam(one_block(kMiB), Protection::automatic, true).protection() == probe.chosen_shared);
    std::printf("       userfaultfd: %s\n       mprotect: %s\n", probe.userfaultfd_detail.c_str(),
                probe.mprotect_detail.c_str());
    for (const Protection protection : {Protection::automatic, Protection::userfaultfd,
                                        Protection::userfaultfd_copy, Protection::mprotect}) {
        CHECK(protection_from_name(name_of(protection)) == protection);
    }
    CHECK(!protection_from_name("none"));
}

STORY(
    "given a host that denies userfaultfd, then auto takes mprotect and asking for it by name says why not") {
    const int status = in_a_child([] {
        // Room for one more file, which the memory takes: the call and the device both fail.
        const int next = dup(0);
        close(next);
        const rlimit files{static_cast<rlim_t>(next) + 1, static_cast<rlim_t>(next) + 1};
        setrlimit(RLIMIT_NOFILE, &files);
        for (const bool coherent : {false, true}) {
            for (const Protection way : {Protection::userfaultfd, Protection::userfaultfd_copy}) {
                try {
                    GuestRam ram(one_block(kMiB), way, coherent);
                    _exit(1);
                } catch (const PlatformError& error) {
                    if (!std::strstr(error.what(), "use 'auto'")) _exit(2);
                }
            }
            GuestRam ram(one_block(kMiB), Protection::automatic, coherent);
            if (ram.protection() != Protection::mprotect) _exit(3);
        }
        _exit(7);
    });
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 7);
}

RUN_STORIES()
