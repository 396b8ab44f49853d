// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/clock.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <limits>

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

namespace coremesh {
namespace {

using u128 = unsigned __int128;

constexpr uint64_t kNsPerSecond = 1'000'000'000;
constexpr unsigned kRatioBits = 48;

int64_t read_ns(clockid_t id) noexcept {
    timespec now{};
    clock_gettime(id, &now);
    return now.tv_sec * static_cast<int64_t>(kNsPerSecond) + now.tv_nsec;
}

#if defined(__x86_64__)

uint64_t read_host_tsc() noexcept {
    // RDTSC is not ordered with earlier loads; without the fence a guest sees time run backwards between
    // cores.
    _mm_lfence();
    return __rdtsc();
}

bool host_tsc_usable() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(0x8000'0007, &eax, &ebx, &ecx, &edx) || (edx & (1u << 8)) == 0) return false;
    // The kernel watches the TSCs of all cores against each other; where it fell back to one of these it has
    // found them apart. (Under a hypervisor kvm-clock or hyperv may be chosen with sound TSCs.)
    char name[32] = {};
    if (FILE* file = std::fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "re")) {
        if (std::fgets(name, sizeof name, file) == nullptr) name[0] = 0;
        std::fclose(file);
    }
    return std::strncmp(name, "hpet", 4) != 0 && std::strncmp(name, "acpi_pm", 7) != 0 &&
           std::strncmp(name, "jiffies", 7) != 0 && std::strncmp(name, "refined", 7) != 0;
}

struct Instant {
    uint64_t tsc;
    int64_t ns;
};

/// TSC and raw time read as close together as a few tries allow: an interrupt between the reads is discarded.
Instant read_instant() noexcept {
    Instant best{};
    uint64_t best_width = std::numeric_limits<uint64_t>::max();
    for (int attempt = 0; attempt < 20; ++attempt) {
        const uint64_t before = read_host_tsc();
        const int64_t ns = read_ns(CLOCK_MONOTONIC_RAW);
        const uint64_t after = read_host_tsc();
        if (after - before < best_width) {
            best_width = after - before;
            best = {before + (after - before) / 2, ns};
        }
    }
    return best;
}

uint64_t measure_host_tsc() noexcept {
    // RAW, because it runs at the rate that the kernel itself found for the TSC, without NTP's slewing.
    const Instant begin = read_instant();
    const timespec pause{0, 20'000'000};
    nanosleep(&pause, nullptr);
    const Instant end = read_instant();
    const u128 ticks = static_cast<u128>(end.tsc - begin.tsc) * kNsPerSecond;
    const uint64_t hz = static_cast<uint64_t>(ticks / static_cast<uint64_t>(end.ns - begin.ns));
    return (hz + 500) / 1000 * 1000;
}

#else

uint64_t read_host_tsc() noexcept { return 0; }
bool host_tsc_usable() { return false; }
uint64_t measure_host_tsc() noexcept { return kNsPerSecond; }

#endif

struct HostCounter {
    bool tsc = host_tsc_usable();
    uint64_t hz = tsc ? measure_host_tsc() : kNsPerSecond;
};

const HostCounter& host() {
    static const HostCounter counter;  // one rate for all machines of a process
    return counter;
}

}  // namespace

Clock::Clock(uint64_t guest_hz, uint64_t start)
    : host_tsc_(host().tsc),
      scaled_(guest_hz != 0 && guest_hz != host().hz),
      guest_hz_(guest_hz != 0 ? guest_hz : host().hz),
      ratio_(static_cast<uint64_t>((static_cast<u128>(guest_hz_) << kRatioBits) / host().hz)),
      host_base_(host_counter()),
      start_(start) {}

uint64_t Clock::host_counter() const noexcept {
    return host_tsc_ ? read_host_tsc() : static_cast<uint64_t>(monotonic_ns());
}

uint64_t Clock::tsc() const noexcept {
    // Signed, because on another core the counter may be a few ticks behind the construction's.
    const int64_t elapsed = std::max<int64_t>(0, static_cast<int64_t>(host_counter() - host_base_));
    if (!scaled_) return start_ + static_cast<uint64_t>(elapsed);
    return start_ + static_cast<uint64_t>((static_cast<u128>(elapsed) * ratio_) >> kRatioBits);
}

int64_t Clock::monotonic_at(uint64_t tsc) const noexcept {
    const int64_t now_ns = monotonic_ns();
    const uint64_t now = this->tsc();
    if (tsc < now) {
        const u128 past = static_cast<u128>(now - tsc) * kNsPerSecond / guest_hz_;
        return past >= static_cast<u128>(now_ns) ? 0 : now_ns - static_cast<int64_t>(past);
    }
    const u128 ahead = (static_cast<u128>(tsc - now) * kNsPerSecond + guest_hz_ - 1) / guest_hz_;
    const auto room = static_cast<u128>(std::numeric_limits<int64_t>::max() - now_ns);
    return now_ns + static_cast<int64_t>(std::min(ahead, room));
}

uint64_t Clock::tsc_at(int64_t monotonic_ns) const noexcept {
    const uint64_t now = tsc();
    const int64_t now_ns = Clock::monotonic_ns();
    if (monotonic_ns >= now_ns) return now + ticks(static_cast<uint64_t>(monotonic_ns - now_ns));
    const uint64_t past = ticks(static_cast<uint64_t>(now_ns - monotonic_ns));
    return past >= now ? 0 : now - past;
}

uint64_t Clock::ticks(uint64_t ns) const noexcept {
    return static_cast<uint64_t>(static_cast<u128>(ns) * guest_hz_ / kNsPerSecond);
}

int64_t Clock::monotonic_ns() noexcept { return read_ns(CLOCK_MONOTONIC); }

}  // namespace coremesh
