// SPDX-License-Identifier: GPL-2.0-or-later
// How the bytes of a page travel: not at all when they are zeros, the words that are not zero when that is
// smaller, else as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace coremesh::coherence {

inline constexpr size_t kPageBytes = 4096;

/// The first byte of an encoded page.
enum class PageForm : uint8_t {
    kZero = 0,    ///< nothing follows
    kSparse = 1,  ///< 64 bytes: bit n says that 8-byte word n is not zero; then those words in order
    kRaw = 2,     ///< 4096 bytes
};

inline constexpr size_t kMaxEncodedPage = 1 + kPageBytes;

/// Other CPUs may write the page meanwhile: then each word is one it held. Returns the bytes written.
/// About a microsecond.
size_t encode_page(const void* page, std::span<uint8_t, kMaxEncodedPage> out) noexcept;

/// Whether `in` is one whole encoded page: the length agrees with the form and the bitmap.
bool valid_page(std::span<const uint8_t> in) noexcept;

/// Writes all 4096 bytes of `page`; false, and nothing written, when not valid.
bool decode_page(std::span<const uint8_t> in, void* page) noexcept;

/// A number that differs, as good as always, for pages that differ. Other CPUs may write the page meanwhile.
/// A fraction of a microsecond.
uint64_t page_digest(const void* page) noexcept;

/// Whether a valid encoded page is all zeros: a receiver may leave a page that it never touched untouched.
inline bool zero_page(std::span<const uint8_t> in) noexcept {
    return in.size() == 1 && in[0] == static_cast<uint8_t>(PageForm::kZero);
}

}  // namespace coremesh::coherence
