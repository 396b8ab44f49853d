// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/protection.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>

#include "ram/fault_handler.hpp"

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

namespace coremesh {
namespace {

class File {
  public:
    explicit File(int fd = -1) : fd_(fd) {}
    ~File() {
        if (fd_ >= 0) close(fd_);
    }
    File(File&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
    File& operator=(File&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    int get() const { return fd_; }

  private:
    int fd_;
};

std::string because(const std::string& what, int error) { return what + ": " + std::strerror(error); }

/// The system call first; where it is denied (seccomp, vm.unprivileged_userfaultfd = 0 before Linux 5.11),
/// the device, whose file mode is the permission. USER_MODE_ONLY: faults taken inside the kernel fail with
/// EFAULT, which is all we want (nothing but engines uses the guest view), and needs no privilege.
File open_userfaultfd() {
    std::string why;
    for (const int flag : {UFFD_USER_MODE_ONLY, 0}) {
        File file(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flag)));
        if (file.get() >= 0) return file;
        why = because("userfaultfd()", errno);
        if (errno != EINVAL) break;  // EINVAL: a kernel before 5.11, which does not know the flag
    }
    const File device(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
    if (device.get() < 0) throw PlatformError(why + ", " + because("/dev/userfaultfd", errno));
    File file(ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    if (file.get() < 0) throw PlatformError(why + ", " + because("/dev/userfaultfd", errno));
    return file;
}

class UserfaultfdGuard final : public WriteGuard {
  public:
    UserfaultfdGuard(uint8_t* view, size_t length) : view_(view), file_(open_userfaultfd()) {
        uffdio_api api{};
        api.api = UFFD_API;
        // SIGBUS: the fault is a signal in the faulting thread, not a message to another one: no wake-up of a
        // second thread (7 to 10 µs instead of 55). WP_HUGETLBFS_SHMEM (Linux 5.19): write-protection of
        // memory files, also of pages that were never touched.
        api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_SIGBUS | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
        if (ioctl(file_.get(), UFFDIO_API, &api) != 0) {
            throw PlatformError(
                because("UFFDIO_API (write-protection of shared memory needs Linux 5.19)", errno));
        }
        uffdio_register range{};
        range.range = {reinterpret_cast<uint64_t>(view), length};
        range.mode = UFFDIO_REGISTER_MODE_WP;
        if (ioctl(file_.get(), UFFDIO_REGISTER, &range) != 0) {
            throw PlatformError(because("UFFDIO_REGISTER", errno));
        }
        if (!(range.ioctls >> _UFFDIO_WRITEPROTECT & 1)) {
            throw PlatformError("UFFDIO_REGISTER: this kernel cannot write-protect a memory file");
        }
    }
    Protection kind() const noexcept override { return Protection::userfaultfd; }
    int fault_signal() const noexcept override { return SIGBUS; }
    int fault_code() const noexcept override { return BUS_ADRERR; }
    int protect(uint64_t first, uint64_t pages) noexcept override {
        return change(first, pages, UFFDIO_WRITEPROTECT_MODE_WP);
    }
    int unprotect(uint64_t first, uint64_t pages) noexcept override {
        // Nobody sleeps on the file (faults are signals), so there is nobody to wake.
        return change(first, pages, 0);
    }

  private:
    int change(uint64_t first, uint64_t pages, uint64_t mode) noexcept {
        uffdio_writeprotect call{};
        call.range = {reinterpret_cast<uint64_t>(view_) + first * kPage, pages * kPage};
        call.mode = mode;
        while (ioctl(file_.get(), UFFDIO_WRITEPROTECT, &call) != 0) {
            if (errno != EAGAIN && errno != EINTR) return errno;
        }
        return 0;
    }
    uint8_t* view_;
    File file_;
};

class MprotectGuard final : public WriteGuard {
  public:
    explicit MprotectGuard(uint8_t* view) : view_(view) {}
    Protection kind() const noexcept override { return Protection::mprotect; }
    int fault_signal() const noexcept override { return SIGSEGV; }
    int fault_code() const noexcept override { return SEGV_ACCERR; }
    int protect(uint64_t first, uint64_t pages) noexcept override { return change(first, pages, PROT_READ); }
    int unprotect(uint64_t first, uint64_t pages) noexcept override {
        return change(first, pages, PROT_READ | PROT_WRITE);
    }

  private:
    int change(uint64_t first, uint64_t pages, int mode) noexcept {
        return ::mprotect(view_ + first * kPage, pages * kPage, mode) == 0 ? 0 : errno;
    }
    uint8_t* view_;
};

/// Three pages of a memory file, mapped twice, and one real write fault on each of the first two: one that
/// the view has touched before and one that nobody has.
class Trial final : FaultTarget {
  public:
    static void run(Protection protection) {
        Trial trial;
        trial.guard_ = WriteGuard::make(protection, trial.view_, kLength);
        FaultRange range(trial.view_, kLength, trial.guard_->fault_signal(), trial.guard_->fault_code(),
                         trial);
        auto* const touched = reinterpret_cast<volatile uint8_t*>(trial.view_);
        touched[0] = 1;
        for (const uint64_t page : {0, 1}) {
            if (const int error = trial.guard_->protect(page, 1))
                throw PlatformError(because("protect", error));
        }
        touched[2 * WriteGuard::kPage] = 1;
        if (trial.faults_ != 0) throw PlatformError("a write to an unprotected page faulted");
        touched[0] = 2;
        if (trial.faults_ != 1) throw PlatformError("a write to a protected page did not fault");
        touched[WriteGuard::kPage] = 2;
        if (trial.faults_ != 2)
            throw PlatformError("a write to a protected, never touched page did not fault");
        touched[0] = 3;
        touched[WriteGuard::kPage] = 3;
        if (trial.faults_ != 2) throw PlatformError("a page could not be made writable again");
    }

  private:
    static constexpr size_t kLength = 3 * WriteGuard::kPage;

    Trial() : file_(memfd_create("coremesh-probe", MFD_CLOEXEC)) {
        if (file_.get() < 0 || ftruncate(file_.get(), kLength) != 0)
            throw PlatformError(because("memfd", errno));
        void* at = mmap(nullptr, kLength, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
        if (at == MAP_FAILED) throw PlatformError(because("mmap", errno));
        view_ = static_cast<uint8_t*>(at);
    }
    ~Trial() {
        guard_.reset();
        munmap(view_, kLength);
    }
    bool on_fault(uintptr_t address, void*) noexcept override {
        if (++faults_ > 8) return false;
        const uint64_t page = (address - reinterpret_cast<uintptr_t>(view_)) / WriteGuard::kPage;
        return guard_->unprotect(page, 1) == 0;
    }

    File file_;
    uint8_t* view_ = nullptr;
    std::unique_ptr<WriteGuard> guard_;
    std::atomic<int> faults_{0};
};

bool works(Protection protection, std::string& detail) {
    try {
        Trial::run(protection);
        return true;
    } catch (const PlatformError& error) {
        detail = error.what();
        return false;
    }
}

}  // namespace

std::string_view name_of(Protection protection) {
    switch (protection) {
        case Protection::automatic:
            return "auto";
        case Protection::userfaultfd:
            return "userfaultfd";
        case Protection::mprotect:
            break;
    }
    return "mprotect";
}

std::optional<Protection> protection_from_name(std::string_view name) {
    for (const auto each : {Protection::automatic, Protection::userfaultfd, Protection::mprotect}) {
        if (name == name_of(each)) return each;
    }
    return std::nullopt;
}

std::unique_ptr<WriteGuard> WriteGuard::make(Protection protection, uint8_t* view, size_t length) {
    if (protection == Protection::userfaultfd) return std::make_unique<UserfaultfdGuard>(view, length);
    return std::make_unique<MprotectGuard>(view);
}

ProtectionProbe probe_protection() {
    ProtectionProbe probe;
    probe.max_map_count = map_count_limit();
    probe.userfaultfd = works(Protection::userfaultfd, probe.userfaultfd_detail);
    if (probe.userfaultfd) probe.userfaultfd_detail = "write-protection and synchronous faults work";
    probe.mprotect = works(Protection::mprotect, probe.mprotect_detail);
    if (probe.mprotect) {
        probe.mprotect_detail = "works; vm.max_map_count = " + std::to_string(probe.max_map_count) +
                                " bounds the pieces of protected memory";
    }
    probe.chosen = probe.userfaultfd ? Protection::userfaultfd : Protection::mprotect;
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
