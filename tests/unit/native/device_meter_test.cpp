// SPDX-License-Identifier: GPL-2.0-or-later
// Which vCPU accessed which device: counted on many threads at once, while devices move, for other hosts too.
#include "bus/device_meter.hpp"

#include <malloc.h>

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "bus/node_server.hpp"
#include "bus/remote_node.hpp"
#include "check.hpp"

using coremesh::Bus;
using coremesh::DeviceBackend;
using coremesh::DeviceMeter;
using coremesh::MeteredNode;
using coremesh::NodeServer;
using coremesh::RemoteNode;
using coremesh::Space;
using coremesh::thread_vcpu;

namespace {

/// Answers with the address. A read of port 0x200 stays in the device until it is let go.
class Devices final : public DeviceBackend {
  public:
    uint64_t read(Space, uint64_t address, unsigned) noexcept override {
        while (address == 0x200 && !open.load()) std::this_thread::yield();
        return address;
    }
    void write(Space, uint64_t, unsigned, uint64_t) noexcept override {}
    void end_of_interrupt(uint8_t) noexcept override {}
    int acknowledge() noexcept override { return -1; }
    std::atomic<bool> open{true};
};

std::map<std::pair<unsigned, unsigned>, DeviceMeter::Use> by_pair(const DeviceMeter& meter) {
    std::map<std::pair<unsigned, unsigned>, DeviceMeter::Use> found;
    for (const auto& use : meter.uses()) found.emplace(std::pair(use.device, use.vcpu), use);
    return found;
}

}  // namespace

STORY("given vCPUs that access devices at once, then each pair has its own count and no access is lost") {
    const auto meter = std::make_shared<DeviceMeter>();
    const auto devices = std::make_shared<Devices>();
    MeteredNode node(devices, meter);
    meter->place({{Space::kPort, 0x100, 0x107, 1}, {Space::kMmio, 0xFED0'0000, 0xFED0'0FFF, 2}});
    constexpr unsigned kRounds = 20'000;
    std::vector<std::thread> vcpus;
    for (unsigned vcpu = 0; vcpu < 4; ++vcpu) {
        vcpus.emplace_back([&, vcpu] {
            thread_vcpu = vcpu;
            for (unsigned round = 0; round < kRounds; ++round) {
                node.read(Space::kPort, 0x107, 1);
                if (vcpu % 2) node.write(Space::kMmio, 0xFED0'0800, 4, round);
                node.read(Space::kPort, 0x108, 1);  // no device
            }
        });
    }
    for (auto& vcpu : vcpus) vcpu.join();
    const auto uses = by_pair(*meter);
    CHECK_EQ(uses.size(), 6u);
    for (unsigned vcpu = 0; vcpu < 4; ++vcpu) {
        CHECK_EQ(uses.at({1, vcpu}).accesses, kRounds);
        CHECK_EQ(uses.at({1, vcpu}).bytes, kRounds);
        CHECK(uses.at({1, vcpu}).ns > 0);
    }
    CHECK_EQ(uses.at({2, 1}).bytes, 4u * kRounds);
    CHECK_EQ(meter->depths().size(), 2u);
    for (const auto& depth : meter->depths()) CHECK_EQ(depth.inside, 0u);
}

STORY("given a device that keeps its callers, then they are seen in it, and the most at once is remembered") {
    const auto meter = std::make_shared<DeviceMeter>();
    const auto devices = std::make_shared<Devices>();
    MeteredNode node(devices, meter);
    meter->place({{Space::kPort, 0x200, 0x200, 9}});
    devices->open = false;
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller) {
        callers.emplace_back([&] { node.read(Space::kPort, 0x200, 1); });
    }
    while (meter->depths().at(0).inside < 3) std::this_thread::yield();
    devices->open = true;
    for (auto& caller : callers) caller.join();
    CHECK_EQ(meter->depths().at(0).inside, 0u);
    CHECK_EQ(meter->depths().at(0).most, 3u);
    CHECK_EQ(by_pair(*meter).at({9, coremesh::kNoVcpu}).accesses, 3u);  // threads that are no vCPU's
}

STORY("given vCPUs that wait in a device together, then the meter knows of it without a look meanwhile") {
    const auto meter = std::make_shared<DeviceMeter>();
    const auto devices = std::make_shared<Devices>();
    MeteredNode node(devices, meter);
    meter->place({{Space::kPort, 0x200, 0x200, 9}});
    for (unsigned vcpu : {3u, 7u, 200u}) {
        std::thread first([&] {
            thread_vcpu = vcpu;
            node.read(Space::kPort, 0x200, 1);
        });
        first.join();
    }
    CHECK_EQ(meter->depths().at(0).most, 1u);
    devices->open = false;
    std::atomic<unsigned> arrived{0};
    std::vector<std::thread> callers;
    for (unsigned vcpu : {3u, 7u, 200u}) {
        callers.emplace_back([&, vcpu] {
            thread_vcpu = vcpu;
            ++arrived;
            node.read(Space::kPort, 0x200, 1);
        });
    }
    while (arrived < 3) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    devices->open = true;
    for (auto& caller : callers) caller.join();
    CHECK_EQ(meter->depths().at(0).inside, 0u);
    CHECK_EQ(meter->depths().at(0).most, 3u);
}

STORY("given a device that moves while it is accessed, then what was counted stays and goes on elsewhere") {
    const auto meter = std::make_shared<DeviceMeter>();
    const auto devices = std::make_shared<Devices>();
    MeteredNode node(devices, meter);
    std::atomic<bool> done{false};
    std::thread vcpu([&] {
        thread_vcpu = 0;
        while (!done) {
            node.read(Space::kPort, 0x300, 1);
            node.read(Space::kMmio, 0x5000, 4);
        }
    });
    for (unsigned round = 0; round < 200; ++round) {
        const bool here = round % 2 == 0;
        meter->place({{Space::kPort, here ? 0x300u : 0x400u, here ? 0x300u : 0x400u, 1},
                      {Space::kMmio, here ? 0x5000u : 0x6000u, here ? 0x5FFFu : 0x6FFFu, 2}});
    }
    meter->place({{Space::kPort, 0x300, 0x300, 1}});
    while (by_pair(*meter).count({1, 0}) == 0) std::this_thread::yield();
    done = true;
    vcpu.join();
    const uint64_t before = by_pair(*meter).at({1, 0}).accesses;
    meter->place({});
    node.read(Space::kPort, 0x300, 1);
    CHECK_EQ(by_pair(*meter).at({1, 0}).accesses, before);
}

STORY("given a guest that moves a device without end, then no memory is taken for where it was") {
    DeviceMeter meter;
    const auto taken = [] { return static_cast<uint64_t>(mallinfo2().uordblks); };
    const auto move = [&](uint64_t round) {
        std::vector<DeviceMeter::Place> places;
        for (unsigned device = 1; device < 64; ++device) {
            const uint64_t at = 0x1000 * (64 * round + device);
            places.push_back({Space::kMmio, at, at + 0xFFF, device});
        }
        meter.place(places);
    };
    move(0);
    const uint64_t before = taken();
    for (uint64_t round = 1; round < 1000; ++round) move(round);
    CHECK(taken() < before + 100'000);  // lists that are kept would be 2 MB
}

STORY("given a vCPU of another host, then its accesses are counted by its number in the machine") {
    const auto meter = std::make_shared<DeviceMeter>();
    MeteredNode devices(std::make_shared<Devices>(), meter);
    meter->place({{Space::kPort, 0x100, 0x107, 1}});
    std::unique_ptr<RemoteNode> node;
    // Hosts 0, 1 and 2 have 2, 3 and 1 vCPUs.
    NodeServer server(devices, 3,
                      [&](uint8_t, std::span<const uint8_t> bytes) {
                          node->received(bytes);
                          return true;
                      },
                      2, {0, 2, 5, 6});
    node = std::make_unique<RemoteNode>([&](std::span<const uint8_t> bytes) {
        server.received(1, bytes);
        return true;
    });
    for (const unsigned vcpu : {2u, 0u}) {
        std::thread thread([&] {
            thread_vcpu = vcpu;
            node->thread_begins();
            for (unsigned round = 0; round <= vcpu; ++round) node->read(Space::kPort, 0x100, 1);
            node->thread_ends();
        });
        thread.join();
    }
    server.stop();
    const auto uses = by_pair(*meter);
    CHECK_EQ(uses.size(), 2u);
    CHECK_EQ(uses.at({1, 2}).accesses, 1u);
    CHECK_EQ(uses.at({1, 4}).accesses, 3u);
}

STORY("given addresses claimed while others are looked up, then each access that begins later finds them") {
    Bus bus;
    bus.connect(std::make_shared<Devices>());
    std::atomic<uint64_t> claimed{0};
    std::atomic<bool> done{false};
    std::thread vcpu([&] {
        while (!done) {
            const uint64_t until = claimed.load();
            if (until)
                CHECK_EQ(bus.mmio_read(0x1'0000 + 0x1000 * (until - 1), 8), 0x1'0000 + 0x1000 * (until - 1));
            if (until)
                CHECK_EQ(bus.port_read(static_cast<uint32_t>(0x100 + until - 1), 4), 0x100 + until - 1);
        }
    });
    for (uint64_t number = 0; number < 500; ++number) {
        CHECK_EQ(bus.mmio_read(0x1'0000 + 0x1000 * number, 8), ~uint64_t{0});
        bus.claim(Space::kMmio, 0x1'0000 + 0x1000 * number, 0x1'0FFF + 0x1000 * number);
        bus.claim(Space::kPort, 0x100 + number, 0x100 + number);
        claimed = number + 1;
    }
    done = true;
    vcpu.join();
}

RUN_STORIES()
