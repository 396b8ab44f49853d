// SPDX-License-Identifier: GPL-2.0-or-later
#include "bus/node_server.hpp"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <climits>
#include <mutex>
#include <utility>

#include "base/clock.hpp"
#include "base/futex.hpp"
#include "base/masked_signals.hpp"
#include "bus/device_meter.hpp"
#include "bus/doorbell.hpp"

namespace coremesh {

/// The requests of one vCPU. It is in the list of those that are ready, or at a worker, or empty.
struct NodeServer::Lane {
    struct Waiting {
        DeviceRequest request;
        int64_t since = 0;
    };
    HostId host = 0;
    bool busy = false;  // ready or at a worker
    unsigned first = 0, count = 0;
    Lane* next_ready = nullptr;
    std::array<Waiting, kDepth> waiting;
};

NodeServer::NodeServer(DeviceBackend& node, unsigned hosts, Send send, unsigned workers,
                       std::vector<unsigned> first_vcpu, HostId self)
    : node_(node),
      hosts_(std::min(hosts, kMaxHosts)),
      self_(self),
      send_(std::move(send)),
      first_vcpu_(std::move(first_vcpu)),
      lanes_(size_t{hosts_} * kLanes) {
    const MaskedSignals masked;
    for (unsigned index = 0; index < std::max(workers, 1u); ++index) {
        workers_.emplace_back([this] { work(); });
    }
}

NodeServer::~NodeServer() { stop(); }

void NodeServer::received(HostId from, std::span<const uint8_t> payload) noexcept {
    const auto request = DeviceRequest::decode(payload);
    const int64_t now = Clock::monotonic_ns();
    {
        const std::lock_guard lock(mutex_);
        if (!request || from == self_ || from >= hosts_ || request->lane() >= kLanes) {
            ++counters_.device_refused;
            return;
        }
        std::unique_ptr<Lane>& place = lanes_[size_t{from} * kLanes + request->lane()];
        if (!place) {
            place = std::make_unique<Lane>();
            place->host = from;
        }
        if (place->count == kDepth) {
            ++counters_.device_refused;
            return;
        }
        place->waiting[(place->first + place->count++) % kDepth] = {*request, now};
        counters_.device_queue_longest = std::max(counters_.device_queue_longest, ++counters_.device_queue);
        if (!place->busy) enlist(*place);
    }
    work_.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(work_);
}

void NodeServer::enlist(Lane& lane) noexcept {
    lane.busy = true;
    lane.next_ready = nullptr;
    (ready_ ? last_ready_->next_ready : ready_) = &lane;
    last_ready_ = &lane;
}

/// A request of the lane that is ready longest; the lane is the worker's until `done`.
bool NodeServer::next(Lane*& lane, DeviceRequest& request) noexcept {
    const std::lock_guard lock(mutex_);
    while (ready_ != nullptr) {
        lane = std::exchange(ready_, ready_->next_ready);
        if (lane->count == 0) {  // forgotten meanwhile
            lane->busy = false;
            continue;
        }
        const Lane::Waiting& waiting = lane->waiting[lane->first];
        request = waiting.request;
        counters_.device_queued_ns += static_cast<uint64_t>(Clock::monotonic_ns() - waiting.since);
        lane->first = (lane->first + 1) % kDepth;
        --lane->count;
        --counters_.device_queue;
        return true;
    }
    return false;
}

void NodeServer::done(Lane& lane, uint64_t device_ns, bool answered) noexcept {
    const std::lock_guard lock(mutex_);
    ++counters_.device_served;
    counters_.device_called_ns += device_ns;
    if (!answered) ++counters_.device_unanswered;
    if (lane.count != 0) {
        enlist(lane);
    } else {
        lane.busy = false;
    }
}

void NodeServer::work() noexcept {
    pthread_setname_np(pthread_self(), "coremesh-node");
    node_.thread_begins();
    for (;;) {
        const uint32_t work = work_.load(std::memory_order_seq_cst);
        if (stopping_.load(std::memory_order_seq_cst)) break;
        Lane* lane = nullptr;
        DeviceRequest request;
        if (!next(lane, request)) {
            futex_wait_until(work_, work, -1);
            continue;
        }
        thread_host = lane->host;
        thread_vcpu = vcpu_of(lane->host, request.lane());
        const int64_t begin = Clock::monotonic_ns();
        const DeviceReply reply{request.ticket, serve(request)};
        const auto took = static_cast<uint64_t>(Clock::monotonic_ns() - begin);
        // The answer is on its way before the lane's next request is begun: answers come in order, too.
        const auto bytes = reply.encode();
        done(*lane, took, send_(lane->host, bytes));
    }
    node_.thread_ends();
}

unsigned NodeServer::vcpu_of(HostId host, unsigned lane) const noexcept {
    if (host + size_t{1} >= first_vcpu_.size()) return kNoVcpu;
    const unsigned vcpu = first_vcpu_[host] + lane;
    return vcpu < first_vcpu_[host + size_t{1}] ? vcpu : kNoVcpu;
}

uint64_t NodeServer::serve(const DeviceRequest& request) noexcept {
    switch (request.kind) {
        case DeviceRequest::Kind::kAccess:
            if (!request.write) {
                return node_.read(request.space, request.address, request.size) & all_ones(request.size);
            }
            node_.write(request.space, request.address, request.size, request.value);
            return node_.only_wakes(request.space, request.address) ? DeviceReply::kMayBePosted : 0;
        case DeviceRequest::Kind::kEndOfInterrupt:
            node_.end_of_interrupt(static_cast<uint8_t>(request.value));
            return DeviceReply::kMayBePosted;
        case DeviceRequest::Kind::kAcknowledge: {
            const int vector = node_.acknowledge();
            return vector >= 0 ? static_cast<uint64_t>(vector) : ~uint64_t{0};
        }
    }
    return 0;
}

void NodeServer::stop() noexcept {
    stopping_.store(true, std::memory_order_seq_cst);
    work_.fetch_add(1, std::memory_order_seq_cst);
    futex_wake(work_, INT_MAX);
    for (std::thread& worker : workers_) {
        if (worker.joinable()) worker.join();
    }
}

NodeServerCounters NodeServer::counters() const noexcept {
    const std::lock_guard lock(mutex_);
    return counters_;
}

}  // namespace coremesh
