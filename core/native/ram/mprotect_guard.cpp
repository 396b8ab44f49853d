// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/mprotect_guard.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>

namespace coremesh {

MprotectGuard::MprotectGuard(const RamViews& views, bool coherent)
    : ViewGuard(Protection::mprotect, coherent), view_(views.guest) {
    if (!coherent) return;
    if (const int error = change(0, views.length / kPage, Access::kWrite, Access::kNone)) {
        throw PlatformError(std::string("mprotect: ") + std::strerror(error));
    }
}

int MprotectGuard::fault_signal() const noexcept { return SIGSEGV; }

int MprotectGuard::fault_code() const noexcept { return SEGV_ACCERR; }

int MprotectGuard::change(uint64_t first, uint64_t pages, Access, Access to) noexcept {
    const int mode = to == Access::kNone   ? PROT_NONE
                     : to == Access::kRead ? PROT_READ
                                           : PROT_READ | PROT_WRITE;
    return ::mprotect(view_ + first * kPage, pages * kPage, mode) == 0 ? 0 : errno;
}

}  // namespace coremesh
