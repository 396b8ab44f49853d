// SPDX-License-Identifier: GPL-2.0-or-later
#include "host/mesh.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string_view>

#include "link/protocol_thread.hpp"

namespace coremesh {

using link::Lease;
using link::Type;

namespace {

coherence::Options protocol_options(const Mesh::Options& options, uint64_t pages) {
    coherence::Options out;
    out.self = options.self;
    out.hosts = options.hosts;
    out.pages = pages;
    out.homes = options.homes;
    out.policy = options.policy;
    out.hold_us = options.hold_us;
    out.prefetch = options.prefetch;
    out.first_touch = options.first_touch;
    out.pass_on = options.pass_on;
    return out;
}

constexpr unsigned kNodeWorkers = 2;

const char* reason_of(Lease::Fence fence) {
    switch (fence) {
        case Lease::Fence::kExpired:
            return "host 0 was not heard in time";
        case Lease::Fence::kStopped:
            return "this process was stopped longer than a lease lasts: the others have given it up";
        case Lease::Fence::kNotJoined:
            return "not all hosts were heard at the start: is the network between them open?";
        case Lease::Fence::kPeerLost:
            return "another host is lost, and a part of the memory with it";
        case Lease::Fence::kToldSo:
            return "host 0 has stopped the machine";
        default:
            return "";
    }
}

}  // namespace

Mesh::Mesh(const Options& options, GuestRam& ram, Clock& clock, GuestPlatform& platform, MeshOwner& owner)
    : options_(options),
      protocol_(protocol_options(options, ram.pages())),
      clock_(clock),
      platform_(platform),
      owner_(owner),
      memory_(ram, protocol_, *this),
      orders_(
          options.self, options.hosts, options.devices,
          [this](HostId to, std::span<const uint8_t> payload) {
              return link_ && link_->send(to, Type::kControl, payload);
          },
          [this](HostId from, const Order& order) { owner_.obey(from, order); }),
      calls_(options.self, options.devices,
             [this](HostId to, std::span<const uint8_t> head, std::span<const uint8_t> body) {
                 return link_ && link_->send(to, Type::kCall, head, body);
             }) {
    platform_.join(options_.self, options_.hosts, options_.vcpu_hosts, options_.devices, *this);
    follower_ = std::make_unique<ClockFollower>(
        clock_, options_.self,
        [this](HostId to, std::span<const uint8_t> payload) { link_->send(to, Type::kClock, payload); });
    if (!has_devices()) {
        remote_node_ = std::make_shared<RemoteNode>(
            [this](std::span<const uint8_t> payload) {
                return link_->send(options_.devices, Type::kDevice, payload);
            },
            &local_doorbells_);
    }
    for (const coherence::HomeRange& range : options_.homes) {
        if (range.host == options_.self) {
            ram.page_table()->set_access(range.first, range.end - range.first, Access::kWrite);
        }
    }
}

Mesh::~Mesh() { stop(); }

void Mesh::attach(std::shared_ptr<link::Link> link, std::shared_ptr<DeviceBackend> devices) {
    link_ = std::move(link);
    devices_ = std::move(devices);
    if (devices_) {
        // vCPUs count through the hosts in order.
        std::vector<unsigned> first_vcpu(options_.hosts + size_t{1});
        for (const auto& vcpu : options_.vcpu_hosts) {
            for (size_t later = vcpu.second + size_t{1}; later < first_vcpu.size(); ++later) {
                ++first_vcpu[later];
            }
        }
        node_server_ = std::make_unique<NodeServer>(
            *devices_, options_.hosts,
            [this](HostId to, std::span<const uint8_t> payload) {
                return link_->send(to, Type::kDevice, payload);
            },
            kNodeWorkers, std::move(first_vcpu), options_.self);
    }
}

unsigned Mesh::first_vcpu() const noexcept {
    unsigned before = 0;
    for (const auto& vcpu : options_.vcpu_hosts) before += vcpu.second < options_.self;
    return before;
}

void Mesh::start() {
    if (!link_) throw std::logic_error("a link is attached before it is started");
    link::LeaseTimes times = options_.lease;
    // The first time that such a thread is late it is already late by more.
    if (!link::outranks(link::probe_priority())) times.lease_ns *= 2;
    lease_ = std::make_unique<Lease>(options_.self, options_.hosts, link::lease_clock_ns(), times);
    link_->start(*this);
}

bool Mesh::joined(std::chrono::duration<double> timeout) {
    std::unique_lock lock(mutex_);
    return joined_changed_.wait_for(lock, timeout, [this] { return joined_; });
}

void Mesh::cancel() noexcept {
    memory_.cancel();
    orders_.cancel();
    calls_.cancel();
    if (remote_node_) remote_node_->cancel();
}

void Mesh::stop() noexcept {
    cancel();
    if (node_server_) node_server_->stop();
    orders_.stop();
    calls_.stop();
    if (link_) link_->stop();
    devices_.reset();
}

// ---- the protocol thread
// -------------------------------------------------------------------------------------------

void Mesh::received(HostId from, Type type, uint64_t guest_tsc, std::span<const uint8_t> payload) noexcept {
    const int64_t now = link::lease_clock_ns();
    // Before the frame is looked at: it may be from before this process was stopped for a while.
    obey(lease_->tick(now), now);
    if (broken_) return;
    if (follower_->settled()) clock_.witness(guest_tsc);
    switch (type) {
        case Type::kCoherence:
        case Type::kPage:
            memory_.receive(from, payload);
            return;
        case Type::kInterrupt:
            platform_.received(from, payload);
            return;
        case Type::kDevice:
            if (node_server_) {
                node_server_->received(from, payload);
            } else if (from == options_.devices && remote_node_) {
                remote_node_->received(payload);
            }
            return;
        case Type::kClock:
            follower_->received(from, payload);
            return;
        case Type::kHeartbeat:
            if (const auto beat = link::Beat::decode(payload)) obey(lease_->heard(from, *beat, now), now);
            return;
        case Type::kControl:
            orders_.received(from, payload);
            return;
        case Type::kCall:
            calls_.received(from, payload);
            return;
    }
}

/// The lease, the clock's jumps and all that is not the page protocol are the protocol thread's.
bool Mesh::takes_waiting(Type type, uint64_t guest_tsc) noexcept {
    return (type == Type::kCoherence || type == Type::kPage) &&
           link::lease_clock_ns() < sure_until_.load(std::memory_order_acquire) && follower_->settled() &&
           guest_tsc <= clock_.tsc();
}

void Mesh::received_waiting(HostId from, Type, uint64_t, std::span<const uint8_t> payload) noexcept {
    memory_.receive(from, payload);
}

int64_t Mesh::due(int64_t now_ns) noexcept {
    const int64_t now = link::lease_clock_ns();
    obey(lease_->tick(now), now);
    // The lease counts on another clock; what matters is how long from now.
    int64_t next = now_ns + std::max<int64_t>(0, lease_->next() - now);
    if (broken_) return next;
    sure_until_.store(lease_->next(), std::memory_order_release);
    silence_longest_.store(lease_->silence_longest(), std::memory_order_relaxed);
    beat_late_longest_.store(lease_->beat_late_longest(), std::memory_order_relaxed);
    note_joined(now);
    for (const int64_t other : {memory_.run_timers(now_ns), follower_->due(now_ns)}) {
        if (other >= 0) next = std::min(next, other);
    }
    return next;
}

void Mesh::obey(const Lease::Orders& orders, int64_t now_ns) noexcept {
    for (uint64_t left = orders.send; left; left &= left - 1) {
        const auto to = static_cast<HostId>(std::countr_zero(left));
        std::array<uint8_t, link::Beat::kBytes> bytes;
        lease_->beat(to, now_ns).encode(bytes);
        link_->send(to, Type::kHeartbeat, bytes);
    }
    // A host that is lost comes before what follows from it.
    for (uint64_t left = orders.lost; left; left &= left - 1) {
        const auto host = static_cast<HostId>(std::countr_zero(left));
        link_->disown(host);
        break_up({false, host, "it has not been heard in time"});
    }
    if (orders.fence != Lease::Fence::kNone) break_up({true, options_.self, reason_of(orders.fence)});
}

void Mesh::peer_lost(HostId peer, link::Loss loss) noexcept {
    break_up(
        {false, peer, loss == link::Loss::kGap ? "a message of it is missing" : "it takes no more messages"});
}

/// A machine that has lost a part of its memory cannot go on. Heartbeats do, until the link is stopped: they
/// tell the others.
void Mesh::break_up(const Breach& breach) noexcept {
    if (broken_) return;
    broken_ = true;
    sure_until_.store(INT64_MIN, std::memory_order_release);
    owner_.mesh_broken(breach);
    cancel();
}

void Mesh::note_joined(int64_t now_ns) noexcept {
    if (told_joined_ || !lease_->held(now_ns) || !follower_->settled()) return;
    told_joined_ = true;
    const std::lock_guard lock(mutex_);
    joined_ = true;
    joined_changed_.notify_all();
}

// ---- sending
// -------------------------------------------------------------------------------------------------------

void Mesh::send_message(HostId to, std::span<const uint8_t> message) noexcept {
    if (link_) link_->post(to, Type::kCoherence, message);
}

void Mesh::send_page(HostId to, std::span<const uint8_t> message, std::span<const uint8_t> page) noexcept {
    if (link_) link_->post(to, Type::kPage, message, page);
}

void Mesh::flush(uint64_t hosts) noexcept {
    for (; link_ && hosts != 0; hosts &= hosts - 1) {
        link_->flush(static_cast<HostId>(std::countr_zero(hosts)));
    }
}

void Mesh::timer_set(int64_t due_ns) noexcept {
    if (link_) link_->wake_at(due_ns);
}

bool Mesh::send_interrupt(HostId to, std::span<const uint8_t> payload) noexcept {
    return link_ && link_->send(to, Type::kInterrupt, payload);
}

}  // namespace coremesh
