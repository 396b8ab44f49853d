// SPDX-License-Identifier: GPL-2.0-or-later
// The Python face of a machine of several hosts, and of the memory-transaction service.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <optional>

#include "python/module.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace coremesh {
namespace {

using Kind = coherence::Operation::Kind;

struct NamedKind {
    const char* name;
    Kind kind;
};
constexpr std::array<NamedKind, 12> kKinds = {{{"load", Kind::kLoad},
                                               {"store", Kind::kStore},
                                               {"compare_swap", Kind::kCompareSwap},
                                               {"exchange", Kind::kExchange},
                                               {"add", Kind::kAdd},
                                               {"and", Kind::kAnd},
                                               {"or", Kind::kOr},
                                               {"xor", Kind::kXor},
                                               {"min_signed", Kind::kMinSigned},
                                               {"max_signed", Kind::kMaxSigned},
                                               {"min", Kind::kMinUnsigned},
                                               {"max", Kind::kMaxUnsigned}}};

Kind kind_named(const std::string& name) {
    std::string names;
    for (const NamedKind& each : kKinds) {
        if (name == each.name) return each.kind;
        names += names.empty() ? each.name : std::string(", ") + each.name;
    }
    throw nb::value_error(("the operation '" + name + "': give one of " + names).c_str());
}

coherence::Policy policy_named(const std::string& name) {
    if (name == "never") return coherence::Policy::kNever;
    if (name == "always") return coherence::Policy::kAlways;
    if (name == "adaptive") return coherence::Policy::kAdaptive;
    throw nb::value_error("policy is never, always or adaptive");
}

using RangeTuple = std::tuple<uint64_t, uint64_t, HostId>;

Mesh::Options options_from(HostId host, unsigned hosts, const std::vector<RangeTuple>& homes,
                           const std::vector<std::tuple<uint32_t, HostId>>& vcpu_hosts,
                           const std::string& policy, uint32_t hold_us, unsigned prefetch) {
    Mesh::Options options;
    options.self = host;
    options.hosts = hosts;
    for (const auto& [first, end, owner] : homes) options.homes.push_back({first, end, owner});
    for (const auto& [apic_id, owner] : vcpu_hosts) options.vcpu_hosts.emplace_back(apic_id, owner);
    options.policy = policy_named(policy);
    options.hold_us = hold_us;
    options.prefetch = prefetch;
    return options;
}

/// Two halves, because Python's integers know no limit and C++'s binding knows 64 bits.
uint64_t transact(Host& host, const std::string& operation, uint64_t gpa, unsigned size,
                  std::array<uint64_t, 4> words, uint64_t& high) {
    coherence::Operation wanted;
    wanted.kind = kind_named(operation);
    wanted.size = static_cast<uint8_t>(size <= 16 ? size : 0);
    wanted.operand = coherence::Wide{words[1]} << 64 | words[0];
    wanted.expected = coherence::Wide{words[3]} << 64 | words[2];
    std::optional<coherence::Wide> old;
    {
        Unlocked unlocked;
        old = host.transact_at(gpa, wanted);
    }
    if (!old) {
        throw nb::index_error(
            "no transaction: 1, 2, 4, 8 or 16 bytes (those aligned) of RAM within one page, while the "
            "machine "
            "is not being stopped");
    }
    high = static_cast<uint64_t>(*old >> 64);
    return static_cast<uint64_t>(*old);
}

void put_protocol(nb::dict& out, const coherence::Counters& c) {
    out["read_fetches"] = c.read_fetches;
    out["write_fetches"] = c.write_fetches;
    out["upgrades"] = c.upgrades;
    out["prefetches"] = c.prefetches;
    out["prefetches_declined"] = c.prefetches_declined;
    out["pages_sent"] = c.pages_sent;
    out["downgrades"] = c.downgrades;
    out["invalidations"] = c.invalidations;
    out["deferred"] = c.deferred;
    out["losses"] = c.losses;
    out["atomics_remote"] = c.rmw_remote;
    out["atomics_retried"] = c.rmw_retried;
    out["atomics_executed"] = c.rmw_executed;
    out["home_requests"] = c.requests;
    out["home_queued"] = c.queued;
    out["owner_moves"] = c.owner_moves;
    out["migrations"] = c.migrations;
    out["contended_marks"] = c.contended_marks;
    out["returned_moves"] = c.returned_moves;
    out["violations"] = c.violations_total();
}

AnyDict mesh_stats(Host& host) {
    nb::dict out;
    Mesh* mesh = host.mesh();
    if (!mesh) return out;
    put_protocol(out, mesh->memory().protocol_counters());
    const SharedMemory::Counters& memory = mesh->memory().counters();
    out["waits"] = memory.waits.load();
    out["wait_ns"] = memory.wait_ns.load();
    out["pages_sent_zero"] = memory.pages_sent_zero.load();
    out["pages_sent_sparse"] = memory.pages_sent_sparse.load();
    out["pages_sent_raw"] = memory.pages_sent_raw.load();
    out["page_bytes"] = memory.page_bytes.load();
    out["malformed"] = memory.malformed.load();
    uint64_t local = 0;
    for (size_t i = 0; i < host.vcpus(); ++i) {
        for (const uint64_t count : host.vcpu(i).engine_counters().atomics) local += count;
    }
    const uint64_t remote = nb::cast<uint64_t>(out["atomics_remote"]);
    out["atomics_local"] = local > remote ? local - remote : 0;

    const auto interrupts = mesh->router().counters();
    out["interrupts_sent"] = interrupts.sent;
    out["interrupts_received"] = interrupts.received;
    out["interrupts_refused"] = interrupts.refused;
    const auto clock = mesh->follower().facts();
    out["clock_error_ns"] = clock.error_ns;
    out["clock_worst_error_ns"] = clock.worst_error_ns;
    out["clock_uncertainty_ns"] = clock.uncertainty_ns;
    out["clock_drift_ppb"] = clock.drift_ppb;
    out["clock_jumps"] = clock.changes.jumps;
    if (const auto& node = mesh->remote_node()) {
        const auto devices = node->counters();
        out["device_asked"] = devices.asked;
        out["device_posted"] = devices.posted;
        out["device_waited_ns"] = devices.waited_ns;
    }
    if (mesh->node_server()) {
        const auto devices = mesh->node_server()->counters();
        out["device_served"] = devices.served;
        out["device_refused"] = devices.refused;
    }
    nb::list links;
    for (unsigned peer = 0; mesh->link() && peer < mesh->hosts(); ++peer) {
        if (peer == mesh->self()) continue;
        const link::LinkCounters counters = mesh->link()->counters(static_cast<HostId>(peer));
        nb::dict row;
        row["peer"] = peer;
        link::describe(counters, [&](const char* name, uint64_t value) { row[name] = value; });
        uint64_t refused = 0;
        for (const uint64_t count : counters.refused) refused += count;
        row["refused"] = refused;
        links.append(row);
    }
    out["links"] = links;
    out["protocol_thread"] = mesh->link() ? mesh->link()->facts().priority : "none";
    return out;
}

nb::typed<nb::list, AnyDict> contended_pages(Host& host, size_t count) {
    nb::list out;
    if (!host.mesh()) return out;
    for (const coherence::ContendedPage& page : host.mesh()->memory().contended(count)) {
        nb::dict row;
        row["gpa"] = host.ram().gpa_of(page.page * GuestRam::kPage);
        row["local"] = page.local;
        row["remote"] = page.remote;
        row["retried"] = page.retried;
        row["moves"] = page.moves;
        nb::list users;
        for (const coherence::ContendedPage::User& user : page.users) {
            if (user.place) users.append(nb::make_tuple(user.place, user.times));
        }
        row["users"] = users;
        out.append(row);
    }
    return out;
}

}  // namespace

void bind_mesh_options(nb::module_& m) {
    nb::class_<Mesh::Options>(m, "MeshOptions", "A host's place among the others; see coremesh.core.mesh.")
        .def(
            "__init__",
            [](Mesh::Options* self, HostId host, unsigned hosts, const std::vector<RangeTuple>& homes,
               const std::vector<std::tuple<uint32_t, HostId>>& vcpu_hosts, const std::string& policy,
               uint32_t hold_us, unsigned prefetch) {
                new (self)
                    Mesh::Options(options_from(host, hosts, homes, vcpu_hosts, policy, hold_us, prefetch));
            },
            nb::kw_only(), "host"_a, "hosts"_a, "homes"_a, "vcpu_hosts"_a, "policy"_a, "hold_us"_a,
            "prefetch"_a);
}

void bind_mesh(nb::class_<Host>& host) {
    host.def(
            "start_link",
            [](Host& self, std::shared_ptr<link::Link> link) {
                Unlocked unlocked;
                self.start_link(std::move(link));
            },
            "link"_a, "Starts the traffic with the other hosts; after connect(), before start().")
        .def(
            "joined",
            [](Host& self, double timeout) { return self.joined(std::chrono::duration<double>(timeout)); },
            nb::call_guard<Unlocked>(), "timeout"_a,
            "Waits until all hosts have been heard and share one time; False at the timeout.")
        .def(
            "load",
            [](Host& self, uint64_t gpa, nb::bytes data) {
                if (!data.size()) return;
                Unlocked unlocked;
                if (!self.load_ram(gpa, data.data(), data.size())) {
                    throw std::out_of_range("not a range of guest RAM");
                }
            },
            "gpa"_a, "data"_a,
            "Before start(): lays down, in RAM or ROM, what of the data belongs to pages homed here; the "
            "other "
            "hosts do the rest.")
        .def(
            "transact_words",
            [](Host& self, const std::string& operation, uint64_t gpa, unsigned size,
               const std::tuple<uint64_t, uint64_t>& operand,
               const std::tuple<uint64_t, uint64_t>& expected) {
                uint64_t high = 0;
                const uint64_t low = transact(self, operation, gpa, size,
                                              {std::get<0>(operand), std::get<1>(operand),
                                               std::get<0>(expected), std::get<1>(expected)},
                                              high);
                return std::make_tuple(low, high);
            },
            "operation"_a, "gpa"_a, "size"_a, "operand"_a, "expected"_a,
            "A memory transaction; values as (low, high) 64 bits. See Host.transact.")
        .def("mesh_stats", &mesh_stats)
        .def("contended_pages", &contended_pages, "count"_a);
}

}  // namespace coremesh
