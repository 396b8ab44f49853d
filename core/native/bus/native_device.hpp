// SPDX-License-Identifier: GPL-2.0-or-later
// Devices whose registers are native: their ports are answered before the node is asked, without Python.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bus/bus.hpp"

namespace coremesh {

/// Called on vCPU threads and on those that serve other hosts, several at a time.
class NativeDevice {
  public:
    virtual ~NativeDevice() = default;
    virtual uint32_t read(unsigned offset, unsigned size) noexcept = 0;
    virtual void write(unsigned offset, unsigned size, uint32_t value) noexcept = 0;
};

/// Where one device answers now: a few ranges of ports, which the guest moves.
class NativePortWindow {
  public:
    static constexpr size_t kRanges = 8;

    /// Ports `first` to `last` reach the device from its `offset` on; bit n of `sizes`: in accesses of 1 << n
    /// bytes, aligned. No bit: none.
    struct Range {
        uint16_t first = 0, last = 0;
        uint16_t offset = 0, sizes = 0;
    };

    explicit NativePortWindow(std::shared_ptr<NativeDevice> device) : device_(std::move(device)) {}

    /// From now on it answers there, and nowhere else; an access that has been looked up goes on. One caller
    /// at a time. Throws std::length_error for more ranges than there can be.
    void move(const std::vector<Range>& ranges) {
        if (ranges.size() > kRanges) throw std::length_error("too many ranges of ports");
        for (size_t i = 0; i < kRanges; ++i) {
            ranges_[i].store(i < ranges.size() ? ranges[i] : Range{}, std::memory_order_release);
        }
    }

    /// The device, if it decodes this access, and the register that it is for. Any thread.
    NativeDevice* find(uint64_t port, unsigned size, unsigned& offset) const noexcept {
        for (const auto& each : ranges_) {
            const Range range = each.load(std::memory_order_acquire);
            if (port < range.first || port + size - 1 > range.last || !takes(range, size) || port % size)
                continue;
            offset = static_cast<unsigned>(range.offset + (port - range.first));
            return device_.get();
        }
        return nullptr;
    }

  private:
    static_assert(std::atomic<Range>::is_always_lock_free);
    static bool takes(const Range& range, unsigned size) noexcept {
        return size == 1 ? range.sizes & 1 : size == 2 ? range.sizes & 2 : size == 4 && range.sizes & 4;
    }

    const std::shared_ptr<NativeDevice> device_;
    std::array<std::atomic<Range>, kRanges> ranges_{};
};

/// All windows of a machine. They are added before the vCPUs run; afterwards only their ranges change, so a
/// vCPU looks them up without a lock.
class NativePorts {
  public:
    static constexpr size_t kMost = 8;

    /// Throws std::length_error for more windows than there can be.
    std::shared_ptr<NativePortWindow> add(std::shared_ptr<NativeDevice> device) {
        const std::lock_guard lock(mutex_);
        const size_t count = count_.load(std::memory_order_relaxed);
        if (count == kMost) throw std::length_error("too many native devices");
        windows_[count] = std::make_shared<NativePortWindow>(std::move(device));
        count_.store(count + 1, std::memory_order_release);
        return windows_[count];
    }

    NativeDevice* find(uint64_t port, unsigned size, unsigned& offset) const noexcept {
        const size_t count = count_.load(std::memory_order_acquire);
        for (size_t i = 0; i < count; ++i) {
            if (NativeDevice* const device = windows_[i]->find(port, size, offset)) return device;
        }
        return nullptr;
    }

  private:
    std::mutex mutex_;  // additions
    std::array<std::shared_ptr<NativePortWindow>, kMost> windows_;
    std::atomic<size_t> count_{0};
};

/// A device node whose native devices are asked first. What they do not decode at its size (an access that a
/// bus would split) is the node's, which knows them too.
class NativePortNode final : public NodeInFront {
  public:
    NativePortNode(std::shared_ptr<DeviceBackend> node, std::shared_ptr<NativePorts> ports)
        : NodeInFront(std::move(node)), ports_(std::move(ports)) {}

    uint64_t read(Space space, uint64_t address, unsigned size) noexcept override {
        unsigned offset = 0;
        if (space == Space::kPort) {
            if (NativeDevice* const device = ports_->find(address, size, offset))
                return device->read(offset, size);
        }
        return NodeInFront::read(space, address, size);
    }
    void write(Space space, uint64_t address, unsigned size, uint64_t value) noexcept override {
        unsigned offset = 0;
        if (space == Space::kPort) {
            if (NativeDevice* const device = ports_->find(address, size, offset)) {
                return device->write(offset, size, static_cast<uint32_t>(value & all_ones(size)));
            }
        }
        NodeInFront::write(space, address, size, value);
    }

  private:
    const std::shared_ptr<NativePorts> ports_;
};

}  // namespace coremesh
