// SPDX-License-Identifier: GPL-2.0-or-later
#include "coherence/page_codec.hpp"

#include <array>
#include <bit>
#include <cstring>

namespace coremesh::coherence {

namespace {

constexpr size_t kWords = kPageBytes / 8;
constexpr size_t kBitmap = kWords / 8;
// Sparse must save enough to pay for the scattered copy at both ends: about a third of the page.
constexpr size_t kSparseWords = 336;

uint8_t form(PageForm value) noexcept { return static_cast<uint8_t>(value); }

uint64_t word_at(const uint8_t* at) noexcept {
    uint64_t word;
    std::memcpy(&word, at, sizeof word);
    return word;
}

}  // namespace

size_t encode_page(const void* page, std::span<uint8_t, kMaxEncodedPage> out) noexcept {
    const auto* const from = static_cast<const uint8_t*>(page);
    uint8_t* const bitmap = out.data() + 1;
    size_t count = 0;
    for (size_t group = 0; group < kWords / 64 && count <= kSparseWords; ++group) {
        uint64_t bits = 0;
        for (size_t line = 0; line < 8; ++line) {
            uint64_t eight[8];
            std::memcpy(eight, from + (group * 8 + line) * 64, sizeof eight);
            uint64_t any = 0;
            for (const uint64_t word : eight) any |= word;
            if (any == 0) continue;
            for (size_t n = 0; n < 8; ++n) bits |= uint64_t{eight[n] != 0} << (line * 8 + n);
        }
        std::memcpy(bitmap + group * 8, &bits, 8);
        count += static_cast<size_t>(std::popcount(bits));
    }
    if (count == 0) {
        out[0] = form(PageForm::kZero);
        return 1;
    }
    if (count > kSparseWords) {
        out[0] = form(PageForm::kRaw);
        std::memcpy(out.data() + 1, from, kPageBytes);
        return kMaxEncodedPage;
    }
    // By the bitmap, not by a second look at the words: they may have changed.
    out[0] = form(PageForm::kSparse);
    uint8_t* words = bitmap + kBitmap;
    for (size_t group = 0; group < kWords / 64; ++group) {
        for (uint64_t bits = word_at(bitmap + group * 8); bits != 0; bits &= bits - 1) {
            std::memcpy(words, from + (group * 64 + static_cast<size_t>(std::countr_zero(bits))) * 8, 8);
            words += 8;
        }
    }
    return 1 + kBitmap + count * 8;
}

bool valid_page(std::span<const uint8_t> in) noexcept {
    if (in.empty()) return false;
    if (in[0] == form(PageForm::kZero)) return in.size() == 1;
    if (in[0] == form(PageForm::kRaw)) return in.size() == kMaxEncodedPage;
    if (in[0] != form(PageForm::kSparse) || in.size() < 1 + kBitmap) return false;
    size_t count = 0;
    for (size_t group = 0; group < kWords / 64; ++group) count += std::popcount(word_at(&in[1 + group * 8]));
    return in.size() == 1 + kBitmap + count * 8;
}

bool decode_page(std::span<const uint8_t> in, void* page) noexcept {
    if (!valid_page(in)) return false;
    auto* const to = static_cast<uint8_t*>(page);
    if (in[0] == form(PageForm::kRaw)) {
        std::memcpy(to, &in[1], kPageBytes);
        return true;
    }
    std::memset(to, 0, kPageBytes);
    if (in[0] == form(PageForm::kZero)) return true;
    const uint8_t* words = &in[1] + kBitmap;
    for (size_t group = 0; group < kWords / 64; ++group) {
        for (uint64_t bits = word_at(&in[1 + group * 8]); bits != 0; bits &= bits - 1) {
            std::memcpy(to + (group * 64 + static_cast<size_t>(std::countr_zero(bits))) * 8, words, 8);
            words += 8;
        }
    }
    return true;
}

uint64_t page_digest(const void* page) noexcept {
    constexpr uint64_t kOdd = 0x9e3779b97f4a7c15u;
    const auto* const at = static_cast<const uint8_t*>(page);
    // Four chains: a multiplication takes longer than it occupies the unit.
    std::array<uint64_t, 4> lanes{1, 2, 3, 4};
    for (size_t word = 0; word < kWords; word += lanes.size()) {
        for (size_t lane = 0; lane < lanes.size(); ++lane) {
            lanes[lane] = std::rotl((lanes[lane] ^ word_at(at + (word + lane) * 8)) * kOdd, 29);
        }
    }
    uint64_t digest = 0;
    for (const uint64_t lane : lanes) digest = std::rotl((digest ^ lane) * kOdd, 29);
    return digest;
}

}  // namespace coremesh::coherence
