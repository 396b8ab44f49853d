// SPDX-License-Identifier: GPL-2.0-or-later
// Ports of native devices: which accesses they decode, and what vCPUs find while the guest moves them.
#include "bus/native_device.hpp"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "check.hpp"

using namespace coremesh;

namespace {

/// Answers with the offset.
class Echo final : public NativeDevice {
  public:
    uint32_t read(unsigned offset, unsigned) noexcept override { return offset; }
    void write(unsigned offset, unsigned, uint32_t value) noexcept override {
        last_offset = offset;
        last_value = value;
    }
    std::atomic<unsigned> last_offset{0}, last_value{0};
};

/// What the native devices leave.
class Rest final : public DeviceBackend {
  public:
    uint64_t read(Space, uint64_t, unsigned) noexcept override { return 0x99; }
    void write(Space, uint64_t, unsigned, uint64_t) noexcept override { ++writes; }
    void end_of_interrupt(uint8_t) noexcept override {}
    int acknowledge() noexcept override { return -1; }
    std::atomic<unsigned> writes{0};
};

}  // namespace

STORY("given a device's ranges, then it decodes aligned accesses of its sizes and the node has the others") {
    const auto ports = std::make_shared<NativePorts>();
    const auto rest = std::make_shared<Rest>();
    const auto echo = std::make_shared<Echo>();
    const auto window = ports->add(echo);
    NativePortNode node(rest, ports);
    CHECK_EQ(node.read(Space::kPort, 0x1F3, 1), 0x99u);
    window->move({{0x1F0, 0x1F7, 0, 1}, {0x1F0, 0x1F1, 0, 2}, {0xC000, 0xC007, 16, 7}});
    CHECK_EQ(node.read(Space::kPort, 0x1F3, 1), 3u);
    CHECK_EQ(node.read(Space::kPort, 0x1F0, 2), 0u);
    CHECK_EQ(node.read(Space::kPort, 0x1F2, 2), 0x99u);
    CHECK_EQ(node.read(Space::kPort, 0xC004, 4), 20u);
    CHECK_EQ(node.read(Space::kPort, 0xC002, 4), 0x99u);
    CHECK_EQ(node.read(Space::kPort, 0xC006, 2), 22u);
    CHECK_EQ(node.read(Space::kMmio, 0x1F3, 1), 0x99u);
    node.write(Space::kPort, 0x1F7, 1, 0x1EC);
    CHECK_EQ(echo->last_offset.load(), 7u);
    CHECK_EQ(echo->last_value.load(), 0xECu);
    node.write(Space::kPort, 0x1F8, 1, 1);
    CHECK_EQ(rest->writes.load(), 1u);
}

STORY("given vCPUs that access a device while it moves, then each reaches the register that it named") {
    const auto ports = std::make_shared<NativePorts>();
    const auto window = ports->add(std::make_shared<Echo>());
    NativePortNode node(std::make_shared<Rest>(), ports);
    std::atomic<bool> over{false};
    std::vector<std::thread> vcpus;
    for (unsigned i = 0; i < 3; ++i) {
        vcpus.emplace_back([&] {
            while (!over) {
                const uint64_t low = node.read(Space::kPort, 0xC002, 1),
                               high = node.read(Space::kPort, 0xD002, 1);
                CHECK(low == 18 || low == 0x99);
                CHECK(high == 18 || high == 0x99);
            }
        });
    }
    for (unsigned i = 0; i < 2000; ++i) {
        window->move({{static_cast<uint16_t>(i % 2 ? 0xC000 : 0xD000),
                       static_cast<uint16_t>(i % 2 ? 0xC007 : 0xD007), 16, 7}});
        if (i % 50 == 0) std::this_thread::yield();
    }
    over = true;
    for (std::thread& vcpu : vcpus) vcpu.join();
}

STORY("given more ranges or devices than there can be, then they are refused") {
    NativePorts ports;
    const auto echo = std::make_shared<Echo>();
    const auto window = ports.add(echo);
    CHECK(check::throws<std::length_error>([&] { window->move(std::vector<NativePortWindow::Range>(9)); }));
    for (unsigned i = 1; i < NativePorts::kMost; ++i) ports.add(echo);
    CHECK(check::throws<std::length_error>([&] { ports.add(echo); }));
}

RUN_STORIES()
