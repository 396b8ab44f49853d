// SPDX-License-Identifier: GPL-2.0-or-later
// Interrupts between hosts: real local APICs and fabrics, messages that the story delivers when it likes.
#include "guest/x86/interrupt_router.hpp"

#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.hpp"
#include "lapic_fixture.hpp"
#include "guest/x86/fabric.hpp"

using namespace fixture;

namespace {

using Ids = std::set<uint32_t>;
using Homes = std::vector<std::pair<uint32_t, uint8_t>>;

struct Machine;

struct Core {
    Core(uint32_t id, Fabric& fabric, coremesh::TimerQueue& queue)
        : lapic(LapicOptions{.apic_id = id, .bootstrap = id == 0}, port, fabric, queue) {
        lapic.write(kSvr, 0x1FF);
        fabric.attach(lapic);
    }
    CountingPort port;
    Lapic lapic;
};

struct HostOf final : RemoteSink, InterruptPort {
    HostOf(Machine& machine_, uint8_t self_, unsigned hosts, const Homes& homes)
        : machine(machine_),
          self(self_),
          fabric(*this, static_cast<uint32_t>(homes.size())),
          router(self_, hosts, homes, *this) {}

    // RemoteSink
    void forward(const IpiMessage& message) noexcept override { router.forward(message); }
    void on_eoi(uint8_t) noexcept override {}
    void on_extint(bool asserted) noexcept override { router.extint(asserted); }
    void on_nmi_line() noexcept override { router.nmi_line(); }
    // InterruptPort
    bool deliver(const IpiMessage& message) noexcept override { return fabric.deliver(message); }
    void set_extint(bool asserted) noexcept override { fabric.set_extint(asserted); }
    void pulse_nmi() noexcept override { fabric.pulse_nmi(); }
    bool send(uint8_t to, std::span<const uint8_t> payload) noexcept override;

    Machine& machine;
    const uint8_t self;
    Fabric fabric;
    InterruptRouter router;
    std::vector<std::unique_ptr<Core>> cores;
};

/// Each inner list: the APIC ids of one host.
struct Machine {
    explicit Machine(const std::vector<std::vector<uint32_t>>& ids) {
        for (uint8_t host = 0; host < ids.size(); ++host) {
            for (const uint32_t id : ids[host]) homes.emplace_back(id, host);
        }
        for (uint8_t host = 0; host < ids.size(); ++host) {
            const auto count = static_cast<unsigned>(ids.size());
            hosts.push_back(std::make_unique<HostOf>(*this, host, count, homes));
            for (const uint32_t id : ids[host]) {
                hosts.back()->cores.push_back(std::make_unique<Core>(id, hosts.back()->fabric, queue));
            }
        }
    }
    Core& operator[](uint32_t id) {
        for (auto& host : hosts) {
            for (auto& core : host->cores) {
                if (core->lapic.apic_id() == id) return *core;
            }
        }
        throw std::out_of_range("no such APIC");
    }
    void ipi(uint32_t from, uint32_t high, uint32_t low) {
        (*this)[from].lapic.write(kIcrHigh, high);
        (*this)[from].lapic.write(kIcrLow, low);
    }
    void all_x2apic() {
        for (auto& host : hosts) {
            for (auto& core : host->cores) CHECK(core->lapic.write_msr(kMsrBase, 0xFEE0'0C00));
        }
    }
    /// Delivers everything that is on its way, and what follows from it; returns the number of frames.
    unsigned drain() {
        unsigned frames = 0;
        for (; !wire.empty(); ++frames) {
            const auto [from, to, bytes] = std::move(wire.front());
            wire.pop_front();
            hosts[to]->router.received(from, bytes);
        }
        return frames;
    }
    Ids take(int vector) {
        Ids result;
        for (auto& host : hosts) {
            for (auto& core : host->cores) {
                if (core->lapic.highest_pending() != vector) continue;
                core->lapic.acknowledge();
                if (core->lapic.x2apic_mode()) {
                    CHECK(core->lapic.write_msr(0x80B, 0));
                } else {
                    core->lapic.write(kEoi, 0);
                }
                result.insert(core->lapic.apic_id());
            }
        }
        return result;
    }

    struct Frame {
        uint8_t from, to;
        std::vector<uint8_t> bytes;
    };
    coremesh::Clock clock;
    coremesh::TimerQueue queue{clock};
    Homes homes;
    std::vector<std::unique_ptr<HostOf>> hosts;
    std::deque<Frame> wire;
    std::set<uint8_t> cut;
};

bool HostOf::send(uint8_t to, std::span<const uint8_t> payload) noexcept {
    CHECK(to < machine.hosts.size() && to != self);
    if (machine.cut.contains(to)) return false;
    machine.wire.push_back({self, to, {payload.begin(), payload.end()}});
    return true;
}

}  // namespace

STORY("given a physical destination elsewhere, then one frame goes to its host, and that APIC takes it") {
    Machine machine({{0, 1}, {2, 3}, {4, 5}});
    machine.ipi(0, 4u << 24, 0x4055);
    CHECK_EQ(machine.wire.size(), 1u);
    CHECK_EQ(machine.wire.front().to, 2);
    machine.drain();
    CHECK(machine.take(0x55) == Ids{4});
    machine.ipi(0, 1u << 24, 0x4055);
    CHECK(machine.wire.empty());  // stays here
    CHECK(machine.take(0x55) == Ids{1});
    machine.ipi(0, 77u << 24, 0x4055);  // nobody has it
    CHECK(machine.wire.empty());
}

STORY("given shorthands and broadcasts, then each other host hears once, and self is who sent it") {
    Machine machine({{0, 1}, {2, 3}, {4, 5}});
    machine.ipi(2, 0, 0x4055 | 3u << 18);
    CHECK_EQ(machine.drain(), 2u);
    CHECK((machine.take(0x55) == Ids{0, 1, 3, 4, 5}));
    machine.ipi(2, 0, 0x4055 | 2u << 18);
    CHECK_EQ(machine.drain(), 2u);
    CHECK((machine.take(0x55) == Ids{0, 1, 2, 3, 4, 5}));
    machine.ipi(4, 0xFFu << 24, 0x4055);
    CHECK_EQ(machine.drain(), 2u);
    CHECK((machine.take(0x55) == Ids{0, 1, 2, 3, 4, 5}));
    machine.ipi(4, 0, 0x4055 | 1u << 18);
    CHECK_EQ(machine.drain(), 0u);
    CHECK(machine.take(0x55) == Ids{4});
}

STORY("given logical destinations, then xAPIC asks every host, x2APIC only those of the members") {
    Machine machine({{0, 1}, {2, 3}, {16, 17}});
    for (const uint32_t id : {0u, 1u, 2u, 3u}) machine[id].lapic.write(kLdr, 1u << (24 + id));
    machine.ipi(0, 0x0E00'0000, 0x4855);
    CHECK_EQ(machine.drain(), 2u);
    CHECK((machine.take(0x55) == Ids{1, 2, 3}));
    machine.all_x2apic();
    CHECK(machine[0].lapic.write_msr(0x830, uint64_t{0x0000'000E} << 32 | 0x4855));
    CHECK_EQ(machine.drain(), 1u);  // cluster 0 has members on hosts 0 and 1
    CHECK((machine.take(0x55) == Ids{1, 2, 3}));
    CHECK(machine[2].lapic.write_msr(0x830, uint64_t{0x0001'0003} << 32 | 0x4855));
    CHECK_EQ(machine.drain(), 1u);
    CHECK((machine.take(0x55) == Ids{16, 17}));
}

STORY("given NMI, INIT and SIPI for a vCPU elsewhere, then it gets them, INIT before SIPI") {
    Machine machine({{0}, {1, 2}});
    machine.ipi(0, 1u << 24, 0x4500);  // INIT
    machine.ipi(0, 1u << 24, 0x8500);  // its de-assert, which nobody needs
    machine.ipi(0, 1u << 24, 0x4699);
    machine.hosts[1]->router.received(0, machine.wire.front().bytes);
    machine.wire.pop_front();
    CHECK_EQ(machine[1].port.inits, 1);
    CHECK_EQ(machine[1].port.sipis, 0);
    machine.drain();
    CHECK_EQ(machine[1].port.inits, 1);
    CHECK_EQ(machine[1].port.sipis, 1);
    CHECK_EQ(machine[1].port.sipi_vector, 0x99);
    CHECK_EQ(machine[2].port.inits + machine[2].port.sipis, 0);
    machine.ipi(2, 0, 0x4400 | 3u << 18);
    machine.drain();
    CHECK_EQ(machine[0].port.nmis + machine[1].port.nmis, 2);
    CHECK_EQ(machine[2].port.nmis, 0);
    machine.ipi(0, 0, 0x4500 | 3u << 18);  // INIT to all but self, as Linux's old start-up does
    machine.drain();
    CHECK_EQ(machine[1].port.inits + machine[2].port.inits, 3);
}

STORY("given lowest priority with a taker here, then it stays here; with none, one elsewhere takes it") {
    Machine machine({{0, 1}, {2, 3}, {4, 5}});
    for (uint32_t id = 0; id < 6; ++id) machine[id].lapic.write(kLdr, 1u << (24 + id));
    machine.ipi(0, 0x3F00'0000, 0x4955);
    CHECK_EQ(machine.drain(), 0u);
    CHECK_EQ(machine.take(0x55).size(), 1u);
    machine.ipi(0, 0x3000'0000, 0x4955);  // 4 and 5
    machine.drain();
    const Ids takers = machine.take(0x55);
    CHECK(takers == Ids{4} || takers == Ids{5});
}

STORY("given hosts that decline, then a search visits each once, ends with the first taker, or with nobody") {
    Machine machine({{0, 1}, {2, 3}, {4, 5}, {6, 7}});
    for (uint32_t id = 0; id < 8; ++id) machine[id].lapic.write(kLdr, 1u << (24 + id));
    const auto disable = [&](uint32_t id) { machine[id].lapic.write(kSvr, 0x0FF); };
    for (const uint32_t id : {0u, 1u, 2u, 3u, 6u, 7u, 4u}) disable(id);
    for (int round = 0; round < 12; ++round) {
        CHECK(machine.hosts[0]->fabric.msi(0xFEEF'F00C, 0x0155));  // any of all, lowest priority
        CHECK(machine.drain() <= 3);
        CHECK(machine.take(0x55) == Ids{5});
    }
    disable(5);
    CHECK(machine.hosts[0]->fabric.msi(0xFEEF'F00C, 0x0155));
    CHECK_EQ(machine.drain(), 3u);
    CHECK(machine.take(0x55).empty());
    uint64_t unclaimed = 0;
    for (auto& host : machine.hosts) unclaimed += host->router.counters().interrupts_unclaimed;
    CHECK_EQ(unclaimed, 1u);
}

STORY("given equals on other hosts, then they take turns") {
    Machine machine({{0}, {1}, {2}, {3}});
    for (uint32_t id = 0; id < 4; ++id) machine[id].lapic.write(kLdr, 1u << (24 + id));
    std::map<uint32_t, int> taken;
    for (int round = 0; round < 30; ++round) {
        machine.ipi(0, 0x0E00'0000, 0x4955);
        machine.drain();
        const Ids takers = machine.take(0x55);
        CHECK_EQ(takers.size(), 1u);
        ++taken[*takers.begin()];
    }
    CHECK_EQ(taken.size(), 3u);
    for (const auto& [id, count] : taken) CHECK(count >= 5);
}

// Frames are delivered at random, APICs are disabled and enabled in between: an interrupt may meet nobody,
// but never two.
STORY("given any schedule, then one interrupt for one of several is accepted at most once") {
    std::mt19937 chance(11);
    Machine machine({{0, 1}, {2, 3}, {4, 5}});
    for (uint32_t id = 0; id < 6; ++id) machine[id].lapic.write(kLdr, 1u << (24 + id));
    uint64_t found = 0;
    for (unsigned round = 0; round < 4000; ++round) {
        for (uint32_t id = 0; id < 6; ++id) machine[id].lapic.write(kSvr, chance() % 3 == 0 ? 0x1FF : 0x0FF);
        const uint32_t from = chance() % 6;
        machine.ipi(from, (chance() % 64) << 24, 0x4955);
        while (!machine.wire.empty()) {
            const uint32_t id = chance() % 6;
            machine[id].lapic.write(kSvr, chance() % 2 ? 0x1FF : 0x0FF);
            const auto frame = machine.wire.front();
            machine.wire.pop_front();
            machine.hosts[frame.to]->router.received(frame.from, frame.bytes);
        }
        const size_t takers = machine.take(0x55).size();
        CHECK(takers <= 1);
        found += takers;
    }
    CHECK(found > 1000);
    for (auto& host : machine.hosts) CHECK_EQ(host->router.counters().interrupts_refused, 0u);
}

STORY(
    "given the 8259A's line and the NMI line of host 0, then all hosts' pins follow, and nobody answers "
    "back") {
    Machine machine({{0}, {1}, {2}});
    machine[1].lapic.enter_virtual_wire();
    machine[1].lapic.write(kLvtLint0, 0x700);
    machine.hosts[0]->fabric.extint(true);
    CHECK_EQ(machine.drain(), 2u);
    CHECK(machine[1].lapic.extint_pending());
    machine.hosts[0]->fabric.extint(false);
    CHECK_EQ(machine.drain(), 2u);
    CHECK(!machine[1].lapic.extint_pending());
    machine.hosts[0]->fabric.nmi_line();
    CHECK_EQ(machine.drain(), 2u);
    CHECK_EQ(machine[1].port.nmis, 1);
    // The lines are host 0's: what another host's fabric is told goes no further.
    machine.hosts[1]->fabric.extint(true);
    machine.hosts[1]->fabric.nmi_line();
    CHECK_EQ(machine.drain(), 0u);
}

STORY("given a host that has gone, then what is sent to it is counted, and a search goes round it") {
    Machine machine({{0}, {1}, {2}});
    for (uint32_t id = 0; id < 3; ++id) machine[id].lapic.write(kLdr, 1u << (24 + id));
    machine.cut = {1};
    for (int round = 0; round < 4; ++round) {
        machine.ipi(0, 0x0600'0000, 0x4955);
        machine.drain();
        CHECK(machine.take(0x55) == Ids{2});
    }
    CHECK(machine.hosts[0]->router.counters().interrupts_lost > 0);
    machine.ipi(0, 0, 0x4055 | 3u << 18);
    machine.drain();
    CHECK(machine.take(0x55) == Ids{2});
}

STORY("given frames that their sender cannot mean, then they are refused and no APIC hears of them") {
    Machine machine({{0}, {1}, {2}});
    InterruptRouter& router = machine.hosts[1]->router;
    uint64_t refused = 0;
    const auto refuses = [&](uint8_t from, const InterruptFrame& frame) {
        router.received(from, frame.encode());
        return router.counters().interrupts_refused == ++refused;
    };
    using Kind = InterruptFrame::Kind;
    const IpiMessage good{.destination = 1, .source = 2, .vector = 0x55};
    IpiMessage any = good;
    any.mode = DeliveryMode::kLowestPriority;
    any.destination = kBroadcast;
    CHECK(refuses(0, {Kind::kMessage, good, 0}));  // APIC 2 is on host 2
    CHECK(refuses(1, {Kind::kMessage, good, 0}));  // from oneself
    CHECK(refuses(3, {Kind::kMessage, good, 0}));  // from nobody
    IpiMessage device = good;
    device.source = kNoSource;
    CHECK(refuses(2, {Kind::kMessage, device, 0}));  // the devices are on host 0
    IpiMessage stranger = good;
    stranger.source = 99;
    CHECK(refuses(2, {Kind::kMessage, stranger, 0}));
    CHECK(refuses(2, {Kind::kMessage, any, 0}));      // must be a search
    CHECK(refuses(2, {Kind::kSearch, good, 4}));      // must not be
    CHECK(refuses(2, {Kind::kSearch, any, 0b001}));   // its sender has not been asked
    CHECK(refuses(2, {Kind::kSearch, any, 0b110}));   // was here before
    CHECK(refuses(2, {Kind::kSearch, any, 0b1100}));  // a host that there is not
    CHECK(refuses(2, {Kind::kExtInt, {}, 0}));        // the line is host 0's
    CHECK(refuses(2, {Kind::kNmi, {}, 0}));
    CHECK(refuses(0, {Kind::kNmi, good, 0}));
    IpiMessage self = good;
    self.shorthand = Shorthand::kSelf;
    CHECK(refuses(2, {Kind::kMessage, self, 0}));
    auto bytes = InterruptFrame{Kind::kMessage, good, 0}.encode();
    for (size_t length = 0; length < bytes.size(); ++length) {
        router.received(2, std::span(bytes).first(length));
        ++refused;
    }
    CHECK_EQ(router.counters().interrupts_refused, refused);
    CHECK_EQ(machine[1].port.kicks + machine[1].port.nmis + machine[1].port.inits, 0);
    CHECK(machine.wire.empty());
    router.received(2, bytes);
    CHECK(machine.take(0x55) == Ids{1});

    std::mt19937 chance(2);
    for (int round = 0; round < 200'000; ++round) {
        auto fuzzed = bytes;
        for (unsigned flips = 1 + chance() % 5; flips > 0; --flips) {
            fuzzed[chance() % fuzzed.size()] = static_cast<uint8_t>(chance());
        }
        const auto frame = InterruptFrame::decode(fuzzed);
        if (frame) CHECK(frame->encode() == fuzzed);
        router.received(2, fuzzed);
    }
    for (const auto& frame : machine.wire) CHECK(frame.to != 1 && frame.to < 3);
}

STORY("given tables that describe no machine, then they are refused") {
    Machine machine({{0}, {1}});
    const auto throws = [&](uint8_t self, unsigned hosts, const Homes& homes) {
        try {
            InterruptRouter router(self, hosts, homes, *machine.hosts[0]);
        } catch (const std::invalid_argument&) {
            return true;
        }
        return false;
    };
    CHECK(throws(0, 65, {}));
    CHECK(throws(2, 2, {}));
    CHECK(throws(0, 2, {{0, 2}}));
    CHECK(throws(0, 2, {{0, 0}, {0, 1}}));
    CHECK(throws(0, 2, {{1u << 20, 0}}));
    CHECK(!throws(63, 64, {{0, 0}, {254, 63}}));
}

RUN_STORIES()
