// SPDX-License-Identifier: GPL-2.0-or-later
// The buffers of one request as a device uses them, whether the device has taken it or the driver's host has.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "hw/native/virt_queue.hpp"

namespace coremesh::virtio {

/// Of one thread, within a Visit. Offsets count from the first readable or the first writable byte.
class Buffers {
  public:
    Buffers(VirtQueue& queue, const Chain& chain) noexcept : queue_(queue), chain_(chain) {}
    Buffers(VirtQueue& queue, RemoteChain& remote) noexcept
        : queue_(queue), chain_(remote.chain), remote_(remote.whole ? &remote : nullptr) {}

    const Chain& chain() const noexcept { return chain_; }

    /// As those of VirtQueue.
    std::optional<uint64_t> gather(uint64_t offset, void* data, uint64_t length) noexcept {
        if (remote_ == nullptr) return queue_.gather(chain_.readable, offset, data, length);
        if (offset >= remote_->data.size()) return 0;
        const auto some = std::min<uint64_t>(length, remote_->data.size() - offset);
        std::memcpy(data, remote_->data.data() + offset, some);
        return some;
    }
    std::optional<uint64_t> scatter(uint64_t offset, const void* data, uint64_t length) noexcept {
        if (remote_ == nullptr) return queue_.scatter(chain_.writable, offset, data, length);
        if (offset >= chain_.writable_bytes) return 0;
        const auto some = std::min<uint64_t>(length, chain_.writable_bytes - offset);
        const auto* bytes = static_cast<const uint8_t*>(data);
        remote_->answers.push_back({offset, {bytes, bytes + some}});
        return some;
    }
    /// Places for `bytes` bytes that the device writes from the first writable one on, for the host's kernel.
    /// Then `wrote`.
    bool direct_in(uint64_t bytes, std::vector<iovec>& places) {
        if (remote_ == nullptr) return queue_.direct(chain_.writable, 0, bytes, true, places);
        remote_->answers.push_back({0, std::vector<uint8_t>(bytes)});
        places.assign(1, {remote_->answers.back().bytes.data(), bytes});
        return true;
    }
    /// `good`: they are to reach the guest.
    void wrote(uint64_t bytes, bool good) {
        if (remote_ == nullptr) {
            queue_.wrote(chain_.writable, 0, bytes);
        } else if (!good) {
            remote_->answers.pop_back();
        }
    }
    /// Places of readable bytes, from `offset` on.
    bool direct_out(uint64_t offset, uint64_t bytes, std::vector<iovec>& places) {
        if (remote_ == nullptr) return queue_.direct(chain_.readable, offset, bytes, false, places);
        places.assign(1, {remote_->data.data() + offset, bytes});
        return true;
    }

  private:
    VirtQueue& queue_;
    const Chain& chain_;
    RemoteChain* const remote_ = nullptr;
};

}  // namespace coremesh::virtio
