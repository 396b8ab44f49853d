// SPDX-License-Identifier: GPL-2.0-or-later
// How a virtio function on PCI interrupts: MSI-X, and without it the ISR status register and the INTx pin.
//
// Source: PCI Local Bus Specification 3.0, section 6.8.2; VIRTIO 1.2, sections 4.1.4.5 and 4.1.5.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "bus/bus_master.hpp"

namespace coremesh::virtio {

constexpr uint16_t kNoVector = 0xFFFF;

/// All methods: any thread. One lock guards everything; it is held while a message is sent and the pin is
/// driven, so that both leave in the order of the register that they announce.
class Interrupts {
  public:
    /// `drive` sets the INTx pin; it must not call back.
    Interrupts(std::shared_ptr<BusMaster> bus, unsigned vectors, std::function<void(bool)> drive)
        : bus_(std::move(bus)), drive_(std::move(drive)), table_(vectors), pending_((vectors + 63) / 64) {}

    unsigned vectors() const noexcept { return static_cast<unsigned>(table_.size()); }

    // ---- what the function has to say

    /// A queue has used buffers; `vector` is the one the driver gave it.
    void queue(uint16_t vector) noexcept { signal(vector, kIsrQueue); }
    /// The device's configuration has changed.
    void configuration(uint16_t vector) noexcept { signal(vector, kIsrConfiguration); }

    // ---- the driver

    /// Reads the ISR status: reading clears it, and takes the pin back.
    uint8_t take_isr() noexcept;
    /// MSI-X enable and function mask of the capability's message control.
    void control(bool enabled, bool masked) noexcept;
    /// Whether the function may use the bus: a message is a write. Without it messages are pending.
    void allow_messages(bool allowed) noexcept;
    /// The vector table, 16 bytes a vector, and behind it at `pending_offset` the pending bits. Aligned
    /// accesses of 4 or 8 bytes.
    uint64_t read(uint64_t offset, unsigned size) noexcept;
    void write(uint64_t offset, unsigned size, uint64_t value) noexcept;
    static constexpr uint64_t kPendingOffset = 0x800;
    static constexpr unsigned kMostVectors = kPendingOffset / 16;

    void reset() noexcept;

    struct Saved {
        std::vector<uint32_t> table;    ///< four words a vector
        std::vector<uint64_t> pending;  ///< bits
        uint8_t isr = 0;
        bool enabled = false, masked = false;
    };
    Saved save() noexcept;
    /// False: it has another number of vectors. The pin is not driven: what is behind it was saved with it.
    bool load(const Saved& saved) noexcept;

    struct Counters {
        uint64_t messages = 0, held_back = 0, pins = 0;
    };
    Counters counters() noexcept;

  private:
    static constexpr uint8_t kIsrQueue = 1, kIsrConfiguration = 2;
    struct Vector {
        uint32_t address_low = 0, address_high = 0, data = 0, control = 1;  // masked
    };

    void signal(uint16_t vector, uint8_t isr) noexcept;
    bool masked(const Vector& vector) const noexcept { return masked_ || !allowed_ || (vector.control & 1); }
    void send(size_t index) noexcept;
    /// What was held back and is not masked any more.
    void release() noexcept;
    uint32_t read_word(uint64_t offset) const noexcept;
    void write_word(uint64_t offset, uint32_t value) noexcept;

    const std::shared_ptr<BusMaster> bus_;
    const std::function<void(bool)> drive_;
    std::mutex mutex_;
    std::vector<Vector> table_;
    std::vector<uint64_t> pending_;
    bool enabled_ = false, masked_ = false, allowed_ = true;
    uint8_t isr_ = 0;
    Counters counters_;
};

}  // namespace coremesh::virtio
