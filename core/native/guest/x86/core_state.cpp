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
static_assert(kEntryCount * sizeof(uint64_t) == sizeof(CoreEvents), "each word has an entry");

constexpr uint64_t kActive = 0, kHlt = 1, kWaitForSipi = 3;

[[noreturn]] void refuse(const char* part, const std::string& word) {
    throw std::invalid_argument(std::string(part) + "." + word);
}

size_t saved_register_words() noexcept {
    size_t words = 0;
    for (size_t i = 0; const cm_state_entry* entry = kEngine.state_entry(i); ++i)
        words += cm_state_words(entry);
    return words;
}

template <typename Words>
CoreState::Part part_of(const char* name, const Words& state) {
    CoreState::Part part{name, Words::entry, std::vector<uint64_t>(sizeof state / sizeof(uint64_t))};
    std::memcpy(part.words.data(), &state, sizeof state);
    return part;
}

template <typename Words>
Words words_of(const CoreState::Part& part) {
    Words state;
    if (part.words.size() != sizeof state / sizeof(uint64_t)) refuse(part.name, "size");
    std::memcpy(&state, part.words.data(), sizeof state);
    return state;
}

void check(const CoreEvents& events) {
    uint64_t words[kEntryCount];
    std::memcpy(words, &events, sizeof words);
    for (size_t i = 0; i < kEntryCount; ++i) {
        if (!cm_state_fits(&kEntries[i], words[i])) refuse("events", kEntries[i].name);
    }
    if (events.activity_state == 2) refuse("events", "activity_state");  // shutdown: such a machine has ended
}

}  // namespace

const cm_state_entry* CoreEvents::entry(size_t index) noexcept {
    return index < kEntryCount ? &kEntries[index] : nullptr;
}

CoreState Core::save(Activity activity) {
    CoreState out{.parts = {{"registers", kEngine.state_entry, {}}}, .numbered_name = "msrs", .numbered = {}};
    out.parts[0].words.resize(saved_register_words());
    kEngine.save(engine_, out.parts[0].words.data());
    LapicState lapic{};
    lapic_.save(lapic);
    out.parts.push_back(part_of("lapic", lapic));
    // Pages whose code was written are not kept: a vCPU that loads has translated nothing.
    const uint32_t requests = signals_.pending();
    CoreEvents events{};
    events.activity_state = activity == Activity::kOff      ? kWaitForSipi
                            : activity == Activity::kHalted ? kHlt
                                                            : kActive;
    events.nmi_pending = (requests & Signals::kNmi) != 0;
    events.init_pending = (requests & Signals::kInit) != 0;
    events.sipi_pending = (requests & Signals::kSipi) != 0;
    events.sipi_vector = events.sipi_pending ? signals_.sipi_vector() : 0;
    events.tsc_adjust = tsc_adjust_;
    out.parts.push_back(part_of("events", events));
    out.numbered.insert(cpu_.msrs.begin(), cpu_.msrs.end());
    return out;
}

Activity Core::load(const CoreState& in) {
    if (in.parts.size() != 3) refuse("vcpus", "parts");
    const std::vector<uint64_t>& registers = in.parts[0].words;
    const auto lapic = words_of<LapicState>(in.parts[1]);
    const auto events = words_of<CoreEvents>(in.parts[2]);
    check(events);
    for (const auto& [index, value] : in.numbered) {
        if (!cpu_.msrs.contains(index)) refuse("msrs", std::to_string(index));
    }
    if (registers.size() != saved_register_words()) refuse("registers", "size");
    if (const char* word = kEngine.load(engine_, registers.data())) refuse("registers", word);
    // The local APIC's timer is armed: the machine's clock is set already.
    if (const char* word = lapic_.load(lapic, events.tsc_adjust)) refuse("lapic", word);
    for (const auto& [index, value] : in.numbered) cpu_.msrs[index] = value;
    tsc_offset_ = tsc_adjust_ = events.tsc_adjust;
    if (events.nmi_pending) signals_.post_nmi();
    if (events.init_pending) signals_.post_init();
    if (events.sipi_pending) signals_.post_sipi(static_cast<uint8_t>(events.sipi_vector));
    return events.activity_state == kActive ? Activity::kRunning
           : events.activity_state == kHlt  ? Activity::kHalted
                                            : Activity::kOff;
}

}  // namespace coremesh::x86
