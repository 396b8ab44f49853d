// SPDX-License-Identifier: GPL-2.0-or-later
// 256 interrupt vectors that any thread may set and one thread takes: the heart of the IRR.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>

namespace coremesh::x86 {

/// A set of vectors, many producers, one consumer, without a lock.
///
/// `summary_` has a bit for each of the four words that may hold something, so the consumer, which asks
/// between translated blocks, reads one word when nothing is pending.
///
/// Order, and why nothing is lost: a producer sets the vector's bit *first* and the summary bit *second*. The
/// consumer, when it finds a word empty, clears the summary bit *first* and looks at the word again *second*.
/// Both touch the summary by read-modify-write, so one comes first:
///  - producer first: the consumer's clear reads the producer's value (acquire from release), so that the
///    second look sees the vector, and sets the summary bit again;
///  - consumer first: the producer's summary bit stays.
/// With the producer's two steps the other way round, the consumer can clear the summary between them, and
/// the vector stays unseen (the test keeps such a bitmap as its control, and it does lose).
///
/// The summary is sequentially consistent besides (which costs nothing on x86): a consumer that goes to sleep
/// writes "asleep" and then asks `highest`; a producer sets and then reads "asleep". One of them sees the
/// other.
class VectorBitmap {
  public:
    /// Any thread. True if the vector was not pending: then, and only then, the caller must kick the
    /// consumer. When it was pending, the thread that set it before has kicked or is about to: between that
    /// `set` and that kick nothing can fail, so this caller need not kick.
    bool set(uint8_t vector) noexcept {
        const unsigned word = vector >> 6;
        const uint64_t bit = uint64_t{1} << (vector & 63);
        if (words_[word].fetch_or(bit, std::memory_order_acq_rel) & bit) return false;
        summary_.fetch_or(1u << word, std::memory_order_seq_cst);
        return true;
    }

    /// Consumer only. Highest pending vector or -1; one load when there is none.
    int highest() noexcept {
        uint32_t summary = summary_.load(std::memory_order_seq_cst);
        while (summary != 0) {
            const unsigned word = 31 - static_cast<unsigned>(std::countl_zero(summary));
            const uint64_t bits = words_[word].load(std::memory_order_acquire);
            if (bits != 0)
                return static_cast<int>(word * 64 + 63 - static_cast<unsigned>(std::countl_zero(bits)));
            if (!retire(word)) summary &= ~(1u << word);
        }
        return -1;
    }

    /// Consumer only. Takes the vector out.
    void clear(uint8_t vector) noexcept {
        const unsigned word = vector >> 6;
        const uint64_t bit = uint64_t{1} << (vector & 63);
        if ((words_[word].fetch_and(~bit, std::memory_order_acq_rel) & ~bit) == 0) retire(word);
    }

    /// Consumer only. Takes all out; vectors set at the same time stay or go.
    void clear_all() noexcept {
        for (unsigned word = 0; word < words_.size(); ++word) {
            words_[word].exchange(0, std::memory_order_acq_rel);
            retire(word);
        }
    }

    /// Any thread. Bits 32*index .. 32*index+31, as an APIC register shows them.
    uint32_t register32(unsigned index) const noexcept {
        return static_cast<uint32_t>(words_[index >> 1].load(std::memory_order_acquire) >>
                                     (32 * (index & 1)));
    }

    /// Any thread. Vectors 64*word .. 64*word+63.
    uint64_t word(unsigned index) const noexcept { return words_[index].load(std::memory_order_acquire); }

    /// While there is neither producer nor consumer.
    void restore(const uint64_t (&words)[4]) noexcept {
        uint32_t summary = 0;
        for (unsigned word = 0; word < words_.size(); ++word) {
            words_[word].store(words[word], std::memory_order_relaxed);
            if (words[word]) summary |= 1u << word;
        }
        summary_.store(summary, std::memory_order_seq_cst);
    }

  private:
    /// Clears the summary bit of an empty word. True if the word filled again meanwhile.
    bool retire(unsigned word) noexcept {
        summary_.fetch_and(~(1u << word), std::memory_order_seq_cst);
        if (words_[word].load(std::memory_order_acquire) == 0) return false;
        summary_.fetch_or(1u << word, std::memory_order_acq_rel);
        return true;
    }

    std::atomic<uint32_t> summary_{0};
    std::array<std::atomic<uint64_t>, 4> words_{};
};

}  // namespace coremesh::x86
