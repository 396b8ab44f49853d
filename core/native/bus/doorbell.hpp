// SPDX-License-Identifier: GPL-2.0-or-later
// Doorbells: registers that only wake a device's worker. A write to one never runs the device, nor Python.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "base/host_set.hpp"
#include "bus/bus.hpp"

namespace coremesh {

/// On whose behalf this thread accesses devices: another host's vCPU, or kNoHost for one of this host.
inline constexpr HostId kNoHost = 0xFF;
inline thread_local HostId thread_host = kNoHost;

class Doorbell {
  public:
    virtual ~Doorbell() = default;
    /// Wakes the worker, once for all calls until it looks. Any thread; does not wait.
    virtual void ring() noexcept = 0;
    /// The same, by a vCPU of `host` (kNoHost: this one) that wrote to `address`.
    virtual void ring_from(HostId host, uint64_t address) noexcept {
        static_cast<void>(host), static_cast<void>(address);
        ring();
    }
};

/// The doorbells of one device: `stride` bytes each, one behind the other, at an address that the guest
/// moves.
class DoorbellWindow {
  public:
    DoorbellWindow(std::vector<std::shared_ptr<Doorbell>> bells, uint64_t stride)
        : bells_(std::move(bells)), stride_(stride) {}

    /// From now on at guest-physical `base`; 0: nowhere. Any thread.
    void move(uint64_t base) noexcept { base_.store(base, std::memory_order_release); }

    /// True: the address is one of ours, and its bell has been rung.
    bool ring(uint64_t address) noexcept {
        const auto index = index_of(address);
        if (index) bells_[*index]->ring_from(thread_host, address);
        return index.has_value();
    }
    bool has(uint64_t address) const noexcept { return index_of(address).has_value(); }

  private:
    std::optional<uint64_t> index_of(uint64_t address) const noexcept {
        const uint64_t base = base_.load(std::memory_order_acquire);
        const uint64_t index = (address - base) / stride_;
        if (base == 0 || address < base || index >= bells_.size()) return std::nullopt;
        return index;
    }

    const std::vector<std::shared_ptr<Doorbell>> bells_;
    const uint64_t stride_;
    std::atomic<uint64_t> base_{0};
};

/// All windows of a machine. They are added before the vCPUs run; afterwards only their addresses change, so
/// a vCPU looks them up without a lock.
class Doorbells {
  public:
    static constexpr size_t kMost = 64;

    /// Throws std::length_error for more windows than a bus has functions.
    void add(std::shared_ptr<DoorbellWindow> window) {
        const std::lock_guard lock(mutex_);
        const size_t count = count_.load(std::memory_order_relaxed);
        if (count == kMost) throw std::length_error("too many doorbell windows");
        windows_[count] = std::move(window);
        count_.store(count + 1, std::memory_order_release);
    }

    bool ring(uint64_t address) noexcept {
        const size_t count = count_.load(std::memory_order_acquire);
        for (size_t i = 0; i < count; ++i) {
            if (windows_[i]->ring(address)) return true;
        }
        return false;
    }

    bool has(uint64_t address) const noexcept {
        const size_t count = count_.load(std::memory_order_acquire);
        for (size_t i = 0; i < count; ++i) {
            if (windows_[i]->has(address)) return true;
        }
        return false;
    }

  private:
    std::mutex mutex_;  // additions
    std::array<std::shared_ptr<DoorbellWindow>, kMost> windows_;
    std::atomic<size_t> count_{0};
};

/// A device node whose doorbells are answered before the node itself is asked.
class DoorbellNode final : public NodeInFront {
  public:
    DoorbellNode(std::shared_ptr<DeviceBackend> node, std::shared_ptr<Doorbells> bells)
        : NodeInFront(std::move(node)), bells_(std::move(bells)) {}

    void write(Space space, uint64_t address, unsigned size, uint64_t value) noexcept override {
        if (space == Space::kMmio && bells_->ring(address)) return;
        NodeInFront::write(space, address, size, value);
    }
    bool only_wakes(Space space, uint64_t address) const noexcept override {
        return space == Space::kMmio && bells_->has(address);
    }

  private:
    const std::shared_ptr<Doorbells> bells_;
};

}  // namespace coremesh
