// SPDX-License-Identifier: GPL-2.0-or-later
// A local APIC with a vCPU that only counts and a bus that only remembers.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "base/clock.hpp"
#include "base/timer_queue.hpp"
#include "guest/x86/lapic.hpp"

namespace fixture {

using namespace coremesh::x86;

class CountingPort final : public VcpuPort {
  public:
    void kick() noexcept override { ++kicks; }
    void post_nmi() noexcept override { ++nmis; }
    void post_init() noexcept override { ++inits; }
    void post_sipi(uint8_t vector) noexcept override {
        ++sipis;
        sipi_vector = vector;
    }

    std::atomic<int> kicks{0}, nmis{0}, inits{0}, sipis{0}, sipi_vector{-1};
};

class RememberingBus final : public ApicBus {
  public:
    void send(const IpiMessage& message) noexcept override { sent.push_back(message); }
    void broadcast_eoi(uint8_t vector) noexcept override { ended.push_back(vector); }

    std::vector<IpiMessage> sent;
    std::vector<uint8_t> ended;
};

// xAPIC offsets (SDM table 11-1)
constexpr uint32_t kId = 0x20, kVersion = 0x30, kTpr = 0x80, kApr = 0x90, kPpr = 0xA0, kEoi = 0xB0,
                   kLdr = 0xD0;
constexpr uint32_t kDfr = 0xE0, kSvr = 0xF0, kIsr = 0x100, kTmr = 0x180, kIrr = 0x200, kEsr = 0x280;
constexpr uint32_t kIcrLow = 0x300, kIcrHigh = 0x310, kLvtTimer = 0x320, kLvtThermal = 0x330,
                   kLvtPerf = 0x340;
constexpr uint32_t kLvtLint0 = 0x350, kLvtLint1 = 0x360, kLvtError = 0x370, kInitial = 0x380,
                   kCurrent = 0x390;
constexpr uint32_t kDivide = 0x3E0;
constexpr uint32_t kMasked = 1u << 16, kPeriodic = 1u << 17, kTscDeadline = 2u << 17;
constexpr uint32_t kMsrBase = 0x1B, kMsrDeadline = 0x6E0;

/// One APIC, software-enabled unless told otherwise.
struct Apic {
    explicit Apic(LapicOptions options = {}, bool enabled = true) : lapic(options, port, bus, queue) {
        if (enabled) lapic.write(kSvr, 0x1FF);
    }

    void accept(uint8_t vector, Trigger trigger = Trigger::kEdge) {
        lapic.accept(DeliveryMode::kFixed, vector, trigger);
    }
    bool to_x2apic() { return lapic.write_msr(kMsrBase, rdmsr(kMsrBase) | 1u << 10); }
    uint64_t rdmsr(uint32_t index) {
        uint64_t value = 0xDEAD'DEAD'DEAD'DEAD;
        return lapic.read_msr(index, value) ? value : 0xDEAD'DEAD'DEAD'DEAD;
    }
    bool rdmsr_faults(uint32_t index) {
        uint64_t value = 0;
        return !lapic.read_msr(index, value);
    }
    bool wrmsr(uint32_t index, uint64_t value) { return lapic.write_msr(index, value); }
    /// 256-bit register group: is the vector's bit set?
    bool bit(uint32_t group, uint8_t vector) {
        return (lapic.read(group + 0x10 * (vector / 32u)) >> (vector % 32)) & 1;
    }

    coremesh::Clock clock;
    coremesh::TimerQueue queue{clock};
    CountingPort port;
    RememberingBus bus;
    Lapic lapic;
};

/// Waits up to `milliseconds` for a condition that another thread makes true.
template <typename Condition>
bool eventually(Condition&& condition, int milliseconds = 5000) {
    for (int waited = 0; waited < milliseconds * 10; ++waited) {
        if (condition()) return true;
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return condition();
}

inline void sleep_ms(int milliseconds) {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

}  // namespace fixture
