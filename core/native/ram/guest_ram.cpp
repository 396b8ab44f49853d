// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/guest_ram.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "ram/guards.hpp"

namespace coremesh {
namespace {

std::string mib(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

[[noreturn]] void refuse(const std::string& what, uint64_t size, int error) {
    throw PlatformError(
        "no guest memory of " + mib(size) + ": " + what + ": " + std::strerror(error) +
        "; give the machine less memory, or raise the limit that is in the way ('ulimit -v', the "
        "container's memory limit, vm.overcommit_memory)");
}

/// What only its use shows: a kernel before 6.4 registers the memory and then cannot map a page of it.
void require_shared_userfaultfd() {
    const ProtectionProbe::Way way = probe_protection().shared_userfaultfd;
    if (!way.works) throw PlatformError(way.detail);
}

std::unique_ptr<ViewGuard> make_guard(Protection protection, const RamViews& views, bool coherent) {
    if (protection == Protection::automatic) {
        const ProtectionProbe probe = probe_protection();
        return make_view_guard(coherent ? probe.chosen_shared : probe.chosen, views, coherent);
    }
    try {
        if (protection == Protection::userfaultfd && coherent) require_shared_userfaultfd();
        return make_view_guard(protection, views, coherent);
    } catch (const PlatformError& error) {
        throw PlatformError(std::string("protection '") + std::string(name_of(protection)) +
                            "' does not work here: " + error.what() + "; use 'auto' to take what works");
    }
}

}  // namespace

GuestRam::GuestRam(const RamLayout& layout, Protection protection, bool coherent) : layout_(layout) {
    try {
        map_views();
        guard_ = make_guard(protection, {guest_, protocol_, file_, size()}, coherent);
    } catch (...) {
        unmap();
        throw;
    }
}

GuestRam::~GuestRam() {
    table_.reset();
    guard_.reset();
    unmap();
}

void GuestRam::map_views() {
    file_ = memfd_create("coremesh-ram", MFD_CLOEXEC);
    if (file_ < 0) refuse("memfd_create", size(), errno);
    if (ftruncate(file_, static_cast<off_t>(size())) != 0) refuse("ftruncate", size(), errno);
    for (uint8_t** view : {&guest_, &protocol_}) {
        void* at = mmap(nullptr, size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file_, 0);
        if (at == MAP_FAILED) refuse("mmap", size(), errno);
        *view = static_cast<uint8_t*>(at);
        // A child of fork would share the file but not the faults. Pages of 4 KiB: protection, and later
        // coherence between hosts, is by page. (A kernel without huge pages refuses the second: just as
        // well.)
        if (madvise(at, size(), MADV_DONTFORK) != 0) refuse("madvise(MADV_DONTFORK)", size(), errno);
        madvise(at, size(), MADV_NOHUGEPAGE);
    }
    madvise(protocol_, size(), MADV_DONTDUMP);  // once in a core file is enough
}

void GuestRam::unmap() noexcept {
    for (uint8_t** view : {&guest_, &protocol_}) {
        if (*view) munmap(*view, size());
        *view = nullptr;
    }
    if (file_ >= 0) close(file_);
    file_ = -1;
}

bool GuestRam::read(uint64_t gpa, void* to, uint64_t length) const noexcept {
    if (length == 0) return true;
    const auto offset = offset_of(gpa, length);
    if (!offset) return false;
    std::memcpy(to, protocol_ + *offset, length);
    return true;
}

bool GuestRam::lay(uint64_t gpa, const void* from, uint64_t length, bool rom) noexcept {
    if (length == 0) return true;
    const auto offset = rom ? offset_of(gpa, length) : writable_offset_of(gpa, length);
    if (!offset) return false;
    if (table_) {
        table_->write(*offset, from, length);
    } else {
        std::memcpy(protocol_ + *offset, from, length);
    }
    return true;
}

bool GuestRam::code_written_by_host(uint64_t gpa, uint64_t length) noexcept {
    const auto offset = offset_of(gpa, length);
    return offset && table_ && table_->announce_write(*offset, length);
}

bool GuestRam::untouched(uint64_t page) const noexcept {
    // Not mincore: of a page that was swapped out it says the same as of one that never was.
    const auto at = static_cast<off_t>(page * kPage);
    const off_t data = lseek(file_, at, SEEK_DATA);
    return data < 0 ? errno == ENXIO : data >= at + static_cast<off_t>(kPage);
}

std::vector<GuestRam::Extent> GuestRam::extents() const {
    std::vector<Extent> found;
    for (off_t at = 0; static_cast<uint64_t>(at) < size();) {
        const off_t data = lseek(file_, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO) break;
        at = data < 0 ? -1 : lseek(file_, data, SEEK_HOLE);
        if (at < 0) {
            throw PlatformError(std::string("the memory in use cannot be found: lseek: ") +
                                std::strerror(errno) + "; a kernel from 3.1 on has it for tmpfs");
        }
        found.push_back({static_cast<uint64_t>(data), static_cast<uint64_t>(at - data)});
    }
    return found;
}

bool GuestRam::discard(uint64_t page) noexcept {
    if (untouched(page)) return true;
    const auto at = static_cast<off_t>(page * kPage);
    return fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, kPage) == 0;
}

PageTable& GuestRam::track_code(CodeSink& sink, unsigned engines, PageTable::Options options) {
    table_.reset();
    table_ = std::make_unique<PageTable>(guest_, protocol_, pages(), *guard_, sink, engines, options);
    table_->set_page_sink(page_sink_);
    return *table_;
}

void GuestRam::set_page_sink(PageSink* sink) noexcept {
    page_sink_ = sink;
    if (table_) table_->set_page_sink(sink);
}

}  // namespace coremesh
