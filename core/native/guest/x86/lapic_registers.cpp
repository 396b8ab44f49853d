// SPDX-License-Identifier: GPL-2.0-or-later
// The two faces of a local APIC's registers: the xAPIC window and the x2APIC MSRs.
#include "guest/x86/lapic.hpp"
#include "guest/x86/lapic_bits.hpp"

namespace coremesh::x86 {

using namespace lapic_bits;

namespace {

constexpr uint32_t kVersion = 0x14;   // an integrated APIC of today (11.4.8)
constexpr uint32_t kMaxLvtEntry = 5;  // six entries: no CMCI

/// Bits that software can write in each LVT entry, in the order of the registers (figure 11-8).
constexpr uint32_t kLvtWritable[] = {
    kLvtVector | kLvtMasked | kLvtTimerMode,                        // timer
    kLvtVector | kLvtMasked | kLvtMode,                             // thermal sensor
    kLvtVector | kLvtMasked | kLvtMode,                             // performance counters
    kLvtVector | kLvtMasked | kLvtMode | kLvtPolarity | kLvtLevel,  // LINT0
    kLvtVector | kLvtMasked | kLvtMode | kLvtPolarity | kLvtLevel,  // LINT1
    kLvtVector | kLvtMasked,                                        // error
};
/// Bits that are read-only: written values are ignored, also by x2APIC's check of reserved bits.
constexpr uint32_t kLvtReadOnly = kLvtStatus | kLvtRemoteIrr;

}  // namespace

bool Lapic::xapic_mode() const noexcept {
    return (base_.load(std::memory_order_relaxed) & (kBaseEnable | kBaseX2apic)) == kBaseEnable;
}

bool Lapic::x2apic_mode() const noexcept {
    return (base_.load(std::memory_order_relaxed) & (kBaseEnable | kBaseX2apic)) ==
           (kBaseEnable | kBaseX2apic);
}

uint64_t Lapic::mmio_base() const noexcept {
    return base_.load(std::memory_order_relaxed) & ~uint64_t{0xFFF};
}

/// 11.12.10.2: in x2APIC mode the logical ID follows from the ID, sixteen to a cluster.
uint32_t Lapic::logical_id() const noexcept {
    const uint32_t id = options_.apic_id;
    return ((id >> 4) << 16) | (1u << (id & 0xF));
}

// ---- xAPIC window
// -------------------------------------------------------------------------------------------

uint32_t Lapic::read(uint32_t offset) noexcept {
    if (!xapic_mode() || (offset & 0xF) != 0) return 0;
    const uint32_t reg = (offset & 0xFFF) >> 4;
    uint32_t value = 0;
    switch (reg) {
        case kRegId:
            return options_.apic_id << 24;
        case kRegLogicalDestination:
            return ldr_.load(std::memory_order_relaxed);
        case kRegDestinationFormat:
            return dfr_.load(std::memory_order_relaxed);
        case kRegArbitrationPriority:
            return arbitration_register();
        case kRegCommandLow:
            return static_cast<uint32_t>(command_);
        case kRegCommandHigh:
            return static_cast<uint32_t>(command_ >> 32);
        case kRegEoi:         // write-only
        case kRegRemoteRead:  // remote reads went with the APIC bus
            return 0;
        default:
            if (!read_register(reg, value)) raise_error(kErrorIllegalRegister);
            return value;
    }
}

void Lapic::write(uint32_t offset, uint32_t value) noexcept {
    if (!xapic_mode() || (offset & 0xF) != 0) return;
    const uint32_t reg = (offset & 0xFFF) >> 4;
    switch (reg) {
        case kRegLogicalDestination:
            ldr_.store(value & 0xFF00'0000, std::memory_order_relaxed);
            return;
        case kRegDestinationFormat:
            dfr_.store(value | 0x0FFF'FFFF, std::memory_order_relaxed);
            return;
        case kRegCommandHigh:
            command_ = (command_ & 0xFFFF'FFFF) | (uint64_t{value & 0xFF00'0000} << 32);
            return;
        case kRegCommandLow:
            // Sent at once, so the delivery status always reads idle.
            value &= ~(kCommandReserved | kCommandStatus);
            command_ = (command_ & ~uint64_t{0xFFFF'FFFF}) | value;
            send(value, static_cast<uint32_t>(command_ >> 56), false);
            return;
        // Read-only; the ID too, as on processors with x2APIC (11.4.6 leaves it to the model).
        case kRegId:
        case kRegVersion:
        case kRegArbitrationPriority:
        case kRegProcessorPriority:
        case kRegRemoteRead:
        case kRegCurrentCount:
            return;
        default:
            if (reg >= kRegInService && reg < kRegErrorStatus) return;
            if (!write_register(reg, value)) raise_error(kErrorIllegalRegister);
            return;
    }
}

// ---- what both faces share
// ----------------------------------------------------------------------------------

bool Lapic::read_register(uint32_t reg, uint32_t& value) noexcept {
    if (reg >= kRegInService && reg < kRegInService + 8) {
        const uint32_t index = reg - kRegInService;
        value = static_cast<uint32_t>(isr_[index >> 1] >> (32 * (index & 1)));
        return true;
    }
    if (reg >= kRegTriggerMode && reg < kRegTriggerMode + 8) {
        value = tmr_[reg - kRegTriggerMode].load(std::memory_order_relaxed);
        return true;
    }
    if (reg >= kRegRequest && reg < kRegRequest + 8) {
        value = irr_.register32(reg - kRegRequest);
        return true;
    }
    if (reg >= kRegLvtTimer && reg <= kRegLvtError) {
        value = lvt_[reg - kRegLvtTimer].load(std::memory_order_seq_cst);
        return true;
    }
    switch (reg) {
        case kRegVersion:
            value = kVersion | (kMaxLvtEntry << 16) | (options_.eoi_broadcast_suppression ? 1u << 24 : 0);
            return true;
        case kRegTaskPriority:
            value = task_priority_.load(std::memory_order_relaxed);
            return true;
        case kRegProcessorPriority:
            value = processor_priority_.load(std::memory_order_relaxed);
            return true;
        case kRegSpurious:
            value = spurious_;
            return true;
        case kRegErrorStatus:
            value = error_status_;
            return true;
        case kRegInitialCount:
            value = timer_.initial_count();
            return true;
        case kRegCurrentCount:
            value = timer_.current_count();
            return true;
        case kRegDivide:
            value = timer_.divide_configuration();
            return true;
        default:
            return false;
    }
}

bool Lapic::write_register(uint32_t reg, uint32_t value) noexcept {
    if (reg >= kRegLvtTimer && reg <= kRegLvtError) {
        write_lvt(static_cast<Lvt>(reg - kRegLvtTimer), value);
        return true;
    }
    switch (reg) {
        case kRegTaskPriority:
            write_task_priority(static_cast<uint8_t>(value));
            return true;
        case kRegEoi:
            end_of_interrupt();
            return true;
        case kRegSpurious:
            write_spurious(value);
            return true;
        case kRegErrorStatus:
            // 11.5.3: a write, of whatever, makes readable what has come together since the last one.
            error_status_ = errors_.exchange(0, std::memory_order_acq_rel);
            return true;
        case kRegInitialCount:
            timer_.write_initial_count(value);
            return true;
        case kRegDivide:
            timer_.write_divide_configuration(value);
            return true;
        default:
            return false;
    }
}

void Lapic::write_task_priority(uint8_t value) noexcept {
    const uint8_t before = task_priority_.exchange(value, std::memory_order_relaxed);
    update_priority();
    if (value < before) kick_if_deliverable();
}

bool Lapic::write_cr8(uint64_t value) noexcept {
    if (value > 0xF) return false;  // 11.8.6
    write_task_priority(static_cast<uint8_t>(value << 4));
    return true;
}

void Lapic::write_spurious(uint32_t value) noexcept {
    // Bit 9 (focus processor checking) exists on no processor with version 14H.
    const uint32_t writable =
        0xFF | kSpuriousEnable | (options_.eoi_broadcast_suppression ? kSpuriousSuppressEoi : 0);
    spurious_ = value & writable;
    if (!(spurious_ & kSpuriousEnable)) {  // 11.4.7.2: all entries are masked and stay so
        // An expiry meets the timer's entry of its own moment, as in write_lvt.
        timer_.settle();
        for (auto& entry : lvt_) entry.fetch_or(kLvtMasked, std::memory_order_seq_cst);
        timer_.finish_expiry();
    }
    update_accepts();
}

void Lapic::write_lvt(Lvt entry, uint32_t value) noexcept {
    value &= kLvtWritable[entry];
    if (!(spurious_ & kSpuriousEnable)) value |= kLvtMasked;
    if (entry == kTimer) {
        // An expiry is delivered by the entry that it met, and is seen before the new one is.
        timer_.settle();
        if ((value & kLvtTimerMode) == kLvtTimerMode)
            value &= ~kLvtTimerMode | (1u << 18);  // 3 is reserved: taken as 2
        timer_.set_mode(static_cast<LapicTimer::Mode>((value & kLvtTimerMode) >> 17));
    }
    uint32_t before = lvt_[entry].load(std::memory_order_seq_cst);
    uint32_t kept = 0;
    do {
        // Remote IRR is the pin's, which another thread may move at this moment. It has a meaning only for
        // level-triggered fixed delivery and is gone with it.
        const bool level = entry == kLint0 && (value & kLvtLevel) && (value & kLvtMode) == 0;
        kept = level ? before & kLvtRemoteIrr : 0;
    } while (!lvt_[entry].compare_exchange_weak(before, value | kept, std::memory_order_seq_cst));
    // One may have begun since, and have met the old entry; the next ones meet the new.
    if (entry == kTimer) timer_.finish_expiry();

    if ((entry == kLint0 || entry == kLint1) && pin_[entry - kLint0].load(std::memory_order_seq_cst)) {
        deliver_pin(entry, false);
    }
}

// ---- MSRs
// ---------------------------------------------------------------------------------------------------

bool Lapic::read_msr(uint32_t index, uint64_t& value) noexcept {
    if (index == kMsrApicBase) {
        value = base_.load(std::memory_order_relaxed);
        return true;
    }
    if (index == kMsrTscDeadline) {
        value = timer_.tsc_deadline();
        return true;
    }
    if (index < kMsrX2apicFirst || index > kMsrX2apicLast || !x2apic_mode()) return false;
    return read_x2apic(index - kMsrX2apicFirst, value);
}

bool Lapic::write_msr(uint32_t index, uint64_t value) noexcept {
    if (index == kMsrApicBase) return write_base(value);
    if (index == kMsrTscDeadline) {
        timer_.write_tsc_deadline(value);
        return true;
    }
    if (index < kMsrX2apicFirst || index > kMsrX2apicLast || !x2apic_mode()) return false;
    return write_x2apic(index - kMsrX2apicFirst, value);
}

/// No reserved bit, and one of the three modes of table 11-5.
bool Lapic::is_base(uint64_t value) const noexcept {
    const uint64_t above = ~((uint64_t{1} << options_.physical_address_bits) - 1);
    return !(value & (above | 0x2FF)) && (value & (kBaseEnable | kBaseX2apic)) != kBaseX2apic;
}

/// 11.12.5: from off only to xAPIC, from xAPIC anywhere, from x2APIC only off.
bool Lapic::write_base(uint64_t value) noexcept {
    if (!is_base(value)) return false;
    const uint64_t mode_bits = kBaseEnable | kBaseX2apic;
    const uint64_t before = base_.load(std::memory_order_relaxed) & mode_bits;
    const uint64_t after = value & mode_bits;
    if (before == 0 && after == mode_bits) return false;
    if (before == mode_bits && after == kBaseEnable) return false;

    base_.store(value, std::memory_order_relaxed);
    if (after == before) return true;
    if (after == 0) {
        clear_state();  // 11.4.3: what it knew is lost
        kick_if_deliverable();
    } else {
        if (after == mode_bits) command_ = static_cast<uint32_t>(command_);  // 11.12.5.1: ICR high is cleared
        update_accepts();
    }
    return true;
}

/// Table 11-6. What it does not list, and what it lists as write-only, is #GP.
bool Lapic::read_x2apic(uint32_t reg, uint64_t& value) noexcept {
    switch (reg) {
        case kRegId:
            value = options_.apic_id;
            return true;
        case kRegLogicalDestination:
            value = logical_id();
            return true;
        case kRegCommandLow:
            value = command_;
            return true;
        default: {
            uint32_t low = 0;
            if (!read_register(reg, low)) return false;
            value = low;
            return true;
        }
    }
}

/// 11.12.1.3: a set reserved bit is #GP, as is a write to what is read-only.
bool Lapic::write_x2apic(uint32_t reg, uint64_t value) noexcept {
    if (reg == kRegCommandLow) {
        if (value & kCommandReserved) return false;
        command_ = value & ~uint64_t{kCommandStatus};
        send(static_cast<uint32_t>(value), static_cast<uint32_t>(value >> 32), true);
        return true;
    }
    uint64_t allowed = 0;
    if (reg >= kRegLvtTimer && reg <= kRegLvtError) {
        allowed = kLvtWritable[reg - kRegLvtTimer] | kLvtReadOnly;
    } else {
        switch (reg) {
            case kRegTaskPriority:
            case kRegSelfIpi:
                allowed = 0xFF;
                break;
            case kRegEoi:
            case kRegErrorStatus:
                allowed = 0;
                break;
            case kRegSpurious:
                allowed =
                    0xFF | kSpuriousEnable | (options_.eoi_broadcast_suppression ? kSpuriousSuppressEoi : 0);
                break;
            case kRegInitialCount:
                allowed = 0xFFFF'FFFF;
                break;
            case kRegDivide:
                allowed = 0xB;
                break;
            default:
                return false;
        }
    }
    if (value & ~allowed) return false;
    if (reg == kRegSelfIpi) {  // 11.12.11: a fixed, edge-triggered interrupt to itself
        send(static_cast<uint32_t>(value) | (static_cast<uint32_t>(Shorthand::kSelf) << 18), 0, true);
        return true;
    }
    return write_register(reg, static_cast<uint32_t>(value));
}

}  // namespace coremesh::x86
