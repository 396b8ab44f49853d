// SPDX-License-Identifier: GPL-2.0-or-later
// A channel with one disk, as a driver on several threads sees it.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "hw/native/ata/disk.hpp"
#include "hw/native/ata/ide_channel.hpp"

namespace ide {

using coremesh::BlockStore;
using coremesh::BusMaster;
using coremesh::ata::Disk;
using coremesh::ata::IdeChannel;
using coremesh::ata::Unit;

constexpr uint64_t kSectors = 2048;
constexpr uint32_t kTable = 0x8000, kBuffer = 0x1000;

inline void pause(unsigned us) { std::this_thread::sleep_for(std::chrono::microseconds(us)); }

/// RAM of 64 KiB in bytes that may be looked at while they are written. `before` and `after` are called
/// around each write of the bus master, on its thread.
class Memory final : public BusMaster {
  public:
    bool read(uint64_t gpa, void* to, uint64_t length) noexcept override {
        if (gpa + length > bytes_.size()) return false;
        for (uint64_t i = 0; i < length; ++i) static_cast<uint8_t*>(to)[i] = bytes_[gpa + i].load();
        return true;
    }
    bool write(uint64_t gpa, const void* from, uint64_t length) noexcept override {
        if (gpa + length > bytes_.size()) return false;
        before();
        for (uint64_t i = 0; i < length; ++i) bytes_[gpa + i].store(static_cast<const uint8_t*>(from)[i]);
        after();
        return true;
    }
    void message(uint64_t, uint32_t) noexcept override {}

    uint8_t at(uint64_t gpa) const { return bytes_[gpa].load(); }
    void put(uint64_t gpa, uint32_t word) {
        for (unsigned i = 0; i < 4; ++i) bytes_[gpa + i].store(static_cast<uint8_t>(word >> 8 * i));
    }
    /// The table's one region.
    void region(uint32_t gpa, uint32_t length) {
        put(kTable, gpa);
        put(kTable + 4, (length & 0xFFFF) | 1u << 31);
    }

    std::function<void()> before = [] {}, after = [] {};

  private:
    std::vector<std::atomic<uint8_t>> bytes_ = std::vector<std::atomic<uint8_t>>(1 << 16);
};

/// A disk whose sectors hold the low byte of their number.
class Store final : public BlockStore {
  public:
    int read(uint64_t offset, void* to, uint64_t length) noexcept override {
        reading();
        for (uint64_t i = 0; i < length; ++i) {
            static_cast<uint8_t*>(to)[i] = static_cast<uint8_t>((offset + i) / 512);
        }
        return error;
    }
    int write(uint64_t, const void*, uint64_t length) noexcept override {
        written += length;
        return error;
    }
    int flush() noexcept override { return 0; }
    int discard(uint64_t, uint64_t) noexcept override { return 0; }
    int zeroes(uint64_t, uint64_t, bool) noexcept override { return 0; }

    std::function<void()> reading = [] {};
    int error = 0;
    uint64_t written = 0;
};

struct Rig {
    std::shared_ptr<Memory> memory = std::make_shared<Memory>();
    std::shared_ptr<Store> store = std::make_shared<Store>();
    std::atomic<bool> line{false};
    std::atomic<unsigned> rises{0}, bus_errors{0};
    std::function<void()> rising = [] {};  // with the channel's lock held
    std::unique_ptr<IdeChannel> channel;

    Rig() {
        auto unit = std::make_shared<Unit>();
        unit->drive = std::make_unique<Disk>(kSectors, false, true);
        unit->store = store;
        unit->sectors = kSectors;
        unit->identify = [](const auto&) { return std::vector<uint8_t>(512, 0x5A); };
        channel = std::make_unique<IdeChannel>(memory, std::vector<std::shared_ptr<Unit>>{unit},
                                               IdeChannel::Line{[this](bool level) {
                                                                    line = level;
                                                                    if (level) rising();
                                                                    rises += level;
                                                                },
                                                                [this] { ++bus_errors; }, nullptr, nullptr});
    }

    uint8_t in(unsigned offset) { return static_cast<uint8_t>(channel->read(offset, 1)); }
    void out(unsigned offset, uint32_t value, unsigned size = 1) { channel->write(offset, size, value); }
    void command(uint8_t code, unsigned lba, unsigned count = 1) {
        out(6, 0xE0);
        out(2, count);
        out(3, lba & 0xFF);
        out(4, lba >> 8);
        out(5, 0);
        out(7, code);
    }
    void dma(uint8_t code, unsigned lba, unsigned count, bool to_memory = true) {
        out(20, kTable, 4);
        command(code, lba, count);
        out(16, to_memory ? 0x09 : 0x01);
    }
    uint8_t bus_status() { return in(18); }
    uint8_t status() { return in(8); }
};

}  // namespace ide
