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
                           const std::string& policy, uint32_t hold_us, unsigned prefetch,
                           unsigned first_touch, bool pass_on) {
    Mesh::Options options;
    options.self = host;
    options.hosts = hosts;
    for (const auto& [first, end, owner] : homes) options.homes.push_back({first, end, owner});
    for (const auto& [core_id, owner] : vcpu_hosts) options.vcpu_hosts.emplace_back(core_id, owner);
    options.policy = policy_named(policy);
    options.hold_us = hold_us;
    options.prefetch = prefetch;
    options.first_touch = first_touch;
    options.pass_on = pass_on;
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
               uint32_t hold_us, unsigned prefetch, unsigned first_touch, bool pass_on, HostId devices) {
                new (self) Mesh::Options(options_from(host, hosts, homes, vcpu_hosts, policy, hold_us,
                                                      prefetch, first_touch, pass_on));
                self->devices = devices;
            },
            nb::kw_only(), "host"_a, "hosts"_a, "homes"_a, "vcpu_hosts"_a, "policy"_a, "hold_us"_a,
            "prefetch"_a, "first_touch"_a, "pass_on"_a, "devices"_a = 0);
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
            [](Host& self, uint64_t gpa, const nb::bytes& data) {
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
        .def("contended_pages", &contended_pages, "count"_a);
}

}  // namespace coremesh
