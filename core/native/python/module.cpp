// SPDX-License-Identifier: GPL-2.0-or-later
// The Python face of the native core. Calls that may wait release the interpreter lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bus/bus_master.hpp"
#include "bus/doorbell.hpp"
#include "python/module.hpp"
#include "tcg/wraps.h"
#include "tcg/x86/coverage.h"
#include "probe/storm.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace coremesh {
namespace {

using RegisterDict = nb::typed<nb::dict, nb::str, nb::any>;
using CpuidTable =
    nb::typed<nb::dict, nb::typed<nb::tuple, int, int>, nb::typed<nb::tuple, int, int, int, int>>;

/// The host's floating-point flags belong to the guest while a vCPU thread runs; Python's are its own.
class FloatGuard {
  public:
    FloatGuard() : saved_(x86::kEngine.leave_floats()) {}
    ~FloatGuard() { x86::kEngine.return_floats(saved_); }

  private:
    uint32_t saved_;
};

/// A device node in this process. The node's methods never raise (hw/node.py); if one does, the access reads
/// as all ones and the traceback goes to sys.unraisablehook.
class PythonNode final : public DeviceBackend {
  public:
    explicit PythonNode(nb::object node)
        : access_(node.attr("access")), eoi_(node.attr("eoi")), acknowledge_(node.attr("acknowledge")) {}

    ~PythonNode() override {
        nb::gil_scoped_acquire gil;
        access_.reset();
        eoi_.reset();
        acknowledge_.reset();
    }

    uint64_t read(Space space, uint64_t address, unsigned size) noexcept override {
        return call(all_ones(size), access_, static_cast<int>(space), address, size, false, 0) &
               all_ones(size);
    }
    void write(Space space, uint64_t address, unsigned size, uint64_t value) noexcept override {
        call(0, access_, static_cast<int>(space), address, size, true, value & all_ones(size));
    }
    void end_of_interrupt(uint8_t vector) noexcept override { call(0, eoi_, vector); }
    int acknowledge() noexcept override { return static_cast<int>(call(~uint64_t{0}, acknowledge_)); }

    // A thread state kept for the thread's life: making one anew at each access costs more than the access.
    void thread_begins() noexcept override {
        PyGILState_Ensure();
        saved_ = PyEval_SaveThread();
    }
    void thread_ends() noexcept override {
        PyEval_RestoreThread(saved_);
        PyGILState_Release(PyGILState_UNLOCKED);
    }

  private:
    template <typename... Args>
    static uint64_t call(uint64_t otherwise, const nb::object& method, Args... args) noexcept {
        FloatGuard guard;
        nb::gil_scoped_acquire gil;
        try {
            nb::object answer = method(args...);
            return answer.is_none() ? 0 : nb::cast<uint64_t>(answer);
        } catch (nb::python_error& error) {
            error.discard_as_unraisable("coremesh device node");
        } catch (const std::exception&) {
        }
        return otherwise;
    }

    nb::object access_, eoi_, acknowledge_;
    static thread_local PyThreadState* saved_;
};

thread_local PyThreadState* PythonNode::saved_ = nullptr;

/// Guest RAM and interrupt fabric of a host, for devices in its process. The Python object keeps the host.
class HostBusMaster final : public BusMaster {
  public:
    explicit HostBusMaster(Host& host) : host_(host) {}
    bool read(uint64_t gpa, void* to, uint64_t length) noexcept override {
        return host_.read_ram(gpa, to, length);
    }
    bool write(uint64_t gpa, const void* from, uint64_t length) noexcept override {
        return host_.write_ram(gpa, from, length);
    }
    uint8_t* direct(uint64_t gpa, uint64_t length, bool to_write) noexcept override {
        if (host_.mesh() || length == 0 || !host_.ram().offset_of(gpa, length)) return nullptr;
        // An engine may translate from the page at any time: what it has now goes before the bytes change,
        // and what it gets while they do goes after (`wrote`).
        if (to_write) host_.ram().code_written_by_host(gpa, length);
        return host_.ram().protocol_view(gpa);
    }
    void wrote(uint64_t gpa, uint64_t length) noexcept override {
        host_.ram().code_written_by_host(gpa, length);
    }
    void message(uint64_t address, uint32_t data) noexcept override { host_.fabric().msi(address, data); }

  private:
    Host& host_;
};

// ---- registers as dictionaries

constexpr const char* kGprNames[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                       "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

struct NamedWord {
    const char* name;
    uint64_t cm_registers::*field;
};
constexpr NamedWord kWords[] = {{"rip", &cm_registers::rip},  {"rflags", &cm_registers::rflags},
                                {"cr0", &cm_registers::cr0},  {"cr2", &cm_registers::cr2},
                                {"cr3", &cm_registers::cr3},  {"cr4", &cm_registers::cr4},
                                {"efer", &cm_registers::efer}};
struct NamedSegment {
    const char* name;
    cm_segment cm_registers::*field;
};
constexpr NamedSegment kSegments[] = {{"cs", &cm_registers::cs},     {"ds", &cm_registers::ds},
                                      {"es", &cm_registers::es},     {"fs", &cm_registers::fs},
                                      {"gs", &cm_registers::gs},     {"ss", &cm_registers::ss},
                                      {"ldtr", &cm_registers::ldtr}, {"tr", &cm_registers::tr}};

AnyDict to_dict(const cm_registers& registers) {
    nb::dict out;
    for (int i = 0; i < 16; ++i) out[kGprNames[i]] = registers.gpr[i];
    for (const auto& word : kWords) out[word.name] = registers.*word.field;
    for (const auto& segment : kSegments) {
        const cm_segment& s = registers.*segment.field;
        out[segment.name] = nb::make_tuple(s.selector, s.base, s.limit, s.access);
    }
    out["gdtr"] = nb::make_tuple(registers.gdt_base, registers.gdt_limit);
    out["idtr"] = nb::make_tuple(registers.idt_base, registers.idt_limit);
    return out;
}

void from_dict(const nb::dict& in, cm_registers& registers) {
    for (auto [key, value] : in) {
        const std::string name = nb::cast<std::string>(key);
        bool known = false;
        for (int i = 0; i < 16; ++i) {
            if (name == kGprNames[i]) registers.gpr[i] = nb::cast<uint64_t>(value), known = true;
        }
        for (const auto& word : kWords) {
            if (name == word.name) registers.*word.field = nb::cast<uint64_t>(value), known = true;
        }
        for (const auto& segment : kSegments) {
            if (name != segment.name) continue;
            const auto [selector, base, limit, access] =
                nb::cast<std::tuple<uint32_t, uint64_t, uint32_t, uint32_t>>(value);
            registers.*segment.field = {selector, access, base, limit};
            known = true;
        }
        if (name == "gdtr" || name == "idtr") {
            const auto [base, limit] = nb::cast<std::tuple<uint64_t, uint32_t>>(value);
            (name == "gdtr" ? registers.gdt_base : registers.idt_base) = base;
            (name == "gdtr" ? registers.gdt_limit : registers.idt_limit) = limit;
            known = true;
        }
        if (!known) throw nb::key_error(("no register is called " + name).c_str());
    }
}

x86::CpuDescription cpu_from(const nb::dict& table, const std::vector<uint32_t>& indexed,
                             const std::tuple<uint32_t, uint32_t, uint32_t>& highest, const nb::dict& msrs) {
    x86::CpuDescription cpu;
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

AnyDict doctor() {
    const ProtectionProbe probe = probe_protection();
    nb::dict out;
    out["userfaultfd"] = probe.userfaultfd;
    out["userfaultfd_detail"] = probe.userfaultfd_detail;
    out["mprotect"] = probe.mprotect;
    out["mprotect_detail"] = probe.mprotect_detail;
    out["protection"] = std::string(name_of(probe.chosen));
    const auto shared = [&](const char* key, const ProtectionProbe::Way& way) {
        out[key] = way.works;
        out[(std::string(key) + "_detail").c_str()] = way.detail;
    };
    shared("shared_userfaultfd", probe.shared_userfaultfd);
    shared("shared_userfaultfd_copy", probe.shared_userfaultfd_copy);
    shared("shared_mprotect", probe.shared_mprotect);
    out["shared_protection"] = std::string(name_of(probe.chosen_shared));
    out["max_map_count"] = probe.max_map_count;
    const char* difference = x86::kEngine.selfcheck();
    out["engine"] = difference ? std::string("layout differs: ") + difference : std::string("ok");
    const Clock clock;
    out["tsc_hz"] = clock.hz();
    out["clock"] = clock.from_host_tsc() ? "host TSC" : "CLOCK_MONOTONIC";
#ifdef COREMESH_HOST_SSE
    out["host_sse"] = true;
#else
    out["host_sse"] = false;
#endif
    return out;
}

AnyDict storm_on(Host& host, unsigned vcpu, uint64_t address, std::vector<uint32_t> kinds, uint64_t counters,
                 uint64_t messages, double seconds, double patience, unsigned kicks, unsigned longest_gap,
                 uint64_t seed) {
    const Storm storm{.vcpu = vcpu,
                      .address = address,
                      .kinds = std::move(kinds),
                      .counters = counters,
                      .messages = messages,
                      .seconds = seconds,
                      .patience = patience,
                      .kicks = kicks,
                      .longest_gap = longest_gap,
                      .seed = seed};
    StormOutcome outcome;
    {
        Unlocked unlocked;
        outcome = run_storm(host, storm);
    }
    nb::dict out;
    out["messages"] = outcome.messages;
    out["kicks"] = outcome.kicks;
    out["longest_ns"] = outcome.longest_ns;
    out["lost"] = outcome.lost;
    out["surplus"] = outcome.surplus;
    return out;
}

AnyDict wrap_hits() {
    size_t count;
    const cm_wrap_hit* hits = x86::kEngine.wrap_hits(&count);
    nb::dict out;
    for (size_t i = 0; i < count; ++i) {
        const bool before = out.contains(hits[i].name) && nb::cast<bool>(out[hits[i].name]);
        out[hits[i].name] = before || hits[i].hit;
    }
    return out;
}

std::vector<uint16_t> instructions_seen() {
    std::vector<uint16_t> numbers(CM_INSTRUCTION_NUMBERS);
    numbers.resize(x86::kX86.instructions_seen(numbers.data()));
    return numbers;
}

}  // namespace

NB_MODULE(_native, m) {
    // A machine that is alive when the interpreter ends is stopped by core/engine.py, not by a destructor.
    nb::set_leak_warnings(false);
    m.doc() = "The native core: vCPU engines, guest RAM, local APICs.";
    nb::exception<PlatformError>(m, "NativePlatformError", PyExc_OSError);
    nb::exception<RamSizeError>(m, "RamSizeError", PyExc_ValueError);
    nb::exception<StateError>(m, "StateError", PyExc_RuntimeError);
    using release = nb::call_guard<Unlocked>;

    nb::class_<x86::CpuDescription>(m, "CpuDescription",
                                    "What one core answers to CPUID, and MSRs kept by value.")
        .def(
            "__init__",
            [](x86::CpuDescription* self, const CpuidTable& table, const std::vector<uint32_t>& indexed,
               const std::tuple<uint32_t, uint32_t, uint32_t>& highest,
               const nb::typed<nb::dict, int, int>& msrs) {
                new (self) x86::CpuDescription(cpu_from(table, indexed, highest, msrs));
            },
            "cpuid"_a, "indexed_leaves"_a, "highest"_a, "msrs"_a);

    bind_link(m);
    bind_mesh_options(m);
    bind_devices(m);
    nb::class_<Host> host_class(m, "NativeHost",
                                "The vCPUs, local APICs and RAM of one host; see coremesh.core.engine.");
    host_class
        .def(
            "__init__",
            [](Host* self, const std::vector<std::tuple<uint64_t, uint64_t, uint64_t, bool>>& memory,
               std::vector<uint32_t> apic_ids, std::optional<uint32_t> bootstrap, uint32_t total_vcpus,
               uint64_t tsc_hz, uint32_t timer_hz, const std::string& protection,
               std::vector<x86::CpuDescription> cpus, std::optional<Mesh::Options> mesh,
               uint32_t code_buffer_bytes) {
                const auto kind = protection_from_name(protection);
                if (!kind)
                    throw nb::value_error("protection is auto, userfaultfd, userfaultfd-copy or mprotect");
                std::vector<RamRegion> regions;
                for (const auto& [gpa, bytes, offset, rom] : memory) {
                    regions.push_back({gpa, bytes, offset, rom});
                }
                Host::Options options{.ram = RamLayout(std::move(regions)),
                                      .apic_ids = std::move(apic_ids),
                                      .bootstrap = bootstrap,
                                      .total_vcpus = total_vcpus,
                                      .tsc_hz = tsc_hz,
                                      .timer_hz = timer_hz,
                                      .protection = *kind,
                                      .cpus = std::move(cpus),
                                      .mesh = std::move(mesh),
                                      .code_buffer_bytes = code_buffer_bytes};
                Unlocked unlocked;
                new (self) Host(std::move(options));
            },
            nb::kw_only(), "memory"_a, "apic_ids"_a, "bootstrap"_a.none(), "total_vcpus"_a, "tsc_hz"_a,
            "timer_hz"_a, "protection"_a, "cpus"_a, "mesh"_a.none(), "code_buffer_bytes"_a)
        .def(
            "connect",
            [](Host& host, nb::object node, std::shared_ptr<Doorbells> doorbells) {
                std::shared_ptr<DeviceBackend> backend = std::make_shared<PythonNode>(std::move(node));
                if (doorbells) {
                    backend = std::make_shared<DoorbellNode>(std::move(backend), std::move(doorbells));
                }
                host.connect(std::move(backend));
            },
            "node"_a, "doorbells"_a.none() = nb::none())
        .def(
            "bus_master",
            [](Host& host) -> std::shared_ptr<BusMaster> { return std::make_shared<HostBusMaster>(host); },
            nb::keep_alive<0, 1>())
        .def(
            "claim",
            [](Host& host, int space, uint64_t first, uint64_t last) {
                host.bus().claim(static_cast<Space>(space), first, last);
            },
            "space"_a, "first"_a, "last"_a)
        .def(
            "ram_read",
            [](Host& host, uint64_t gpa, uint64_t length) {
                if (!length) return nb::bytes("", 0);
                if (!host.ram().offset_of(gpa, length)) throw nb::index_error("not a range of guest RAM");
                std::string buffer(length, '\0');
                {
                    Unlocked unlocked;
                    host.read_ram(gpa, buffer.data(), length);
                }
                return nb::bytes(buffer.data(), buffer.size());
            },
            "gpa"_a, "length"_a)
        .def(
            "ram_write",
            [](Host& host, uint64_t gpa, nb::bytes data) {
                if (!data.size()) return;
                if (!host.ram().writable_offset_of(gpa, data.size()))
                    throw nb::index_error("not a range of guest RAM");
                Unlocked unlocked;
                host.write_ram(gpa, data.data(), data.size());
            },
            "gpa"_a, "data"_a)
        .def(
            "set_registers",
            [](Host& host, size_t vcpu, const RegisterDict& state) {
                host.require_at_rest();
                cm_registers registers;
                host.core(vcpu).registers(registers);
                from_dict(state, registers);
                host.core(vcpu).set_registers(registers);
            },
            "vcpu"_a, "state"_a)
        .def(
            "registers",
            [](Host& host, size_t vcpu) {
                host.require_at_rest();
                cm_registers registers;
                host.core(vcpu).registers(registers);
                return to_dict(registers);
            },
            "vcpu"_a)
        .def("start", &Host::start, release())
        .def("pause", &Host::pause, release())
        .def("resume", &Host::resume, release())
        .def("stop", &Host::stop, release())
        .def(
            "wait",
            [](Host& host, double timeout) -> nb::object {
                std::optional<Ending> ending;
                {
                    Unlocked unlocked;
                    ending = host.wait(std::chrono::duration<double>(timeout));
                }
                if (!ending) return nb::none();
                nb::dict out;
                out["kind"] = ending->kind;
                out["vcpu"] = ending->vcpu;
                out["detail"] = ending->detail;
                out["host"] = ending->host;
                out["vcpus"] = to_list(ending->vcpus);
                return out;
            },
            "timeout"_a)
        .def(
            "msi", [](Host& host, uint64_t address, uint32_t data) { host.fabric().msi(address, data); },
            "address"_a, "data"_a)
        .def(
            "extint", [](Host& host, bool level) { host.fabric().extint(level); }, "level"_a)
        .def("nmi", [](Host& host) { host.fabric().nmi_line(); })
        .def(
            "kick", [](Host& host, size_t vcpu) { host.vcpu(vcpu).kick(); }, "vcpu"_a)
        .def("storm", &storm_on, nb::kw_only(), "vcpu"_a, "address"_a, "kinds"_a, "counters"_a, "messages"_a,
             "seconds"_a, "patience"_a, "kicks"_a, "longest_gap"_a, "seed"_a,
             "Interrupt messages and kicks at random moments, each message waited for; see probe/storm.hpp.")
        .def_prop_ro("tsc_hz", &Host::tsc_hz)
        .def_prop_ro("protection", [](const Host& host) { return std::string(name_of(host.protection())); })
        .def_prop_ro("vcpus", &Host::vcpus);
    bind_mesh(host_class);
    bind_state(host_class);
    bind_counters(m, host_class);
    bind_post_mortem(host_class);

    m.def("doctor", &doctor, "What this host offers the engine, found by trying.");
    m.def(
        "host_tsc_hz", [] { return Clock().hz(); }, "Rate of the guest's TSC when none is asked for, in Hz.");
    m.def(
        "calls_under_way", [] { return Unlocked::inside.load(std::memory_order_relaxed); },
        "Threads that are in a call of this module that may last, without the interpreter's lock.");
    m.def("note_instructions", x86::kX86.note_instructions, nb::arg("on"),
          "Whether the kinds of instructions that are translated from now on are noted; for tests.");
    m.def("instructions_seen", &instructions_seen,
          "Numbers of the kinds noted so far, #UD left out: tcg/x86/coverage.h says how they are made.");
    m.def("wrap_hits", &wrap_hits, "For each replaced function of the engine: whether it has run.");
}

}  // namespace coremesh
