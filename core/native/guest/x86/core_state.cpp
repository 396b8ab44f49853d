// SPDX-License-Identifier: GPL-2.0-or-later
// A core saved and loaded.
#include <cstring>
#include <stdexcept>
#include <string>

#include "guest/x86/core.hpp"

namespace coremesh::x86 {
namespace {

constexpr cm_state_entry kEntries[] = {
    {"activity_state", 0, 2}, {"nmi_pending", 0, 1}, {"init_pending", 0, 1},
    {"sipi_pending", 0, 1},   {"sipi_vector", 0, 8}, {"tsc_adjust", 0, 64},
};
constexpr size_t kEntryCount = sizeof kEntries / sizeof *kEntries;
static_assert(kEntryCount * sizeof(uint64_t) == sizeof(CoreState::Events), "each word has an entry");

constexpr uint64_t kActive = 0, kHlt = 1, kWaitForSipi = 3;

[[noreturn]] void refuse(const char* part, const std::string& word) {
    throw std::invalid_argument(std::string(part) + "." + word);
}

size_t register_words() noexcept {
    size_t words = 0;
    for (size_t i = 0; const cm_state_entry* entry = kEngine.state_entry(i); ++i)
        words += cm_state_words(entry);
    return words;
}

void check(const CoreState::Events& events) {
    uint64_t words[kEntryCount];
    std::memcpy(words, &events, sizeof words);
    for (size_t i = 0; i < kEntryCount; ++i) {
        if (!cm_state_fits(&kEntries[i], words[i])) refuse("events", kEntries[i].name);
    }
    if (events.activity_state == 2) refuse("events", "activity_state");  // shutdown: such a machine has ended
}

}  // namespace

const cm_state_entry* CoreState::Events::entry(size_t index) noexcept {
    return index < kEntryCount ? &kEntries[index] : nullptr;
}

CoreState Core::save(Activity activity) noexcept {
    CoreState out;
    lapic_.save(out.lapic);
    out.registers.resize(register_words());
    kEngine.save(engine_, out.registers.data());
    // Pages whose code was written are not kept: a vCPU that loads has translated nothing.
    const uint32_t requests = signals_.pending();
    out.events.activity_state = activity == Activity::kOff      ? kWaitForSipi
                                : activity == Activity::kHalted ? kHlt
                                                                : kActive;
    out.events.nmi_pending = (requests & Signals::kNmi) != 0;
    out.events.init_pending = (requests & Signals::kInit) != 0;
    out.events.sipi_pending = (requests & Signals::kSipi) != 0;
    out.events.sipi_vector = out.events.sipi_pending ? signals_.sipi_vector() : 0;
    out.events.tsc_adjust = tsc_adjust_;
    out.msrs.insert(cpu_.msrs.begin(), cpu_.msrs.end());
    return out;
}

Activity Core::load(const CoreState& in) {
    check(in.events);
    for (const auto& [index, value] : in.msrs) {
        if (!cpu_.msrs.contains(index)) refuse("msrs", std::to_string(index));
    }
    if (in.registers.size() != register_words()) refuse("registers", "size");
    if (const char* word = kEngine.load(engine_, in.registers.data())) refuse("registers", word);
    if (const char* word = lapic_.load(in.lapic, in.events.tsc_adjust)) refuse("lapic", word);
    for (const auto& [index, value] : in.msrs) cpu_.msrs[index] = value;
    tsc_offset_ = tsc_adjust_ = in.events.tsc_adjust;
    if (in.events.nmi_pending) signals_.post_nmi();
    if (in.events.init_pending) signals_.post_init();
    if (in.events.sipi_pending) signals_.post_sipi(static_cast<uint8_t>(in.events.sipi_vector));
    return in.events.activity_state == kActive ? Activity::kRunning
           : in.events.activity_state == kHlt  ? Activity::kHalted
                                               : Activity::kOff;
}

}  // namespace coremesh::x86
