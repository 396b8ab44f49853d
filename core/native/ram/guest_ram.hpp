// SPDX-License-Identifier: GPL-2.0-or-later
// Guest RAM: one memory file, mapped twice.
//
//   guest view     what engines read and write directly, as far as the page table (page_table.hpp) lets them
//   protocol view  the same bytes, always writable; for DMA, loaders, and the threads that move pages between
//   hosts
//
// The guest sees it in the regions of ram_layout.hpp. Here it is one run of bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "ram/page_table.hpp"
#include "ram/protection.hpp"
#include "ram/ram_layout.hpp"
#include "ram/view_guard.hpp"

namespace coremesh {

class GuestRam {
  public:
    static constexpr uint64_t kPage = RamLayout::kPage;

    /// Memory is committed page by page as it is touched. `coherent`: other hosts have the same RAM, and the
    /// guest view has access to what the page table grants, at first nothing. Throws PlatformError when the
    /// host refuses.
    GuestRam(const RamLayout& layout, Protection protection, bool coherent = false);
    /// All threads that use the guest view must have stopped. Everything is given back to the host.
    ~GuestRam();
    GuestRam(const GuestRam&) = delete;
    GuestRam& operator=(const GuestRam&) = delete;

    const RamLayout& layout() const noexcept { return layout_; }
    /// See RamLayout::steer. Any thread.
    void steer(uint64_t steering) noexcept { layout_.steer(steering); }
    uint64_t size() const noexcept { return layout_.size(); }
    uint64_t pages() const noexcept { return layout_.pages(); }
    std::optional<uint64_t> offset_of(uint64_t gpa, uint64_t length = 1) const noexcept {
        return layout_.offset_of(gpa, length);
    }
    /// The same, and nothing if a byte of it is ROM.
    std::optional<uint64_t> writable_offset_of(uint64_t gpa, uint64_t length = 1) const noexcept {
        return layout_.writable_offset_of(gpa, length);
    }
    uint64_t gpa_of(uint64_t offset) const noexcept { return layout_.gpa_of(offset); }
    /// What is in use; never `automatic`.
    Protection protection() const noexcept { return guard_->kind(); }
    bool coherent() const noexcept { return guard_->coherent(); }

    /// The first byte of each view; `size()` bytes by RAM offset.
    uint8_t* guest_base() const noexcept { return guest_; }
    uint8_t* protocol_base() const noexcept { return protocol_; }
    /// Host addresses of a guest-physical address; null when it is not RAM.
    uint8_t* guest_view(uint64_t gpa) const noexcept { return at(guest_, gpa); }
    uint8_t* protocol_view(uint64_t gpa) const noexcept { return at(protocol_, gpa); }

    /// Copies through the protocol view, as a bus master does. False, and nothing done, unless all of the
    /// range has an offset, and no byte that is written is ROM. A write to a page with translated code first
    /// invalidates it (post, kick, then write). Of a coherent RAM the caller holds the pages, granted for
    /// reading or writing, for as long as the call takes. Any thread.
    bool read(uint64_t gpa, void* to, uint64_t length) const noexcept;
    bool write(uint64_t gpa, const void* from, uint64_t length) noexcept {
        return lay(gpa, from, length, false);
    }
    /// The same for a loader, which writes ROM too.
    bool load(uint64_t gpa, const void* from, uint64_t length) noexcept {
        return lay(gpa, from, length, true);
    }

    /// For a caller that writes through protocol_view itself: call it before the write, and again after it,
    /// since an engine may translate in between. Returns whether anything was invalidated. Any thread.
    bool code_written_by_host(uint64_t gpa, uint64_t length) noexcept;

    /// Whether there is no memory behind a RAM page: no thread of this host has ever touched it, and it reads
    /// as zeros. Of a page that the guest may touch now the answer is old at once: take it from the guest
    /// first. Any thread.
    bool untouched(uint64_t page) const noexcept;
    /// Where there is memory behind RAM: runs of whole pages by RAM offset, ascending. All the rest reads as
    /// zeros. While no page is touched for the first time. Throws PlatformError when the host cannot say.
    struct Extent {
        uint64_t offset, length;
    };
    std::vector<Extent> extents() const;
    /// Gives the memory of a RAM page back to the host: it reads as zeros, and is untouched. For a page that
    /// is not granted. False when the host refuses. Any thread.
    bool discard(uint64_t page) noexcept;

    /// Makes the page table, for engines 0 .. engines - 1. Once, before any engine runs; `sink` must outlive
    /// this object or a call of forget_code.
    PageTable& track_code(CodeSink& sink, unsigned engines, PageTable::Options options = {});
    /// Ends it: no engine may run any more, and no thread may grant or revoke.
    void forget_code() noexcept { table_.reset(); }
    /// Null before track_code.
    PageTable* page_table() const noexcept { return table_.get(); }
    /// What brings the pages of a coherent RAM to this host. Before vCPUs run; it must outlive the page
    /// table, or be replaced by null once they have stopped.
    void set_page_sink(PageSink* sink) noexcept;

  private:
    uint8_t* at(uint8_t* base, uint64_t gpa) const noexcept {
        const auto offset = offset_of(gpa);
        return offset ? base + *offset : nullptr;
    }
    bool lay(uint64_t gpa, const void* from, uint64_t length, bool rom) noexcept;
    void map_views();
    void unmap() noexcept;

    RamLayout layout_;  // but for its steering as it was made
    int file_ = -1;
    uint8_t* guest_ = nullptr;
    uint8_t* protocol_ = nullptr;
    PageSink* page_sink_ = nullptr;
    std::unique_ptr<ViewGuard> guard_;
    std::unique_ptr<PageTable> table_;
};

}  // namespace coremesh
