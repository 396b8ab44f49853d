// SPDX-License-Identifier: GPL-2.0-or-later
// The string comparisons of SSE4.2 in plain C, beside the host's own instructions.
#include "tcg/x86/string_compare.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>

#include "check.hpp"

#if defined(__x86_64__)

namespace {

struct Answer {
    uint32_t index, flags;
    uint8_t mask[16];
};

#define WITH_IMMEDIATE(imm)                                                                           \
    case imm: {                                                                                       \
        asm volatile(                                                                                 \
            "movdqu %3, %%xmm0\n\tmovdqu %4, %%xmm1\n\tpcmpestri %5, %%xmm1, %%xmm0\n\tpushfq\n"      \
            "\tpopq %1\n\tpcmpestrm %5, %%xmm1, %%xmm0\n\tmovdqu %%xmm0, %2"                          \
            : "=&c"(index), "=&r"(flags), "=m"(answer.mask)                                           \
            : "m"(*reinterpret_cast<const uint8_t(*)[16]>(a)),                                        \
              "m"(*reinterpret_cast<const uint8_t(*)[16]>(b)), "i"(imm), "a"(a_length), "d"(b_length) \
            : "xmm0", "xmm1", "cc");                                                                  \
        break;                                                                                        \
    }
#define FOUR(imm) WITH_IMMEDIATE(imm) WITH_IMMEDIATE(imm + 1) WITH_IMMEDIATE(imm + 2) WITH_IMMEDIATE(imm + 3)
#define SIXTEEN(imm) FOUR(imm) FOUR(imm + 4) FOUR(imm + 8) FOUR(imm + 12)

/// What the host says; the lengths as EAX and EDX hold them.
[[gnu::target("sse4.2"), gnu::noinline]] Answer host_answer(const uint8_t* a, const uint8_t* b,
                                                            int32_t a_length, int32_t b_length,
                                                            unsigned imm) {
    Answer answer{};
    uint32_t index = 0;
    uint64_t flags = 0;
    switch (imm) {
        SIXTEEN(0x00)
        SIXTEEN(0x10)
        SIXTEEN(0x20)
        SIXTEEN(0x30)
        SIXTEEN(0x40)
        SIXTEEN(0x50)
        SIXTEEN(0x60)
        SIXTEEN(0x70)
        default:
            break;
    }
    answer.index = index;
    answer.flags = static_cast<uint32_t>(flags) & (STRING_CF | STRING_ZF | STRING_SF | STRING_OF);
    return answer;
}

int32_t some_length(std::mt19937& random) {
    switch (random() % 8) {
        case 0:
            return INT32_MIN;
        case 1:
            return static_cast<int32_t>(random());
        default:
            return static_cast<int32_t>(random() % 40) - 20;
    }
}

/// Given strings of few letters and lengths of every kind, when both compare, then all results are equal.
void test_plain_c_says_what_the_host_says() {
    std::mt19937 random(7);
    for (unsigned round = 0; round < 128 * 400; round++) {
        const unsigned imm = round % 128;
        uint8_t a[16], b[16];
        for (unsigned at = 0; at < 16; at++) {
            a[at] = static_cast<uint8_t>(random() % 4 * 85), b[at] = static_cast<uint8_t>(random() % 4 * 85);
        }
        if (random() % 2) std::memcpy(a, b + random() % 8, 8);
        const int32_t a_length = some_length(random), b_length = some_length(random);
        const Answer host = host_answer(a, b, a_length, b_length, imm);
        const string_comparison ours = string_compare(a, b, string_explicit_length(a_length, imm),
                                                      string_explicit_length(b_length, imm), imm);
        CHECK(ours.index == host.index);
        CHECK(ours.flags == host.flags);
        CHECK(std::memcmp(ours.mask, host.mask, 16) == 0);
    }
}

/// Given 64-bit lengths, when they are far out of range, then they saturate.
void test_lengths_saturate() {
    CHECK(string_explicit_length(INT64_MIN, 0) == 16);
    CHECK(string_explicit_length(INT64_MAX, STRING_WORDS) == 8);
    CHECK(string_explicit_length(-3, 0) == 3);
    CHECK(string_explicit_length(int64_t{1} << 32, 0) == 16);
}

}  // namespace

int main() {
    test_lengths_saturate();
    if (__builtin_cpu_supports("sse4.2"))
        test_plain_c_says_what_the_host_says();
    else
        std::puts("the host has no SSE4.2: not compared");
    return 0;
}

#else

int main() { return 0; }

#endif
