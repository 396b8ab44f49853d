// SPDX-License-Identifier: GPL-2.0-or-later
// Which vCPU accesses which device how often, how long it waits there, and how many do so at once.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/clock.hpp"
#include "bus/bus.hpp"

namespace coremesh {

/// No vCPU of the machine.
constexpr unsigned kNoVcpu = 255;
/// For which vCPU this thread accesses devices: on a vCPU's thread its number on this host, on a thread that
/// serves other hosts the machine's number of the one that asks.
inline thread_local unsigned thread_vcpu = kNoVcpu;

/// Counts on the threads that access, without a lock: each vCPU has words of its own for each device. Device
/// numbers are the owner's, from 1; 0 is no device.
///
/// ## State that two threads touch
///
///  - `Words` of a vCPU: atomics with one writer at a time, the vCPU's thread or the worker that has its lane
///    (node_server.hpp). So they need no locked instruction. Those of kNoVcpu have several, which use one.
///  - `most`, `vcpus`: written by any thread, seldom. A word that every access changed would go from
///  processor
///    to processor with each of them, which costs more than a native register.
class DeviceMeter {
  public:
    static constexpr unsigned kDevices = 128;
    static constexpr unsigned kVcpus = kNoVcpu + 1;

    struct Place {
        Space space;
        uint64_t first, last;
        unsigned device;
    };
    struct Use {
        unsigned device, vcpu;
        uint64_t accesses, bytes, ns;
    };
    struct Depth {
        unsigned device, inside, most;
    };

    /// Devices answer at `places` from now on, and nowhere else; what was counted stays. Any thread.
    void place(const std::vector<Place>& places) {
        const std::lock_guard lock(mutex_);
        std::vector<uint8_t> at_port(kPorts);
        std::vector<Place> memory;
        for (const Place& place : places) {
            if (place.device == 0 || place.device >= kDevices) continue;
            if (!meters_[place.device].load(std::memory_order_relaxed)) {
                owned_.push_back(std::make_unique<Meter>());
                meters_[place.device].store(owned_.back().get(), std::memory_order_release);
            }
            if (place.space == Space::kMmio) {
                memory.push_back(place);
                continue;
            }
            for (uint64_t port = place.first; port <= place.last && port < kPorts; ++port) {
                at_port[port] = static_cast<uint8_t>(place.device);
            }
        }
        for (size_t port = 0; port < kPorts; ++port) {
            (*ports_)[port].store(at_port[port], std::memory_order_relaxed);
        }
        memory_.set(memory);
    }

    /// One access, counted from the construction to the end of the block.
    class Access {
      public:
        Access(DeviceMeter& meters, Space space, uint64_t address, unsigned size) noexcept
            : meter_(meters.meters_[meters.device_at(space, address)].load(std::memory_order_acquire)),
              size_(size) {
            if (!meter_) return;
            Words& words = meter_->words[vcpu_];
            Words::raise(words.inside, 1, vcpu_ != kNoVcpu);
            if (words.accesses.load(std::memory_order_relaxed) % kLookEvery == 0) meter_->look(vcpu_);
            begin_ = Clock::span_ticks();
        }
        ~Access() {
            if (!meter_) return;
            // Signed, because on another core the counter may be a few ticks behind.
            const auto ticks = std::max<int64_t>(0, static_cast<int64_t>(Clock::span_ticks() - begin_));
            if (ticks > kLongTicks) meter_->look(vcpu_);
            Words& words = meter_->words[vcpu_];
            words.add(size_, static_cast<uint64_t>(ticks), vcpu_ != kNoVcpu);
            Words::raise(words.inside, ~uint64_t{0}, vcpu_ != kNoVcpu);
        }
        Access(const Access&) = delete;
        Access& operator=(const Access&) = delete;

      private:
        friend class DeviceMeter;
        struct alignas(64) Words {
            std::atomic<uint64_t> accesses{0}, bytes{0}, ticks{0}, inside{0};

            void add(uint64_t size, uint64_t span, bool alone) noexcept {
                raise(accesses, 1, alone);
                raise(bytes, size, alone);
                raise(ticks, span, alone);
            }
            static void raise(std::atomic<uint64_t>& word, uint64_t by, bool alone) noexcept {
                if (alone) {
                    word.store(word.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
                } else {
                    word.fetch_add(by, std::memory_order_relaxed);
                }
            }
        };
        /// A thread counts the threads in the device at each 1024th of its accesses, and after each long
        /// access, which other threads may have waited for.
        static constexpr uint64_t kLookEvery = 1024;
        static constexpr int64_t kLongTicks = 1 << 15;  // some ten microseconds
        struct Meter {
            alignas(64) std::atomic<unsigned> most{0};
            std::atomic<unsigned> vcpus{0};  // one more than the highest that has used the device
            std::array<Words, kVcpus> words;

            unsigned inside() const noexcept {
                uint64_t sum = words[kNoVcpu].inside.load(std::memory_order_relaxed);
                const unsigned known = vcpus.load(std::memory_order_relaxed);
                for (unsigned vcpu = 0; vcpu < known; ++vcpu) {
                    sum += words[vcpu].inside.load(std::memory_order_relaxed);
                }
                return static_cast<unsigned>(sum);
            }
            unsigned look() noexcept {
                const unsigned now = inside();
                raise_to(most, now);
                return now;
            }
            /// By a vCPU, at its first access too.
            void look(unsigned vcpu) noexcept {
                if (vcpu != kNoVcpu) raise_to(vcpus, vcpu + 1);
                look();
            }
            static void raise_to(std::atomic<unsigned>& word, unsigned value) noexcept {
                unsigned known = word.load(std::memory_order_relaxed);
                while (value > known &&
                       !word.compare_exchange_weak(known, value, std::memory_order_relaxed)) {
                }
            }
        };
        Meter* const meter_;
        const unsigned size_;
        const unsigned vcpu_ = std::min(thread_vcpu, kNoVcpu);
        uint64_t begin_ = 0;
    };

    /// The pairs of device and vCPU that have met; vCPU kNoVcpu stands for other threads. Any thread.
    std::vector<Use> uses() const {
        std::vector<Use> found;
        for (unsigned device = 1; device < kDevices; ++device) {
            const Meter* const meter = meters_[device].load(std::memory_order_acquire);
            for (unsigned vcpu = 0; meter && vcpu < kVcpus; ++vcpu) {
                const auto& words = meter->words[vcpu];
                const uint64_t accesses = words.accesses.load(std::memory_order_relaxed);
                if (!accesses) continue;
                found.push_back({device, vcpu, accesses, words.bytes.load(std::memory_order_relaxed),
                                 Clock::span_ns(words.ticks.load(std::memory_order_relaxed))});
            }
        }
        return found;
    }

    /// How many accesses of each device are under way, and the most that were seen at once: now and then, and
    /// whenever one was long. Any thread.
    std::vector<Depth> depths() const {
        std::vector<Depth> found;
        for (unsigned device = 1; device < kDevices; ++device) {
            Meter* const meter = meters_[device].load(std::memory_order_acquire);
            if (!meter) continue;
            const unsigned inside = meter->look();
            found.push_back({device, inside, meter->most.load()});
        }
        return found;
    }

  private:
    using Meter = Access::Meter;
    static constexpr size_t kPorts = 65536;

    unsigned device_at(Space space, uint64_t address) const noexcept {
        if (space == Space::kPort) return (*ports_)[address % kPorts].load(std::memory_order_relaxed);
        return memory_.find(address);
    }

    /// Where devices answer in memory. A guest moves them as often as it likes, so a table is written over
    /// and nothing is kept of the older one; a look-up during a change, which never waits, may find no
    /// device.
    class Table {
      public:
        /// One caller at a time. Places beyond kMost are not looked up.
        void set(const std::vector<Place>& places) noexcept {
            const uint64_t version = version_.load(std::memory_order_relaxed);
            version_.store(version + 1, std::memory_order_relaxed);
            const size_t count = std::min(places.size(), kMost);
            for (size_t i = 0; i < count; ++i) {
                rows_[i].first.store(places[i].first, std::memory_order_release);
                rows_[i].last.store(places[i].last, std::memory_order_release);
                rows_[i].device.store(places[i].device, std::memory_order_release);
            }
            count_.store(count, std::memory_order_release);
            version_.store(version + 2, std::memory_order_release);
        }

        /// A thread that reads a row of a newer table sees its version too: each row is stored with release.
        unsigned find(uint64_t address) const noexcept {
            const uint64_t version = version_.load(std::memory_order_acquire);
            const size_t count = count_.load(std::memory_order_acquire);
            for (size_t i = 0; i < count; ++i) {
                if (address < rows_[i].first.load(std::memory_order_acquire)) continue;
                if (address > rows_[i].last.load(std::memory_order_acquire)) continue;
                const unsigned device = rows_[i].device.load(std::memory_order_acquire);
                const bool whole = version % 2 == 0 && version_.load(std::memory_order_relaxed) == version;
                return whole ? device : 0;
            }
            return 0;
        }

      private:
        /// A PCI function has six base address registers.
        static constexpr size_t kMost = size_t{6} * kDevices;
        struct Row {
            std::atomic<uint64_t> first{0}, last{0};
            std::atomic<unsigned> device{0};
        };
        std::atomic<uint64_t> version_{0};  // odd during a change
        std::atomic<size_t> count_{0};
        std::array<Row, kMost> rows_;
    };

    std::mutex mutex_;  // changes of what follows; look-ups read the atomics alone
    std::vector<std::unique_ptr<Meter>> owned_;
    std::array<std::atomic<Meter*>, kDevices> meters_{};
    Table memory_;
    const std::unique_ptr<std::array<std::atomic<uint8_t>, kPorts>> ports_ =
        std::make_unique<std::array<std::atomic<uint8_t>, kPorts>>();
};

/// A device node whose accesses are counted, whatever answers them: Python, or a native doorbell.
class MeteredNode final : public NodeInFront {
  public:
    MeteredNode(std::shared_ptr<DeviceBackend> node, std::shared_ptr<DeviceMeter> meter)
        : NodeInFront(std::move(node)), meter_(std::move(meter)) {}

    uint64_t read(Space space, uint64_t address, unsigned size) noexcept override {
        const DeviceMeter::Access access(*meter_, space, address, size);
        return NodeInFront::read(space, address, size);
    }
    void write(Space space, uint64_t address, unsigned size, uint64_t value) noexcept override {
        const DeviceMeter::Access access(*meter_, space, address, size);
        NodeInFront::write(space, address, size, value);
    }

  private:
    const std::shared_ptr<DeviceMeter> meter_;
};

}  // namespace coremesh
