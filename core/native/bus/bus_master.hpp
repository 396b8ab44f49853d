// SPDX-License-Identifier: GPL-2.0-or-later
// What a device that does DMA asks of its host.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/host_set.hpp"
#include "bus/local_doorbells.hpp"

namespace coremesh {

/// Any thread, several at a time; the thread must not hold a lock that a vCPU could need on its way to give a
/// page up, because a call may wait for a page that another host has.
class BusMaster {
  public:
    virtual ~BusMaster() = default;
    /// Copies as a coherent participant, page by page. False: not RAM in one block, or the machine stops.
    virtual bool read(uint64_t gpa, void* to, uint64_t length) noexcept = 0;
    virtual bool write(uint64_t gpa, const void* from, uint64_t length) noexcept = 0;
    /// Where the bytes of a range lie, for a caller that has them moved by the host's kernel; null where they
    /// are not RAM in one block, or other hosts have copies: copy then. A caller that writes there calls
    /// `wrote` after.
    virtual uint8_t* direct(uint64_t gpa, uint64_t length, bool to_write) noexcept {
        static_cast<void>(gpa), static_cast<void>(length), static_cast<void>(to_write);
        return nullptr;
    }
    virtual void wrote(uint64_t gpa, uint64_t length) noexcept {
        static_cast<void>(gpa), static_cast<void>(length);
    }
    /// Has host `to` do with the guest's memory what `call` says, by its own bus master. False: it refused,
    /// there is no such host, or the machine stops.
    virtual bool call(HostId to, std::span<const uint8_t> call, std::vector<uint8_t>& answer) noexcept {
        static_cast<void>(to), static_cast<void>(call), static_cast<void>(answer);
        return false;
    }
    /// Does what the call of a device on another host says, and appends the answer. False: refused.
    using Serve = std::function<bool(BusMaster& here, LocalDoorbells& bells, std::span<const uint8_t> call,
                                     std::vector<uint8_t>& answer)>;
    /// On a host without the devices, before messages flow: the calls of theirs are for `serve`.
    virtual void serve_calls(Serve serve) { static_cast<void>(serve); }
    /// A write of 32 bits outside RAM: an interrupt message (Intel SDM vol. 3A, 11.11). Does not wait.
    virtual void message(uint64_t address, uint32_t data) noexcept = 0;
};

}  // namespace coremesh
