// SPDX-License-Identifier: GPL-2.0-or-later
// A queue whose driver is on another host: its requests are carried out as ever, and the device moves no
// page.
#include "hw/native/remote_queue.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "check.hpp"
#include "hw/native/block_worker.hpp"
#include "hw/native/bytes.hpp"
#include "hw/native/frames.hpp"
#include "hw/native/virt_queue.hpp"

using namespace coremesh;
using namespace coremesh::virtio;

namespace {

constexpr uint64_t kDescriptors = 0x1000, kAvailable = 0x2000, kUsed = 0x3000, kBuffers = 0x10000;
constexpr uint64_t kBell = 0xFE00'0000;
constexpr uint16_t kSize = 16;

/// RAM as the driver's host has it.
class Ram final : public BusMaster {
  public:
    bool read(uint64_t gpa, void* to, uint64_t length) noexcept override {
        const std::lock_guard lock(mutex_);
        if (gpa + length > bytes_.size()) return false;
        std::memcpy(to, &bytes_[gpa], length);
        return true;
    }
    bool write(uint64_t gpa, const void* from, uint64_t length) noexcept override {
        const std::lock_guard lock(mutex_);
        if (gpa + length > bytes_.size()) return false;
        std::memcpy(&bytes_[gpa], from, length);
        writer_ = std::this_thread::get_id();
        return true;
    }
    void message(uint64_t, uint32_t) noexcept override {}
    bool written_by_me() {
        const std::lock_guard lock(mutex_);
        return writer_ == std::this_thread::get_id();
    }

  private:
    std::mutex mutex_;
    std::thread::id writer_;
    std::vector<uint8_t> bytes_ = std::vector<uint8_t>(16 << 20);
};

/// The same RAM from the device's host. `moved` counts accesses that would move pages.
class FromAfar final : public BusMaster {
  public:
    explicit FromAfar(Ram& ram) : ram_(ram) {}
    bool read(uint64_t gpa, void* to, uint64_t length) noexcept override {
        ++moved;
        return ram_.read(gpa, to, length);
    }
    bool write(uint64_t gpa, const void* from, uint64_t length) noexcept override {
        ++moved;
        return ram_.write(gpa, from, length);
    }
    bool call(HostId to, std::span<const uint8_t> call, std::vector<uint8_t>& answer) noexcept override {
        ++calls;
        return to == 1 && helps && serve_remote_queue(ram_, bells, call, answer);
    }
    void message(uint64_t, uint32_t) noexcept override {}

    LocalDoorbells bells;
    std::atomic<unsigned> moved{0}, calls{0};
    std::atomic<bool> helps{true};

  private:
    Ram& ram_;
};

class MemoryStore final : public BlockStore {
  public:
    int read(uint64_t offset, void* to, uint64_t length) noexcept override {
        if (meanwhile) meanwhile();
        std::memcpy(to, &bytes[offset], length);
        return offset == failing ? -EIO : 0;
    }
    int write(uint64_t offset, const void* from, uint64_t length) noexcept override {
        std::memcpy(&bytes[offset], from, length);
        return 0;
    }
    int read(uint64_t offset, std::vector<iovec>& buffers) noexcept override {
        if (copies) return -ENOTSUP;
        for (const iovec& each : buffers) {
            if (const int error = read(offset, each.iov_base, each.iov_len)) return error;
            offset += each.iov_len;
        }
        return 0;
    }
    int write(uint64_t offset, std::vector<iovec>& buffers) noexcept override {
        if (copies) return -ENOTSUP;
        for (const iovec& each : buffers) {
            write(offset, each.iov_base, each.iov_len);
            offset += each.iov_len;
        }
        return 0;
    }
    int flush() noexcept override { return 0; }
    int discard(uint64_t, uint64_t) noexcept override { return 0; }
    int zeroes(uint64_t, uint64_t, bool) noexcept override { return 0; }
    std::vector<uint8_t> bytes = std::vector<uint8_t>(16 << 20);
    bool copies = false;
    std::function<void()> meanwhile;  // during a read
    uint64_t failing = ~uint64_t{0};
};

struct Buffer {
    uint64_t gpa;
    uint32_t length;
    bool writable;
};

/// A driver on host 1.
struct Machine {
    Machine() {
        queue->start({.size = kSize,
                      .descriptors = kDescriptors,
                      .available = kAvailable,
                      .used = kUsed,
                      .event_idx = true});
        queue->ring_from(1, kBell);  // before a worker looks for the first time
    }

    template <typename T>
    T get(uint64_t gpa) {
        T value{};
        ram.read(gpa, &value, sizeof value);
        return value;
    }
    template <typename T>
    void put(uint64_t gpa, T value) {
        ram.write(gpa, &value, sizeof value);
    }
    /// One request; its number.
    uint16_t add(const std::vector<Buffer>& buffers) {
        const uint16_t head = next_;
        for (size_t i = 0; i < buffers.size(); ++i, ++next_) {
            const uint64_t at = kDescriptors + 16 * (next_ % kSize);
            put(at, buffers[i].gpa);
            put(at + 8, buffers[i].length);
            put<uint16_t>(at + 12, (buffers[i].writable ? 2 : 0) | (i + 1 < buffers.size() ? 1 : 0));
            put<uint16_t>(at + 14, (next_ + 1) % kSize);
        }
        put<uint16_t>(kAvailable + 4 + 2 * (made_ % kSize), head % kSize);
        put<uint16_t>(kAvailable + 2, ++made_);
        return made_;
    }
    uint16_t used() { return get<uint16_t>(kUsed + 2); }
    bool wait(uint16_t count) {
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (used() != count) {
            if (std::chrono::steady_clock::now() > deadline) return false;
            std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
        return true;
    }

    Ram ram;
    std::shared_ptr<FromAfar> bus = std::make_shared<FromAfar>(ram);
    std::shared_ptr<VirtQueue> queue =
        std::make_shared<VirtQueue>(bus, std::make_shared<Interrupts>(bus, 2, [](bool) {}));

  private:
    uint16_t next_ = 0, made_ = 0;
};

struct WithDisk : Machine {
    WithDisk() {
        disk->store = store;
        disk->sectors = store->bytes.size() / 512;
        for (size_t i = 0; i < store->bytes.size(); ++i)
            store->bytes[i] = static_cast<uint8_t>(i * 7 + i / 512);
        worker.start("disk");
    }
    ~WithDisk() { worker.stop(); }
    /// Read or write of `length` bytes at `sector`, in pieces; the status.
    uint8_t request(uint32_t type, uint64_t sector, uint32_t length) {
        put<uint32_t>(kBuffers, type);
        put<uint32_t>(kBuffers + 4, 0);
        put<uint64_t>(kBuffers + 8, sector);
        put<uint8_t>(kBuffers + 16, 0xFF);
        std::vector<Buffer> buffers{{kBuffers, 16, false}};
        if (length) {
            buffers.push_back({kBuffers + 0x1000, length / 2, type == 0});
            buffers.push_back({kBuffers + 0x2000 + length, length - length / 2, type == 0});
        }
        buffers.push_back({kBuffers + 16, 1, true});
        const uint16_t number = add(buffers);
        queue->ring_from(from, kBell);
        CHECK(wait(number));
        return get<uint8_t>(kBuffers + 16);
    }
    std::vector<uint8_t> data(uint32_t length) {
        std::vector<uint8_t> found(length);
        ram.read(kBuffers + 0x1000, found.data(), length / 2);
        ram.read(kBuffers + 0x2000 + length, &found[length / 2], length - length / 2);
        return found;
    }
    HostId from = 1;
    std::shared_ptr<MemoryStore> store = std::make_shared<MemoryStore>();
    std::shared_ptr<BlockDisk> disk = std::make_shared<BlockDisk>();
    BlockWorker worker{queue, disk, [this] { broken = true; }};
    std::atomic<bool> broken{false};
};

}  // namespace

STORY("given a driver on another host, when it reads and writes a disk, then no page is moved for it") {
    for (const bool copies : {false, true}) {
        WithDisk machine;
        machine.store->copies = copies;
        for (const uint32_t length : {512u, 4096u, 1u << 20}) {
            CHECK_EQ(machine.request(0, 5, length), 0u);
            CHECK(std::memcmp(machine.data(length).data(), &machine.store->bytes[5 * 512], length) == 0);
            CHECK_EQ(machine.request(1, 9, length), 0u);
            CHECK(std::memcmp(machine.data(length).data(), &machine.store->bytes[9 * 512], length) == 0);
            CHECK_EQ(machine.request(4, 0, 0), 0u);
        }
        CHECK_EQ(machine.bus->moved.load(), 0u);
        CHECK(!machine.broken);
    }
}

STORY("given a disk that fails or a sector that is not there, then the driver on another host is told") {
    WithDisk machine;
    machine.store->failing = 512;
    CHECK_EQ(machine.request(0, 1, 4096), 1u);
    CHECK_EQ(machine.request(0, machine.disk->sectors, 512), 1u);
    CHECK_EQ(machine.request(99, 0, 512), 2u);
    CHECK_EQ(machine.request(0, 2, 512), 0u);
    CHECK_EQ(machine.bus->moved.load(), 0u);
}

STORY(
    "given a request too large for messages, or a host that does not help, then the device moves the bytes") {
    WithDisk machine;
    CHECK_EQ(machine.request(0, 0, 5 << 20), 0u);
    CHECK(machine.data(5 << 20) ==
          std::vector<uint8_t>(machine.store->bytes.begin(), machine.store->bytes.begin() + (5 << 20)));
    machine.bus->helps = false;
    CHECK_EQ(machine.request(0, 3, 4096), 0u);
    CHECK(std::memcmp(machine.data(4096).data(), &machine.store->bytes[3 * 512], 4096) == 0);
    CHECK(machine.bus->moved.load() > 0);
    CHECK(!machine.broken);
}

STORY("given drivers on both hosts that ring in turn, then every request is carried out once") {
    WithDisk machine;
    for (unsigned i = 0; i < 200; ++i) {
        machine.from = i % 3 == 0 ? kNoHost : HostId{1};
        CHECK_EQ(machine.request(i & 1, i, 1024), 0u);
    }
    const auto counters = machine.worker.counters();
    CHECK_EQ(counters.reads, 100u);
    CHECK_EQ(counters.writes, 100u);
}

STORY(
    "given a request taken on another host, when this host rings before it is answered, then it is "
    "answered") {
    WithDisk machine;
    machine.store->meanwhile = [&] { machine.queue->ring_from(kNoHost, kBell); };
    CHECK_EQ(machine.request(0, 5, 4096), 0u);
    CHECK(machine.bus->calls.load() > 0);
    CHECK(std::memcmp(machine.data(4096).data(), &machine.store->bytes[5 * 512], 4096) == 0);
    CHECK(!machine.broken);
}

STORY(
    "given a driver on another host that does what none does, then the queue is broken and the disk stands") {
    WithDisk machine;
    machine.add({{0xFFFF'0000'0000, 16, false}, {kBuffers, 1, true}});
    machine.queue->ring_from(1, kBell);
    for (unsigned i = 0; i < 2000 && !machine.broken; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK(machine.broken);
    CHECK(machine.queue->fault() == QueueFault::kMemory);
}

STORY("given a driver that prints on another host, then one call takes all, and no page is moved for it") {
    Machine machine;
    std::string seen;
    unsigned by_itself = 0;
    std::thread device([&] {
        while (seen.size() < 26 * 4) seen += take_text(*machine.queue, 65536, 20'000'000).bytes;
    });
    for (char letter = 'a'; letter <= 'z'; ++letter) {
        machine.put<uint32_t>(kBuffers, 0x01010101u * static_cast<uint8_t>(letter));
        const uint16_t number = machine.add({{kBuffers, 4, false}});
        // The driver's vCPU rings where the work is, if it is there.
        if (!machine.bus->bells.ring(kBell)) machine.queue->ring_from(1, kBell);
        CHECK(machine.wait(number));
        by_itself += machine.ram.written_by_me();
    }
    device.join();
    std::string expected;
    for (char letter = 'a'; letter <= 'z'; ++letter) expected.append(4, letter);
    CHECK(seen == expected);
    CHECK_EQ(machine.bus->moved.load(), 0u);
    // One a pause of this thread of 20 ms, which a crowded host makes now and then, and not one a line.
    CHECK(machine.bus->calls.load() < 20);
    // Its vCPU takes the text, but where the thread of the step has just begun.
    CHECK(by_itself > 13);
}

STORY(
    "given a driver that sends frames on another host, then one call takes and answers them, and no page "
    "moves") {
    Machine machine;
    constexpr uint32_t kBytes = kFrameHeader + 60;
    const auto send = [&](uint64_t at, uint8_t fill, uint32_t bytes) {
        for (uint32_t i = 0; i < bytes; ++i) machine.put<uint8_t>(at + i, i < kFrameHeader ? 0xEE : fill);
        return machine.add({{at, 20, false}, {at + 20, bytes - 20, false}});
    };
    send(kBuffers, 'a', kBytes);
    machine.add({{kBuffers + 0x1000, kFrameHeader, false}});  // nothing but the header
    send(kBuffers + 0x2000, 'b', kBytes + 100);
    const Sent first = take_frames(*machine.queue, 2);
    CHECK_EQ(first.frames.size(), 1u);
    CHECK(first.frames[0] == std::string(60, 'a'));
    CHECK_EQ(first.refused, 1u);
    CHECK(first.more && !first.broken);
    CHECK_EQ(machine.used(), 2u);
    const Sent second = take_frames(*machine.queue, 128);
    CHECK_EQ(second.frames.size(), 1u);
    CHECK(second.frames[0] == std::string(160, 'b'));
    CHECK(!second.more && !second.broken);
    CHECK_EQ(machine.used(), 3u);
    CHECK_EQ(machine.bus->moved.load(), 0u);
    CHECK_EQ(machine.bus->calls.load(), 2u);
    CHECK_EQ(machine.queue->counters().requests, 3u);
}

STORY("given a driver with buffers on another host, then one call lays frames there, and no page is moved") {
    Machine machine;
    for (unsigned i = 0; i < 3; ++i) machine.add({{kBuffers + 0x1000 * i, 100, true}});
    const std::string small(60, 'x'), large(200, 'y');
    const Delivered done = deliver_frames(*machine.queue, {small, large, small, small});
    CHECK_EQ(done.frames, 3u);  // there is no buffer for the fourth
    CHECK_EQ(done.refused, 1u);
    CHECK(!done.broken);
    CHECK_EQ(machine.used(), 3u);
    for (const uint64_t at : {kBuffers, kBuffers + 0x2000}) {
        std::string found(kFrameHeader + small.size(), '\0');
        machine.ram.read(at, found.data(), found.size());
        CHECK_EQ(found[10], 1);
        CHECK(found.substr(kFrameHeader) == small);
    }
    CHECK_EQ(machine.get<uint32_t>(kUsed + 4 + 8 * 1 + 4), 0u);  // what was refused has no bytes
    machine.add({{kBuffers, 100, true}});
    CHECK_EQ(deliver_frames(*machine.queue, {small}).frames, 1u);
    CHECK_EQ(machine.bus->moved.load(), 0u);
    CHECK_EQ(machine.bus->calls.load(), 2u);
}

STORY("given a host that does not help, or frames in what is not RAM, then the device does it, or stops") {
    Machine machine;
    machine.bus->helps = false;
    machine.add({{kBuffers, kFrameHeader + 60, false}});
    CHECK_EQ(take_frames(*machine.queue, 128).frames.size(), 1u);
    CHECK(machine.bus->moved.load() > 0);
    machine.bus->helps = true;
    machine.queue->ring_from(1, kBell);
    machine.add({{0xFFFF'0000'0000, kFrameHeader + 60, false}});
    const Sent sent = take_frames(*machine.queue, 128);
    CHECK(sent.broken && sent.frames.empty());
    CHECK(!machine.queue->enabled());
}

RUN_STORIES()
