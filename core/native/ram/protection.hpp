// SPDX-License-Identifier: GPL-2.0-or-later
// The ways to guard guest memory, and which of them this host has.
//
// That is found out by doing it (probe_protection), because kernels, containers and seccomp profiles refuse
// userfaultfd in many ways.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/platform_error.hpp"

namespace coremesh {

/// userfaultfd_copy differs from userfaultfd only for memory that several hosts share (view_guard.hpp).
enum class Protection { automatic, userfaultfd, userfaultfd_copy, mprotect };

/// "auto", "userfaultfd", "userfaultfd-copy", "mprotect".
std::string_view name_of(Protection protection);
/// The inverse of name_of; nothing for any other text.
std::optional<Protection> protection_from_name(std::string_view name);

/// What was found by trying. The texts are for a person (`coremesh doctor`).
struct ProtectionProbe {
    struct Way {
        bool works = false;
        std::string detail;
    };
    // Write-protection of pages with code, for a machine on one host.
    bool userfaultfd = false;
    std::string userfaultfd_detail;
    bool mprotect = false;
    std::string mprotect_detail;
    Protection chosen = Protection::mprotect;  ///< what `automatic` means there
    // Memory that several hosts share: no access, read, write.
    Way shared_userfaultfd;
    Way shared_userfaultfd_copy;
    Way shared_mprotect;
    Protection chosen_shared = Protection::mprotect;  ///< what `automatic` means there

    uint64_t max_map_count = 0;  ///< vm.max_map_count, the limit of mprotect
};

/// Tries all ways on scratch mappings with real faults (about a millisecond). Any thread; installs the fault
/// handlers (fault_handler.hpp).
ProtectionProbe probe_protection();

/// vm.max_map_count, and the number of mappings this process has now.
uint64_t map_count_limit();
uint64_t map_count();

}  // namespace coremesh
