// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/userfaultfd_guard.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>

// Numbers of the kernel's interface that older headers lack (userfaultfd(2), ioctl_userfaultfd(2)).
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP (1 << 1)  // Linux 6.4; no feature bit says so
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14
#endif

namespace coremesh {
namespace {

std::string because(const std::string& what, int error) { return what + ": " + std::strerror(error); }

/// The system call first; where it is denied (seccomp, vm.unprivileged_userfaultfd = 0 before Linux 5.11),
/// the device, whose file mode is the permission. USER_MODE_ONLY: faults taken inside the kernel fail with
/// EFAULT, which is all we want (nothing but engines uses the guest view), and needs no privilege.
int open_userfaultfd() {
    std::string why;
    for (const int flag : {UFFD_USER_MODE_ONLY, 0}) {
        const auto file = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flag));
        if (file >= 0) return file;
        why = because("userfaultfd()", errno);
        if (errno != EINVAL) break;  // EINVAL: a kernel before 5.11, which does not know the flag
    }
    const int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) throw PlatformError(why + ", " + because("/dev/userfaultfd", errno));
    const int file = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    const int error = errno;
    close(device);
    if (file < 0) throw PlatformError(why + ", " + because("/dev/userfaultfd", error));
    return file;
}

void attach(int file, const RamViews& views, bool coherent) {
    uffdio_api api{};
    api.api = UFFD_API;
    // SIGBUS: the fault is a signal in the faulting thread, not a message to another one: no wake-up of a
    // second thread (7 to 10 µs instead of 55). WP_HUGETLBFS_SHMEM (Linux 5.19): write-protection of
    // memory files, also of pages that were never touched.
    api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_SIGBUS | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    if (coherent) api.features |= UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
    if (ioctl(file, UFFDIO_API, &api) != 0) {
        throw PlatformError(
            because("UFFDIO_API (write-protection of shared memory needs Linux 5.19)", errno));
    }
    uffdio_register range{};
    range.range = {reinterpret_cast<uint64_t>(views.guest), views.length};
    range.mode = UFFDIO_REGISTER_MODE_WP;
    // A page that this host has no access to may be in the file, as it was when it had, or not.
    if (coherent) range.mode |= UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
    if (ioctl(file, UFFDIO_REGISTER, &range) != 0) {
        throw PlatformError(because("UFFDIO_REGISTER", errno));
    }
    if (!(range.ioctls >> _UFFDIO_WRITEPROTECT & 1)) {
        throw PlatformError("UFFDIO_REGISTER: this kernel cannot write-protect a memory file");
    }
    if (coherent && !(range.ioctls >> _UFFDIO_CONTINUE & 1)) {
        throw PlatformError("UFFDIO_REGISTER: this kernel cannot map pages of a memory file on request");
    }
}

}  // namespace

UserfaultfdGuard::UserfaultfdGuard(Protection kind, const RamViews& views, bool coherent)
    : ViewGuard(kind, coherent), views_(views), file_(open_userfaultfd()) {
    try {
        attach(file_, views, coherent);
    } catch (...) {
        close(file_);
        throw;
    }
}

UserfaultfdGuard::~UserfaultfdGuard() { close(file_); }

int UserfaultfdGuard::fault_signal() const noexcept { return SIGBUS; }
int UserfaultfdGuard::fault_code() const noexcept { return BUS_ADRERR; }

int UserfaultfdGuard::change(uint64_t first, uint64_t pages, Access from, Access to) noexcept {
    if (to == Access::kNone) {
        // Takes the page out of the view, not out of the file.
        return madvise(views_.guest + first * kPage, pages * kPage, MADV_DONTNEED) == 0 ? 0 : errno;
    }
    if (from != Access::kNone) return write_protect(first, pages, to == Access::kRead);
    if (to == Access::kWrite || kind() == Protection::userfaultfd) {
        return map(first, pages, to == Access::kWrite);
    }
    for (uint64_t page = first; page < first + pages; page++) {
        if (const int error = put_copy(page)) return error;
    }
    return 0;
}

int UserfaultfdGuard::map(uint64_t first, uint64_t pages, bool writable) noexcept {
    // Faults are signals: no thread sleeps on the file, and no thread has to be woken.
    const uint64_t mode = UFFDIO_CONTINUE_MODE_DONTWAKE | (writable ? 0 : UFFDIO_CONTINUE_MODE_WP);
    const uint64_t end = first + pages;
    uint64_t made = end;  // where pages were made last: it must not be asked for twice
    for (uint64_t page = first; page < end;) {
        uffdio_continue call{};
        call.range = {address(page), (end - page) * kPage};
        call.mode = mode;
        if (ioctl(file_, UFFDIO_CONTINUE, &call) == 0) return 0;
        const int error = errno;
        if (call.mapped > 0) {
            page += static_cast<uint64_t>(call.mapped) / kPage;
        } else if (error == EEXIST) {  // mapped already, perhaps with less or more
            if (const int failed = write_protect(page, 1, !writable)) return failed;
            page++;
        } else if (error == EFAULT && made != page) {  // not in the file: never touched
            if (madvise(views_.protocol + page * kPage, (end - page) * kPage, MADV_POPULATE_READ) != 0)
                return ENOMEM;
            made = page;
        } else if (error != EAGAIN && error != EINTR) {
            return error;
        }
    }
    return 0;
}

/// The page must not be in the file for UFFDIO_COPY. While it is not, the protocol view shows zeros: only for
/// a page that no thread is using, in no view.
int UserfaultfdGuard::put_copy(uint64_t page) noexcept {
    alignas(64) uint8_t bytes[kPage];
    std::memcpy(bytes, views_.protocol + page * kPage, kPage);
    int error = 0;
    for (int attempt = 0; attempt < 16; attempt++) {
        const auto at = static_cast<off_t>(page * kPage);
        if (fallocate(views_.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, kPage) != 0) {
            error = errno;
            if (error == EINTR) continue;
            break;
        }
        do {
            uffdio_copy call{};
            call.dst = address(page);
            call.src = reinterpret_cast<uint64_t>(bytes);
            call.len = kPage;
            call.mode = UFFDIO_COPY_MODE_WP | UFFDIO_COPY_MODE_DONTWAKE;
            error = ioctl(file_, UFFDIO_COPY, &call) == 0 ? 0 : errno;
        } while (error == EAGAIN || error == EINTR);
        if (error == 0) return 0;
        if (error != EEXIST) break;  // EEXIST: a thread looked at it meanwhile, which put it into the file
    }
    std::memcpy(views_.protocol + page * kPage, bytes, kPage);
    return error;
}

int UserfaultfdGuard::write_protect(uint64_t first, uint64_t pages, bool on) noexcept {
    uffdio_writeprotect call{};
    call.range = {address(first), pages * kPage};
    call.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
    while (ioctl(file_, UFFDIO_WRITEPROTECT, &call) != 0) {
        if (errno != EAGAIN && errno != EINTR) return errno;
    }
    return 0;
}

}  // namespace coremesh
