// SPDX-License-Identifier: GPL-2.0-or-later
// The Python face of links: making them, and the probe that measures one without a machine.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <sched.h>

#include <cstring>

#include "link/in_process.hpp"
#include "link/protocol_thread.hpp"
#include "link/shm.hpp"
#include "link/tcp.hpp"
#include "link/tcp_connection.hpp"
#include "link/wired_link.hpp"
#include "link/zmq.hpp"
#include "probe/link_probe.hpp"
#include "python/module.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace coremesh {
namespace {

using link::Link;
using link::LinkProbe;
using link::Switch;

link::Type type_of(const std::string& name) {
    for (size_t type = 0; type < link::kTypes; ++type) {
        if (name == link::kTypeNames[type]) return static_cast<link::Type>(type);
    }
    throw nb::value_error("no such type of frame");
}

template <size_t N>
void put_named(nb::dict& out, const char* prefix, const std::array<const char*, N>& names,
               const std::array<uint64_t, N>& counts) {
    for (size_t index = 0; index < N; ++index) {
        if (counts[index] != 0) out[(std::string(prefix) + names[index]).c_str()] = counts[index];
    }
}

AnyDict counters_of(const Link& link, unsigned peer) {
    const link::LinkCounters counters = link.counters(static_cast<HostId>(peer));
    AnyDict out;
    each_counter(counters, [&](const CounterFacts& facts, uint64_t value) { out[facts.name] = value; });
    put_named(out, "sent_", link::kTypeNames, counters.sent);
    put_named(out, "received_", link::kTypeNames, counters.received);
    put_named(out, "refused_", link::kRefusalNames, counters.refused);
    return out;
}

AnyDict facts_of(const Link& link) {
    const link::LinkFacts facts = link.facts();
    AnyDict out;
    out["wire"] = facts.wire;
    out["priority"] = facts.priority;
    out["wakeups"] = facts.wakeups;
    out["spins"] = facts.spins;
    out["lent"] = facts.lent;
    out["returned"] = facts.returned;
    out["keys_accepted"] = facts.keys_accepted;
    out["keys_refused"] = facts.keys_refused;
    put_named(out, "refused_", link::kRefusalNames, facts.stranger_refused);
    return out;
}

link::LinkOptions link_options(unsigned host, unsigned hosts, uint64_t machine_id, uint32_t epoch,
                               size_t overflow_limit, unsigned spin_us, int cpu) {
    if (host >= kMaxHosts) throw nb::value_error("hosts are 0 to 63");
    if (cpu < -1 || cpu >= CPU_SETSIZE) throw nb::value_error("no such CPU");
    return {.identity = {static_cast<HostId>(host), hosts, machine_id, epoch},
            .overflow_limit = overflow_limit,
            .spin_ns = spin_us * int64_t{1000},
            .cpu = cpu};
}

std::shared_ptr<Link> zmq_link(unsigned host, unsigned hosts, uint64_t machine_id, uint32_t epoch,
                               const std::string& library, uintptr_t router, uintptr_t zap,
                               const std::vector<uintptr_t>& dealers, const std::vector<nb::bytes>& keys,
                               size_t overflow_limit, unsigned spin_us, int cpu) {
    if (host >= kMaxHosts) throw nb::value_error("hosts are 0 to 63");
    link::ZmqOptions options{.self = static_cast<HostId>(host), .hosts = hosts, .keys = {}};
    for (const nb::bytes& key : keys) {
        link::PublicKey& raw = options.keys.emplace_back();
        if (key.size() != raw.size()) throw nb::value_error("a key is 32 bytes");
        std::memcpy(raw.data(), key.data(), raw.size());
    }
    link::ZmqSockets sockets{.library = library,
                             .router = reinterpret_cast<void*>(router),
                             .zap = reinterpret_cast<void*>(zap),
                             .dealers = {}};
    for (const uintptr_t dealer : dealers) sockets.dealers.push_back(reinterpret_cast<void*>(dealer));
    return link::make_link(link_options(host, hosts, machine_id, epoch, overflow_limit, spin_us, cpu),
                           link::make_zmq_wire(options, sockets));
}

std::shared_ptr<Link> shm_link(unsigned host, unsigned hosts, uint64_t machine_id, uint32_t epoch,
                               const std::vector<std::tuple<int, int>>& inboxes, size_t overflow_limit,
                               unsigned spin_us, bool lends, int cpu) {
    link::LinkOptions options = link_options(host, hosts, machine_id, epoch, overflow_limit, spin_us, cpu);
    options.lends = lends;
    std::vector<link::ShmInbox> ends;
    for (const auto& [memory, bell] : inboxes) ends.push_back({.memory = memory, .bell = bell});
    return link::make_link(options,
                           link::make_shm_wire({.self = options.identity.self, .hosts = hosts}, ends));
}

link::ChannelKey channel_key(const nb::bytes& bytes) {
    link::ChannelKey key;
    if (bytes.size() != key.size()) throw nb::value_error("a key is 32 bytes");
    std::memcpy(key.data(), bytes.data(), key.size());
    return key;
}

std::tuple<nb::bytes, nb::bytes> tcp_keypair(const std::string& libsodium) {
    const link::LibSodium sodium(libsodium);
    link::ChannelKey open{}, secret{};
    sodium.keypair(open.data(), secret.data());
    return {nb::bytes(open.data(), open.size()), nb::bytes(secret.data(), secret.size())};
}

using Address = std::tuple<std::string, unsigned>;

std::shared_ptr<Link> tcp_link(unsigned host, unsigned hosts, uint64_t machine_id, uint32_t epoch,
                               const std::string& libsodium, int listener, const Address& source,
                               const std::vector<Address>& peers, const nb::bytes& secret,
                               const std::vector<nb::bytes>& keys, size_t overflow_limit, unsigned spin_us,
                               bool lends, int cpu) {
    link::LinkOptions options = link_options(host, hosts, machine_id, epoch, overflow_limit, spin_us, cpu);
    options.lends = lends;
    const auto address = [](const Address& each) {
        return link::socket_address(std::get<0>(each), std::get<1>(each));
    };
    link::TcpOptions tcp{.self = options.identity.self,
                         .hosts = hosts,
                         .libsodium = libsodium,
                         .keys = {},
                         .listener = listener,
                         .source = address(source),
                         .peers = {}};
    for (const Address& each : peers) tcp.peers.push_back(address(each));
    for (const nb::bytes& each : keys) tcp.keys.of_hosts.push_back(channel_key(each));
    tcp.keys.own_secret = channel_key(secret);
    if (host < keys.size()) tcp.keys.own_public = tcp.keys.of_hosts[host];
    return link::make_link(options, link::make_tcp_wire(tcp));
}

}  // namespace

void bind_link(nb::module_& m);

void bind_link(nb::module_& m) {
    nb::class_<Link>(m, "Link", "One host's end of the links to the others; see coremesh.core.links.")
        .def("counters", &counters_of, "peer"_a, "Frames, bytes and refusals to and from one peer.")
        .def("facts", &facts_of, "Priority, wake-ups, handshakes; frames that no peer can be blamed for.")
        .def("stop", &Link::stop, nb::call_guard<Unlocked>(),
             "Ends the protocol thread. Idempotent; before the sockets are closed.");
    m.def("link_priority", &link::probe_priority, nb::call_guard<Unlocked>(),
          "How a protocol thread may outrank vCPUs on this computer: 'fifo', 'nice', 'slice' or 'none'.");
    m.def("zmq_link", &zmq_link, nb::kw_only(), "host"_a, "hosts"_a, "machine_id"_a, "epoch"_a, "library"_a,
          "router"_a, "zap"_a, "dealers"_a, "keys"_a, "overflow_limit"_a, "spin_us"_a, "cpu"_a,
          "A link over sockets given by their addresses; they must outlive it.");

    m.def("shm_link", &shm_link, nb::kw_only(), "host"_a, "hosts"_a, "machine_id"_a, "epoch"_a, "inboxes"_a,
          "overflow_limit"_a, "spin_us"_a, "lends"_a, "cpu"_a,
          "A link over inboxes, each (memory file, bell) by host; the descriptors must outlive it.");
    m.def("shm_inbox_bytes", &link::shm_inbox_bytes, "hosts"_a, "The size of an inbox's memory file.");

    m.def("tcp_keypair", &tcp_keypair, "libsodium"_a, "A new pair of keys: (public, secret).");
    m.def("tcp_link", &tcp_link, nb::kw_only(), "host"_a, "hosts"_a, "machine_id"_a, "epoch"_a, "libsodium"_a,
          "listener"_a, "source"_a, "peers"_a, "secret"_a, "keys"_a, "overflow_limit"_a, "spin_us"_a,
          "lends"_a, "cpu"_a,
          "A link over TCP. It closes the descriptor `listener`; addresses are (text, port).");

    nb::class_<Switch>(m, "InProcessSwitch", "Links between hosts in this process, for tests.")
        .def(
            "__init__",
            [](Switch* self, unsigned hosts, uint64_t machine_id, uint32_t epoch, int64_t min_delay_us,
               int64_t max_delay_us, uint64_t seed, size_t queue_limit, size_t overflow_limit) {
                new (self) Switch({.hosts = hosts,
                                   .machine = machine_id,
                                   .epoch = epoch,
                                   .min_delay_ns = min_delay_us * 1000,
                                   .max_delay_ns = max_delay_us * 1000,
                                   .seed = seed,
                                   .queue_limit = queue_limit,
                                   .overflow_limit = overflow_limit});
            },
            "hosts"_a, nb::kw_only(), "machine_id"_a = 1, "epoch"_a = 1, "min_delay_us"_a = 0,
            "max_delay_us"_a = 0, "seed"_a = 1, "queue_limit"_a = 65536, "overflow_limit"_a = 16384)
        .def("link", &Switch::link, "host"_a)
        .def("cut", &Switch::cut, "source"_a, "destination"_a, "is_cut"_a = true)
        .def(
            "inject",
            [](Switch& self, HostId to, const nb::bytes& frame) {
                self.inject(to, {static_cast<const uint8_t*>(frame.data()), frame.size()});
            },
            "destination"_a, "frame"_a);

    nb::class_<LinkProbe>(m, "LinkProbe", "Measures and exercises a link without a machine.")
        .def(nb::init<std::shared_ptr<Link>>(), "link"_a)
        .def("start", &LinkProbe::start, nb::call_guard<Unlocked>())
        .def("stop", &LinkProbe::stop, nb::call_guard<Unlocked>())
        .def(
            "send",
            [](LinkProbe& self, HostId to, const std::string& type, const nb::bytes& head,
               const nb::bytes& body) {
                const auto span = [](const nb::bytes& bytes) {
                    return std::span(static_cast<const uint8_t*>(bytes.data()), bytes.size());
                };
                const link::Type kind = type_of(type);
                Unlocked unlocked;
                return self.send(to, kind, span(head), span(body));
            },
            "destination"_a, "type"_a, "head"_a, "body"_a = nb::bytes("", 0))
        .def("ping", &LinkProbe::ping, nb::call_guard<Unlocked>(), "peer"_a, "count"_a,
             "reply_bytes"_a = 4096,
             "Times of round trips in ns; fewer than count when an answer is missing.")
        .def("ping_holding_the_interpreter", &LinkProbe::ping, "peer"_a, "count"_a, "reply_bytes"_a = 4096,
             "The same with the interpreter's lock held all the time: nothing may need it.")
        .def("slow_down", &LinkProbe::slow_down, "ns"_a)
        .def_prop_ro("lost", &LinkProbe::lost)
        .def(
            "take",
            [](LinkProbe& self) {
                std::vector<std::tuple<unsigned, std::string, uint64_t, nb::bytes>> out;
                for (const LinkProbe::Frame& frame : self.take()) {
                    out.emplace_back(frame.from, link::kTypeNames[static_cast<size_t>(frame.type)],
                                     frame.stamp, nb::bytes(frame.payload.data(), frame.payload.size()));
                }
                return out;
            },
            "The frames that came since: (from, type, stamp, payload).");
}

}  // namespace coremesh
