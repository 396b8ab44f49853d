// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/clock_sync.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace coremesh {
namespace {

constexpr double kBillion = 1e9;
/// What two hosts' counters are expected to differ by, and what no two do: quartz is good to 50 in 10^6.
constexpr double kUsualDrift = 50e-6, kSteepestDrift = 1000e-6;
/// How well a moment is known even on a perfect path.
constexpr double kLeastDoubtNs = 1'000;
/// By how much a line may miss an exchange's certain bounds before the past is forgotten.
constexpr double kToleranceNs = 10'000;

}  // namespace

std::array<uint8_t, ClockMessage::kBytes> ClockMessage::encode() const noexcept {
    std::array<uint8_t, kBytes> bytes{};
    bytes[0] = static_cast<uint8_t>(kind);
    std::memcpy(&bytes[4], &sequence, 4);
    std::memcpy(&bytes[8], &asked, 8);
    std::memcpy(&bytes[16], &received, 8);
    std::memcpy(&bytes[24], &answered, 8);
    return bytes;
}

std::optional<ClockMessage> ClockMessage::decode(std::span<const uint8_t> bytes) noexcept {
    if (bytes.size() != kBytes || bytes[0] < 1 || bytes[0] > 2) return {};
    const auto is_zero = [](uint8_t byte) { return byte == 0; };
    if (!std::all_of(&bytes[1], &bytes[4], is_zero)) return {};
    if (!std::all_of(bytes.begin() + 32, bytes.end(), is_zero)) return {};
    ClockMessage message;
    message.kind = static_cast<Kind>(bytes[0]);
    std::memcpy(&message.sequence, &bytes[4], 4);
    std::memcpy(&message.asked, &bytes[8], 8);
    std::memcpy(&message.received, &bytes[16], 8);
    std::memcpy(&message.answered, &bytes[24], 8);
    if (message.answered < message.received) return {};
    if (message.kind == Kind::kQuestion && message.answered != 0) return {};
    return message;
}

ClockSync::ClockSync(const Options& options) noexcept : options_(options) {}

std::optional<ClockMessage> ClockSync::ask(int64_t now_ns, uint64_t unchanged) noexcept {
    if (now_ns < next_ns_) return {};
    if (waiting_) ++facts_.unanswered;
    waiting_ = true;
    asked_ns_ = now_ns;
    asked_ = unchanged;
    next_ns_ = now_ns + options_.patience_ns;
    return ClockMessage{ClockMessage::Kind::kQuestion, ++sequence_, unchanged, 0, 0};
}

std::optional<ClockSync::Correction> ClockSync::answered(const ClockMessage& answer, uint64_t unchanged,
                                                         uint64_t tsc) noexcept {
    if (answer.kind != ClockMessage::Kind::kAnswer || !waiting_ || answer.sequence != sequence_ ||
        answer.asked != asked_ || unchanged < asked_) {
        ++facts_.refused;
        return {};
    }
    waiting_ = false;
    next_ns_ = asked_ns_ + (!facts_.settled     ? options_.first_period_ns
                            : count_ != kWindow ? options_.quick_period_ns
                                                : options_.period_ns);
    const uint64_t whole = unchanged - asked_;
    const uint64_t theirs = answer.answered - answer.received;
    // Their part is measured by their clock, which may run a little faster; not by more than that.
    if (theirs > whole + whole / 100.0 + ticks(kToleranceNs)) {
        ++facts_.refused;
        return {};
    }
    ++facts_.exchanges;

    // The bounds, as differences modulo 2^64: the two counters may be far apart.
    const auto least = static_cast<int64_t>(answer.answered - unchanged);
    const uint64_t length = whole - std::min(theirs, whole);
    const Sample sample{asked_ + whole / 2, least + static_cast<int64_t>(length / 2), length};
    if (count_ != 0) {
        const double predicted = height(sample.at) + static_cast<double>(base_.offset - sample.offset);
        if (std::abs(predicted) > static_cast<double>(length) / 2 + ticks(kToleranceNs)) {
            count_ = 0;
            ++facts_.restarts;
        }
    }
    remember(sample);
    fit();
    return correction(unchanged, tsc);
}

ClockSync::Correction ClockSync::correction(uint64_t unchanged, uint64_t tsc) noexcept {
    const uint64_t theirs = unchanged + static_cast<uint64_t>(base_.offset + std::llround(height(unchanged)));
    const auto error = static_cast<int64_t>(theirs - tsc);
    facts_.error_ns = nanoseconds(static_cast<double>(error));
    facts_.drift_ppb = std::llround(slope_ * kBillion);

    Correction correction{.tsc = theirs, .drift_ppb = facts_.drift_ppb};
    if (!facts_.settled) {
        correction.set = true;
        facts_.settled = facts_.exchanges >= kFirstExchanges;
        return correction;
    }
    facts_.worst_error_ns = std::max<int64_t>(facts_.worst_error_ns, std::abs(facts_.error_ns));
    correction.jump = facts_.error_ns > options_.jump_ns;
    correction.offset = correction.jump ? 0 : error;
    // It is made up for by the time of the next exchange; should that not come, nothing more is added.
    correction.over = static_cast<uint64_t>(ticks(static_cast<double>(options_.period_ns)));
    return correction;
}

void ClockSync::remember(const Sample& sample) noexcept {
    newest_ = count_ == 0 ? 0 : (newest_ + 1) % kWindow;
    samples_[newest_] = sample;
    count_ = std::min(count_ + 1, kWindow);
}

/// The weighted line through what is remembered, height and slope relative to the newest exchange.
void ClockSync::fit() noexcept {
    base_ = samples_[newest_];
    std::array<uint64_t, kWindow> lengths{};
    for (unsigned index = 0; index < count_; ++index) lengths[index] = samples_[index].length;
    const auto end = lengths.begin() + count_;
    const uint64_t shortest = *std::min_element(lengths.begin(), end);
    // The shortest one waited a little, too: about as much as the short ones differ among themselves.
    const auto short_one = lengths.begin() + count_ / 8;
    std::nth_element(lengths.begin(), short_one, end);
    const double least_doubt = ticks(kLeastDoubtNs) + static_cast<double>(*short_one - shortest) / 4;
    facts_.uncertainty_ns = nanoseconds(static_cast<double>(shortest) / 2);

    double sum_w = 0, sum_x = 0, sum_y = 0, sum_xx = 0, sum_xy = 0;
    for (unsigned index = 0; index < count_; ++index) {
        const Sample& sample = samples_[index];
        // An exchange that took longer than the shortest is wrong by up to half of the excess.
        const double doubt = least_doubt + static_cast<double>(sample.length - shortest) / 2;
        const double w = 1 / (doubt * doubt);
        const auto x = static_cast<double>(static_cast<int64_t>(sample.at - base_.at));
        const auto y = static_cast<double>(sample.offset - base_.offset);
        sum_w += w;
        sum_x += w * x;
        sum_y += w * y;
        sum_xx += w * x * x;
        sum_xy += w * x * y;
    }
    // What is known of drifts beforehand counts as one more measurement: of `slope_` as it was before.
    const double prior = 1 / (kUsualDrift * kUsualDrift);
    const double determinant = sum_w * (sum_xx + prior) - sum_x * sum_x;
    const double slope = (sum_w * (sum_xy + prior * prior_slope_) - sum_x * sum_y) / determinant;
    slope_ = std::clamp(slope, -kSteepestDrift, kSteepestDrift);
    height_ = (sum_y - slope_ * sum_x) / sum_w;
    if (count_ == kWindow) prior_slope_ = slope_;
}

/// Above `base_.offset`, at `at` of the own counter.
double ClockSync::height(uint64_t at) const noexcept {
    return height_ + slope_ * static_cast<double>(static_cast<int64_t>(at - base_.at));
}

double ClockSync::ticks(double ns) const noexcept { return ns * static_cast<double>(options_.hz) / kBillion; }

int64_t ClockSync::nanoseconds(double ticks) const noexcept {
    return std::llround(ticks * kBillion / static_cast<double>(options_.hz));
}

}  // namespace coremesh
