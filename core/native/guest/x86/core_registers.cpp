// SPDX-License-Identifier: GPL-2.0-or-later
// The registers that a person or a loader sees, as words by name.
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "guest/x86/core.hpp"

namespace coremesh::x86 {
namespace {

/// A segment register is (selector, base, limit, access), a table register (base, limit).
constexpr unsigned kSegmentWords = 4, kTableWords = 2;

struct Row {
    cm_state_entry entry;
    uint64_t* (*word)(cm_registers&);
    cm_segment* (*segment)(cm_registers&);
};

#define GPR(name, number)                                                      \
    Row {                                                                      \
        {name, 0, 64}, [](cm_registers& r) { return &r.gpr[number]; }, nullptr \
    }
#define WORD(name)                                                       \
    Row {                                                                \
        {#name, 0, 64}, [](cm_registers& r) { return &r.name; }, nullptr \
    }
#define SEGMENT(name)                                                                \
    Row {                                                                            \
        {#name, kSegmentWords, 64}, nullptr, [](cm_registers& r) { return &r.name; } \
    }

constexpr std::array kRows = {GPR("rax", 0),  GPR("rcx", 1),  GPR("rdx", 2),  GPR("rbx", 3),  GPR("rsp", 4),
                              GPR("rbp", 5),  GPR("rsi", 6),  GPR("rdi", 7),  GPR("r8", 8),   GPR("r9", 9),
                              GPR("r10", 10), GPR("r11", 11), GPR("r12", 12), GPR("r13", 13), GPR("r14", 14),
                              GPR("r15", 15), WORD(rip),      WORD(rflags),   WORD(cr0),      WORD(cr2),
                              WORD(cr3),      WORD(cr4),      WORD(efer),     SEGMENT(cs),    SEGMENT(ds),
                              SEGMENT(es),    SEGMENT(fs),    SEGMENT(gs),    SEGMENT(ss),    SEGMENT(ldtr),
                              SEGMENT(tr)};

#undef GPR
#undef WORD
#undef SEGMENT

constexpr std::array<cm_state_entry, 2> kTables = {{{"gdtr", kTableWords, 64}, {"idtr", kTableWords, 64}}};

/// `name` is of the register that the word is for.
uint32_t narrow(uint64_t word, const char* name) {
    if (word >> 32) throw std::invalid_argument(std::string(name) + " has a part of 32 bits that is greater");
    return static_cast<uint32_t>(word);
}

}  // namespace

const cm_state_entry* Core::register_entry(size_t index) const noexcept {
    if (index < kRows.size()) return &kRows[index].entry;
    index -= kRows.size();
    return index < kTables.size() ? &kTables[index] : nullptr;
}

void Core::registers(uint64_t* words) const {
    cm_registers all;
    kX86.get_registers(engine_, &all);
    for (const Row& row : kRows) {
        if (row.word) {
            *words++ = *row.word(all);
            continue;
        }
        const cm_segment& segment = *row.segment(all);
        for (const uint64_t part :
             {uint64_t{segment.selector}, segment.base, uint64_t{segment.limit}, uint64_t{segment.access}}) {
            *words++ = part;
        }
    }
    for (const uint64_t part :
         {all.gdt_base, uint64_t{all.gdt_limit}, all.idt_base, uint64_t{all.idt_limit}}) {
        *words++ = part;
    }
}

void Core::set_registers(const uint64_t* words) {
    cm_registers all;
    kX86.get_registers(engine_, &all);
    for (const Row& row : kRows) {
        if (row.word) {
            *row.word(all) = *words++;
            continue;
        }
        const char* name = row.entry.name;
        *row.segment(all) = {.selector = narrow(words[0], name),
                             .access = narrow(words[3], name),
                             .base = words[1],
                             .limit = narrow(words[2], name)};
        words += kSegmentWords;
    }
    all.gdt_base = words[0];
    all.gdt_limit = narrow(words[1], "gdtr");
    all.idt_base = words[2];
    all.idt_limit = narrow(words[3], "idtr");
    kX86.set_registers(engine_, &all);
}

}  // namespace coremesh::x86
