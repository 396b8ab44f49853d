// SPDX-License-Identifier: GPL-2.0-or-later
// A local APIC saved and loaded: its state as words by name.
#include <cstring>

#include "guest/x86/lapic.hpp"
#include "guest/x86/lapic_bits.hpp"

namespace coremesh::x86 {

using namespace lapic_bits;

namespace {

// In the order of LapicState, all of it.
constexpr cm_state_entry kEntries[] = {
    {"apic_id", 0, 32},
    {"apic_base", 0, 64},
    {"task_priority", 0, 8},
    {"spurious", 0, 13},
    {"error_status", 0, 8},
    {"errors", 0, 8},
    {"command", 0, 64},
    {"logical_destination", 0, 32},
    {"destination_format", 0, 32},
    {"lvt", 6, 19},
    {"irr", 4, 64},
    {"isr", 4, 64},
    {"tmr", 4, 64},
    {"lint0", 0, 1},
    {"lint1", 0, 1},
    {"extint_message", 0, 1},
    {"timer_running", 0, 1},
    {"timer_initial", 0, 32},
    {"timer_divide", 0, 4},
    {"timer_first", 0, 32},
    {"timer_start", 0, 64},
    {"timer_tsc_deadline", 0, 64},
    {"timer_due", 0, 64},
};
constexpr size_t kEntryCount = sizeof kEntries / sizeof *kEntries;

constexpr size_t words() {
    size_t sum = 0;
    for (const cm_state_entry& entry : kEntries) sum += entry.count ? entry.count : 1;
    return sum;
}
static_assert(words() * sizeof(uint64_t) == sizeof(LapicState), "each word of the state has an entry");

LapicTimer::Mode mode_of(uint64_t lvt) noexcept {
    return static_cast<LapicTimer::Mode>((lvt & kLvtTimerMode) >> 17);
}

/// The first entry with a word that is too wide, or null.
const char* too_wide(const LapicState& state) noexcept {
    uint64_t word[words()];
    std::memcpy(word, &state, sizeof state);
    const uint64_t* at = word;
    for (const cm_state_entry& entry : kEntries) {
        for (unsigned n = cm_state_words(&entry); n-- > 0;) {
            if (!cm_state_fits(&entry, *at++)) return entry.name;
        }
    }
    return nullptr;
}

}  // namespace

const cm_state_entry* LapicState::entry(size_t index) noexcept {
    return index < kEntryCount ? &kEntries[index] : nullptr;
}

void Lapic::save(LapicState& state) noexcept {
    const LapicTimer::Saved timer = timer_.save();  // first: an expiry until now is in the IRR below
    state = {};
    state.apic_id = options_.apic_id;
    state.apic_base = base_.load(std::memory_order_relaxed);
    state.task_priority = task_priority_.load(std::memory_order_relaxed);
    state.spurious = spurious_;
    state.error_status = error_status_;
    state.errors = errors_.load(std::memory_order_acquire);
    state.command = command_;
    state.logical_destination = ldr_.load(std::memory_order_relaxed);
    state.destination_format = dfr_.load(std::memory_order_relaxed);
    for (unsigned i = 0; i < kLvtCount; ++i) state.lvt[i] = lvt_[i].load(std::memory_order_seq_cst);
    for (unsigned i = 0; i < 4; ++i) {
        state.irr[i] = irr_.word(i);
        state.isr[i] = isr_[i];
        state.tmr[i] = tmr_[2 * i].load(std::memory_order_relaxed) |
                       uint64_t{tmr_[2 * i + 1].load(std::memory_order_relaxed)} << 32;
    }
    state.lint0 = pin_[0].load(std::memory_order_seq_cst);
    state.lint1 = pin_[1].load(std::memory_order_seq_cst);
    state.extint_message = extint_message_.load(std::memory_order_seq_cst);
    state.timer_running = timer.running;
    state.timer_initial = timer.initial;
    state.timer_divide = timer.divide_configuration;
    state.timer_first = timer.first;
    state.timer_start = timer.start;
    state.timer_tsc_deadline = timer.tsc_deadline;
    state.timer_due = timer.armed;
}

const char* Lapic::load(const LapicState& state, uint64_t tsc_offset) noexcept {
    if (const char* entry = too_wide(state)) return entry;
    if (state.apic_id != options_.apic_id) return "apic_id";
    if (!is_base(state.apic_base) || !(state.apic_base & kBaseBootstrap) == options_.bootstrap)
        return "apic_base";
    if ((state.lvt[kTimer] & kLvtTimerMode) == kLvtTimerMode) return "lvt";
    if (state.timer_running && !state.timer_initial) return "timer_initial";  // a period of zero
    if (state.timer_divide & ~uint64_t{0xB}) return "timer_divide";
    const LapicTimer::Mode mode = mode_of(state.lvt[kTimer]);
    if (state.timer_due && mode != LapicTimer::Mode::kTscDeadline && !state.timer_running) return "timer_due";

    base_.store(state.apic_base, std::memory_order_relaxed);
    task_priority_.store(static_cast<uint8_t>(state.task_priority), std::memory_order_relaxed);
    spurious_ = static_cast<uint32_t>(state.spurious);
    error_status_ = static_cast<uint32_t>(state.error_status);
    errors_.store(static_cast<uint32_t>(state.errors), std::memory_order_release);
    command_ = state.command;
    ldr_.store(static_cast<uint32_t>(state.logical_destination), std::memory_order_relaxed);
    dfr_.store(static_cast<uint32_t>(state.destination_format), std::memory_order_relaxed);
    for (unsigned i = 0; i < kLvtCount; ++i) {
        lvt_[i].store(static_cast<uint32_t>(state.lvt[i]), std::memory_order_seq_cst);
    }
    irr_.restore(state.irr);
    for (unsigned i = 0; i < 4; ++i) {
        isr_[i] = state.isr[i];
        tmr_[2 * i].store(static_cast<uint32_t>(state.tmr[i]), std::memory_order_relaxed);
        tmr_[2 * i + 1].store(static_cast<uint32_t>(state.tmr[i] >> 32), std::memory_order_relaxed);
    }
    pin_[0].store(state.lint0 != 0, std::memory_order_seq_cst);
    pin_[1].store(state.lint1 != 0, std::memory_order_seq_cst);
    extint_message_.store(state.extint_message != 0, std::memory_order_seq_cst);
    update_priority();
    update_accepts();
    timer_.load(mode, tsc_offset,
                {.running = state.timer_running != 0,
                 .initial = static_cast<uint32_t>(state.timer_initial),
                 .divide_configuration = static_cast<uint32_t>(state.timer_divide),
                 .first = static_cast<uint32_t>(state.timer_first),
                 .start = state.timer_start,
                 .tsc_deadline = state.timer_tsc_deadline,
                 .armed = state.timer_due});
    return nullptr;
}

}  // namespace coremesh::x86
