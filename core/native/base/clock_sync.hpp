// SPDX-License-Identifier: GPL-2.0-or-later
// How far apart the clocks of two hosts are, from messages that went to and fro. No thread, socket or clock.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace coremesh {

/// A question of a following host to host 0, and its answer. Times are guest ticks.
///
/// 40 bytes, little endian: 0 u8 kind, 1..3 zero, 4 u32 sequence, 8 u64 asked, 16 u64 received,
/// 24 u64 answered, 32 u64 zero.
struct ClockMessage {
    enum class Kind : uint8_t { kQuestion = 1, kAnswer = 2 };
    static constexpr size_t kBytes = 40;

    Kind kind = Kind::kQuestion;
    uint32_t sequence = 0;
    uint64_t asked = 0;     ///< by the asker's own unchanged counter (`Clock::unchanged`)
    uint64_t received = 0;  ///< by the answerer's guest TSC; 0 in a question
    uint64_t answered = 0;  ///< the same, when the answer left; not before `received`

    std::array<uint8_t, kBytes> encode() const noexcept;
    /// Nothing for what is no such message.
    static std::optional<ClockMessage> decode(std::span<const uint8_t> bytes) noexcept;
};

/// What one host knows of host 0's clock.
///
/// An exchange says for certain that host 0's clock less the own counter lay between `answered - arrived` and
/// `received - asked`; its middle is the best guess, the better the shorter the exchange took. Through the
/// guesses of the last seconds goes a line, weighted towards the short exchanges: its height is the offset,
/// its slope the difference of the two rates. Where a new exchange proves the line wrong (host 0's clock has
/// jumped, a host was suspended), what came before is forgotten. Cristian's algorithm with NTP's choice of
/// short exchanges (RFC 5905, section 10).
///
/// Pure: one thread at a time, times come in as arguments.
class ClockSync {
  public:
    struct Options {
        uint64_t hz = 0;                       ///< guest ticks a second
        int64_t first_period_ns = 2'000'000;   ///< between questions, until `settled`
        int64_t quick_period_ns = 10'000'000;  ///< and then, until `kWindow` exchanges tell the drift
        int64_t period_ns = 50'000'000;        ///< and then
        int64_t patience_ns = 200'000'000;     ///< a question without an answer is given up
        int64_t jump_ns = 1'000'000;           ///< an error above this is not slewed but jumped forward
    };

    /// What to do with the clock; see Clock::follow and Clock::witness.
    struct Correction {
        bool set = false;   ///< first of all: show `tsc`, whichever way that is
        bool jump = false;  ///< far behind: show `tsc`
        uint64_t tsc = 0;
        int64_t offset = 0;  ///< ticks to gain (negative: to lose)
        uint64_t over = 0;   ///< ticks in which it gains or loses them
        int64_t drift_ppb = 0;
    };

    struct Facts {
        bool settled = false;  ///< the clock may be shown to a guest
        uint64_t exchanges = 0;
        uint64_t refused = 0;  ///< answers that fit no question, or that no clock can have given
        uint64_t unanswered = 0;
        uint64_t restarts = 0;  ///< times the past was forgotten
        int64_t error_ns = 0;   ///< of the own clock at the last exchange, as far as known; positive: behind
        int64_t worst_error_ns = 0;  ///< the largest magnitude since it settled
        int64_t uncertainty_ns = 0;  ///< half of the shortest exchange known: what cannot be known
        int64_t drift_ppb = 0;
    };

    explicit ClockSync(const Options& options) noexcept;

    /// The question to send now, if it is time. `unchanged` is read as late as possible.
    std::optional<ClockMessage> ask(int64_t now_ns, uint64_t unchanged) noexcept;
    /// When `ask` has something again, in ns on the same clock as `now_ns`.
    int64_t next_ns() const noexcept { return next_ns_; }

    /// Takes an answer that arrived at `unchanged` of the own counter, when the own guest clock showed `tsc`.
    std::optional<Correction> answered(const ClockMessage& answer, uint64_t unchanged, uint64_t tsc) noexcept;

    const Facts& facts() const noexcept { return facts_; }

    static constexpr unsigned kWindow = 128;         ///< exchanges that are remembered
    static constexpr unsigned kFirstExchanges = 16;  ///< until it is settled

  private:
    struct Sample {
        uint64_t at;      // own counter, middle of the exchange
        int64_t offset;   // host 0's clock less the own counter, there
        uint64_t length;  // of the exchange, without the answerer's part
    };
    Correction correction(uint64_t unchanged, uint64_t tsc) noexcept;
    void remember(const Sample& sample) noexcept;
    void fit() noexcept;
    double height(uint64_t at) const noexcept;
    double ticks(double ns) const noexcept;
    int64_t nanoseconds(double ticks) const noexcept;

    Options options_;
    Facts facts_;
    int64_t next_ns_ = 0;
    int64_t asked_ns_ = 0;
    uint64_t asked_ = 0;
    uint32_t sequence_ = 0;
    bool waiting_ = false;
    std::array<Sample, kWindow> samples_{};
    unsigned count_ = 0;
    unsigned newest_ = 0;

    // The line: `base_.offset + height_` at `base_.at`, and `slope_` guest ticks a tick.
    Sample base_{};
    double height_ = 0, slope_ = 0;
    double prior_slope_ = 0;  // the slope when there is little to tell it by
};

}  // namespace coremesh
