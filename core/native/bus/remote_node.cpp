// SPDX-License-Identifier: GPL-2.0-or-later
#include "bus/remote_node.hpp"

#include <utility>

#include "base/clock.hpp"
#include "base/futex.hpp"
#include "bus/device_meter.hpp"

namespace coremesh {
namespace {

// A ticket: the lane, whether its vCPU waits, and the number of such a request in its lane.
constexpr uint64_t kPostedBit = uint64_t{1} << (DeviceRequest::kLaneShift - 1);
constexpr uint64_t kNumberMask = kPostedBit - 1;

std::atomic<uint64_t> nodes_made{0};

/// The lane of this thread, and the node that it is of.
struct Seat {
    uint64_t node = 0;
    unsigned lane = 0;
};
thread_local Seat seat;

}  // namespace

struct RemoteNode::Lane {
    alignas(64) std::atomic<uint64_t> waits_for{0};  // ticket; 0: none
    uint64_t value = 0;
    std::atomic<uint32_t> word{0};
    std::atomic<bool> taken{false};
    std::atomic<uint64_t> posted{0};  // number of the last posted request
    std::atomic<uint64_t> served{0};  // number of the last one that was answered
    uint64_t next = 0;                // number of the last request that was waited for

    void change() noexcept {
        word.fetch_add(1, std::memory_order_seq_cst);
        futex_wake(word);
    }
};

RemoteNode::RemoteNode(Send send, LocalDoorbells* here)
    : send_(std::move(send)),
      here_(here),
      lanes_(std::make_unique<std::array<Lane, kLanes>>()),
      identity_(nodes_made.fetch_add(1) + 1) {}

RemoteNode::~RemoteNode() = default;

uint64_t RemoteNode::read(Space space, uint64_t address, unsigned size) noexcept {
    return ask({.space = space, .size = size, .address = address}, all_ones(size)) & all_ones(size);
}

void RemoteNode::write(Space space, uint64_t address, unsigned size, uint64_t value) noexcept {
    const DeviceRequest request{
        .space = space, .write = true, .size = size, .address = address, .value = value & all_ones(size)};
    if (space == Space::kMmio && is_doorbell(address)) {
        if (here_ == nullptr || !here_->ring(address)) post(request);
    } else if (ask(request, 0) == DeviceReply::kMayBePosted && space == Space::kMmio) {
        remember_doorbell(address);
    }
}

bool RemoteNode::is_doorbell(uint64_t address) const noexcept {
    for (const std::atomic<uint64_t>& known : doorbells_) {
        if (known.load(std::memory_order_relaxed) == address) return address != 0;
    }
    return false;
}

void RemoteNode::remember_doorbell(uint64_t address) noexcept {
    for (std::atomic<uint64_t>& known : doorbells_) {
        uint64_t none = 0;
        if (known.compare_exchange_strong(none, address, std::memory_order_relaxed) || none == address)
            return;
    }
}

void RemoteNode::end_of_interrupt(uint8_t vector) noexcept {
    post({.kind = DeviceRequest::Kind::kEndOfInterrupt, .value = vector});
}

int RemoteNode::acknowledge() noexcept {
    const uint64_t vector = ask({.kind = DeviceRequest::Kind::kAcknowledge}, ~uint64_t{0});
    return vector <= 0xFF ? static_cast<int>(vector) : -1;
}

void RemoteNode::thread_begins() noexcept { lane(); }

void RemoteNode::thread_ends() noexcept {
    if (seat.node != identity_) return;
    // What it posted is still under way: the next one in this seat counts on from there.
    (*lanes_)[seat.lane].taken.store(false, std::memory_order_release);
    seat = {};
}

RemoteNode::Lane* RemoteNode::lane() noexcept {
    if (seat.node == identity_) return &(*lanes_)[seat.lane];
    // A vCPU has the lane of its number, from which the other host knows it; what is taken, another thread
    // has.
    for (unsigned tries = 0; tries < kLanes; ++tries) {
        const unsigned index = ((thread_vcpu == kNoVcpu ? 0 : thread_vcpu) + tries) % kLanes;
        if (!(*lanes_)[index].taken.exchange(true, std::memory_order_acquire)) {
            seat = {identity_, index};
            return &(*lanes_)[index];
        }
    }
    return nullptr;
}

uint64_t RemoteNode::ask(DeviceRequest request, uint64_t otherwise) noexcept {
    Lane* const lane = this->lane();
    if (lane == nullptr || cancelled_.load(std::memory_order_seq_cst)) {
        counters_.device_cut_off.fetch_add(1, std::memory_order_relaxed);
        return otherwise;
    }
    lane->next = (lane->next + 1) & kNumberMask;
    if (lane->next == 0) lane->next = 1;
    request.ticket = (uint64_t{seat.lane} << DeviceRequest::kLaneShift) | lane->next;
    counters_.device_asked.fetch_add(1, std::memory_order_relaxed);

    const int64_t begin = Clock::monotonic_ns();
    lane->waits_for.store(request.ticket, std::memory_order_seq_cst);
    bool answered = false;
    if (send(request)) {
        for (;;) {
            const uint32_t word = lane->word.load(std::memory_order_seq_cst);
            answered = lane->waits_for.load(std::memory_order_seq_cst) == 0;
            if (answered || cancelled_.load(std::memory_order_seq_cst)) break;
            futex_wait_until(lane->word, word, -1);
        }
    }
    counters_.device_waited_ns.fetch_add(static_cast<uint64_t>(Clock::monotonic_ns() - begin),
                                         std::memory_order_relaxed);
    if (answered) return lane->value;
    counters_.device_cut_off.fetch_add(1, std::memory_order_relaxed);
    return otherwise;
}

void RemoteNode::post(DeviceRequest request) noexcept {
    Lane* const lane = this->lane();
    if (lane == nullptr) {
        counters_.device_cut_off.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    const uint64_t number = lane->posted.load(std::memory_order_relaxed) + 1;
    for (bool first = true;; first = false) {
        const uint32_t word = lane->word.load(std::memory_order_seq_cst);
        if (cancelled_.load(std::memory_order_seq_cst)) {
            counters_.device_cut_off.fetch_add(1, std::memory_order_relaxed);
            return;
        }
        if (number - lane->served.load(std::memory_order_seq_cst) <= kPosted) break;
        if (first) counters_.device_held_back.fetch_add(1, std::memory_order_relaxed);
        futex_wait_until(lane->word, word, -1);
    }
    request.ticket = (uint64_t{seat.lane} << DeviceRequest::kLaneShift) | kPostedBit | (number & kNumberMask);
    counters_.device_posted.fetch_add(1, std::memory_order_relaxed);
    lane->posted.store(number, std::memory_order_seq_cst);
    if (!send(request)) counters_.device_cut_off.fetch_add(1, std::memory_order_relaxed);
}

/// When the host with the devices has gone, nothing will ever be answered.
bool RemoteNode::send(const DeviceRequest& request) noexcept {
    const auto bytes = request.encode();
    if (send_(bytes)) return true;
    cancel();
    return false;
}

void RemoteNode::received(std::span<const uint8_t> payload) noexcept {
    const auto reply = DeviceReply::decode(payload);
    const uint64_t index = reply ? reply->ticket >> DeviceRequest::kLaneShift : kLanes;
    if (index >= kLanes) {
        counters_.device_strays.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    Lane& lane = (*lanes_)[index];
    if (reply->ticket & kPostedBit) {
        // In the order in which they were posted, each once.
        const uint64_t number = lane.served.load(std::memory_order_relaxed) + 1;
        if ((number & kNumberMask) != (reply->ticket & kNumberMask) ||
            number > lane.posted.load(std::memory_order_seq_cst)) {
            counters_.device_strays.fetch_add(1, std::memory_order_relaxed);
            return;
        }
        lane.served.store(number, std::memory_order_seq_cst);
        if (reply->value != DeviceReply::kMayBePosted) {
            // The guest has moved a device: ask of every doorbell again.
            for (std::atomic<uint64_t>& known : doorbells_) known.store(0, std::memory_order_relaxed);
        }
    } else {
        if (reply->ticket == 0 || lane.waits_for.load(std::memory_order_seq_cst) != reply->ticket) {
            counters_.device_strays.fetch_add(1, std::memory_order_relaxed);
            return;
        }
        lane.value = reply->value;
        lane.waits_for.store(0, std::memory_order_seq_cst);
    }
    lane.change();
}

void RemoteNode::cancel() noexcept {
    if (cancelled_.exchange(true, std::memory_order_seq_cst)) return;
    for (Lane& lane : *lanes_) lane.change();
}

}  // namespace coremesh
