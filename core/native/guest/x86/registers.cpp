// SPDX-License-Identifier: GPL-2.0-or-later
// Registers for a person.
#include <cinttypes>
#include <cstdio>
#include <string>

#include "guest/x86/core.hpp"

namespace coremesh::x86 {

std::string Core::describe() const {
    cm_registers now;
    registers(now);
    return x86::describe(now);
}

std::string describe(const cm_registers& r) {
    static const char* const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8 ", "r9 ", "r10", "r11", "r12", "r13", "r14", "r15"};
    std::string text;
    char line[160];
    for (int i = 0; i < 16; ++i) {
        std::snprintf(line, sizeof line, "%s=%016" PRIx64 "%c", names[i], r.gpr[i], i % 4 == 3 ? '\n' : ' ');
        text += line;
    }
    std::snprintf(line, sizeof line, "rip=%016" PRIx64 " rflags=%08" PRIx64 " efer=%" PRIx64 "\n", r.rip,
                  r.rflags, r.efer);
    text += line;
    std::snprintf(line, sizeof line,
                  "cr0=%08" PRIx64 " cr2=%016" PRIx64 " cr3=%016" PRIx64 " cr4=%08" PRIx64 "\n", r.cr0, r.cr2,
                  r.cr3, r.cr4);
    text += line;
    const struct {
        const char* name;
        const cm_segment& segment;
    } segments[] = {{"cs", r.cs}, {"ss", r.ss}, {"ds", r.ds}, {"es", r.es},
                    {"fs", r.fs}, {"gs", r.gs}, {"tr", r.tr}};
    for (const auto& [name, segment] : segments) {
        std::snprintf(line, sizeof line, "%s=%04x base=%016" PRIx64 " limit=%08x access=%03x\n", name,
                      segment.selector, segment.base, segment.limit, segment.access);
        text += line;
    }
    return text;
}

}  // namespace coremesh::x86
