// SPDX-License-Identifier: GPL-2.0-or-later
// Pages on the wire: what is encoded comes back, in fewer bytes where that pays, and garbage is refused.
#include <array>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <random>
#include <span>
#include <vector>

#include "check.hpp"
#include "coherence/page_codec.hpp"

using namespace coremesh::coherence;

namespace {

struct alignas(4096) Page {
    std::array<uint64_t, 512> words{};
};

std::vector<uint8_t> encoded(const Page& page) {
    std::array<uint8_t, kMaxEncodedPage> out{};
    const size_t size = encode_page(&page, out);
    return {out.begin(), out.begin() + static_cast<long>(size)};
}

void comes_back(const Page& page) {
    const std::vector<uint8_t> wire = encoded(page);
    Page back;
    back.words.fill(0x5555555555555555);
    CHECK(valid_page(wire));
    CHECK(decode_page(wire, &back));
    CHECK(back.words == page.words);
}

}  // namespace

STORY("given a page of zeros, when it travels, then it is one byte and comes back as zeros") {
    Page page;
    CHECK_EQ(encoded(page).size(), 1u);
    CHECK(zero_page(encoded(page)));
    comes_back(page);
}

STORY(
    "given pages with any number of words that are not zero, when they travel, then they come back the "
    "same") {
    std::mt19937_64 random(1);
    for (unsigned words = 0; words <= 512; ++words) {
        Page page;
        for (unsigned n = 0; n < words; ++n) page.words[random() % 512] = random();
        comes_back(page);
        Page front;
        for (unsigned n = 0; n < words; ++n) front.words[n] = random() | 1;
        comes_back(front);
        CHECK(encoded(front).size() <= 1 + 64 + 8 * std::max(words, 1u) ||
              encoded(front).size() == kMaxEncodedPage);
        Page back;
        for (unsigned n = 0; n < words; ++n) back.words[511 - n] = random() | 1;
        comes_back(back);
    }
}

STORY("given a page with a few words, when it travels, then it is small; a full one is as it is") {
    Page page;
    page.words[0] = page.words[511] = 7;
    CHECK_EQ(encoded(page).size(), 1u + 64 + 16);
    page.words.fill(1);
    CHECK_EQ(encoded(page).size(), 1u + 4096);
}

STORY(
    "given garbage, when it is decoded, then it is refused, or a page; the page is written whole or not at "
    "all") {
    std::mt19937_64 random(2);
    unsigned refused = 0;
    for (unsigned round = 0; round < 20'000; ++round) {
        std::vector<uint8_t> wire(random() % 5000);
        for (uint8_t& byte : wire) byte = static_cast<uint8_t>(random());
        if (!wire.empty()) wire[0] = static_cast<uint8_t>(random() % 4);
        Page page;
        page.words.fill(42);
        if (!decode_page(wire, &page)) {
            ++refused;
            for (const uint64_t word : page.words) CHECK_EQ(word, 42u);
        }
    }
    CHECK(refused > 19'000);
    CHECK(!valid_page({}));
    Page page;
    page.words[9] = 1;
    std::vector<uint8_t> wire = encoded(page);
    wire.pop_back();
    CHECK(!valid_page(wire));
    wire.resize(wire.size() + 2);
    CHECK(!valid_page(wire));
}

STORY("given pages of every kind, when encoded and decoded, then the cost is printed") {
    for (const unsigned words : {0u, 16u, 256u, 512u}) {
        Page page;
        for (unsigned n = 0; n < words; ++n) page.words[n * 512 / words] = n + 1;
        std::array<uint8_t, kMaxEncodedPage> out{};
        Page back;
        constexpr unsigned kRounds = 20'000;
        const auto start = std::chrono::steady_clock::now();
        size_t size = 0;
        for (unsigned round = 0; round < kRounds; ++round) {
            page.words[0] = words == 0 ? 0 : round + 1;
            size = encode_page(&page, out);
        }
        const auto middle = std::chrono::steady_clock::now();
        for (unsigned round = 0; round < kRounds; ++round) decode_page(std::span(out.data(), size), &back);
        const auto end = std::chrono::steady_clock::now();
        const auto each = [](auto span) {
            return std::chrono::duration<double, std::nano>(span).count() / kRounds;
        };
        std::cout << "  " << words << " words: " << size << " bytes, encode " << each(middle - start)
                  << " ns, decode " << each(end - middle) << " ns" << std::endl;
    }
}

RUN_STORIES()
