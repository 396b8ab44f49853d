// SPDX-License-Identifier: GPL-2.0-or-later
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>

#include "ram/fault_cause.hpp"
#include "ram/fault_handler.hpp"
#include "ram/protection.hpp"
#include "ram/guards.hpp"

namespace coremesh {
namespace {

std::string because(const std::string& what, int error) { return what + ": " + std::strerror(error); }

void require(bool held, const char* otherwise) {
    if (!held) throw PlatformError(otherwise);
}

/// Three pages of a memory file, mapped twice, and real faults on them: on pages that a view has touched
/// before and on one that no view has.
class Trial final : FaultTarget {
  public:
    static void run(Protection protection, bool coherent) {
        Trial trial;
        trial.guard_ = make_view_guard(protection, trial.views_, coherent);
        for (Access& each : trial.mapped_) each = trial.guard_->initial();
        FaultRange range(trial.views_.guest, kLength, trial.guard_->fault_signal(),
                         trial.guard_->fault_code(), trial);
        if (coherent) {
            trial.share();
        } else {
            trial.write_protect();
        }
    }

  private:
    static constexpr uint64_t kPage = ViewGuard::kPage;
    static constexpr size_t kLength = 3 * kPage;

    Trial() : views_{nullptr, nullptr, memfd_create("coremesh-probe", MFD_CLOEXEC), kLength} {
        if (views_.file < 0 || ftruncate(views_.file, kLength) != 0) {
            const int error = errno;
            if (views_.file >= 0) close(views_.file);
            throw PlatformError(because("memfd", error));
        }
        for (uint8_t** view : {&views_.guest, &views_.protocol}) {
            void* at = mmap(nullptr, kLength, PROT_READ | PROT_WRITE, MAP_SHARED, views_.file, 0);
            if (at != MAP_FAILED) *view = static_cast<uint8_t*>(at);
        }
        if (!views_.guest || !views_.protocol) {
            const int error = errno;
            release();
            throw PlatformError(because("mmap", error));
        }
    }
    ~Trial() {
        guard_.reset();
        release();
    }
    void release() {
        for (uint8_t* view : {views_.guest, views_.protocol}) {
            if (view) munmap(view, kLength);
        }
        close(views_.file);
    }

    volatile uint8_t& guest(uint64_t page) { return views_.guest[page * kPage]; }
    volatile uint8_t& protocol(uint64_t page) { return views_.protocol[page * kPage]; }
    int map(uint64_t page, Access to) noexcept {
        const Access from = mapped_[page];
        mapped_[page] = to;
        return guard_->change(page, 1, from, to);
    }
    void change(uint64_t page, Access to) {
        if (const int error = map(page, to)) {
            throw PlatformError(
                because(to == Access::kNone ? "unmapping a page" : "protecting a page", error));
        }
    }
    /// How many faults there were since the last time.
    int faults() {
        if (const int error = error_.exchange(0)) throw PlatformError(because("mapping a page", error));
        return faults_.exchange(0);
    }

    void write_protect() {
        guest(0) = 1;
        for (const uint64_t page : {0, 1}) change(page, Access::kRead);
        guest(2) = 1;
        require(faults() == 0, "a write to an unprotected page faulted");
        guest(0) = 2;
        require(faults() == 1, "a write to a protected page did not fault");
        guest(1) = 2;
        require(faults() == 1, "a write to a protected, never touched page did not fault");
        guest(0) = 3;
        guest(1) = 3;
        require(faults() == 0, "a page could not be made writable again");
    }

    void share() {
        protocol(0) = 1;
        require(guest(0) == 1 && faults() == 1, "reading a page without access did not fault");
        require(guest(0) == 1 && faults() == 0, "a page could not be mapped for reading");
        guest(0) = 2;
        require(faults() == 1, "a write to a page mapped for reading did not fault");
        guest(0) = 3;
        require(faults() == 0 && protocol(0) == 3, "a page could not be made writable");
        change(0, Access::kRead);
        guest(0) = 4;
        require(faults() == 1, "a write to a page made read-only again did not fault");
        for (int round = 0; round < 2; round++) {
            change(0, Access::kNone);
            require(protocol(0) == 4 && guest(0) == 4 && faults() == 1, "a page could not be taken away");
        }
        require(guest(1) == 0 && faults() == 1, "reading a page never touched did not fault");
        guest(2) = 1;
        require(faults() == 1, "a write to a page never touched did not fault");
    }

    bool on_fault(uintptr_t address, void* ucontext) noexcept override {
        if (++faults_ > 8) return false;
        const uint64_t page = (address - reinterpret_cast<uintptr_t>(views_.guest)) / kPage;
        const bool write = !guard_->coherent() || is_write(ucontext);
        const int error = map(page, write ? Access::kWrite : Access::kRead);
        if (error == 0) return true;
        // What is found missing must not end the process: other memory lets the instruction pass.
        error_ = error;
        return mmap(views_.guest + page * kPage, kPage, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
    }

    RamViews views_;
    std::unique_ptr<ViewGuard> guard_;
    std::atomic<int> faults_{0};
    std::atomic<int> error_{0};  ///< of the handler
    Access mapped_[3] = {};
};

ProtectionProbe::Way attempt(Protection protection, bool coherent, const std::string& praise) {
    try {
        Trial::run(protection, coherent);
        return {true, praise};
    } catch (const PlatformError& error) {
        return {false, error.what()};
    }
}

}  // namespace

std::string_view name_of(Protection protection) {
    switch (protection) {
        case Protection::automatic:
            return "auto";
        case Protection::userfaultfd:
            return "userfaultfd";
        case Protection::userfaultfd_copy:
            return "userfaultfd-copy";
        case Protection::mprotect:
            break;
    }
    return "mprotect";
}

std::optional<Protection> protection_from_name(std::string_view name) {
    for (const auto each : {Protection::automatic, Protection::userfaultfd, Protection::userfaultfd_copy,
                            Protection::mprotect}) {
        if (name == name_of(each)) return each;
    }
    return std::nullopt;
}

ProtectionProbe probe_protection() {
    ProtectionProbe probe;
    probe.max_map_count = map_count_limit();
    const std::string bound =
        "works; vm.max_map_count = " + std::to_string(probe.max_map_count) + " bounds the pieces of ";
    const auto write_protection = [](Protection way, bool& works, std::string& detail,
                                     const std::string& praise) {
        const ProtectionProbe::Way found = attempt(way, false, praise);
        works = found.works;
        detail = found.detail;
    };
    write_protection(Protection::userfaultfd, probe.userfaultfd, probe.userfaultfd_detail,
                     "write-protection and synchronous faults work");
    write_protection(Protection::mprotect, probe.mprotect, probe.mprotect_detail, bound + "protected memory");
    probe.chosen = probe.userfaultfd ? Protection::userfaultfd : Protection::mprotect;

    probe.shared_userfaultfd =
        attempt(Protection::userfaultfd, true, "missing, minor and write-protect faults work");
    probe.shared_userfaultfd_copy =
        attempt(Protection::userfaultfd_copy, true, "works, by a fresh copy of each page that is read");
    probe.shared_mprotect = attempt(Protection::mprotect, true, bound + "memory with different access");
    probe.chosen_shared = probe.shared_userfaultfd.works        ? Protection::userfaultfd
                          : probe.shared_userfaultfd_copy.works ? Protection::userfaultfd_copy
                                                                : Protection::mprotect;
    return probe;
}

uint64_t map_count_limit() {
    std::ifstream file("/proc/sys/vm/max_map_count");
    uint64_t limit = 0;
    return file >> limit ? limit : 65530;  // the kernel's default (include/linux/mm.h, DEFAULT_MAX_MAP_COUNT)
}

uint64_t map_count() {
    std::ifstream file("/proc/self/maps");
    uint64_t lines = 0;
    for (std::string line; std::getline(file, line);) lines++;
    return lines;
}

}  // namespace coremesh
