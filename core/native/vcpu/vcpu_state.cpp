// SPDX-License-Identifier: GPL-2.0-or-later
// A vCPU saved and loaded.
#include <cstring>
#include <stdexcept>
#include <string>

#include "vcpu/vcpu.hpp"

namespace coremesh {
namespace {

constexpr cm_state_entry kEntries[] = {
    {"activity_state", 0, 2}, {"nmi_pending", 0, 1}, {"init_pending", 0, 1},
    {"sipi_pending", 0, 1},   {"sipi_vector", 0, 8}, {"tsc_adjust", 0, 64},
};
constexpr size_t kEntryCount = sizeof kEntries / sizeof *kEntries;
static_assert(kEntryCount * sizeof(uint64_t) == sizeof(VcpuState::Events), "each word has an entry");

constexpr uint64_t kActive = 0, kHlt = 1, kWaitForSipi = 3;

[[noreturn]] void refuse(const char* part, const std::string& word) {
    throw std::invalid_argument(std::string(part) + "." + word);
}

size_t register_words() noexcept {
    size_t words = 0;
    for (size_t i = 0; const cm_state_entry* entry = cm_engine_state_entry(i); ++i)
        words += cm_state_words(entry);
    return words;
}

void check(const VcpuState::Events& events) {
    uint64_t words[kEntryCount];
    std::memcpy(words, &events, sizeof words);
    for (size_t i = 0; i < kEntryCount; ++i) {
        if (!cm_state_fits(&kEntries[i], words[i])) refuse("events", kEntries[i].name);
    }
    if (events.activity_state == 2) refuse("events", "activity_state");  // shutdown: such a machine has ended
}

}  // namespace

const cm_state_entry* VcpuState::Events::entry(size_t index) noexcept {
    return index < kEntryCount ? &kEntries[index] : nullptr;
}

VcpuState Vcpu::save() noexcept {
    VcpuState out;
    lapic_.save(out.lapic);
    out.registers.resize(register_words());
    cm_engine_save(engine_, out.registers.data());
    // Pages whose code was written are not kept: who loads has translated nothing.
    const uint32_t requests = mailbox_.pending();
    out.events.activity_state = state() == State::kWaitForSipi ? kWaitForSipi
                                : state() == State::kHalted    ? kHlt
                                                               : kActive;
    out.events.nmi_pending = (requests & kRequestNmi) != 0;
    out.events.init_pending = (requests & kRequestInit) != 0;
    out.events.sipi_pending = (requests & kRequestSipi) != 0;
    out.events.sipi_vector = out.events.sipi_pending ? mailbox_.sipi_vector() : 0;
    out.events.tsc_adjust = tsc_adjust_;
    out.msrs.insert(cpu_.msrs.begin(), cpu_.msrs.end());
    return out;
}

void Vcpu::load(const VcpuState& in) {
    check(in.events);
    for (const auto& [index, value] : in.msrs) {
        if (!cpu_.msrs.contains(index)) refuse("msrs", std::to_string(index));
    }
    if (in.registers.size() != register_words()) refuse("registers", "size");
    if (const char* word = cm_engine_load(engine_, in.registers.data())) refuse("registers", word);
    if (const char* word = lapic_.load(in.lapic, in.events.tsc_adjust)) refuse("lapic", word);
    for (const auto& [index, value] : in.msrs) cpu_.msrs[index] = value;
    tsc_offset_ = tsc_adjust_ = in.events.tsc_adjust;
    become(in.events.activity_state == kActive ? State::kRunning
           : in.events.activity_state == kHlt  ? State::kHalted
                                               : State::kWaitForSipi);
    if (in.events.nmi_pending) mailbox_.post(kRequestNmi);
    if (in.events.init_pending) mailbox_.post_init();
    if (in.events.sipi_pending) mailbox_.post_sipi(static_cast<uint8_t>(in.events.sipi_vector));
}

}  // namespace coremesh
