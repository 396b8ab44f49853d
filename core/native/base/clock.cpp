// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/clock.hpp"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <limits>
#include <mutex>

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

namespace coremesh {
namespace {

using u128 = unsigned __int128;

constexpr uint64_t kNsPerSecond = 1'000'000'000;
constexpr unsigned kRatioBits = 48;
constexpr int64_t kBillion = 1'000'000'000;
constexpr int64_t kSteepestDrift = 1'000'000;  // parts in 10^9
constexpr unsigned kSpins = 100;

void pause_briefly(unsigned spin) noexcept {
    // A writer is done within 100 ns, unless its thread has lost its core: then it needs this one.
    if (spin >= kSpins) sched_yield();
#if defined(__x86_64__)
    _mm_pause();
#endif
}

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

uint64_t read_host_tsc_unordered() noexcept { return __rdtsc(); }

/// What was read of the counter stays before what is loaded next.
void after_host_counter() noexcept { _mm_lfence(); }

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
uint64_t read_host_tsc_unordered() noexcept { return 0; }
void after_host_counter() noexcept { std::atomic_thread_fence(std::memory_order_seq_cst); }
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

/// A following clock between two changes. Host ticks and guest ticks; ratios in 16.48 fixed point.
struct Clock::Course {
    uint64_t from, value, slew, slew_ratio, slewed, rate;

    uint64_t at(uint64_t counter) const noexcept {
        // Signed, because another core's counter may be a few ticks behind.
        const int64_t since = static_cast<int64_t>(counter - from);
        if (since <= 0) return value;
        const auto elapsed = static_cast<uint64_t>(since);
        if (elapsed <= slew) return value + scaled(elapsed, slew_ratio);
        return slewed + scaled(elapsed - slew, rate);
    }

    /// Host ticks from `counter` until the clock shows `tsc`, rounded up; 0 when it does already.
    u128 until(uint64_t tsc, uint64_t counter) const noexcept {
        if (tsc <= at(counter)) return 0;
        const u128 reached =
            tsc <= slewed ? unscaled(tsc - value, slew_ratio) : slew + unscaled(tsc - slewed, rate);
        const auto since = static_cast<u128>(std::max<int64_t>(0, static_cast<int64_t>(counter - from)));
        return reached > since ? reached - since : 0;
    }

    static uint64_t scaled(uint64_t ticks, uint64_t ratio) noexcept {
        return static_cast<uint64_t>((static_cast<u128>(ticks) * ratio) >> kRatioBits);
    }
    static u128 unscaled(uint64_t ticks, uint64_t ratio) noexcept {
        return ((static_cast<u128>(ticks) << kRatioBits) + ratio - 1) / ratio;
    }
};

Clock::Clock(uint64_t guest_hz, uint64_t start, bool following)
    : host_tsc_(host().tsc),
      following_(following),
      plain_(!following && (guest_hz == 0 || guest_hz == host().hz)),
      guest_hz_(guest_hz != 0 ? guest_hz : host().hz),
      host_hz_(host().hz),
      ratio_(static_cast<uint64_t>((static_cast<u128>(guest_hz_) << kRatioBits) / host().hz)),
      host_base_(host_counter()),
      start_(start) {
    steer({host_base_, start, 0, ratio_, start, ratio_});
}

uint64_t Clock::host_counter() const noexcept {
    return host_tsc_ ? read_host_tsc() : static_cast<uint64_t>(monotonic_ns());
}

uint64_t Clock::tsc() const noexcept {
    if (plain_) {
        // Signed, because on another core the counter may be a few ticks behind the construction's.
        return start_ +
               static_cast<uint64_t>(std::max<int64_t>(0, static_cast<int64_t>(host_counter() - host_base_)));
    }
    if (!following_) return unchanged();
    uint64_t counter;
    return followed(counter).at(counter);
}

uint64_t Clock::unchanged() const noexcept {
    const int64_t elapsed = std::max<int64_t>(0, static_cast<int64_t>(host_counter() - host_base_));
    return start_ + Course::scaled(static_cast<uint64_t>(elapsed), ratio_);
}

int64_t Clock::monotonic_at(uint64_t tsc) const noexcept {
    const int64_t now_ns = monotonic_ns();
    uint64_t counter = 0;
    const Course course = followed(counter);
    const uint64_t now = course.at(counter);
    if (tsc < now) {
        const u128 past = static_cast<u128>(now - tsc) * kNsPerSecond / guest_hz_;
        return past >= static_cast<u128>(now_ns) ? 0 : now_ns - static_cast<int64_t>(past);
    }
    const u128 ahead = (course.until(tsc, counter) * kNsPerSecond + host_hz_ - 1) / host_hz_;
    const auto room = static_cast<u128>(std::numeric_limits<int64_t>::max() - now_ns);
    return now_ns + static_cast<int64_t>(std::min(ahead, room));
}

uint64_t Clock::ticks(uint64_t ns) const noexcept {
    return static_cast<uint64_t>(static_cast<u128>(ns) * guest_hz_ / kNsPerSecond);
}

int64_t Clock::monotonic_ns() noexcept { return read_ns(CLOCK_MONOTONIC); }

uint64_t Clock::span_ticks() noexcept {
    return host().tsc ? read_host_tsc_unordered() : static_cast<uint64_t>(monotonic_ns());
}

uint64_t Clock::span_ns(uint64_t ticks) noexcept {
    return static_cast<uint64_t>(static_cast<u128>(ticks) * kNsPerSecond / host().hz);
}

// ---- following clocks
// ---------------------------------------------------------------------------------------

/// The course, and a reading of the host's counter to which it applies.
Clock::Course Clock::followed(uint64_t& counter) const noexcept {
    for (unsigned spin = 0;; ++spin) {
        const uint64_t version = version_.load(std::memory_order_acquire);
        if ((version & 1) == 0) {
            const Course course = this->course();
            counter = host_counter();
            after_host_counter();
            if (version_.load(std::memory_order_acquire) == version) return course;
        }
        pause_briefly(spin);
    }
}

/// Loads that acquire, so that the look at the version stays behind them.
Clock::Course Clock::course() const noexcept {
    return {from_.load(std::memory_order_acquire),   value_.load(std::memory_order_acquire),
            slew_.load(std::memory_order_acquire),   slew_ratio_.load(std::memory_order_acquire),
            slewed_.load(std::memory_order_acquire), rate_.load(std::memory_order_acquire)};
}

/// Stores that release: a reader that sees one of them sees the odd version.
void Clock::steer(const Course& course) noexcept {
    from_.store(course.from, std::memory_order_release);
    value_.store(course.value, std::memory_order_release);
    slew_.store(course.slew, std::memory_order_release);
    slew_ratio_.store(course.slew_ratio, std::memory_order_release);
    slewed_.store(course.slewed, std::memory_order_release);
    rate_.store(course.rate, std::memory_order_release);
}

/// Makes the version odd; the locked exchange is seen by all before the counter is read after it.
uint64_t Clock::lock_course() noexcept {
    for (unsigned spin = 0;; ++spin) {
        uint64_t version = version_.load(std::memory_order_relaxed);
        if ((version & 1) == 0 &&
            version_.compare_exchange_strong(version, version + 1, std::memory_order_seq_cst)) {
            return version;
        }
        pause_briefly(spin);
    }
}

void Clock::unlock_course(uint64_t version) noexcept {
    version_.store(version + 2, std::memory_order_seq_cst);
}

void Clock::follow(int64_t offset, uint64_t over, int64_t drift_ppb) noexcept {
    if (!following_) return;
    drift_ppb = std::clamp(drift_ppb, -kSteepestDrift, kSteepestDrift);
    const auto most = static_cast<int64_t>(std::min<uint64_t>(over, uint64_t{1} << 62) / 2);
    offset = std::clamp(offset, -most, most);

    const auto ratio = static_cast<__int128>(ratio_);
    const auto rate = static_cast<uint64_t>(ratio + ratio * drift_ppb / kBillion);
    const uint64_t slew = static_cast<uint64_t>((static_cast<u128>(over) << kRatioBits) / ratio_);
    const auto bend = over == 0 ? 0 : ratio * offset / static_cast<int64_t>(over);
    const auto slew_ratio = static_cast<uint64_t>(static_cast<__int128>(rate) + bend);

    const uint64_t version = lock_course();
    const uint64_t counter = host_counter();
    const uint64_t value = course().at(counter);
    steer({counter, value, slew, slew_ratio, value + Course::scaled(slew, slew_ratio), rate});
    unlock_course(version);
    tell_observers();
}

bool Clock::witness(uint64_t tsc) noexcept {
    if (!following_) return false;
    const uint64_t now = this->tsc();
    if (tsc <= now) return false;
    if (tsc - now > static_cast<u128>(guest_hz_) * kCredibleSeconds) {
        incredible_.fetch_add(1, std::memory_order_relaxed);
        return false;
    }
    const uint64_t version = lock_course();
    const uint64_t counter = host_counter();
    const Course old = course();
    const uint64_t value = old.at(counter);
    const bool behind = value < tsc;
    if (behind) steer({counter, tsc, 0, old.rate, tsc, old.rate});
    unlock_course(version);
    if (!behind) return false;
    jumps_.fetch_add(1, std::memory_order_relaxed);
    jumped_ticks_.fetch_add(tsc - value, std::memory_order_relaxed);
    uint64_t longest = longest_jump_.load(std::memory_order_relaxed);
    while (longest < tsc - value &&
           !longest_jump_.compare_exchange_weak(longest, tsc - value, std::memory_order_relaxed)) {
    }
    tell_observers();
    return true;
}

void Clock::set(uint64_t tsc) noexcept {
    if (!following_) {
        host_base_ = host_counter();
        start_ = tsc;
        steer({host_base_, tsc, 0, ratio_, tsc, ratio_});
        return;
    }
    const uint64_t version = lock_course();
    const uint64_t rate = course().rate;
    steer({host_counter(), tsc, 0, rate, tsc, rate});
    unlock_course(version);
    tell_observers();
}

Clock::Changes Clock::changes() const noexcept {
    return {jumps_.load(std::memory_order_relaxed), jumped_ticks_.load(std::memory_order_relaxed),
            longest_jump_.load(std::memory_order_relaxed), incredible_.load(std::memory_order_relaxed)};
}

void Clock::observe(Observer& observer) const {
    std::lock_guard lock(observers_mutex_);
    observers_.push_back(&observer);
}

void Clock::forget(Observer& observer) const noexcept {
    std::lock_guard lock(observers_mutex_);
    std::erase(observers_, &observer);
}

void Clock::tell_observers() const noexcept {
    std::lock_guard lock(observers_mutex_);
    for (Observer* observer : observers_) observer->clock_changed();
}

}  // namespace coremesh
