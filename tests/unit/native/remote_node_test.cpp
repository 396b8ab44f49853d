// SPDX-License-Identifier: GPL-2.0-or-later
// Device accesses from another host: answered, in order, bounded, and never a wait without end.
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string_view>
#include <thread>
#include <tuple>
#include <vector>

#include "bus/node_server.hpp"
#include "bus/remote_node.hpp"
#include "check.hpp"

using coremesh::all_ones;
using coremesh::DeviceBackend;
using coremesh::DeviceReply;
using coremesh::DeviceRequest;
using coremesh::NodeServer;
using coremesh::RemoteNode;
using coremesh::Space;

namespace {

using Bytes = std::vector<uint8_t>;
using Kind = DeviceRequest::Kind;

constexpr uint8_t kHanging = 0x66;  // the vector whose end hangs, like port 0x666, while the gate is closed

template <typename Condition>
bool eventually(Condition&& condition) {
    for (int waited = 0; waited < 20'000; ++waited) {
        if (condition()) return true;
        std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
    return false;
}

/// Carries frames in order, on one thread that stands for the receiver's protocol thread.
class Wire {
  public:
    explicit Wire(std::function<void(Bytes)> deliver)
        : deliver_(std::move(deliver)), thread_([this] { run(); }) {}
    ~Wire() { stop(); }

    bool send(std::span<const uint8_t> bytes) {
        const std::lock_guard lock(mutex_);
        if (stopping_) return false;
        queue_.emplace_back(bytes.begin(), bytes.end());
        changed_.notify_one();
        return true;
    }
    void stop() {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
            changed_.notify_one();
        }
        if (thread_.joinable()) thread_.join();
    }

  private:
    void run() {
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
            if (stopping_) return;
            Bytes bytes = std::move(queue_.front());
            queue_.pop_front();
            lock.unlock();
            deliver_(std::move(bytes));
            lock.lock();
        }
    }
    std::function<void(Bytes)> deliver_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Bytes> queue_;
    bool stopping_ = false;
    std::thread thread_;
};

/// Notes what it is asked; port 0x100 + n reads n. A closed gate holds every read of port 0x666 and
/// every end of kHanging.
class Devices final : public DeviceBackend {
  public:
    uint64_t read(Space space, uint64_t address, unsigned size) noexcept override {
        if (address == 0x666) gate();
        note(Kind::kAccess, space, address, false, size, 0);
        return address == 0x999 ? ~uint64_t{0} : address - 0x100;
    }
    void write(Space space, uint64_t address, unsigned size, uint64_t value) noexcept override {
        note(Kind::kAccess, space, address, true, size, value);
    }
    void end_of_interrupt(uint8_t vector) noexcept override {
        if (vector == kHanging) gate();
        note(Kind::kEndOfInterrupt, Space::kPort, 0, false, 1, vector);
    }
    bool only_wakes(Space space, uint64_t address) const noexcept override {
        return space == Space::kMmio && address == bell;
    }
    int acknowledge() noexcept override { return next_vector; }
    void thread_begins() noexcept override { ++threads; }
    void thread_ends() noexcept override { --threads; }

    void close_gate() {
        const std::lock_guard lock(mutex_);
        closed_ = true;
    }
    void open_gate() {
        const std::lock_guard lock(mutex_);
        closed_ = false;
        changed_.notify_all();
    }
    size_t count() {
        const std::lock_guard lock(mutex_);
        return log_.size();
    }
    using Entry = std::tuple<Kind, Space, uint64_t, bool, unsigned, uint64_t>;
    std::vector<Entry> log() {
        const std::lock_guard lock(mutex_);
        return log_;
    }

    std::atomic<int> threads{0};
    std::atomic<int> next_vector{0x42};
    std::atomic<uint64_t> bell{0};

  private:
    void gate() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !closed_; });
    }
    void note(Kind kind, Space space, uint64_t address, bool write, unsigned size, uint64_t value) {
        const std::lock_guard lock(mutex_);
        log_.emplace_back(kind, space, address, write, size, value);
    }
    std::mutex mutex_;
    std::condition_variable changed_;
    bool closed_ = false;
    std::vector<Entry> log_;
};

/// Host 1's vCPUs, two wires, and host 0's devices.
struct TwoHosts {
    explicit TwoHosts(unsigned workers = 2) {
        node = std::make_unique<RemoteNode>([this](auto bytes) { return there->send(bytes); });
        server = std::make_unique<NodeServer>(
            devices, 2, [this](uint8_t, auto bytes) { return back->send(bytes); }, workers);
        back = std::make_unique<Wire>([this](Bytes bytes) { node->received(bytes); });
        there = std::make_unique<Wire>([this](Bytes bytes) { server->received(1, bytes); });
        node->thread_begins();
    }
    ~TwoHosts() {
        node->thread_ends();
        there->stop();
        server->stop();
        back->stop();
    }
    Devices devices;
    std::unique_ptr<Wire> there, back;
    std::unique_ptr<RemoteNode> node;
    std::unique_ptr<NodeServer> server;
};

}  // namespace

STORY("given a request, then its bytes are at the places that the header says, and back") {
    const DeviceRequest request{.ticket = 1, .write = true, .size = 1, .address = 0x3F8, .value = 0x41};
    const auto bytes = request.encode();
    std::string hex;
    for (const uint8_t byte : bytes) {
        char text[3];
        std::snprintf(text, sizeof text, "%02x", byte);
        hex += text;
    }
    CHECK_EQ(hex, "01000000000000000000010001000000f8030000000000004100000000000000");
    const auto again = DeviceRequest::decode(bytes);
    CHECK(again && again->encode() == bytes && again->write && again->address == 0x3F8);
    const auto reply = DeviceReply{7, ~uint64_t{0}}.encode();
    CHECK(DeviceReply::decode(reply)->value == ~uint64_t{0});
    CHECK(!DeviceReply::decode(std::span(reply).first(15)));
}

STORY("given bytes that no vCPU sends, then they are no request") {
    const DeviceRequest good{.ticket = 1, .space = Space::kMmio, .size = 4, .address = 0xFEC0'0000};
    CHECK(DeviceRequest::decode(good.encode()).has_value());
    const auto refused = [&](auto change) {
        DeviceRequest bad = good;
        change(bad);
        return !DeviceRequest::decode(bad.encode()).has_value();
    };
    CHECK(refused([](DeviceRequest& r) { r.size = 3; }));
    CHECK(refused([](DeviceRequest& r) { r.size = 0; }));
    CHECK(refused([](DeviceRequest& r) { r.size = 1u << 31; }));
    CHECK(refused([](DeviceRequest& r) { r.address = ~uint64_t{0}; }));
    CHECK(refused([](DeviceRequest& r) { r.space = Space::kPort; }));  // a port of 32 bits
    CHECK(refused([](DeviceRequest& r) { r.value = 1; }));             // a read with a value
    CHECK(refused([](DeviceRequest& r) { r.write = true, r.value = uint64_t{1} << 32; }));
    CHECK(refused([](DeviceRequest& r) { r = {.kind = Kind::kEndOfInterrupt, .value = 0x100}; }));
    CHECK(refused([](DeviceRequest& r) { r = {.kind = Kind::kAcknowledge, .value = 1}; }));
    CHECK(refused([](DeviceRequest& r) { r = {.space = Space::kPort, .size = 8, .address = 0x10}; }));
    std::mt19937 chance(1);
    for (int round = 0; round < 200'000; ++round) {
        auto bytes = good.encode();
        for (unsigned flips = 1 + chance() % 6; flips > 0; --flips) {
            bytes[chance() % bytes.size()] = static_cast<uint8_t>(chance());
        }
        const auto request = DeviceRequest::decode(bytes);
        if (!request) continue;
        CHECK(request->encode() == bytes);
        CHECK(request->size == 1 || request->size == 2 || request->size == 4 || request->size == 8);
    }
}

STORY("given a vCPU that reads and writes ports, then it gets the device's answers and each access is done") {
    TwoHosts hosts;
    CHECK_EQ(hosts.node->read(Space::kPort, 0x155, 1), 0x55u);
    CHECK_EQ(hosts.node->read(Space::kMmio, 0x999, 2), 0xFFFFu);
    hosts.node->write(Space::kPort, 0x3F8, 1, 0x1'41);
    // It has waited: the device has the value when the instruction is over.
    CHECK((hosts.devices.log().back() == Devices::Entry{Kind::kAccess, Space::kPort, 0x3F8, true, 1, 0x41}));
    CHECK_EQ(hosts.node->acknowledge(), 0x42);
    hosts.devices.next_vector = -1;
    CHECK_EQ(hosts.node->acknowledge(), -1);
    CHECK_EQ(hosts.node->counters().device_asked, 5u);
    CHECK_EQ(hosts.node->counters().device_posted, 0u);
    CHECK(eventually([&] { return hosts.server->counters().device_served == 5; }));
    CHECK(eventually([&] { return hosts.devices.threads == 2; }));
}

STORY(
    "given ends of interrupts, then the vCPU does not wait, and all come in order before what it asks "
    "later") {
    TwoHosts hosts;
    for (unsigned index = 0; index < 1000; ++index) {
        hosts.node->end_of_interrupt(static_cast<uint8_t>(index % kHanging));
        if (index % 100 == 99) {
            hosts.node->read(Space::kPort, 0x100, 1);
            CHECK_EQ(hosts.devices.count(), (index + 1) + (index / 100 + 1));
        }
    }
    unsigned next = 0;
    for (const auto& [kind, space, address, write, size, value] : hosts.devices.log()) {
        if (kind == Kind::kEndOfInterrupt) CHECK_EQ(value, next++ % kHanging);
    }
    CHECK_EQ(next, 1000u);
    CHECK_EQ(hosts.node->counters().device_posted, 1000u);
    CHECK_EQ(hosts.node->counters().device_asked, 10u);
    CHECK_EQ(hosts.server->counters().device_refused, 0u);
    CHECK_EQ(hosts.node->counters().device_strays, 0u);
}

STORY("given a write, of a port or of memory, then the vCPU waits until it is done") {
    TwoHosts hosts;
    hosts.node->write(Space::kMmio, 0xFEC0'0010, 4, 1);
    CHECK_EQ(hosts.devices.count(), 1u);
    hosts.node->write(Space::kPort, 0xCF8, 4, 1);
    CHECK_EQ(hosts.devices.count(), 2u);
    CHECK_EQ(hosts.node->counters().device_posted, 0u);
}

STORY(
    "given a doorbell, then the vCPU waits for the first ring alone, and again when the guest has moved it") {
    TwoHosts hosts;
    hosts.devices.bell = 0xC000'3000;
    for (unsigned ring = 0; ring < 10; ++ring) hosts.node->write(Space::kMmio, 0xC000'3000, 2, 0);
    CHECK_EQ(hosts.node->counters().device_asked, 1u);
    CHECK_EQ(hosts.node->counters().device_posted, 9u);
    // All are there before what is asked later.
    hosts.node->read(Space::kPort, 0x100, 1);
    CHECK_EQ(hosts.devices.count(), 11u);
    hosts.node->write(Space::kMmio, 0xC000'3004, 2, 0);
    CHECK_EQ(hosts.node->counters().device_asked, 3u);
    hosts.devices.bell = 0xD000'3000;
    hosts.node->write(Space::kMmio, 0xC000'3000, 2, 0);
    hosts.node->read(Space::kPort, 0x100, 1);
    CHECK_EQ(hosts.node->counters().device_posted, 10u);
    hosts.node->write(Space::kMmio, 0xC000'3000, 2, 0);
    CHECK_EQ(hosts.node->counters().device_posted, 10u);
    CHECK_EQ(hosts.node->counters().device_strays, 0u);
}

STORY("given a device that hangs, then a vCPU that posts is held back, and goes on when the device does") {
    TwoHosts hosts;
    hosts.devices.close_gate();
    std::atomic<unsigned> done{0};
    std::thread vcpu([&] {
        hosts.node->thread_begins();
        for (unsigned index = 0; index < RemoteNode::kPosted + 4; ++index) {
            hosts.node->end_of_interrupt(kHanging);
            ++done;
        }
        hosts.node->thread_ends();
    });
    CHECK(eventually([&] { return hosts.node->counters().device_held_back == 1; }));
    CHECK_EQ(done, RemoteNode::kPosted);
    CHECK(eventually([&] { return hosts.server->counters().device_queue == RemoteNode::kPosted - 1; }));
    // Another vCPU's access does not wait behind it.
    CHECK_EQ(hosts.node->read(Space::kPort, 0x107, 1), 7u);
    hosts.devices.open_gate();
    vcpu.join();
    CHECK(eventually([&] { return hosts.devices.count() == RemoteNode::kPosted + 5; }));
    CHECK_EQ(hosts.server->counters().device_refused, 0u);
    CHECK(hosts.server->counters().device_queue_longest >= RemoteNode::kPosted - 1);
}

STORY("given many vCPUs, then each one's accesses are served in its order, and every answer is its own") {
    TwoHosts hosts(3);
    std::vector<std::thread> vcpus;
    std::atomic<int> wrong{0};
    for (unsigned id = 0; id < 8; ++id) {
        vcpus.emplace_back([&, id] {
            hosts.node->thread_begins();
            for (unsigned round = 0; round < 300; ++round) {
                hosts.node->write(Space::kMmio, 0xD000'0000 + id * 8, 4, round * 2);
                hosts.node->write(Space::kPort, 0x3000 + id, 4, round * 2 + 1);
                const uint64_t port = 0x100 + (id * 300 + round) % 0x500;
                if (hosts.node->read(Space::kPort, port, 4) != port - 0x100) ++wrong;
            }
            hosts.node->thread_ends();
        });
    }
    for (std::thread& vcpu : vcpus) vcpu.join();
    CHECK_EQ(wrong, 0);
    std::map<uint64_t, uint64_t> next;
    for (const auto& [kind, space, address, write, size, value] : hosts.devices.log()) {
        if (!write) continue;
        const uint64_t id = space == Space::kMmio ? (address - 0xD000'0000) / 8 : address - 0x3000;
        CHECK_EQ(value, next[id]++);
    }
    CHECK_EQ(next.size(), 8u);
    CHECK(eventually([&] { return hosts.server->counters().device_served == 8u * 900u; }));
    CHECK_EQ(hosts.server->counters().device_queue, 0u);
}

STORY("given a machine that stops, then every wait ends at once with all ones, and no new one begins") {
    TwoHosts hosts;
    hosts.devices.close_gate();
    std::atomic<int> ones{0};
    std::vector<std::thread> vcpus;
    for (int id = 0; id < 4; ++id) {
        vcpus.emplace_back([&] {
            hosts.node->thread_begins();
            if (hosts.node->read(Space::kPort, 0x666, 2) == 0xFFFF) ++ones;
            if (hosts.node->acknowledge() == -1) ++ones;
            hosts.node->end_of_interrupt(1);
            hosts.node->thread_ends();
        });
    }
    CHECK(eventually([&] { return hosts.node->counters().device_asked == 4; }));
    CHECK_EQ(ones, 0);
    hosts.node->cancel();
    for (std::thread& vcpu : vcpus) vcpu.join();
    CHECK_EQ(ones, 8);
    CHECK_EQ(hosts.node->counters().device_cut_off, 12u);
    hosts.devices.open_gate();  // the answers still come, to nobody
    CHECK(eventually([&] { return hosts.server->counters().device_served == 4; }));
}

STORY("given a link that takes no more, then the access reads all ones instead of waiting") {
    RemoteNode node([](auto) { return false; });
    CHECK_EQ(node.read(Space::kPort, 0x60, 1), 0xFFu);
    CHECK_EQ(node.counters().device_cut_off, 1u);
    node.thread_ends();
}

STORY("given answers that nobody waits for, then they are counted and nobody is told") {
    std::vector<Bytes> sent;
    RemoteNode node([&](auto bytes) {
        sent.emplace_back(bytes.begin(), bytes.end());
        return true;
    });
    const auto answer = [&](uint64_t ticket) { node.received(DeviceReply{ticket, 5}.encode()); };
    answer(0);
    answer(1);
    answer(~uint64_t{0});
    node.received({});
    CHECK_EQ(node.counters().device_strays, 4u);
    node.end_of_interrupt(1);
    node.end_of_interrupt(2);
    const uint64_t first = DeviceRequest::decode(sent[0])->ticket,
                   second = DeviceRequest::decode(sent[1])->ticket;
    answer(second);  // out of order
    CHECK_EQ(node.counters().device_strays, 5u);
    answer(first);
    answer(first);  // twice
    answer(second);
    answer(second);
    CHECK_EQ(node.counters().device_strays, 7u);
    node.thread_ends();
}

STORY("given a host that sends rubbish, then it is refused and counted, and no device hears of it") {
    Devices devices;
    std::atomic<int> answers{0};
    NodeServer server(devices, 3, [&](uint8_t, auto) { return ++answers > 0; });
    const auto read = [](uint64_t ticket) {
        return DeviceRequest{.ticket = ticket, .size = 1, .address = 0x101}.encode();
    };
    std::mt19937 chance(3);
    for (int round = 0; round < 1000; ++round) {
        Bytes noise(chance() % 64);
        for (uint8_t& byte : noise) byte = static_cast<uint8_t>(chance());
        server.received(1, noise);
    }
    server.received(0, read(1));  // host 0 has the devices itself
    server.received(3, read(1));  // no such host
    server.received(1, read(uint64_t{NodeServer::kLanes} << DeviceRequest::kLaneShift));  // no such lane
    CHECK_EQ(server.counters().device_refused, 1003u);
    CHECK_EQ(devices.count(), 0u);
    server.received(2, read(1));
    CHECK(eventually([&] { return answers == 1; }));
    CHECK_EQ(devices.count(), 1u);
}

STORY("given a host that does not wait for answers, then its queue is bounded and the rest is refused") {
    Devices devices;
    devices.close_gate();
    std::atomic<int> answers{0};
    NodeServer server(
        devices, 2, [&](uint8_t, auto) { return ++answers > 0; }, 1);
    const auto stuck = DeviceRequest{.ticket = 1, .size = 1, .address = 0x666}.encode();
    server.received(1, stuck);
    CHECK(eventually([&] { return server.counters().device_queue == 0; }));
    for (unsigned index = 0; index < NodeServer::kDepth + 10; ++index) server.received(1, stuck);
    CHECK_EQ(server.counters().device_refused, 10u);
    CHECK_EQ(server.counters().device_queue, NodeServer::kDepth);
    devices.open_gate();
    CHECK(eventually([&] { return answers == 1 + static_cast<int>(NodeServer::kDepth); }));
    server.stop();
    CHECK_EQ(devices.threads, 0);
    CHECK_EQ(devices.count(), 1u + NodeServer::kDepth);
}

RUN_STORIES()
