// SPDX-License-Identifier: GPL-2.0-or-later
// The Python face of the native core. Calls that may wait release the interpreter lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "base/turnstile.hpp"
#include "bus/bus_master.hpp"
#include "bus/device_meter.hpp"
#include "bus/doorbell.hpp"
#include "bus/native_device.hpp"
#include "python/architectures.hpp"
#include "python/module.hpp"
#include "tcg/wraps.h"
#include "probe/storm.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace coremesh {
namespace {

using RegisterDict = nb::typed<nb::dict, nb::str, nb::any>;

/// A device node in this process. The node's methods never raise (hw/node.py); if one does, the access reads
/// as all ones and the traceback goes to sys.unraisablehook.
class PythonNode final : public DeviceBackend {
  public:
    PythonNode(const nb::object& node, const cm_engine_functions& engine)
        : engine_(engine),
          access_(node.attr("access")),
          eoi_(node.attr("eoi")),
          acknowledge_(node.attr("acknowledge")) {}

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

    void thread_begins() noexcept override {
        Interpreter::guest_floats = &engine_;
        Interpreter::thread_begins();
    }
    void thread_ends() noexcept override {
        Interpreter::thread_ends();
        Interpreter::guest_floats = nullptr;
    }

  private:
    template <typename... Args>
    uint64_t call(uint64_t otherwise, const nb::object& method, Args... args) noexcept {
        const Turnstile::Inside inside(turnstile_);
        const Interpreter interpreter;
        try {
            nb::object answer = method(args...);
            return answer.is_none() ? 0 : nb::cast<uint64_t>(answer);
        } catch (nb::python_error& error) {
            error.discard_as_unraisable("coremesh device node");
        } catch (const std::exception&) {
        }
        return otherwise;
    }

    const cm_engine_functions& engine_;
    Turnstile turnstile_;  // before the interpreter's lock
    nb::object access_, eoi_, acknowledge_;
};

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
    bool call(HostId to, std::span<const uint8_t> call, std::vector<uint8_t>& answer) noexcept override {
        return host_.mesh() && host_.mesh()->calls().call(to, call, answer);
    }
    void serve_calls(Serve serve) override {
        if (!host_.mesh()) return;
        host_.mesh()->calls().serve([&host = host_, serve = std::move(serve)](std::span<const uint8_t> call,
                                                                              std::vector<uint8_t>& answer) {
            HostBusMaster here(host);
            return serve(here, host.mesh()->local_doorbells(), call, answer);
        });
    }
    void message(uint64_t address, uint32_t data) noexcept override {
        host_.platform().message(address, data);
    }

  private:
    Host& host_;
};

// ---- registers as dictionaries: a number, or a tuple of numbers

AnyDict registers_of(const GuestCore& core) {
    std::vector<uint64_t> words(register_words(core));
    core.registers(words.data());
    const uint64_t* word = words.data();
    nb::dict out;
    for (size_t i = 0; const cm_state_entry* entry = core.register_entry(i); ++i) {
        if (!entry->count) {
            out[entry->name] = *word++;
            continue;
        }
        nb::list parts;
        for (unsigned n = 0; n < entry->count; ++n) parts.append(*word++);
        out[entry->name] = nb::tuple(parts);
    }
    return out;
}

std::vector<uint64_t> words_with(GuestCore& core, const nb::dict& in) {
    std::vector<uint64_t> words(register_words(core));
    core.registers(words.data());
    for (auto [key, value] : in) {
        const std::string name = nb::cast<std::string>(key);
        uint64_t* word = words.data();
        const cm_state_entry* entry;
        for (size_t i = 0; (entry = core.register_entry(i)) && name != entry->name; ++i) {
            word += cm_state_words(entry);
        }
        if (!entry) throw nb::key_error(("no register is called " + name).c_str());
        if (!entry->count) {
            *word = nb::cast<uint64_t>(value);
            continue;
        }
        const auto parts = nb::cast<std::vector<uint64_t>>(value);
        if (parts.size() != entry->count) {
            throw nb::value_error((name + " has " + std::to_string(entry->count) + " parts").c_str());
        }
        std::copy(parts.begin(), parts.end(), word);
    }
    return words;
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
    std::string engine = "ok";
    for (const Architecture* architecture : architectures()) {
        if (const char* difference = architecture->engine.selfcheck()) {
            engine = std::string("layout differs: ") + difference + " (" + architecture->name + ")";
        }
    }
    out["engine"] = engine;
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
    nb::dict out;
    for (const Architecture* architecture : architectures()) {
        size_t count;
        const cm_wrap_hit* hits = architecture->engine.wrap_hits(&count);
        for (size_t i = 0; i < count; ++i) {
            const bool before = out.contains(hits[i].name) && nb::cast<bool>(out[hits[i].name]);
            out[hits[i].name] = before || hits[i].hit;
        }
    }
    return out;
}

}  // namespace

NB_MODULE(_native, m) {
    // A machine that is alive when the interpreter ends is stopped by core/engine.py, not by a destructor.
    nb::set_leak_warnings(false);
    m.doc() = "The native core: vCPU engines, guest RAM, interrupts.";
    nb::exception<PlatformError>(m, "NativePlatformError", PyExc_OSError);
    nb::exception<RamSizeError>(m, "RamSizeError", PyExc_ValueError);
    nb::exception<StateError>(m, "StateError", PyExc_RuntimeError);
    using release = nb::call_guard<Unlocked>;

    nb::class_<Platform>(m, "Platform",
                         "The guest's architecture for one host; each has a function that makes it.");
    for (const Architecture* architecture : architectures()) architecture->bind_platform(m);
    bind_link(m);
    bind_mesh_options(m);
    bind_devices(m);
    nb::class_<DeviceMeter>(m, "DeviceMeter", "Counts the accesses of devices; see bus/device_meter.hpp.")
        .def(nb::init<>())
        .def(
            "place",
            [](DeviceMeter& meter, const std::vector<std::tuple<int, uint64_t, uint64_t, unsigned>>& places) {
                std::vector<DeviceMeter::Place> list;
                for (const auto& [space, first, last, device] : places) {
                    list.push_back({static_cast<Space>(space), first, last, device});
                }
                meter.place(std::move(list));
            },
            "places"_a, "Where devices answer from now on: (space, first, last, number) each.")
        .def(
            "uses",
            [](const DeviceMeter& meter) {
                std::vector<std::tuple<unsigned, unsigned, uint64_t, uint64_t, uint64_t>> found;
                for (const auto& use : meter.uses()) {
                    found.emplace_back(use.device, use.vcpu, use.accesses, use.bytes, use.ns);
                }
                return found;
            },
            "(device, vCPU, accesses, bytes, ns) of each pair; vCPU 255 is any other thread.")
        .def(
            "depths",
            [](const DeviceMeter& meter) {
                std::vector<std::tuple<unsigned, unsigned, unsigned>> found;
                for (const auto& depth : meter.depths()) {
                    found.emplace_back(depth.device, depth.inside, depth.most);
                }
                return found;
            },
            "(device, accesses under way, the most at once) of each device.");
    nb::class_<Host> host_class(m, "NativeHost", "The vCPUs and RAM of one host; see coremesh.core.engine.");
    host_class
        .def(
            "__init__",
            [](Host* self, const std::vector<std::tuple<uint64_t, uint64_t, uint64_t, bool>>& memory,
               const Platform& platform, uint64_t tsc_hz, const std::string& protection,
               std::optional<Mesh::Options> mesh, uint32_t code_buffer_bytes,
               const std::vector<std::tuple<uint64_t, uint64_t, uint64_t>>& shadows, bool restarts,
               unsigned neighbours, unsigned cores) {
                const auto kind = protection_from_name(protection);
                if (!kind)
                    throw nb::value_error("protection is auto, userfaultfd, userfaultfd-copy or mprotect");
                std::vector<RamRegion> regions;
                for (const auto& [gpa, bytes, offset, rom] : memory) {
                    regions.push_back({gpa, bytes, offset, rom});
                }
                std::vector<RamShadow> shadowed;
                for (const auto& [gpa, bytes, offset] : shadows) shadowed.push_back({gpa, bytes, offset});
                Host::Options options{.ram = RamLayout(std::move(regions), std::move(shadowed)),
                                      .vcpus = platform.cores,
                                      .make_platform = platform.make,
                                      .tsc_hz = tsc_hz,
                                      .protection = *kind,
                                      .mesh = std::move(mesh),
                                      .code_buffer_bytes = code_buffer_bytes,
                                      .restarts = restarts,
                                      .neighbours = neighbours,
                                      .cores = cores};
                Unlocked unlocked;
                new (self) Host(std::move(options));
            },
            nb::kw_only(), "memory"_a, "platform"_a, "tsc_hz"_a, "protection"_a, "mesh"_a.none(),
            "code_buffer_bytes"_a, "shadows"_a, "restarts"_a, "neighbours"_a, "cores"_a)
        .def(
            "connect",
            [](Host& host, nb::object node, std::shared_ptr<Doorbells> doorbells,
               std::shared_ptr<DeviceMeter> meter, std::shared_ptr<NativePorts> ports) {
                std::shared_ptr<DeviceBackend> backend =
                    std::make_shared<PythonNode>(std::move(node), host.platform().engine_functions());
                if (doorbells) {
                    backend = std::make_shared<DoorbellNode>(std::move(backend), std::move(doorbells));
                }
                if (ports) {
                    backend = std::make_shared<NativePortNode>(std::move(backend), std::move(ports));
                }
                if (meter) backend = std::make_shared<MeteredNode>(std::move(backend), std::move(meter));
                host.connect(std::move(backend));
            },
            "node"_a, "doorbells"_a.none() = nb::none(), "meter"_a.none() = nb::none(),
            "ports"_a.none() = nb::none())
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
            [](Host& host, uint64_t gpa, const nb::bytes& data) {
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
                host.set_registers(vcpu, words_with(host.core(vcpu), state));
            },
            "vcpu"_a, "state"_a)
        .def(
            "registers",
            [](Host& host, size_t vcpu) {
                host.require_at_rest();
                return registers_of(host.core(vcpu));
            },
            "vcpu"_a)
        .def("steer", &Host::steer, "steering"_a, release())
        .def_prop_ro("steering", [](Host& host) { return host.ram().layout().steering(); })
        .def("begin_restart", &Host::begin_restart, release())
        .def("reset_vcpus", &Host::reset_vcpus, release())
        .def("end_restart", &Host::end_restart, release())
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
            "msi",
            [](Host& host, uint64_t address, uint32_t data) { host.platform().message(address, data); },
            "address"_a, "data"_a)
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
    for (const Architecture* architecture : architectures()) architecture->bind_host(host_class);

    m.def("step_out", &Turnstile::step_out,
          "A device's code is about to wait on a vCPU's thread: others may call devices meanwhile.");
    m.def("doctor", &doctor, "What this host offers the engine, found by trying.");
    m.def(
        "host_tsc_hz", [] { return Clock().hz(); }, "Rate of the guest's TSC when none is asked for, in Hz.");
    m.def(
        "calls_under_way", [] { return Unlocked::inside.load(std::memory_order_relaxed); },
        "Threads that are in a call of this module that may last, without the interpreter's lock.");
    m.def("wrap_hits", &wrap_hits, "For each replaced function of the engine: whether it has run.");
}

}  // namespace coremesh
