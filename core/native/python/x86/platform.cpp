// SPDX-License-Identifier: GPL-2.0-or-later
// The Python face of what only x86 has.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "guest/x86/platform.hpp"
#include "python/architectures.hpp"
#include "tcg/x86/coverage.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace coremesh::x86 {
namespace {

using CpuidTable =
    nb::typed<nb::dict, nb::typed<nb::tuple, int, int>, nb::typed<nb::tuple, int, int, int, int>>;

CpuDescription cpu_from(const nb::dict& table, const std::vector<uint32_t>& indexed,
                        const std::tuple<uint32_t, uint32_t, uint32_t>& highest, const nb::dict& msrs) {
    CpuDescription cpu;
    for (auto [key, value] : table) {
        const auto [leaf, subleaf] = nb::cast<std::tuple<uint32_t, uint32_t>>(key);
        const auto [a, b, c, d] = nb::cast<std::tuple<uint32_t, uint32_t, uint32_t, uint32_t>>(value);
        cpu.cpuid.push_back({leaf, subleaf, {a, b, c, d}});
    }
    cpu.indexed_leaves = indexed;
    std::tie(cpu.highest_basic, cpu.highest_hypervisor, cpu.highest_extended) = highest;
    for (auto [key, value] : msrs) cpu.msrs[nb::cast<uint32_t>(key)] = nb::cast<uint64_t>(value);
    return cpu;
}

coremesh::Platform make_platform(std::vector<uint32_t> apic_ids, std::optional<uint32_t> bootstrap,
                                 uint32_t total_vcpus, uint32_t timer_hz, std::vector<CpuDescription> cpus) {
    const auto cores = static_cast<unsigned>(apic_ids.size());
    Platform::Options options{.apic_ids = std::move(apic_ids),
                              .bootstrap = bootstrap,
                              .total_vcpus = total_vcpus,
                              .timer_hz = timer_hz,
                              .cpus = std::move(cpus)};
    return {cores, [options = std::move(options)](const PlatformParts& parts) {
                return std::make_unique<Platform>(options, parts);
            }};
}

Fabric& fabric_of(Host& host) {
    auto* const platform = dynamic_cast<Platform*>(&host.platform());
    if (!platform) throw nb::type_error("the guest of this host is not an x86 machine: it has no such line");
    return platform->fabric();
}

std::vector<uint16_t> instructions_seen() {
    std::vector<uint16_t> numbers(CM_INSTRUCTION_NUMBERS);
    numbers.resize(kX86.instructions_seen(numbers.data()));
    return numbers;
}

void bind_platform(nb::module_& m) {
    nb::class_<CpuDescription>(m, "CpuDescription", "What one core answers to CPUID, and MSRs kept by value.")
        .def(
            "__init__",
            [](CpuDescription* self, const CpuidTable& table, const std::vector<uint32_t>& indexed,
               const std::tuple<uint32_t, uint32_t, uint32_t>& highest,
               const nb::typed<nb::dict, int, int>& msrs) {
                new (self) CpuDescription(cpu_from(table, indexed, highest, msrs));
            },
            "cpuid"_a, "indexed_leaves"_a, "highest"_a, "msrs"_a);
    m.def("x86_platform", &make_platform, nb::kw_only(), "apic_ids"_a, "bootstrap"_a.none(), "total_vcpus"_a,
          "timer_hz"_a, "cpus"_a, "The cores, local APICs and interrupt lines of one host.");
    m.def("note_instructions", kX86.note_instructions, "on"_a,
          "Whether the kinds of instructions that are translated from now on are noted; for tests.");
    m.def("instructions_seen", &instructions_seen,
          "Numbers of the kinds noted so far, #UD left out: tcg/x86/coverage.h says how they are made.");
}

void bind_host(nb::class_<Host>& host) {
    host.def(
            "extint", [](Host& self, bool level) { fabric_of(self).extint(level); }, "level"_a,
            "The 8259A's INTR, wired to LINT0 of every local APIC. Any thread.")
        .def(
            "nmi", [](Host& self) { fabric_of(self).nmi_line(); },
            "A pulse of the NMI line, wired to LINT1 of every local APIC. Any thread.");
}

}  // namespace

extern const Architecture kArchitecture{"x86_64", kEngine, bind_platform, bind_host};

}  // namespace coremesh::x86
