// SPDX-License-Identifier: GPL-2.0-or-later
// The local APIC in xAPIC mode, by sections of SDM vol. 3A, chapter 11.
#include "check.hpp"
#include "lapic_fixture.hpp"

using namespace fixture;

STORY("11.4.7.1: given power-up, then registers hold their reset values and the APIC is software-disabled") {
    Apic apic({.apic_id = 7, .bootstrap = true}, false);
    CHECK_EQ(apic.rdmsr(kMsrBase), 0xFEE0'0900u);
    CHECK_EQ(apic.lapic.read(kId), 7u << 24);
    CHECK_EQ(apic.lapic.read(kVersion), 0x0105'0014u);
    CHECK_EQ(apic.lapic.read(kSvr), 0xFFu);
    CHECK_EQ(apic.lapic.read(kDfr), 0xFFFF'FFFFu);
    CHECK_EQ(apic.lapic.read(kLdr), 0u);
    for (uint32_t lvt = kLvtTimer; lvt <= kLvtError; lvt += 0x10) CHECK_EQ(apic.lapic.read(lvt), kMasked);
    CHECK_EQ(apic.lapic.highest_pending(), -1);
    CHECK_EQ(apic.lapic.acknowledge(), -1);
}

STORY(
    "11.8.4: given a fixed interrupt, when it is accepted, acknowledged and ended, then IRR, ISR and nothing "
    "hold it") {
    Apic apic;
    apic.accept(0x41);
    CHECK_EQ(apic.port.kicks, 1);
    CHECK(apic.bit(kIrr, 0x41) && !apic.bit(kIsr, 0x41));
    CHECK_EQ(apic.lapic.highest_pending(), 0x41);
    CHECK_EQ(apic.lapic.acknowledge(), 0x41);
    CHECK(!apic.bit(kIrr, 0x41) && apic.bit(kIsr, 0x41));
    CHECK_EQ(apic.lapic.read(kPpr), 0x40u);
    apic.lapic.write(kEoi, 0);
    CHECK(!apic.bit(kIsr, 0x41));
    CHECK_EQ(apic.lapic.read(kPpr), 0u);
    CHECK(apic.bus.ended.empty());
}

STORY(
    "11.8.4: given a vector that is already pending, when it comes again, then it counts once and kicks "
    "once") {
    Apic apic;
    apic.accept(0x41);
    apic.accept(0x41);
    CHECK_EQ(apic.port.kicks, 1);
    CHECK_EQ(apic.lapic.acknowledge(), 0x41);
    CHECK_EQ(apic.lapic.acknowledge(), -1);
    apic.accept(0x41);  // one in service, one more pending
    CHECK_EQ(apic.port.kicks, 2);
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.lapic.acknowledge(), 0x41);
}

STORY("11.8.3: given every vector pending, then they come highest first and nest only by class") {
    Apic apic;
    for (unsigned vector = 16; vector < 256; ++vector) apic.accept(static_cast<uint8_t>(vector));
    CHECK_EQ(apic.lapic.acknowledge(), 0xFF);
    CHECK_EQ(apic.lapic.acknowledge(), -1);  // 0xFE is of the same class
    apic.lapic.write(kEoi, 0);
    for (int vector = 0xFE; vector >= 16; --vector) {
        CHECK_EQ(apic.lapic.acknowledge(), vector);
        apic.lapic.write(kEoi, 0);
    }
    CHECK_EQ(apic.lapic.highest_pending(), -1);
}

STORY(
    "11.8.3: given a low interrupt in service, when a higher class comes, then it nests and EOI ends the "
    "higher") {
    Apic apic;
    apic.accept(0x31);
    CHECK_EQ(apic.lapic.acknowledge(), 0x31);
    apic.accept(0x52);
    CHECK_EQ(apic.lapic.acknowledge(), 0x52);
    CHECK_EQ(apic.lapic.read(kPpr), 0x50u);
    apic.lapic.write(kEoi, 0);
    CHECK(apic.bit(kIsr, 0x31) && !apic.bit(kIsr, 0x52));
    CHECK_EQ(apic.lapic.read(kPpr), 0x30u);
}

STORY(
    "11.8.3.1: given a task priority, then vectors of its class and below wait; when it drops, the vCPU is "
    "kicked") {
    Apic apic;
    apic.lapic.write(kTpr, 0x4F);
    apic.accept(0x48);
    CHECK_EQ(apic.lapic.highest_pending(), -1);
    apic.accept(0x50);
    CHECK_EQ(apic.lapic.highest_pending(), 0x50);
    CHECK_EQ(apic.lapic.acknowledge(), 0x50);
    apic.lapic.write(kEoi, 0);
    const int before = apic.port.kicks;
    apic.lapic.write(kTpr, 0x3F);
    CHECK_EQ(apic.port.kicks, before + 1);
    CHECK_EQ(apic.lapic.highest_pending(), 0x48);
}

STORY(
    "11.8.3.1: given a task priority with a sub-class, then PPR shows it only when it is not below the ISR's "
    "class") {
    Apic apic;
    apic.lapic.write(kTpr, 0x35);
    CHECK_EQ(apic.lapic.read(kPpr), 0x35u);
    apic.accept(0x61);
    apic.lapic.acknowledge();
    CHECK_EQ(apic.lapic.read(kPpr), 0x60u);
    apic.lapic.write(kTpr, 0x67);
    CHECK_EQ(apic.lapic.read(kPpr), 0x67u);
}

STORY("11.8.6: given CR8, then it is TPR bits 7:4 both ways, and a value above 15 faults") {
    Apic apic;
    CHECK(apic.lapic.write_cr8(9));
    CHECK_EQ(apic.lapic.read(kTpr), 0x90u);
    apic.lapic.write(kTpr, 0x57);
    CHECK_EQ(apic.lapic.read_cr8(), 5u);
    CHECK(!apic.lapic.write_cr8(0x10));
    CHECK_EQ(apic.lapic.read_cr8(), 5u);
}

STORY(
    "11.8.5: given a level-triggered vector, when it ends, then EOI is broadcast, unless SVR bit 12 "
    "suppresses it") {
    Apic apic;
    apic.accept(0x55, Trigger::kLevel);
    CHECK(apic.bit(kTmr, 0x55));
    apic.lapic.acknowledge();
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.bus.ended.size(), 1u);
    CHECK_EQ(apic.bus.ended[0], 0x55);

    apic.accept(0x55, Trigger::kEdge);  // the same vector, now by edge: the TMR follows
    CHECK(!apic.bit(kTmr, 0x55));
    apic.lapic.acknowledge();
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.bus.ended.size(), 1u);

    apic.lapic.write(kSvr, 0x11FF);
    CHECK_EQ(apic.lapic.read(kSvr), 0x11FFu);
    apic.accept(0x55, Trigger::kLevel);
    apic.lapic.acknowledge();
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.bus.ended.size(), 1u);
}

STORY("11.8.5: given a version without EOI-broadcast suppression, then SVR bit 12 cannot be set") {
    Apic apic({.eoi_broadcast_suppression = false});
    CHECK_EQ(apic.lapic.read(kVersion), 0x0005'0014u);
    apic.lapic.write(kSvr, 0x11FF);
    CHECK_EQ(apic.lapic.read(kSvr), 0x1FFu);
}

STORY("11.8.5: given nothing in service, when EOI is written, then nothing happens") {
    Apic apic;
    apic.lapic.write(kEoi, 0);
    CHECK(apic.bus.ended.empty());
    CHECK_EQ(apic.port.kicks, 0);
}

STORY(
    "11.8.5: given a second vector of the same class, when the first ends, then the vCPU is kicked for it") {
    Apic apic;
    apic.accept(0x42);
    apic.lapic.acknowledge();
    apic.accept(0x41);
    CHECK_EQ(apic.lapic.highest_pending(), -1);
    const int before = apic.port.kicks;
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.port.kicks, before + 1);
    CHECK_EQ(apic.lapic.acknowledge(), 0x41);
}

STORY(
    "11.4.7.2: given a software-disabled APIC, then fixed messages are dropped, NMI, INIT and SIPI are not") {
    Apic apic({}, false);
    apic.accept(0x41);
    CHECK_EQ(apic.port.kicks, 0);
    apic.lapic.accept(DeliveryMode::kNmi, 0, Trigger::kEdge);
    apic.lapic.accept(DeliveryMode::kInit, 0, Trigger::kEdge);
    apic.lapic.accept(DeliveryMode::kStartUp, 0x9A, Trigger::kEdge);
    CHECK_EQ(apic.port.nmis, 1);
    CHECK_EQ(apic.port.inits, 1);
    CHECK_EQ(apic.port.sipis, 1);
    CHECK_EQ(apic.port.sipi_vector, 0x9A);
}

STORY(
    "11.4.7.2: given an enabled APIC, when it is disabled, then the LVT masks itself and pending vectors are "
    "held") {
    Apic apic;
    apic.lapic.write(kLvtError, 0x33);
    apic.accept(0x41);
    apic.lapic.write(kSvr, 0xFF);
    CHECK_EQ(apic.lapic.read(kLvtError), kMasked | 0x33);
    apic.lapic.write(kLvtError, 0x33);
    CHECK_EQ(apic.lapic.read(kLvtError), kMasked | 0x33);
    CHECK_EQ(apic.lapic.acknowledge(), 0x41);
    apic.lapic.write(kSvr, 0x1FF);
    CHECK_EQ(apic.lapic.read(kLvtError), kMasked | 0x33);  // stays masked until software unmasks it
    apic.lapic.write(kLvtError, 0x33);
    CHECK_EQ(apic.lapic.read(kLvtError), 0x33u);
}

STORY("11.5.2: given a vector below 16 in a message, then it is an error, not an interrupt") {
    Apic apic;
    apic.lapic.write(kLvtError, 0x33);
    apic.accept(0x0F);
    CHECK_EQ(apic.lapic.acknowledge(), 0x33);
    CHECK_EQ(apic.lapic.read(kEsr), 0u);
    apic.lapic.write(kEsr, 0);
    CHECK_EQ(apic.lapic.read(kEsr), 0x40u);
}

STORY(
    "11.5.3: given errors, then a write to ESR makes them readable, the next clears them, and re-arms the "
    "interrupt") {
    Apic apic;
    apic.lapic.write(kLvtError, 0x33);
    apic.lapic.write(kIcrLow, 0x0005);  // send illegal vector
    CHECK(apic.bus.sent.empty());
    CHECK_EQ(apic.lapic.read(0x40), 0u);  // illegal register
    CHECK_EQ(apic.lapic.acknowledge(), 0x33);
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.lapic.acknowledge(), -1);  // one interrupt for both
    apic.lapic.write(kEsr, 0xFFFF'FFFF);
    CHECK_EQ(apic.lapic.read(kEsr), 0xA0u);
    CHECK_EQ(apic.lapic.read(kEsr), 0xA0u);
    apic.lapic.write(0x3F0, 0x41);  // SELF IPI does not exist here
    CHECK_EQ(apic.lapic.acknowledge(), 0x33);
    apic.lapic.write(kEsr, 0);
    CHECK_EQ(apic.lapic.read(kEsr), 0x80u);
    apic.lapic.write(kEsr, 0);
    CHECK_EQ(apic.lapic.read(kEsr), 0u);
}

STORY(
    "11.5.3: given an error LVT with an illegal vector, when an error comes, then it ends as one more error "
    "bit") {
    Apic apic;
    apic.lapic.write(kLvtError, 0x05);
    apic.lapic.read(0x40);
    CHECK_EQ(apic.lapic.highest_pending(), -1);
    apic.lapic.write(kEsr, 0);
    CHECK_EQ(apic.lapic.read(kEsr), 0xC0u);
}

STORY("11.5.1: given LINT0 as ExtINT, then it is pending as long as the 8259A holds the pin") {
    Apic apic({.bootstrap = true});
    apic.lapic.write(kLvtLint0, 0x700);
    CHECK(!apic.lapic.extint_pending());
    apic.lapic.set_pin(0, true);
    CHECK_EQ(apic.port.kicks, 1);
    CHECK(apic.lapic.extint_pending());
    apic.lapic.extint_acknowledged();
    CHECK(apic.lapic.extint_pending());
    apic.lapic.set_pin(0, false);
    CHECK(!apic.lapic.extint_pending());
}

STORY(
    "11.5.1: given LINT0 masked while its pin is high, when it is unmasked as ExtINT, then the vCPU is "
    "kicked") {
    Apic apic;
    apic.lapic.set_pin(0, true);
    CHECK_EQ(apic.port.kicks, 0);
    CHECK(!apic.lapic.extint_pending());
    apic.lapic.write(kLvtLint0, 0x700);
    CHECK_EQ(apic.port.kicks, 1);
    CHECK(apic.lapic.extint_pending());
}

STORY("11.5.1: given an ExtINT message, then it is pending until it is acknowledged once") {
    Apic apic;
    apic.lapic.accept(DeliveryMode::kExtInt, 0, Trigger::kEdge);
    CHECK_EQ(apic.port.kicks, 1);
    CHECK(apic.lapic.extint_pending());
    apic.lapic.extint_acknowledged();
    CHECK(!apic.lapic.extint_pending());
}

STORY("11.5.1: given LINT1 as NMI, then each rising edge is one NMI, and none when masked") {
    Apic apic;
    apic.lapic.set_pin(1, true);
    apic.lapic.set_pin(1, false);
    CHECK_EQ(apic.port.nmis, 0);
    apic.lapic.write(kLvtLint1, 0x400);
    apic.lapic.set_pin(1, true);
    apic.lapic.set_pin(1, true);
    CHECK_EQ(apic.port.nmis, 1);
    apic.lapic.set_pin(1, false);
    apic.lapic.set_pin(1, true);
    CHECK_EQ(apic.port.nmis, 2);
}

STORY("11.5.1: given LINT0 fixed by edge, then a rising edge is one interrupt") {
    Apic apic;
    apic.lapic.write(kLvtLint0, 0x61);
    apic.lapic.set_pin(0, true);
    CHECK_EQ(apic.lapic.acknowledge(), 0x61);
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.lapic.acknowledge(), -1);
    CHECK(!apic.lapic.extint_pending());
}

STORY("11.5.1: given LINT0 fixed by level, when the pin is still high at EOI, then it interrupts again") {
    Apic apic;
    apic.lapic.write(kLvtLint0, 0x8061);
    apic.lapic.set_pin(0, true);
    CHECK_EQ(apic.lapic.read(kLvtLint0), 0xC061u);  // remote IRR
    apic.lapic.set_pin(0, true);
    CHECK_EQ(apic.lapic.acknowledge(), 0x61);
    CHECK_EQ(apic.lapic.acknowledge(), -1);
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.lapic.acknowledge(), 0x61);
    apic.lapic.set_pin(0, false);
    apic.lapic.write(kEoi, 0);
    CHECK_EQ(apic.lapic.acknowledge(), -1);
    CHECK_EQ(apic.lapic.read(kLvtLint0), 0x8061u);
}

STORY("11.5.1: given all ones written to each LVT entry, then only its writable bits stick") {
    Apic apic;
    const uint32_t expected[] = {0x5'00FF, 0x1'07FF, 0x1'07FF, 0x1'A7FF, 0x1'A7FF, 0x1'00FF};
    for (uint32_t index = 0; index < 6; ++index) {
        apic.lapic.write(kLvtTimer + 0x10 * index, 0xFFFF'FFFF);
        CHECK_EQ(apic.lapic.read(kLvtTimer + 0x10 * index), expected[index]);
    }
}

STORY(
    "11.6.1: given the ICR, when the low half is written, then a message with its fields goes out and reads "
    "idle") {
    Apic apic({.apic_id = 3});
    apic.lapic.write(kIcrHigh, 0x0500'0000);
    apic.lapic.write(kIcrLow, 0x0000'5899);  // assert, busy bit set, logical, fixed, 0x99
    CHECK_EQ(apic.lapic.read(kIcrLow), 0x0000'4899u);
    CHECK_EQ(apic.lapic.read(kIcrHigh), 0x0500'0000u);
    CHECK_EQ(apic.bus.sent.size(), 1u);
    const IpiMessage& message = apic.bus.sent[0];
    CHECK_EQ(message.vector, 0x99);
    CHECK_EQ(message.mode, DeliveryMode::kFixed);
    CHECK(message.logical && !message.wide);
    CHECK_EQ(message.destination, 5u);
    CHECK_EQ(message.source, 3u);
    CHECK_EQ(message.shorthand, Shorthand::kNone);
    CHECK_EQ(apic.lapic.ipis_sent(), 1u);
}

STORY("11.6.1: given physical destination FFH, then the message is a broadcast") {
    Apic apic;
    apic.lapic.write(kIcrHigh, 0xFF00'0000);
    apic.lapic.write(kIcrLow, 0x4099);
    CHECK_EQ(apic.bus.sent[0].destination, kBroadcast);
}

STORY(
    "11.6.1: given an INIT level de-assert, then nothing is sent; given an INIT, with or without assert, one "
    "is") {
    Apic apic;
    apic.lapic.write(kIcrLow, 0x0008'8500);
    CHECK(apic.bus.sent.empty());
    apic.lapic.write(kIcrLow, 0x0000'C500);
    apic.lapic.write(kIcrLow, 0x0000'4500);
    CHECK_EQ(apic.bus.sent.size(), 2u);
    CHECK_EQ(apic.bus.sent[0].mode, DeliveryMode::kInit);
}

STORY("11.6.1: given delivery modes that the ICR reserves, then nothing is sent") {
    Apic apic;
    apic.lapic.write(kIcrLow, 0x4341);
    apic.lapic.write(kIcrLow, 0x4741);
    apic.lapic.write(kIcrLow, 0x4200);  // SMI
    CHECK(apic.bus.sent.empty());
}

STORY("11.6.2.4: given task priority, pending and in-service vectors, then APR is their highest class") {
    Apic apic;
    apic.lapic.write(kTpr, 0x23);
    CHECK_EQ(apic.lapic.read(kApr), 0x23u);
    apic.accept(0x58);
    CHECK_EQ(apic.lapic.read(kApr), 0x50u);
    apic.lapic.acknowledge();
    apic.lapic.write(kTpr, 0x63);
    CHECK_EQ(apic.lapic.read(kApr), 0x63u);
}

STORY("11.4.1: given offsets off the 16-byte grid, then they read zero, write nothing and are no error") {
    Apic apic;
    apic.lapic.write(kTpr + 4, 0x50);
    CHECK_EQ(apic.lapic.read(kTpr), 0u);
    CHECK_EQ(apic.lapic.read(kSvr + 8), 0u);
    apic.lapic.write(kEsr, 0);
    CHECK_EQ(apic.lapic.read(kEsr), 0u);
}

STORY("11.4.1: given writes to read-only registers, then nothing changes and nothing is an error") {
    Apic apic({.apic_id = 2});
    for (uint32_t offset : {kId, kVersion, kApr, kPpr, kIsr, kTmr + 0x70, kIrr, kCurrent}) {
        apic.lapic.write(offset, 0xFFFF'FFFF);
    }
    CHECK_EQ(apic.lapic.read(kId), 2u << 24);
    CHECK_EQ(apic.lapic.highest_pending(), -1);
    apic.lapic.write(kEsr, 0);
    CHECK_EQ(apic.lapic.read(kEsr), 0u);
}

STORY("11.4.7.3: given a busy APIC, when INIT resets it, then only ID and base stay") {
    Apic apic({.apic_id = 4, .bootstrap = true});
    apic.accept(0x41);
    apic.accept(0x51, Trigger::kLevel);
    apic.lapic.acknowledge();
    apic.lapic.write(kTpr, 0x20);
    apic.lapic.write(kLdr, 0x0100'0000);
    apic.lapic.write(kDfr, 0);
    apic.lapic.write(kLvtLint0, 0x700);
    apic.lapic.reset(true);
    CHECK_EQ(apic.rdmsr(kMsrBase), 0xFEE0'0900u);
    CHECK_EQ(apic.lapic.read(kId), 4u << 24);
    CHECK_EQ(apic.lapic.read(kSvr), 0xFFu);
    CHECK_EQ(apic.lapic.read(kTpr), 0u);
    CHECK_EQ(apic.lapic.read(kPpr), 0u);
    CHECK_EQ(apic.lapic.read(kLdr), 0u);
    CHECK_EQ(apic.lapic.read(kDfr), 0xFFFF'FFFFu);
    CHECK_EQ(apic.lapic.read(kLvtLint0), kMasked);
    for (unsigned vector = 0; vector < 256; ++vector) {
        const auto at = static_cast<uint8_t>(vector);
        CHECK(!apic.bit(kIrr, at) && !apic.bit(kIsr, at) && !apic.bit(kTmr, at));
    }
    CHECK_EQ(apic.lapic.highest_pending(), -1);
}

STORY(
    "MP 1.4, 3.6.2.2: given virtual wire mode, then LINT0 is ExtINT on the bootstrap processor alone, LINT1 "
    "NMI on all") {
    Apic bootstrap({.bootstrap = true}, false), other({.apic_id = 1}, false);
    bootstrap.lapic.enter_virtual_wire();
    other.lapic.enter_virtual_wire();
    CHECK_EQ(bootstrap.lapic.read(kLvtLint0), 0x700u);
    CHECK_EQ(other.lapic.read(kLvtLint0), kMasked);
    CHECK_EQ(bootstrap.lapic.read(kLvtLint1), 0x400u);
    CHECK_EQ(other.lapic.read(kLvtLint1), 0x400u);
}

RUN_STORIES()
