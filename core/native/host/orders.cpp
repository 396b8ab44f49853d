// SPDX-License-Identifier: GPL-2.0-or-later
#include "host/orders.hpp"

#include <pthread.h>

#include "base/wire.hpp"

namespace coremesh {

std::array<uint8_t, Order::kBytes> Order::encode() const noexcept {
    std::array<uint8_t, kBytes> out{};
    wire::put<uint64_t>(out.data(), serial);
    out[8] = static_cast<uint8_t>(kind);
    wire::put<uint64_t>(out.data() + 16, value);
    return out;
}

std::optional<Order> Order::decode(std::span<const uint8_t> bytes) noexcept {
    if (bytes.size() != kBytes || bytes[8] > static_cast<uint8_t>(Kind::kRestart)) return std::nullopt;
    for (size_t i = 9; i < 16; ++i) {
        if (bytes[i]) return std::nullopt;
    }
    return Order{wire::get<uint64_t>(bytes.data()), static_cast<Kind>(bytes[8]),
                 wire::get<uint64_t>(bytes.data() + 16)};
}

bool Orders::give(Order::Kind kind, uint64_t value) noexcept {
    Order order{0, kind, value};
    {
        const std::lock_guard lock(mutex_);
        if (cancelled_) return false;
        order.serial = ++serial_;
        uint64_t others = 0;
        for (unsigned host = 0; host < hosts_; ++host) {
            if (host != self_) others |= uint64_t{1} << host;
        }
        open_[order.serial] = others;
    }
    const auto bytes = order.encode();
    for (unsigned host = 0; host < hosts_; ++host) {
        // A host that is gone breaks the machine, which cancels.
        if (host != self_) send_(static_cast<HostId>(host), bytes);
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return cancelled_ || open_[order.serial] == 0; });
    const bool done = open_[order.serial] == 0;
    open_.erase(order.serial);
    return done;
}

void Orders::ask_restart(uint64_t value) noexcept {
    send_(leader_, Order{0, Order::Kind::kRestart, value}.encode());
}

void Orders::received(HostId from, std::span<const uint8_t> payload) noexcept {
    const auto order = Order::decode(payload);
    if (!order) return;
    switch (order->kind) {
        case Order::Kind::kDone: {
            const std::lock_guard lock(mutex_);
            const auto found = open_.find(order->serial);
            if (found == open_.end()) return;
            found->second &= ~(uint64_t{1} << from);
            if (found->second == 0) changed_.notify_all();
            return;
        }
        case Order::Kind::kRestart:
            if (self_ == leader_) obey_(from, *order);
            return;
        case Order::Kind::kSteer:
            if (from == leader_) carry_out(from, *order);
            return;
        case Order::Kind::kPark:
        case Order::Kind::kReset:
        case Order::Kind::kRun: {
            if (from != leader_) return;
            const std::lock_guard lock(mutex_);
            if (cancelled_) return;
            queue_.push_back(*order);
            if (!worker_.joinable()) worker_ = std::thread([this] { work(); });
            changed_.notify_all();
            return;
        }
    }
}

void Orders::carry_out(HostId from, const Order& order) noexcept {
    obey_(from, order);
    send_(from, Order{order.serial, Order::Kind::kDone, 0}.encode());
}

void Orders::work() noexcept {
    pthread_setname_np(pthread_self(), "orders");
    for (;;) {
        Order order;
        {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [this] { return cancelled_ || !queue_.empty(); });
            if (cancelled_) return;
            order = queue_.front();
            queue_.pop_front();
        }
        carry_out(leader_, order);
    }
}

void Orders::cancel() noexcept {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    changed_.notify_all();
}

void Orders::stop() noexcept {
    cancel();
    std::thread worker;
    {
        const std::lock_guard lock(mutex_);
        worker.swap(worker_);
    }
    if (worker.joinable()) worker.join();
}

}  // namespace coremesh
