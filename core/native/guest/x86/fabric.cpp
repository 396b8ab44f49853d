// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/x86/fabric.hpp"

#include <bit>
#include <stdexcept>

namespace coremesh::x86 {
namespace {

constexpr uint32_t kMostApicIds = 1u << 16;  // bounds the table; far above what a machine has

}  // namespace

void Fabric::attach(Lapic& lapic) {
    const uint32_t id = lapic.apic_id();
    if (id >= kMostApicIds) throw std::invalid_argument("APIC ID out of range");
    if (find(id) != nullptr) throw std::invalid_argument("APIC ID used twice");
    if (id >= by_id_.size()) by_id_.resize(id + 1, nullptr);
    by_id_[id] = &lapic;
    lapics_.push_back(&lapic);
}

/// Calls `visit` with every local APIC of this host that the message is for.
template <typename Visit>
void Fabric::for_each_target(const IpiMessage& message, Visit&& visit) const {
    switch (message.shorthand) {
        case Shorthand::kSelf:
            if (Lapic* self = find(message.source)) visit(*self);
            return;
        case Shorthand::kAllIncludingSelf:
        case Shorthand::kAllExcludingSelf:
            for (Lapic* lapic : lapics_) {
                const bool self = lapic->apic_id() == message.source;
                if (!self || message.shorthand == Shorthand::kAllIncludingSelf) visit(*lapic);
            }
            return;
        case Shorthand::kNone:
            break;
    }
    if (!message.logical && message.destination != kBroadcast) {
        if (Lapic* one = find(message.destination)) visit(*one);
        return;
    }
    if (message.logical && message.wide && message.destination != kBroadcast) {
        // The x2APIC logical address names its members (11.12.10.2): no search among all.
        const uint32_t cluster = (message.destination >> 16) << 4;
        for (uint32_t members = message.destination & 0xFFFF; members != 0; members &= members - 1) {
            Lapic* lapic = find(cluster + static_cast<uint32_t>(std::countr_zero(members)));
            if (lapic != nullptr && lapic->matches(message)) visit(*lapic);
        }
        return;
    }
    for (Lapic* lapic : lapics_) {
        if (lapic->matches(message)) visit(*lapic);
    }
}

bool Fabric::deliver(const IpiMessage& message) noexcept {
    if (!for_one_of_several(message)) {
        bool taken = false;
        for_each_target(message, [&](Lapic& lapic) {
            lapic.accept(message.mode, message.vector, message.trigger);
            taken = true;
        });
        return taken;
    }
    // 11.6.2.4: the lowest priority wins. Between equals the SDM leaves the choice open: they take turns,
    // each call beginning its search at another place, so that interrupts spread.
    const uint32_t turn = turn_.fetch_add(1, std::memory_order_relaxed);
    uint32_t candidates = 0;
    for_each_target(message, [&](Lapic& lapic) { candidates += lapic.accepts_fixed() ? 1 : 0; });
    if (candidates == 0) return false;
    const uint32_t first = turn % candidates;
    Lapic* best = nullptr;
    uint64_t best_rank = ~uint64_t{0};
    uint32_t index = 0;
    for_each_target(message, [&](Lapic& lapic) {
        if (!lapic.accepts_fixed()) return;
        const uint32_t distance = index >= first ? index - first : index + candidates - first;
        ++index;
        const uint64_t rank = (uint64_t{lapic.arbitration_priority()} << 32) | distance;
        if (rank < best_rank) {
            best_rank = rank;
            best = &lapic;
        }
    });
    // An APIC may have been disabled between the two passes; then no APIC takes the message, as on a bus.
    if (best == nullptr) return false;
    best->accept(message.mode, message.vector, message.trigger);
    return true;
}

/// Can no other host have a destination of this message?
bool Fabric::stays_here(const IpiMessage& message, bool taken) const noexcept {
    if (lapics_.size() >= total_ || message.shorthand == Shorthand::kSelf) return true;
    if (for_one_of_several(message) && taken) return true;
    if (message.shorthand != Shorthand::kNone || message.destination == kBroadcast) return false;
    if (!message.logical) return taken;
    if (!message.wide) return false;  // 8-bit logical addresses are as software assigned them, anywhere
    const uint32_t cluster = (message.destination >> 16) << 4;
    for (uint32_t members = message.destination & 0xFFFF; members != 0; members &= members - 1) {
        if (find(cluster + static_cast<uint32_t>(std::countr_zero(members))) == nullptr) return false;
    }
    return true;
}

void Fabric::send(const IpiMessage& message) noexcept {
    const bool taken = deliver(message);
    if (!stays_here(message, taken)) remote_.forward(message);
}

bool Fabric::msi(uint64_t address, uint32_t data) noexcept {
    // 11.11.1: 0FEEH in bits 31:20. 11.11.2: vector, delivery mode, trigger.
    if ((address >> 20) != 0xFEE) return false;
    IpiMessage message;
    message.vector = static_cast<uint8_t>(data);
    message.mode = static_cast<DeliveryMode>((data >> 8) & 7);
    // Bit 14 (assert) is not looked at: no bus sends de-assert messages any more, and chipsets leave it
    // clear.
    message.trigger = (data & (1u << 15)) ? Trigger::kLevel : Trigger::kEdge;
    message.logical = (address & (1u << 2)) != 0;
    message.redirect = (address & (1u << 3)) != 0;
    message.destination = static_cast<uint32_t>(address >> 12) & 0xFF;
    if (message.destination == 0xFF && !message.logical) message.destination = kBroadcast;
    switch (message.mode) {
        case DeliveryMode::kFixed:
        case DeliveryMode::kLowestPriority:
        case DeliveryMode::kNmi:
        case DeliveryMode::kInit:
        case DeliveryMode::kExtInt:
            send(message);
            break;
        default:  // SMI, start-up and the reserved code: nothing that a device could cause here
            break;
    }
    return true;
}

void Fabric::extint(bool asserted) noexcept {
    set_extint(asserted);
    if (lapics_.size() < total_) remote_.on_extint(asserted);
}

void Fabric::nmi_line() noexcept {
    pulse_nmi();
    if (lapics_.size() < total_) remote_.on_nmi_line();
}

void Fabric::set_extint(bool asserted) noexcept {
    for (Lapic* lapic : lapics_) lapic->set_pin(0, asserted);
}

void Fabric::pulse_nmi() noexcept {
    for (Lapic* lapic : lapics_) {
        lapic->set_pin(1, true);
        lapic->set_pin(1, false);
    }
}

}  // namespace coremesh::x86
