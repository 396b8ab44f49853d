// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/view_guard.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>

#include "ram/userfaultfd_guard.hpp"

namespace coremesh {
namespace {

class MprotectGuard final : public ViewGuard {
  public:
    MprotectGuard(const RamViews& views, bool coherent)
        : ViewGuard(Protection::mprotect, coherent), view_(views.guest) {
        if (!coherent) return;
        if (const int error = change(0, views.length / kPage, Access::kWrite, Access::kNone)) {
            throw PlatformError(std::string("mprotect: ") + std::strerror(error));
        }
    }
    int fault_signal() const noexcept override { return SIGSEGV; }
    int fault_code() const noexcept override { return SEGV_ACCERR; }
    int change(uint64_t first, uint64_t pages, Access, Access to) noexcept override {
        const int mode = to == Access::kNone   ? PROT_NONE
                         : to == Access::kRead ? PROT_READ
                                               : PROT_READ | PROT_WRITE;
        return ::mprotect(view_ + first * kPage, pages * kPage, mode) == 0 ? 0 : errno;
    }

  private:
    uint8_t* const view_;
};

}  // namespace

std::unique_ptr<ViewGuard> ViewGuard::make(Protection protection, const RamViews& views, bool coherent) {
    if (protection == Protection::mprotect) return std::make_unique<MprotectGuard>(views, coherent);
    return std::make_unique<UserfaultfdGuard>(protection, views, coherent);
}

}  // namespace coremesh
