// SPDX-License-Identifier: GPL-2.0-or-later
// Which addresses that are not RAM the device node answers; no device answers the others.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace coremesh {

enum class Space : uint8_t { kPort = 0, kMmio = 1 };

/// The device node as a vCPU sees it, in this process or behind a message. Called on vCPU threads, several at
/// a time; may block for the time of a device's answer, must not call back into the vCPU.
class DeviceBackend {
  public:
    virtual ~DeviceBackend() = default;
    virtual uint64_t read(Space space, uint64_t address, unsigned size) noexcept = 0;
    virtual void write(Space space, uint64_t address, unsigned size, uint64_t value) noexcept = 0;
    /// A write to this address only wakes a worker of a device now: it may be posted. Any thread.
    virtual bool only_wakes(Space, uint64_t) const noexcept { return false; }
    /// A level-triggered vector was ended (for the I/O APICs).
    virtual void end_of_interrupt(uint8_t vector) noexcept = 0;
    /// The 8259A's interrupt acknowledge cycle: its vector, or a negative number when it has none to give.
    virtual int acknowledge() noexcept = 0;
    /// A vCPU thread comes and goes: first and last call on it.
    virtual void thread_begins() noexcept {}
    virtual void thread_ends() noexcept {}
};

/// A node that answers some accesses itself; all else is for the one behind it.
class NodeInFront : public DeviceBackend {
  public:
    explicit NodeInFront(std::shared_ptr<DeviceBackend> node) : node_(std::move(node)) {}

    uint64_t read(Space space, uint64_t address, unsigned size) noexcept override {
        return node_->read(space, address, size);
    }
    void write(Space space, uint64_t address, unsigned size, uint64_t value) noexcept override {
        node_->write(space, address, size, value);
    }
    bool only_wakes(Space space, uint64_t address) const noexcept override {
        return node_->only_wakes(space, address);
    }
    void end_of_interrupt(uint8_t vector) noexcept override { node_->end_of_interrupt(vector); }
    int acknowledge() noexcept override { return node_->acknowledge(); }
    void thread_begins() noexcept override { node_->thread_begins(); }
    void thread_ends() noexcept override { node_->thread_ends(); }

  private:
    const std::shared_ptr<DeviceBackend> node_;
};

/// What an access to nothing reads: no device drives the bus, and its lines are pulled up.
constexpr uint64_t all_ones(unsigned size) {
    return size >= 8 ? ~uint64_t{0} : (uint64_t{1} << 8 * size) - 1;
}

/// Looking an address up needs no lock. Claims are added by any thread, also while vCPUs run, and stay: a
/// claimed address that no device answers at reads as all ones at the device node.
class Bus {
  public:
    void connect(std::shared_ptr<DeviceBackend> node) { node_ = std::move(node); }

    /// No vCPU runs any more.
    void disconnect() { node_.reset(); }

    /// Sends [first, last] to the device node: each access that begins after this has returned.
    void claim(Space space, uint64_t first, uint64_t last) {
        if (space == Space::kPort) {
            for (uint64_t port = first; port <= last && port < kPorts; ++port) {
                (*ports_)[port / 64].fetch_or(uint64_t{1} << port % 64, std::memory_order_release);
            }
            return;
        }
        const std::lock_guard lock(mutex_);
        const std::vector<Window>& now = lists_.back();
        for (const Window& window : now) {
            if (first >= window.first && last <= window.last) return;
        }
        std::vector<Window> longer = now;
        longer.push_back({first, last});
        lists_.push_back(std::move(longer));
        windows_.store(&lists_.back(), std::memory_order_release);
    }

    uint32_t port_read(uint32_t port, unsigned size) const noexcept {
        if (!port_claimed(port) || !node_) return static_cast<uint32_t>(all_ones(size));
        return static_cast<uint32_t>(node_->read(Space::kPort, port, size));
    }
    void port_write(uint32_t port, unsigned size, uint32_t value) const noexcept {
        if (port_claimed(port) && node_) node_->write(Space::kPort, port, size, value);
    }

    uint64_t mmio_read(uint64_t gpa, unsigned size) const noexcept {
        return claimed(gpa) ? node_->read(Space::kMmio, gpa, size) : all_ones(size);
    }
    void mmio_write(uint64_t gpa, unsigned size, uint64_t value) const noexcept {
        if (claimed(gpa)) node_->write(Space::kMmio, gpa, size, value);
    }

    DeviceBackend* node() const noexcept { return node_.get(); }
    std::shared_ptr<DeviceBackend> shared_node() const noexcept { return node_; }

  private:
    struct Window {
        uint64_t first, last;
    };
    static constexpr size_t kPorts = 65536;

    bool port_claimed(uint32_t port) const noexcept {
        port %= kPorts;
        return (*ports_)[port / 64].load(std::memory_order_acquire) >> port % 64 & 1;
    }
    bool claimed(uint64_t gpa) const noexcept {
        if (!node_) return false;
        for (const Window& window : *windows_.load(std::memory_order_acquire)) {
            if (gpa >= window.first && gpa <= window.last) return true;
        }
        return false;
    }

    const std::unique_ptr<std::array<std::atomic<uint64_t>, kPorts / 64>> ports_ =
        std::make_unique<std::array<std::atomic<uint64_t>, kPorts / 64>>();
    std::mutex mutex_;  // lists_; a claim, not a look-up
    /// The last list is in use. An older one stays, because a vCPU may still read it: a claim that is new is
    /// rare, and a list has a few words.
    std::deque<std::vector<Window>> lists_{std::vector<Window>{}};
    std::atomic<const std::vector<Window>*> windows_{&lists_.back()};
    std::shared_ptr<DeviceBackend> node_;
};

}  // namespace coremesh
