// SPDX-License-Identifier: GPL-2.0-or-later
// Guest RAM: one memory file, mapped twice.
//
//   guest view     what engines read and write directly; pages that hold translated code are read-only in it
//   protocol view  the same bytes, always writable; for DMA, loaders, and whoever moves pages between hosts
//
// The guest sees RAM at guest-physical [0, low_size) and [4 GiB, 4 GiB + size - low_size). Here it is one run
// of bytes: a *RAM offset* is a position in it, a *RAM page* is an offset >> 12.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>

#include "ram/code_pages.hpp"
#include "ram/protection.hpp"
#include "ram/ram_layout.hpp"

namespace coremesh {

/// A RAM size no machine can have. The text names the range that is allowed.
class RamSizeError : public std::invalid_argument {
  public:
    using std::invalid_argument::invalid_argument;
};

class GuestRam {
  public:
    static constexpr uint64_t kPage = RamLayout::kPage;
    /// The engine's guests have 40 bits of physical address.
    static constexpr uint64_t kAddressEnd = uint64_t{1} << 40;

    /// Sizes are bytes, multiples of 4096; low_size <= size, low_size <= 4 GiB. Memory is committed page by
    /// page as it is touched. Throws RamSizeError for sizes out of range, PlatformError when the host
    /// refuses.
    GuestRam(uint64_t size, uint64_t low_size, Protection protection);
    /// All threads that use the guest view must have stopped. Everything is given back to the host.
    ~GuestRam();
    GuestRam(const GuestRam&) = delete;
    GuestRam& operator=(const GuestRam&) = delete;

    const RamLayout& layout() const noexcept { return layout_; }
    uint64_t size() const noexcept { return layout_.size; }
    uint64_t low_size() const noexcept { return layout_.low_size; }
    uint64_t pages() const noexcept { return layout_.pages(); }
    std::optional<uint64_t> offset_of(uint64_t gpa, uint64_t length = 1) const noexcept {
        return layout_.offset_of(gpa, length);
    }
    uint64_t gpa_of(uint64_t offset) const noexcept { return layout_.gpa_of(offset); }
    /// What is in use; never `automatic`.
    Protection protection() const noexcept { return guard_->kind(); }

    /// The first byte of each view; `size()` bytes by RAM offset.
    uint8_t* guest_base() const noexcept { return guest_; }
    uint8_t* protocol_base() const noexcept { return protocol_; }
    /// Host addresses of a guest-physical address; null when it is not RAM.
    uint8_t* guest_view(uint64_t gpa) const noexcept { return at(guest_, gpa); }
    uint8_t* protocol_view(uint64_t gpa) const noexcept { return at(protocol_, gpa); }

    /// Copies through the protocol view. False, and nothing done, unless all of the range is RAM in one
    /// block. A write to a page with translated code first invalidates it (post, kick, then write). Any
    /// thread.
    bool read(uint64_t gpa, void* to, uint64_t length) const noexcept;
    bool write(uint64_t gpa, const void* from, uint64_t length) noexcept;

    /// For a caller that writes through protocol_view itself: call it before the write, and again after it,
    /// since an engine may translate in between. Returns whether anything was invalidated. Any thread.
    bool code_written_by_host(uint64_t gpa, uint64_t length) noexcept;

    /// Starts the tracking of translated code for engines 0 .. engines - 1. Once, before any engine runs;
    /// `sink` must outlive this object or a call of forget_code.
    CodePages& track_code(CodeSink& sink, unsigned engines, CodePages::Options options = {});
    /// Ends it: no engine may run any more.
    void forget_code() noexcept { code_.reset(); }
    /// Null before track_code.
    CodePages* code() const noexcept { return code_.get(); }

  private:
    uint8_t* at(uint8_t* base, uint64_t gpa) const noexcept {
        const auto offset = offset_of(gpa);
        return offset ? base + *offset : nullptr;
    }
    void map_views();
    void unmap() noexcept;

    const RamLayout layout_;
    int file_ = -1;
    uint8_t* guest_ = nullptr;
    uint8_t* protocol_ = nullptr;
    std::unique_ptr<WriteGuard> guard_;
    std::unique_ptr<CodePages> code_;
};

}  // namespace coremesh
