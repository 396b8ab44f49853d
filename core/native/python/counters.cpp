// SPDX-License-Identifier: GPL-2.0-or-later
// What a host counts, as dictionaries; and the table of all names, units and meanings. A counter is declared
// where it is counted (base/counters.hpp); what is no counter, but a person wants beside them, is declared
// here.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "python/module.hpp"

namespace nb = nanobind;

namespace coremesh {

// The engine's, which C declares.
template <typename Visit>
static void each_counter(const cm_engine_counters& counters, Visit&& visit) {
    CM_ENGINE_COUNTERS(COREMESH_COUNTER_VISIT)
}

namespace {

constexpr CounterFacts kApicId{"apic_id", "", "the core's number among the machine's"};
constexpr CounterFacts kState{"state", "",
                              "running, halted, off (on x86 wait-for-sipi), parked (paused) or stopped"};
constexpr CounterFacts kCodeBytes{"code_bytes", "bytes", "of translated code now in the buffer"};
constexpr CounterFacts kIpisSent{"ipis_sent", "messages", "interrupt messages sent by the core"};
constexpr std::array kVcpuFacts{kApicId, kState, kCodeBytes, kIpisSent};

constexpr CounterFacts kAtomicsLocal{"atomics_local", "operations",
                                     "locked operations executed on this host"};
constexpr CounterFacts kClockError{"clock_error_ns", "ns",
                                   "how far the guest's clock was from host 0's, last"};
constexpr CounterFacts kClockWorst{"clock_worst_error_ns", "ns", "the most that it ever was"};
constexpr CounterFacts kClockUncertainty{"clock_uncertainty_ns", "ns",
                                         "half of the best exchange's round trip"};
constexpr CounterFacts kClockDrift{"clock_drift_ppb", "ppb", "by which the two computers' crystals differ"};
constexpr CounterFacts kClockJumps{"clock_jumps", "times", "a message of a later time set the clock forward"};
constexpr CounterFacts kProtocolThread{"protocol_thread", "",
                                       "how it gets before vCPUs: fifo, nice, slice or none"};
constexpr CounterFacts kSilence{"silence_longest_ns", "ns",
                                "the longest that another host's heartbeats stayed out"};
constexpr CounterFacts kBeatLate{"heartbeat_late_longest_ns", "ns",
                                 "the latest that a heartbeat of this host was sent after it was due"};
constexpr std::array kMeshFacts{kAtomicsLocal, kClockError, kClockWorst, kClockUncertainty, kClockDrift,
                                kClockJumps,   kSilence,    kBeatLate,   kProtocolThread};

constexpr CounterFacts kPeer{"peer", "", "the host at the other end"};
constexpr CounterFacts kRefused{"refused", "frames", "that the link did not hand on, whatever the reason"};
constexpr std::array kLinkFacts{kPeer, kRefused};

template <typename Value>
void put(nb::dict& out, const CounterFacts& facts, const Value& value) {
    out[facts.name] = value;
}

template <typename Counters>
void put_all(nb::dict& out, const Counters& counters) {
    each_counter(counters, [&](const CounterFacts& facts, uint64_t value) { put(out, facts, value); });
}

nb::typed<nb::list, AnyDict> stats(Host& host) {
    nb::list out;
    for (size_t index = 0; index < host.vcpus(); ++index) {
        Vcpu& vcpu = host.vcpu(index);
        nb::dict row;
        put(row, kApicId, host.core(index).id());
        put(row, kState, host.paused() ? "parked" : vcpu.state_name());
        put_all(row, vcpu.engine_counters());
        put_all(row, vcpu.counters());
        put(row, kCodeBytes, vcpu.code_bytes());
        put(row, kIpisSent, host.core(index).messages_sent());
        out.append(row);
    }
    return out;
}

AnyDict code_counters(Host& host) {
    nb::dict out;
    put_all(out, host.ram().page_table()->counters());
    return out;
}

uint64_t all_atomics(const cm_engine_counters& e) {
    return e.atomics_1 + e.atomics_2 + e.atomics_4 + e.atomics_8 + e.atomics_16;
}

AnyDict mesh_stats(Host& host) {
    nb::dict out;
    Mesh* mesh = host.mesh();
    if (!mesh) return out;
    const coherence::Counters protocol = mesh->memory().protocol_counters();
    put_all(out, protocol);
    put_all(out, mesh->memory().counters());
    uint64_t local = 0;
    for (size_t i = 0; i < host.vcpus(); ++i) local += all_atomics(host.vcpu(i).engine_counters());
    put(out, kAtomicsLocal, local > protocol.atomics_remote ? local - protocol.atomics_remote : 0);
    put_all(out, host.platform().counters());
    if (const auto& node = mesh->remote_node()) put_all(out, node->counters());
    if (mesh->node_server()) put_all(out, mesh->node_server()->counters());

    const auto clock = mesh->follower().facts();
    put(out, kClockError, clock.error_ns);
    put(out, kClockWorst, clock.worst_error_ns);
    put(out, kClockUncertainty, clock.uncertainty_ns);
    put(out, kClockDrift, clock.drift_ppb);
    put(out, kClockJumps, clock.changes.jumps);

    put(out, kSilence, mesh->silence_longest_ns());
    put(out, kBeatLate, mesh->beat_late_longest_ns());

    nb::list links;
    for (unsigned peer = 0; mesh->link() && peer < mesh->hosts(); ++peer) {
        if (peer == mesh->self()) continue;
        const link::LinkCounters counters = mesh->link()->counters(static_cast<HostId>(peer));
        nb::dict row;
        put(row, kPeer, peer);
        put_all(row, counters);
        uint64_t refused = 0;
        for (const uint64_t count : counters.refused) refused += count;
        put(row, kRefused, refused);
        links.append(row);
    }
    out["links"] = links;
    put(out, kProtocolThread, mesh->link() ? mesh->link()->facts().priority : "none");
    return out;
}

using Table = std::vector<std::tuple<std::string, std::string, std::string, std::string>>;

template <typename Facts>
void describe(Table& table, const char* group, const Facts& facts) {
    for (const CounterFacts& one : facts) table.emplace_back(group, one.name, one.unit, one.text);
}

template <typename Counters>
void describe_counters(Table& table, const char* group, const Counters& counters) {
    each_counter(counters, [&](const CounterFacts& facts, uint64_t) {
        table.emplace_back(group, facts.name, facts.unit, facts.text);
    });
}

Table counter_table() {
    Table table;
    describe(table, "stats", kVcpuFacts);
    describe_counters(table, "stats", VcpuCounters{});
    describe_counters(table, "stats", cm_engine_counters{});
    describe_counters(table, "code_counters", PageCounters{});
    describe_counters(table, "mesh_stats", coherence::Counters{});
    describe_counters(table, "mesh_stats", MemoryCounters{});
    describe_counters(table, "mesh_stats", InterruptCounters{});
    describe_counters(table, "mesh_stats", RemoteNodeCounters{});
    describe_counters(table, "mesh_stats", NodeServerCounters{});
    describe(table, "mesh_stats", kMeshFacts);
    describe(table, "links", kLinkFacts);
    describe_counters(table, "links", link::LinkCounters{});
    return table;
}

}  // namespace

void bind_counters(nb::module_& m, nb::class_<Host>& host) {
    host.def("stats", &stats, "One dictionary a vCPU; counter_table() says what the numbers mean.")
        .def("code_counters", &code_counters, "What the page table has counted; see counter_table().")
        .def("mesh_stats", &mesh_stats,
             "What this host counts of the machine's other hosts; see counter_table().");
    m.def("counter_table", &counter_table,
          "Every number that a host gives: (where it is found, name, unit, what it counts).");
}

}  // namespace coremesh
