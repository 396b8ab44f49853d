// SPDX-License-Identifier: GPL-2.0-or-later
#include "host/remote_calls.hpp"

#include <pthread.h>

#include <algorithm>
#include <array>

#include "base/go_first.hpp"
#include "base/masked_signals.hpp"
#include "base/wire.hpp"

namespace coremesh {

bool RemoteCalls::send(HostId to, uint64_t serial, bool answers, std::span<const uint8_t> bytes) noexcept {
    std::array<uint8_t, kHeadBytes> head;
    wire::put<uint64_t>(head.data(), serial);
    do {
        const auto piece = bytes.first(std::min(bytes.size(), kPieceBytes));
        bytes = bytes.subspan(piece.size());
        const auto first = static_cast<uint8_t>(answers ? Part::kAnswer : Part::kCall);
        head[8] = static_cast<uint8_t>(first + bytes.empty());
        if (!send_(to, head, piece)) return false;
    } while (!bytes.empty());
    return true;
}

void RemoteCalls::refuse(uint64_t serial) noexcept {
    std::array<uint8_t, kHeadBytes> head;
    wire::put<uint64_t>(head.data(), serial);
    head[8] = static_cast<uint8_t>(Part::kRefused);
    send_(leader_, head, {});
}

bool RemoteCalls::call(HostId to, std::span<const uint8_t> call, Bytes& answer) noexcept {
    if (to == self_ || call.size() > kMostBytes) return false;
    uint64_t serial;
    {
        const std::lock_guard lock(mutex_);
        if (cancelled_) return false;
        serial = ++serial_;
        open_[serial].to = to;
    }
    // A host that is gone breaks the machine, which cancels.
    const bool sent = send(to, serial, false, call);
    std::unique_lock lock(mutex_);
    Open& open = open_[serial];
    if (sent) answered_.wait(lock, [&] { return cancelled_ || open.done; });
    const bool good = open.done && !open.refused;
    if (good) answer.swap(open.answer);
    open_.erase(serial);
    return good;
}

void RemoteCalls::serve(Serve serve, unsigned threads) {
    serve_ = std::move(serve);
    const MaskedSignals masked;
    for (unsigned index = 0; index < threads; ++index) threads_.emplace_back([this] { work(); });
}

void RemoteCalls::received(HostId from, std::span<const uint8_t> payload) noexcept {
    if (payload.size() < kHeadBytes || payload[8] > static_cast<uint8_t>(Part::kRefused)) return;
    const auto serial = wire::get<uint64_t>(payload.data());
    const auto part = static_cast<Part>(payload[8]);
    const auto bytes = payload.subspan(kHeadBytes);
    const std::lock_guard lock(mutex_);
    if (part == Part::kCall || part == Part::kLastOfCall) {
        if (from != leader_ || cancelled_) return;
        Bytes& call = arriving_[serial];
        const bool fits = serve_ && call.size() + bytes.size() <= kMostBytes &&
                          arriving_.size() + waiting_.size() <= kMostWaiting;
        if (fits) call.insert(call.end(), bytes.begin(), bytes.end());
        if (fits && part == Part::kCall) return;
        if (fits) {
            waiting_.emplace_back(serial, std::move(call));
            called_.notify_one();
        } else {
            refuse(serial);
        }
        arriving_.erase(serial);
        return;
    }
    const auto found = open_.find(serial);
    if (found == open_.end() || found->second.to != from || found->second.done) return;
    Open& open = found->second;
    open.refused = part == Part::kRefused || open.answer.size() + bytes.size() > kMostBytes;
    if (!open.refused) open.answer.insert(open.answer.end(), bytes.begin(), bytes.end());
    open.done = open.refused || part == Part::kLastOfAnswer;
    if (open.done) answered_.notify_all();
}

void RemoteCalls::work() noexcept {
    pthread_setname_np(pthread_self(), "remote-calls");
    go_first();
    Bytes answer;
    for (;;) {
        std::pair<uint64_t, Bytes> call;
        {
            std::unique_lock lock(mutex_);
            called_.wait(lock, [this] { return cancelled_ || !waiting_.empty(); });
            if (cancelled_) return;
            call = std::move(waiting_.front());
            waiting_.pop_front();
        }
        answer.clear();
        if (serve_(call.second, answer) && answer.size() <= kMostBytes) {
            send(leader_, call.first, true, answer);
        } else {
            refuse(call.first);
        }
    }
}

void RemoteCalls::cancel() noexcept {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    answered_.notify_all();
    called_.notify_all();
}

void RemoteCalls::stop() noexcept {
    cancel();
    std::vector<std::thread> threads;
    {
        const std::lock_guard lock(mutex_);
        threads.swap(threads_);
    }
    for (std::thread& thread : threads) thread.join();
}

}  // namespace coremesh
