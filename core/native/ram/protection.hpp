// SPDX-License-Identifier: GPL-2.0-or-later
// How a page of the guest view is made read-only: userfaultfd write-protection, or mprotect.
//
// Both give the same thing, a synchronous signal in the thread that writes. They differ in cost and limits:
// userfaultfd marks page-table entries and has no limit; mprotect splits the mapping, and the kernel allows a
// process only vm.max_map_count pieces. Which one works is found out by doing it (probe_protection), because
// kernels, containers and seccomp profiles refuse userfaultfd in many ways.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace coremesh {

enum class Protection { automatic, userfaultfd, mprotect };

/// "auto", "userfaultfd", "mprotect".
std::string_view name_of(Protection protection);
/// The inverse of name_of; nothing for any other text.
std::optional<Protection> protection_from_name(std::string_view name);

/// The host cannot do what was asked: a kernel feature, a limit, a permission. The text ends with the way
/// out.
class PlatformError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// What was found by trying. The texts are for a person (`coremesh doctor`).
struct ProtectionProbe {
    bool userfaultfd = false;
    std::string userfaultfd_detail;
    bool mprotect = false;
    std::string mprotect_detail;
    Protection chosen = Protection::mprotect;  ///< what `automatic` means on this host
    uint64_t max_map_count = 0;                ///< vm.max_map_count, the limit of mprotect
};

/// Tries both ways on a scratch mapping with real write faults (under a millisecond). Any thread; installs
/// the fault handlers (fault_handler.hpp).
ProtectionProbe probe_protection();

/// The write guard of one mapping. Calls are system calls: async-signal-safe, from any thread, and
/// synchronous: when protect returns, no CPU can write through the view without a fault.
class WriteGuard {
  public:
    static constexpr uint64_t kPage = 4096;

    /// `protection` is not `automatic`. Throws PlatformError.
    static std::unique_ptr<WriteGuard> make(Protection protection, uint8_t* view, size_t length);

    virtual ~WriteGuard() = default;
    virtual Protection kind() const noexcept = 0;
    /// The signal by which a write to a protected page arrives, and its si_code.
    virtual int fault_signal() const noexcept = 0;
    virtual int fault_code() const noexcept = 0;
    /// Both return 0 or an errno value (ENOMEM: the kernel has no room for another mapping or page table).
    virtual int protect(uint64_t first_page, uint64_t pages) noexcept = 0;
    virtual int unprotect(uint64_t first_page, uint64_t pages) noexcept = 0;
};

/// vm.max_map_count, and the number of mappings this process has now.
uint64_t map_count_limit();
uint64_t map_count();

}  // namespace coremesh
