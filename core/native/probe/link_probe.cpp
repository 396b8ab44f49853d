// SPDX-License-Identifier: GPL-2.0-or-later
#include "probe/link_probe.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <ctime>

#include "base/futex.hpp"

namespace coremesh::link {
namespace {

/// What a ping is made of; an answer has `bytes` more behind it.
struct Ping {
    std::array<char, 4> mark;
    uint32_t number;
    uint32_t bytes;
};
constexpr std::array<char, 4> kAsk = {'a', 's', 'k', '?'}, kAnswer = {'a', 'n', 's', '!'};

int64_t monotonic_ns() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

std::span<const uint8_t> bytes_of(const Ping& ping) noexcept {
    return {reinterpret_cast<const uint8_t*>(&ping), sizeof ping};
}

}  // namespace

std::vector<int64_t> LinkProbe::ping(HostId peer, unsigned count, size_t reply_bytes) {
    std::vector<int64_t> times;
    const uint32_t first = answered_.load(std::memory_order_acquire);
    for (uint32_t number = first + 1; number != first + 1 + count; ++number) {
        const Ping question{kAsk, number, static_cast<uint32_t>(std::min(reply_bytes, kPage))};
        const int64_t asked = monotonic_ns();
        if (!link_->send(peer, Type::kControl, bytes_of(question))) break;
        while (answered_.load(std::memory_order_acquire) != number &&
               monotonic_ns() < asked + 2'000'000'000) {
            futex_wait_until(answered_, number - 1, asked + 2'000'000'000);
        }
        if (answered_.load(std::memory_order_acquire) != number) break;
        times.push_back(monotonic_ns() - asked);
    }
    return times;
}

std::vector<LinkProbe::Frame> LinkProbe::take() {
    std::lock_guard guard(mutex_);
    return std::exchange(kept_, {});
}

void LinkProbe::received(HostId from, Type type, uint64_t guest_tsc,
                         std::span<const uint8_t> payload) noexcept {
    static constexpr std::array<uint8_t, kPage> kNothing{};
    if (const int64_t ns = slowness_ns_.load(std::memory_order_relaxed); ns > 0) {
        const timespec pause{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
        nanosleep(&pause, nullptr);
    }
    Ping ping;
    if (type == Type::kControl && payload.size() >= sizeof ping) {
        std::memcpy(&ping, payload.data(), sizeof ping);
        if (ping.mark == kAsk && ping.bytes <= kPage) {
            ping.mark = kAnswer;
            link_->send(from, Type::kControl, bytes_of(ping), std::span(kNothing).first(ping.bytes));
            return;
        }
        if (ping.mark == kAnswer) {
            answered_.store(ping.number, std::memory_order_release);
            futex_wake(answered_);
            return;
        }
    }
    std::lock_guard guard(mutex_);
    if (kept_.size() < kKept) kept_.push_back({from, type, guest_tsc, {payload.begin(), payload.end()}});
}

}  // namespace coremesh::link
