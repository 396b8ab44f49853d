// SPDX-License-Identifier: GPL-2.0-or-later
// Who gets a message: destinations, shorthands, arbitration, MSIs, pins, and what goes to other hosts.
#include "guest/x86/fabric.hpp"

#include <memory>
#include <set>
#include <stdexcept>
#include <string>

#include "check.hpp"
#include "lapic_fixture.hpp"

using namespace fixture;

namespace {

struct Remote final : RemoteSink {
    void forward(const IpiMessage& message) noexcept override { forwarded.push_back(message); }
    void on_eoi(uint8_t vector) noexcept override { ended.push_back(vector); }
    void on_extint(bool asserted) noexcept override { lines += asserted ? "+" : "-"; }
    void on_nmi_line() noexcept override { lines += "n"; }
    std::vector<IpiMessage> forwarded;
    std::vector<uint8_t> ended;
    std::string lines;  // the 8259A's INTR rises (+), falls (-); NMI (n)
};

/// A host with local APICs of the given IDs, software-enabled; the machine may have more vCPUs elsewhere.
struct HostOf {
    explicit HostOf(const std::vector<uint32_t>& ids, uint32_t total = 0)
        : fabric(remote, total == 0 ? static_cast<uint32_t>(ids.size()) : total) {
        for (const uint32_t id : ids) {
            ports.push_back(std::make_unique<CountingPort>());
            lapics.push_back(std::make_unique<Lapic>(LapicOptions{.apic_id = id, .bootstrap = id == 0},
                                                     *ports.back(), fabric, queue));
            lapics.back()->write(kSvr, 0x1FF);
            fabric.attach(*lapics.back());
        }
    }
    Lapic& operator[](uint32_t id) {
        for (auto& lapic : lapics) {
            if (lapic->apic_id() == id) return *lapic;
        }
        throw std::out_of_range("no such APIC");
    }
    CountingPort& port(uint32_t id) {
        for (size_t index = 0; index < lapics.size(); ++index) {
            if (lapics[index]->apic_id() == id) return *ports[index];
        }
        throw std::out_of_range("no such APIC");
    }
    void all_x2apic() {
        for (auto& lapic : lapics) CHECK(lapic->write_msr(kMsrBase, 0xFEE0'0C00));
    }
    /// IDs of the APICs that have the vector pending; takes and ends it there.
    std::set<uint32_t> take(int vector) {
        std::set<uint32_t> result;
        for (auto& lapic : lapics) {
            if (lapic->highest_pending() != vector) continue;
            lapic->acknowledge();
            if (lapic->x2apic_mode()) {
                CHECK(lapic->write_msr(0x80B, 0));
            } else {
                lapic->write(kEoi, 0);
            }
            result.insert(lapic->apic_id());
        }
        return result;
    }
    void ipi(uint32_t from, uint32_t high, uint32_t low) {
        (*this)[from].write(kIcrHigh, high);
        (*this)[from].write(kIcrLow, low);
    }

    coremesh::Clock clock;
    coremesh::TimerQueue queue{clock};
    Remote remote;
    Fabric fabric;
    std::vector<std::unique_ptr<CountingPort>> ports;
    std::vector<std::unique_ptr<Lapic>> lapics;
};

using Ids = std::set<uint32_t>;

}  // namespace

STORY("11.6.2.1: given a physical destination, then that APIC alone takes the message") {
    HostOf host({0, 1, 2, 200});
    host.ipi(0, 200u << 24, 0x4055);
    CHECK(host.take(0x55) == Ids{200});
    CHECK_EQ(host.port(200).kicks, 1);
    host.ipi(200, 0, 0x4055);
    CHECK(host.take(0x55) == Ids{0});
    host.ipi(0, 77u << 24, 0x4055);  // nobody
    CHECK(host.take(0x55).empty());
    CHECK(host.remote.forwarded.empty());
}

STORY("11.6.1: given each shorthand, then self, all, or all others take it, whatever the destination says") {
    HostOf host({0, 1, 2});
    host.ipi(1, 2u << 24, 0x4055 | 1u << 18);
    CHECK(host.take(0x55) == Ids{1});
    host.ipi(1, 2u << 24, 0x4055 | 2u << 18);
    CHECK((host.take(0x55) == Ids{0, 1, 2}));
    host.ipi(1, 2u << 24, 0x4055 | 3u << 18);
    CHECK((host.take(0x55) == Ids{0, 2}));
    host.ipi(1, 0xFFu << 24, 0x4055);  // physical broadcast
    CHECK((host.take(0x55) == Ids{0, 1, 2}));
}

STORY("11.6.2.2: given the flat model, then each bit of the destination is one logical ID") {
    HostOf host({0, 1, 2});
    host[0].write(kLdr, 0x0100'0000);
    host[1].write(kLdr, 0x0200'0000);
    host[2].write(kLdr, 0x0400'0000);
    host.ipi(0, 0x0600'0000, 0x4855);
    CHECK((host.take(0x55) == Ids{1, 2}));
    host.ipi(0, 0xFF00'0000, 0x4855);
    CHECK((host.take(0x55) == Ids{0, 1, 2}));
    host.ipi(0, 0x8000'0000, 0x4855);
    CHECK(host.take(0x55).empty());
}

STORY(
    "11.6.2.2: given the cluster model, then the upper nibble is a cluster, the lower its members, 15 all "
    "clusters") {
    HostOf host({0, 1, 2, 3});
    const uint32_t logical[] = {0x01, 0x02, 0x11, 0x12};
    for (uint32_t id = 0; id < 4; ++id) {
        host[id].write(kDfr, 0x0FFF'FFFF);
        host[id].write(kLdr, logical[id] << 24);
    }
    host.ipi(0, 0x13u << 24, 0x4855);
    CHECK((host.take(0x55) == Ids{2, 3}));
    host.ipi(0, 0x02u << 24, 0x4855);
    CHECK(host.take(0x55) == Ids{1});
    host.ipi(0, 0xF1u << 24, 0x4855);
    CHECK((host.take(0x55) == Ids{0, 2}));
}

STORY("11.12.10: given x2APIC clusters, then the derived logical IDs are met, each member by its bit") {
    HostOf host({0, 1, 15, 16, 17, 250});
    host.all_x2apic();
    const auto send = [&](uint32_t destination) {
        CHECK(host[0].write_msr(0x830, uint64_t{destination} << 32 | 0x4855));
    };
    send(0x0000'8003);
    CHECK((host.take(0x55) == Ids{0, 1, 15}));
    send(0x0001'0002);
    CHECK(host.take(0x55) == Ids{17});
    send(0x000F'0400);
    CHECK(host.take(0x55) == Ids{250});
    send(0x0003'FFFF);
    CHECK(host.take(0x55).empty());
    send(0xFFFF'FFFF);
    CHECK_EQ(host.take(0x55).size(), 6u);
}

STORY("11.12.9: given x2APIC physical destinations, then 32 bits count, and all ones is everybody") {
    HostOf host({0, 1, 254});
    host.all_x2apic();
    CHECK(host[0].write_msr(0x830, uint64_t{254} << 32 | 0x4055));
    CHECK(host.take(0x55) == Ids{254});
    CHECK(host[0].write_msr(0x830, uint64_t{0x1'0001} << 32 | 0x4055));
    CHECK(host.take(0x55).empty());
    CHECK(host[0].write_msr(0x830, uint64_t{0xFFFF'FFFF} << 32 | 0x4055));
    CHECK((host.take(0x55) == Ids{0, 1, 254}));
    CHECK(host[1].write_msr(0x83F, 0x56));
    CHECK(host.take(0x56) == Ids{1});
}

STORY("given NMI, INIT and SIPI by IPI, then the ports of the destinations get them, and no IRR changes") {
    HostOf host({0, 1, 2});
    host.ipi(0, 1u << 24, 0x4500);
    host.ipi(0, 1u << 24, 0x8500);  // de-assert
    host.ipi(0, 1u << 24, 0x4699);
    host.ipi(0, 0, 0x4400 | 3u << 18);
    CHECK_EQ(host.port(1).inits, 1);
    CHECK_EQ(host.port(1).sipis, 1);
    CHECK_EQ(host.port(1).sipi_vector, 0x99);
    CHECK_EQ(host.port(0).nmis, 0);
    CHECK_EQ(host.port(1).nmis + host.port(2).nmis, 2);
    CHECK_EQ(host[1].highest_pending(), -1);
}

STORY(
    "11.6.2.4: given lowest priority, then the least busy takes it, equals take turns, the disabled never") {
    HostOf host({0, 1, 2, 3});
    for (uint32_t id = 0; id < 4; ++id) host[id].write(kLdr, 1u << (24 + id));
    host[0].write(kTpr, 0x60);
    host[1].write(kTpr, 0x20);
    host[2].write(kTpr, 0x60);
    host[3].write(kSvr, 0xFF);
    host.ipi(0, 0x0F00'0000, 0x4955 | 0x80);
    CHECK(host.take(0xD5) == Ids{1});
    host[0].write(kTpr, 0);
    host[1].write(kTpr, 0);
    host[2].write(kTpr, 0);
    Ids taken;
    for (int count = 0; count < 9; ++count) {
        host.ipi(0, 0x0F00'0000, 0x4955);
        const Ids one = host.take(0x55);
        CHECK_EQ(one.size(), 1u);
        taken.merge(Ids(one));
    }
    CHECK((taken == Ids{0, 1, 2}));
}

STORY("11.11: given MSIs, then destination, mode and trigger are taken from address and data") {
    HostOf host({0, 1, 2});
    CHECK(host.fabric.msi(0xFEE0'1000, 0x0055));
    CHECK(host.take(0x55) == Ids{1});
    CHECK(host.fabric.msi(0xFEE0'2000, 0xC077));  // level: its EOI is told to the I/O APICs
    CHECK(host.take(0x77) == Ids{2});
    CHECK((host.remote.ended == std::vector<uint8_t>{0x77}));
    CHECK(host.fabric.msi(0xFEEF'F000, 0x0055));
    CHECK((host.take(0x55) == Ids{0, 1, 2}));
    CHECK(host.fabric.msi(0xFEE0'1000, 0x0400));
    CHECK_EQ(host.port(1).nmis, 1);
    CHECK(host.fabric.msi(0xFEE0'1000, 0x0700));
    CHECK(host[1].extint_pending());
    CHECK(host.fabric.msi(0xFEE0'1000, 0x0355) && host.fabric.msi(0xFEE0'1000, 0x0655));  // reserved here
    CHECK(host.take(0x55).empty());
    CHECK_EQ(host.port(1).sipis, 0);
}

STORY("11.11.1: given the redirection hint and a logical destination, then one of the set takes it") {
    HostOf host({0, 1, 2});
    for (uint32_t id = 0; id < 3; ++id) host[id].write(kLdr, 1u << (24 + id));
    host[2].write(kTpr, 0x80);
    host[1].write(kTpr, 0x40);
    CHECK(host.fabric.msi(0xFEE0'600C, 0x0095));
    CHECK(host.take(0x95) == Ids{1});
    CHECK(host.fabric.msi(0xFEE0'6004, 0x0095));  // without the hint: both
    CHECK((host.take(0x95) == Ids{1, 2}));
}

STORY("given addresses that are no interrupt messages, then msi says so and nothing happens") {
    HostOf host({0});
    for (const uint64_t address :
         {uint64_t{0}, uint64_t{0xFEC0'0000}, uint64_t{0xFEF0'0000}, uint64_t{0x1'FEE0'0000}}) {
        CHECK(!host.fabric.msi(address, 0x55));
    }
    CHECK_EQ(host[0].highest_pending(), -1);
}

STORY("given an MSI with an illegal vector, then the destination notes it in its ESR") {
    HostOf host({0, 1});
    CHECK(host.fabric.msi(0xFEE0'1000, 0x0003));
    host[1].write(kEsr, 0);
    CHECK_EQ(host[1].read(kEsr), 0x40u);
}

STORY("given the 8259A's INTR and the NMI line, then each APIC decides by its LINT pins") {
    HostOf host({0, 1});
    host[0].enter_virtual_wire();
    host[1].enter_virtual_wire();
    host.fabric.extint(true);
    CHECK(host[0].extint_pending() && !host[1].extint_pending());
    CHECK_EQ(host.port(0).kicks, 1);
    CHECK_EQ(host.port(1).kicks, 0);
    host.fabric.extint(false);
    CHECK(!host[0].extint_pending());
    host.fabric.nmi_line();
    host.fabric.nmi_line();
    CHECK_EQ(host.port(0).nmis, 2);
    CHECK_EQ(host.port(1).nmis, 2);
    CHECK(host.remote.lines == "");  // there is no other host to tell
}

STORY(
    "given a machine on two hosts, then what may have a destination elsewhere is forwarded, the rest is "
    "not") {
    HostOf host({0, 1, 16}, 40);
    const auto forwarded = [&] {
        const size_t count = host.remote.forwarded.size();
        host.remote.forwarded.clear();
        return count;
    };
    host.ipi(0, 1u << 24, 0x4055);
    CHECK_EQ(forwarded(), 0u);
    host.ipi(0, 9u << 24, 0x4055);
    CHECK_EQ(forwarded(), 1u);
    host.ipi(0, 0xFFu << 24, 0x4055);
    CHECK_EQ(forwarded(), 1u);
    host.ipi(0, 0, 0x4055 | 3u << 18);
    CHECK_EQ(forwarded(), 1u);
    host.ipi(0, 0, 0x4055 | 1u << 18);
    CHECK_EQ(forwarded(), 0u);
    host.ipi(0, 0x0100'0000, 0x4855);  // xAPIC logical IDs are not known here
    CHECK_EQ(forwarded(), 1u);
    host[0].write(kLdr, 0x0100'0000);
    host.ipi(0, 0x0100'0000, 0x4955);  // one is enough, and one is here
    CHECK_EQ(forwarded(), 0u);
    host.all_x2apic();
    CHECK(host[0].write_msr(0x830, uint64_t{0x0000'0003} << 32 | 0x4855));
    CHECK_EQ(forwarded(), 0u);
    CHECK(host[0].write_msr(0x830, uint64_t{0x0001'0003} << 32 | 0x4855));
    CHECK_EQ(forwarded(), 1u);
    host.fabric.extint(true);
    host.fabric.extint(false);
    host.fabric.nmi_line();
    CHECK(host.remote.lines == "+-n");
    host.fabric.set_extint(true);  // from the other host
    host.fabric.pulse_nmi();
    CHECK(host.remote.lines == "+-n");
}

STORY("given a message from another host, then it is delivered here and not sent on") {
    HostOf first({0, 1}, 4), second({2, 3}, 4);
    first.ipi(0, 0, 0x4055 | 3u << 18);
    CHECK(first.take(0x55) == Ids{1});
    CHECK_EQ(first.remote.forwarded.size(), 1u);
    CHECK(second.fabric.deliver(first.remote.forwarded[0]));
    CHECK((second.take(0x55) == Ids{2, 3}));
    CHECK(second.remote.forwarded.empty());
}

STORY("given an APIC ID twice, or beyond the table, then attaching it is refused") {
    HostOf host({0});
    CountingPort port;
    const auto refused = [&](uint32_t id) {
        Lapic lapic({.apic_id = id}, port, host.fabric, host.queue);
        try {
            host.fabric.attach(lapic);
        } catch (const std::invalid_argument&) {
            return true;
        }
        return false;
    };
    CHECK(refused(0));
    CHECK(refused(1u << 30));
}

STORY(
    "given four vCPUs that all interrupt each other while devices send MSIs, then nothing is lost or raced") {
    HostOf host({0, 1, 2, 3});
    constexpr unsigned kRounds = 10000;
    std::array<std::atomic<uint32_t>, 4> sent{}, seen{};
    std::atomic<unsigned> senders{4};
    std::vector<std::thread> vcpus;
    for (uint32_t id = 0; id < 4; ++id) {
        vcpus.emplace_back([&, id] {
            Lapic& own = host[id];
            const auto serve = [&] {
                for (int vector; (vector = own.acknowledge()) >= 0;) {
                    if (vector == 0x55) seen[id].store(sent[id].load(std::memory_order_relaxed));
                    own.write(kEoi, 0);
                }
            };
            for (unsigned round = 0; round < kRounds; ++round) {
                const uint32_t to = (id + 1 + round % 3) % 4;
                sent[to].fetch_add(1, std::memory_order_relaxed);
                own.write(kIcrHigh, to << 24);
                own.write(kIcrLow, 0x4055);
                own.write(kTpr, round % 7 == 0 ? 0xF0 : 0);
                serve();
            }
            own.write(kTpr, 0);
            senders.fetch_sub(1);
            while (senders.load() != 0) std::this_thread::yield();
            serve();
        });
    }
    std::thread device([&] {
        while (senders.load() != 0) {
            host.fabric.msi(0xFEEF'F000, 0x0066);
            host.fabric.msi(0xFEE0'0000, 0x8077);
            host.fabric.msi(0xFEEF'F00C, 0x0188);
            host.fabric.extint(true);
            host.fabric.extint(false);
            host.fabric.nmi_line();
            std::this_thread::yield();
        }
    });
    for (std::thread& vcpu : vcpus) vcpu.join();
    device.join();
    for (uint32_t id = 0; id < 4; ++id) CHECK_EQ(seen[id].load(), sent[id].load());
}

RUN_STORIES()
