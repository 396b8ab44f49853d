// SPDX-License-Identifier: GPL-2.0-or-later
// IA32_APIC_BASE and the x2APIC MSRs (SDM vol. 3A, 11.4.4 and 11.12).
#include <atomic>
#include <random>
#include <set>
#include <thread>

#include "check.hpp"
#include "lapic_fixture.hpp"

using namespace fixture;

namespace {
constexpr uint64_t kX2apic = 1u << 10, kEnable = 1u << 11, kBase = 0xFEE0'0000;
constexpr uint32_t kMsrTpr = 0x808, kMsrEoi = 0x80B, kMsrSvr = 0x80F, kMsrEsr = 0x828, kMsrIcr = 0x830;
constexpr uint32_t kMsrLvtTimer = 0x832, kMsrSelf = 0x83F;

/// Every message comes back to the sender.
struct EchoBus final : ApicBus {
    void send(const IpiMessage& message) noexcept override {
        self->accept(message.mode, message.vector, message.trigger);
    }
    void broadcast_eoi(uint8_t) noexcept override {}
    Lapic* self = nullptr;
};

struct X2apic : Apic {
    explicit X2apic(LapicOptions options = {}) : Apic(options) { CHECK(to_x2apic()); }
};
}  // namespace

STORY(
    "11.12.5: given each state, then only the transitions of the figure are allowed, others fault and change "
    "nothing") {
    Apic apic;
    CHECK(!apic.wrmsr(kMsrBase, kBase | kX2apic));  // x2APIC without enable
    CHECK(apic.lapic.xapic_mode());
    CHECK(apic.wrmsr(kMsrBase, kBase));  // off
    CHECK(!apic.lapic.xapic_mode() && !apic.lapic.x2apic_mode());
    CHECK(!apic.wrmsr(kMsrBase, kBase | kEnable | kX2apic));  // off to x2APIC
    CHECK(apic.wrmsr(kMsrBase, kBase | kEnable));
    CHECK(apic.wrmsr(kMsrBase, kBase | kEnable | kX2apic));
    CHECK(apic.lapic.x2apic_mode());
    CHECK(!apic.wrmsr(kMsrBase, kBase | kEnable));  // x2APIC back to xAPIC
    CHECK(apic.lapic.x2apic_mode());
    CHECK(apic.wrmsr(kMsrBase, kBase | kEnable | kX2apic));
    CHECK(apic.wrmsr(kMsrBase, kBase));
}

STORY(
    "11.4.4: given reserved bits of IA32_APIC_BASE, then they fault; given another base, then it is "
    "remembered") {
    Apic apic({.physical_address_bits = 40});
    CHECK(!apic.wrmsr(kMsrBase, kBase | kEnable | 1));
    CHECK(!apic.wrmsr(kMsrBase, kBase | kEnable | 1u << 9));
    CHECK(!apic.wrmsr(kMsrBase, kBase | kEnable | uint64_t{1} << 40));
    CHECK_EQ(apic.lapic.mmio_base(), kBase);
    CHECK(apic.wrmsr(kMsrBase, 0xFF'1234'5000 | kEnable));
    CHECK_EQ(apic.lapic.mmio_base(), 0xFF'1234'5000u);
}

STORY(
    "11.4.3: given an APIC that is turned off and on, then it starts from its reset state, and hears nothing "
    "while off") {
    Apic apic;
    apic.accept(0x41);
    apic.wrmsr(kMsrBase, kBase);
    CHECK_EQ(apic.lapic.highest_pending(), -1);
    apic.lapic.accept(DeliveryMode::kNmi, 0, Trigger::kEdge);
    CHECK_EQ(apic.port.nmis, 0);
    apic.wrmsr(kMsrBase, kBase | kEnable);
    CHECK_EQ(apic.lapic.read(kSvr), 0xFFu);
}

STORY("11.4.3: given an APIC that is off, then the pins are INTR and NMI") {
    Apic apic;
    apic.wrmsr(kMsrBase, kBase);
    apic.lapic.set_pin(0, true);
    CHECK_EQ(apic.port.kicks, 1);
    CHECK(apic.lapic.extint_pending());
    apic.lapic.set_pin(1, true);
    CHECK_EQ(apic.port.nmis, 1);
}

STORY("11.12.2: given xAPIC mode, then the x2APIC MSRs fault; given x2APIC mode, then the window is silent") {
    Apic apic;
    CHECK(apic.rdmsr_faults(0x802));
    CHECK(!apic.wrmsr(kMsrTpr, 0));
    CHECK(apic.to_x2apic());
    CHECK_EQ(apic.rdmsr(0x802), 0u);
    CHECK_EQ(apic.lapic.read(kVersion), 0u);
    apic.lapic.write(kTpr, 0x50);
    CHECK_EQ(apic.rdmsr(kMsrTpr), 0u);
}

STORY(
    "11.12.5.1: given state in xAPIC mode, when x2APIC is entered, then it is kept, and the logical ID is "
    "derived") {
    Apic apic({.apic_id = 0x2B});
    apic.lapic.write(kTpr, 0x30);
    apic.lapic.write(kLdr, 0x0800'0000);
    apic.accept(0x77);
    CHECK(apic.to_x2apic());
    CHECK_EQ(apic.rdmsr(0x802), 0x2Bu);
    CHECK_EQ(apic.rdmsr(0x80D), 0x0002'0800u);
    CHECK_EQ(apic.rdmsr(kMsrTpr), 0x30u);
    CHECK_EQ(apic.lapic.acknowledge(), 0x77);
}

STORY("table 11-6: given every MSR of 800H-8FFH, then exactly the listed ones can be read") {
    X2apic apic;
    std::set<uint32_t> readable = {0x802, 0x803, 0x808, 0x80A, 0x80D, 0x80F,
                                   0x828, 0x830, 0x838, 0x839, 0x83E};
    for (uint32_t index = 0x810; index < 0x828; ++index) readable.insert(index);
    for (uint32_t index = 0x832; index <= 0x837; ++index) readable.insert(index);
    for (uint32_t index = 0x800; index <= 0x8FF; ++index)
        CHECK_EQ(apic.rdmsr_faults(index), !readable.contains(index));
}

STORY("table 11-6: given a zero written to every MSR of 800H-8FFH, then exactly the writable ones take it") {
    X2apic apic;
    const std::set<uint32_t> writable = {0x808, 0x80B, 0x80F, 0x828, 0x830, 0x832, 0x833,
                                         0x834, 0x835, 0x836, 0x837, 0x838, 0x83E, 0x83F};
    for (uint32_t index = 0x800; index <= 0x8FF; ++index)
        CHECK_EQ(apic.wrmsr(index, 0), writable.contains(index));
}

STORY("11.12.1.3: given a reserved bit set in a write, then it faults and the register keeps its value") {
    X2apic apic;
    CHECK(!apic.wrmsr(kMsrTpr, 0x100));
    CHECK(!apic.wrmsr(kMsrTpr, uint64_t{1} << 32));
    CHECK(!apic.wrmsr(kMsrEoi, 1));
    CHECK(!apic.wrmsr(kMsrEsr, 1));
    CHECK(!apic.wrmsr(kMsrSvr, 0x1FF | 1u << 10));
    CHECK(!apic.wrmsr(kMsrLvtTimer, 1u << 8));
    CHECK(!apic.wrmsr(0x837, 0x700));
    CHECK(!apic.wrmsr(0x838, uint64_t{1} << 32));
    CHECK(!apic.wrmsr(0x83E, 4));
    CHECK(!apic.wrmsr(kMsrSelf, 0x100));
    CHECK(!apic.wrmsr(kMsrIcr, 0x41 | 1u << 13));
    CHECK(!apic.wrmsr(kMsrIcr, 0x41 | 1u << 16));
    CHECK(!apic.wrmsr(kMsrIcr, 0x41 | 1u << 20));
    CHECK_EQ(apic.rdmsr(kMsrTpr), 0u);
    CHECK_EQ(apic.rdmsr(kMsrSvr), 0x1FFu);
    CHECK(apic.bus.sent.empty());
    CHECK(apic.wrmsr(0x835, 0x1'F7FF));  // delivery status and remote IRR are read-only, not reserved
    CHECK_EQ(apic.rdmsr(0x835), 0x1'A7FFu);
}

STORY("11.12.9: given the 64-bit ICR, then one write sends, with a 32-bit destination") {
    X2apic apic({.apic_id = 9});
    CHECK(apic.wrmsr(kMsrIcr, uint64_t{0x0003'0011} << 32 | 0x4800 | 0x66));
    CHECK_EQ(apic.bus.sent.size(), 1u);
    CHECK_EQ(apic.bus.sent[0].destination, 0x0003'0011u);
    CHECK(apic.bus.sent[0].logical && apic.bus.sent[0].wide);
    CHECK_EQ(apic.bus.sent[0].source, 9u);
    CHECK_EQ(apic.rdmsr(kMsrIcr), uint64_t{0x0003'0011} << 32 | 0x4866);
    CHECK(apic.wrmsr(kMsrIcr, uint64_t{0xFF} << 32 | 0x4066));  // 0xFF is an ordinary ID here
    CHECK_EQ(apic.bus.sent[1].destination, 0xFFu);
    CHECK(apic.wrmsr(kMsrIcr, uint64_t{0xFFFF'FFFF} << 32 | 0x4066));
    CHECK_EQ(apic.bus.sent[2].destination, kBroadcast);
}

STORY(
    "11.12.11: given SELF IPI, then the message is a fixed one to the sender, and an illegal vector an "
    "error") {
    X2apic apic({.apic_id = 9});
    CHECK(apic.wrmsr(kMsrSelf, 0x66));
    CHECK_EQ(apic.bus.sent.size(), 1u);
    CHECK_EQ(apic.bus.sent[0].shorthand, Shorthand::kSelf);
    CHECK_EQ(apic.bus.sent[0].vector, 0x66);
    CHECK_EQ(apic.bus.sent[0].mode, DeliveryMode::kFixed);
    CHECK_EQ(apic.rdmsr(kMsrIcr), 0u);
    CHECK(apic.wrmsr(kMsrSelf, 0x05));
    CHECK_EQ(apic.bus.sent.size(), 1u);
    CHECK(apic.wrmsr(kMsrEsr, 0));
    CHECK_EQ(apic.rdmsr(kMsrEsr), 0x20u);
}

STORY("11.12: given interrupts in x2APIC mode, then IRR, ISR and EOI are the same as before") {
    X2apic apic;
    apic.accept(0x83, Trigger::kLevel);
    CHECK_EQ(apic.rdmsr(0x824), 8u);
    CHECK_EQ(apic.lapic.acknowledge(), 0x83);
    CHECK_EQ(apic.rdmsr(0x814), 8u);
    CHECK_EQ(apic.rdmsr(0x81C), 8u);
    CHECK_EQ(apic.rdmsr(0x80A), 0x80u);
    CHECK(apic.wrmsr(kMsrEoi, 0));
    CHECK_EQ(apic.rdmsr(0x814), 0u);
    CHECK_EQ(apic.bus.ended.size(), 1u);
}

STORY("11.12.5.1: given x2APIC mode, when INIT resets, then the mode stays") {
    X2apic apic({.apic_id = 5});
    apic.wrmsr(kMsrTpr, 0x50);
    apic.lapic.reset(true);
    CHECK(apic.lapic.x2apic_mode());
    CHECK_EQ(apic.rdmsr(kMsrTpr), 0u);
    CHECK_EQ(apic.rdmsr(0x802), 5u);
    apic.lapic.reset(false);
    CHECK(apic.lapic.xapic_mode());
}

STORY(
    "given garbage written to every register and MSR while messages arrive, then the APIC survives, and "
    "works after reset") {
    EchoBus bus;
    coremesh::Clock clock;
    coremesh::TimerQueue queue(clock);
    CountingPort port;
    Lapic lapic({.apic_id = 1}, port, bus, queue);
    bus.self = &lapic;
    std::minstd_rand random(11);
    std::atomic<bool> over{false};
    std::thread sender([&] {
        std::minstd_rand other(12);
        while (!over.load()) {
            lapic.accept(static_cast<DeliveryMode>(other() % 8), static_cast<uint8_t>(other()),
                         other() % 2 ? Trigger::kLevel : Trigger::kEdge);
            lapic.set_pin(other() % 2, other() % 2);
            std::this_thread::yield();
        }
    });
    for (int round = 0; round < 60'000; ++round) {
        const auto value = static_cast<uint32_t>(random() * 2654435761u);
        uint64_t ignored = 0;
        switch (random() % 8) {
            case 0:
                lapic.write(value % 4096 & ~(random() % 4 ? 15u : 0u), value);
                break;
            case 1:
                lapic.read(value % 4096);
                break;
            case 2:
                lapic.write_msr(0x800 + random() % 64, random() % 2 ? value : value & 0xFF);
                break;
            case 3:
                lapic.read_msr(0x800 + random() % 64, ignored);
                break;
            case 4:
                if (random() % 16 == 0) lapic.write_msr(kMsrBase, kBase | (value & 0xC00));
                break;
            case 5:
                lapic.write_msr(kMsrDeadline, random() % 2 ? value : clock.tsc() + value % 100'000);
                break;
            case 6:
                lapic.write_cr8(value % 20);
                break;
            default:
                lapic.acknowledge();
                break;
        }
        if (random() % 500 == 0) lapic.reset(random() % 2);
        lapic.highest_pending();
        lapic.extint_pending();
    }
    over.store(true);
    sender.join();
    lapic.reset(false);
    lapic.write(kSvr, 0x1FF);
    lapic.accept(DeliveryMode::kFixed, 0x41, Trigger::kEdge);
    CHECK_EQ(lapic.acknowledge(), 0x41);
}

STORY("given an MSR of somebody else, then it is refused") {
    X2apic apic;
    CHECK(apic.rdmsr_faults(0x10));
    CHECK(apic.rdmsr_faults(0x7FF));
    CHECK(!apic.wrmsr(0x900, 0));
}

RUN_STORIES()
