// SPDX-License-Identifier: GPL-2.0-or-later
// Delivery: from a message or a pin to the vector that the vCPU takes. The registers are in
// lapic_registers.cpp.
#include "guest/x86/lapic.hpp"

#include <algorithm>
#include <bit>

#include "guest/x86/lapic_bits.hpp"

namespace coremesh::x86 {

using namespace lapic_bits;

Lapic::Lapic(const LapicOptions& options, VcpuPort& port, ApicBus& bus, TimerQueue& timers)
    : options_(options), port_(port), bus_(bus), timer_(timers, *this, options.timer_hz) {
    reset(false);
}

void Lapic::reset(bool init) noexcept {
    if (!init) {
        const uint64_t bootstrap = options_.bootstrap ? kBaseBootstrap : 0;
        base_.store(kDefaultBase | kBaseEnable | bootstrap, std::memory_order_relaxed);
    }
    clear_state();
}

/// 11.4.7.1 and 11.4.7.3: everything but the APIC ID and IA32_APIC_BASE.
void Lapic::clear_state() noexcept {
    // First stop accepting, then empty. A message that was past its look at `accepts_` may still arrive
    // afterwards, as one that was on the bus would.
    spurious_ = 0xFF;
    update_accepts();
    timer_.reset();
    for (auto& entry : lvt_) entry.store(kLvtMasked, std::memory_order_seq_cst);
    irr_.clear_all();
    for (auto& word : tmr_) word.store(0, std::memory_order_relaxed);
    isr_.fill(0);
    errors_.store(0, std::memory_order_relaxed);
    extint_message_.store(false, std::memory_order_seq_cst);
    error_status_ = 0;
    command_ = 0;
    dfr_.store(0xFFFF'FFFF, std::memory_order_relaxed);
    ldr_.store(0, std::memory_order_relaxed);
    task_priority_.store(0, std::memory_order_relaxed);
    update_priority();
}

void Lapic::enter_virtual_wire() noexcept {
    write_spurious(kSpuriousEnable | 0xFF);
    write_lvt(kLint1, static_cast<uint32_t>(DeliveryMode::kNmi) << 8);
    if (options_.bootstrap) write_lvt(kLint0, static_cast<uint32_t>(DeliveryMode::kExtInt) << 8);
}

/// Bus messages need the APIC enabled in IA32_APIC_BASE (11.4.3); fixed ones also by the SVR (11.4.7.2).
void Lapic::update_accepts() noexcept {
    uint8_t accepts = kAcceptsNothing;
    if (base_.load(std::memory_order_relaxed) & kBaseEnable) {
        accepts = (spurious_ & kSpuriousEnable) ? kAcceptsAll : kAcceptsControl;
    }
    accepts_.store(accepts, std::memory_order_seq_cst);
}

// ---- any thread
// ---------------------------------------------------------------------------------------------

void Lapic::accept(DeliveryMode mode, uint8_t vector, Trigger trigger) noexcept {
    const uint8_t accepts = accepts_.load(std::memory_order_relaxed);
    if (accepts == kAcceptsNothing) return;
    switch (mode) {
        case DeliveryMode::kFixed:
        case DeliveryMode::kLowestPriority:
            if (accepts == kAcceptsAll) accept_fixed(vector, trigger);
            break;
        case DeliveryMode::kNmi:
            port_.post_nmi();
            break;
        case DeliveryMode::kInit:
            port_.post_init();
            break;
        case DeliveryMode::kStartUp:
            port_.post_sipi(vector);
            break;
        case DeliveryMode::kExtInt:
            extint_message_.store(true, std::memory_order_seq_cst);
            port_.kick();
            break;
        case DeliveryMode::kSmi:  // no system-management mode here; reserved 3 ends here too
        default:
            break;
    }
}

void Lapic::accept_fixed(uint8_t vector, Trigger trigger) noexcept {
    if (vector < kFirstVector) {  // 11.5.2
        raise_error(kErrorReceivedIllegalVector);
        return;
    }
    // 11.8.4: the TMR tells at the end of the interrupt how it came. It is written before the IRR bit is
    // published; the look first keeps the line shared, because it nearly never changes.
    std::atomic<uint32_t>& trigger_mode = tmr_[vector >> 5];
    const uint32_t bit = 1u << (vector & 31);
    const bool was_level = (trigger_mode.load(std::memory_order_relaxed) & bit) != 0;
    if (was_level != (trigger == Trigger::kLevel)) {
        if (was_level) {
            trigger_mode.fetch_and(~bit, std::memory_order_relaxed);
        } else {
            trigger_mode.fetch_or(bit, std::memory_order_relaxed);
        }
    }
    // Kicked for the change from not pending to pending alone. Also when the vector is below the vCPU's
    // priority at this moment: the priority is the vCPU's own, and it looks again when it lowers it.
    if (irr_.set(vector)) port_.kick();
}

/// 11.5.3. The interrupt comes with the first error after a write to the ESR.
void Lapic::raise_error(uint32_t bit) noexcept {
    if (errors_.fetch_or(bit, std::memory_order_acq_rel) == 0) deliver_local(kError);
}

/// The LVT entry's own event has happened (11.5.1).
void Lapic::deliver_local(Lvt entry) noexcept {
    const uint32_t lvt = lvt_[entry].load(std::memory_order_seq_cst);
    // Any unmasked entry implies the software enable: clearing it masks them all (11.4.7.2).
    if (lvt & kLvtMasked) return;
    const auto mode = static_cast<DeliveryMode>((lvt >> 8) & 7);
    if (entry == kTimer || entry == kError || mode == DeliveryMode::kFixed) {
        accept_fixed(static_cast<uint8_t>(lvt), Trigger::kEdge);
    } else if (mode == DeliveryMode::kNmi) {
        port_.post_nmi();
    } else if (mode == DeliveryMode::kInit) {
        port_.post_init();
    }
}

void Lapic::on_timer_expiry() noexcept { deliver_local(kTimer); }

void Lapic::set_pin(unsigned pin, bool asserted) noexcept {
    const bool before = pin_[pin].exchange(asserted, std::memory_order_seq_cst);
    if (asserted) deliver_pin(pin == 0 ? kLint0 : kLint1, !before);
}

/// The pin is asserted: now (`rising`), or since before its LVT entry changed.
void Lapic::deliver_pin(Lvt entry, bool rising) noexcept {
    if (accepts_.load(std::memory_order_seq_cst) == kAcceptsNothing) {
        // 11.4.3: without an APIC the pins are INTR and NMI as on processors before it.
        if (!rising) return;
        if (entry == kLint0) {
            port_.kick();
        } else {
            port_.post_nmi();
        }
        return;
    }
    uint32_t lvt = lvt_[entry].load(std::memory_order_seq_cst);
    if (lvt & kLvtMasked) return;
    const auto mode = static_cast<DeliveryMode>((lvt >> 8) & 7);
    if (mode == DeliveryMode::kExtInt) {
        port_.kick();  // `extint_pending` looks at the pin itself
    } else if (mode == DeliveryMode::kFixed && entry == kLint0 && (lvt & kLvtLevel)) {
        // Remote IRR: accepted and not yet ended; only then the level counts anew.
        lvt = lvt_[entry].fetch_or(kLvtRemoteIrr, std::memory_order_seq_cst);
        if (!(lvt & kLvtRemoteIrr)) accept_fixed(static_cast<uint8_t>(lvt), Trigger::kLevel);
    } else if (rising) {
        // LINT1 knows edges only, as do NMI, SMI and INIT (11.5.1, trigger mode).
        deliver_local(entry);
    }
}

bool Lapic::matches(const IpiMessage& message) const noexcept {
    const bool x2apic = x2apic_mode();
    const uint32_t destination = message.destination;
    if (!message.logical) return destination == options_.apic_id || destination == kBroadcast;

    if (x2apic) {  // 11.12.10: cluster in the upper half, one bit a member in the lower
        const uint32_t own = logical_id();
        if (destination == kBroadcast) return true;
        return (destination >> 16) == (own >> 16) && (destination & own & 0xFFFF) != 0;
    }
    if (destination == kBroadcast) return true;
    if (destination > 0xFF) return false;
    const uint32_t own = ldr_.load(std::memory_order_relaxed) >> 24;
    if ((dfr_.load(std::memory_order_relaxed) >> 28) == 0xF)
        return (own & destination) != 0;  // flat, 11.6.2.2
    const bool same_cluster = (own >> 4) == (destination >> 4) || (destination >> 4) == 0xF;
    return same_cluster && (own & destination & 0xF) != 0;
}

// ---- vCPU thread
// --------------------------------------------------------------------------------------------

int Lapic::highest_requested() const noexcept {
    for (unsigned word = 4; word-- > 0;) {
        if (const uint64_t bits = irr_.word(word)) {
            return static_cast<int>(word * 64 + 63 - static_cast<unsigned>(std::countl_zero(bits)));
        }
    }
    return -1;
}

int Lapic::highest_pending() noexcept {
    const int vector = irr_.highest();
    if (vector < 0) return -1;
    // 11.8.3.1: only a class above that of the processor priority is delivered.
    return (vector >> 4) > (processor_priority_.load(std::memory_order_relaxed) >> 4) ? vector : -1;
}

int Lapic::acknowledge() noexcept {
    const int vector = highest_pending();
    if (vector < 0) return -1;
    irr_.clear(static_cast<uint8_t>(vector));
    isr_[static_cast<unsigned>(vector) >> 6] |= uint64_t{1} << (vector & 63);
    update_priority();
    return vector;
}

bool Lapic::extint_pending() const noexcept {
    if (extint_message_.load(std::memory_order_seq_cst)) return true;
    if (!pin_[0].load(std::memory_order_seq_cst)) return false;
    if (accepts_.load(std::memory_order_relaxed) == kAcceptsNothing) return true;
    const uint32_t lvt = lvt_[kLint0].load(std::memory_order_relaxed);
    return !(lvt & kLvtMasked) && static_cast<DeliveryMode>((lvt >> 8) & 7) == DeliveryMode::kExtInt;
}

int Lapic::highest_in_service() const noexcept {
    for (unsigned word = 4; word-- > 0;) {
        if (isr_[word] != 0)
            return static_cast<int>(word * 64 + 63 - static_cast<unsigned>(std::countl_zero(isr_[word])));
    }
    return -1;
}

/// 11.8.3.1: the processor priority from task priority and the highest vector in service.
void Lapic::update_priority() noexcept {
    const uint8_t task = task_priority_.load(std::memory_order_relaxed);
    const int in_service = std::max(highest_in_service(), 0);
    const uint8_t priority =
        (task >> 4) >= (in_service >> 4) ? task : static_cast<uint8_t>(in_service & 0xF0);
    processor_priority_.store(priority, std::memory_order_relaxed);
}

void Lapic::kick_if_deliverable() noexcept {
    if (highest_pending() >= 0 || extint_pending()) port_.kick();
}

/// 11.8.5.
void Lapic::end_of_interrupt() noexcept {
    const int vector = highest_in_service();
    if (vector < 0) return;
    isr_[static_cast<unsigned>(vector) >> 6] &= ~(uint64_t{1} << (vector & 63));
    update_priority();
    const auto ended = static_cast<uint8_t>(vector);
    const bool level = (tmr_[ended >> 5].load(std::memory_order_relaxed) >> (ended & 31)) & 1;
    if (level) {
        const uint32_t lint0 = lvt_[kLint0].load(std::memory_order_seq_cst);
        if ((lint0 & kLvtRemoteIrr) && static_cast<uint8_t>(lint0) == ended) {
            lvt_[kLint0].fetch_and(~kLvtRemoteIrr, std::memory_order_seq_cst);
            if (pin_[0].load(std::memory_order_seq_cst)) deliver_pin(kLint0, false);
        }
        if (!(spurious_ & kSpuriousSuppressEoi)) bus_.broadcast_eoi(ended);
    }
    kick_if_deliverable();
}

/// 11.6.2.4, the arbitration priority register.
uint32_t Lapic::arbitration_register() noexcept {
    const unsigned task = task_priority_.load(std::memory_order_relaxed);
    const auto requested = static_cast<unsigned>(std::max(irr_.highest(), 0));
    const auto in_service = static_cast<unsigned>(std::max(highest_in_service(), 0));
    if ((task >> 4) >= (requested >> 4) && (task >> 4) > (in_service >> 4)) return task;
    return std::max({task & 0xF0, requested & 0xF0, in_service & 0xF0});
}

void Lapic::send(uint32_t command, uint32_t destination, bool wide) noexcept {
    IpiMessage message;
    message.vector = static_cast<uint8_t>(command);
    message.mode = static_cast<DeliveryMode>((command >> 8) & 7);
    message.logical = (command & kCommandLogical) != 0;
    message.shorthand = static_cast<Shorthand>((command >> 18) & 3);
    message.source = options_.apic_id;
    message.wide = wide;
    message.destination = !wide && destination == 0xFF && !message.logical ? kBroadcast : destination;
    message.assert_level = (command & kCommandAssert) != 0 || !(command & kCommandLevel);

    switch (message.mode) {
        case DeliveryMode::kFixed:
        case DeliveryMode::kLowestPriority:
            if (message.vector < kFirstVector) {  // 11.5.3, send illegal vector
                raise_error(kErrorSendIllegalVector);
                return;
            }
            break;
        case DeliveryMode::kInit:
            // The level de-assert of 11.6.1 set arbitration IDs on processors long gone, and is no INIT.
            if (!message.assert_level) return;
            break;
        case DeliveryMode::kNmi:
        case DeliveryMode::kStartUp:
            break;
        default:  // SMI, and codes reserved in the ICR
            return;
    }
    ipis_sent_.store(ipis_sent_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    bus_.send(message);
}

}  // namespace coremesh::x86
