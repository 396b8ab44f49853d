// SPDX-License-Identifier: GPL-2.0-or-later
// The messages of the page protocol and how they look on the wire.
//
// Between two hosts messages arrive in the order in which they were sent; between different pairs in any
// order. The protocol needs no more (README.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/host_set.hpp"
#include "coherence/transaction.hpp"

namespace coremesh::coherence {

struct Message {
    enum class Kind : uint8_t {
        // requester -> home
        kGetS = 1,  ///< wants to read
        kGetM,      ///< wants to write
        kRmw,       ///< wants `operation` done, here or there
        kDone,      ///< transaction `serial` has ended: the page is free for the next. Sent where `settles`
                    ///< says no, else the home's agent tells its directory
        // home -> source, sharer, owner
        kFwdS,  ///< send the requester a copy to read; if you may write, you may only read from then on
        kFwdM,  ///< send the requester the page to write, and forget it
        kInv,   ///< forget the page, acknowledge to the requester
        kExec,  ///< execute the operation for the requester
        // home -> requester
        kGrant,    ///< you have the bytes: write, when `sharers` have acknowledged
        kHave,     ///< you already have what you asked for
        kDecline,  ///< not now (a prefetch only)
        kRetry,    ///< the page of `ticket` is yours: execute it there
        // source, sharer, owner -> requester
        kDataS,   ///< a copy to read; the page's bytes follow
        kDataM,   ///< the page to write, when `sharers` have acknowledged; the page's bytes follow
        kInvAck,  ///< forgotten
        kResult,  ///< `ticket` is executed; `value` is what was there before
    };
    static constexpr uint8_t kKinds = 16;
    static constexpr std::array<const char*, kKinds + 1> kNames = {
        "(unreadable)", "GetS", "GetM",    "Rmw",   "Done",  "FwdS",  "FwdM",   "Inv",   "Exec",
        "Grant",        "Have", "Decline", "Retry", "DataS", "DataM", "InvAck", "Result"};
    static constexpr uint8_t kPrefetch = 1;  ///< flag of kGetS and kGetM: no thread waits for it
    static constexpr uint8_t kAtomic = 2;    ///< flag of kGetM: an atomic instruction asks
    static constexpr uint8_t kLosing =
        4;  ///< flag of kRmw: the page was lost again and again; better remotely
    static constexpr uint8_t kGranting =
        8;  ///< flag of kFwdM, of a home to itself: the requester has the bytes; send it kGrant instead
    static constexpr uint8_t kUnwritten = 16;  ///< flag of kDataS, kDataM, kDone: its last owner had asked to
                                               ///< read, was given the right to write, and did not write

    Kind kind = Kind::kGetS;
    HostId requester = 0;
    uint8_t flags = 0;
    uint64_t page = 0;      ///< RAM offset >> 12
    uint64_t serial = 0;    ///< the home's number of the transaction; 0 in requests
    uint64_t ticket = 0;    ///< the requester's number of a memory transaction; 0 when there is none
    uint64_t sharers = 0;   ///< bit n: host n acknowledges to the requester
    Operation operation{};  ///< kRmw, kExec; in an Action also kResult, for the executor
    Wide value = 0;         ///< kResult

    /// Whether the page's bytes follow on the wire.
    bool has_page() const noexcept { return kind == Kind::kDataS || kind == Kind::kDataM; }
};

/// Whether a transaction ends where its answer is sent: at the home, when no other host has to acknowledge.
/// What the home sends to the requester later finds it in the state that it has in the directory by then.
constexpr bool settles(bool from_home, uint64_t acknowledgers) noexcept {
    return from_home && acknowledgers == 0;
}

inline constexpr size_t kWireHead = 40;
inline constexpr size_t kMaxWire = kWireHead + 36;

/// Bytes of a message of this kind on the wire, without a page: 40, 76 with an operation, 56 with a value.
size_t wire_size(Message::Kind kind) noexcept;

/// Little endian: kind, requester, flags, 0, u32 0, page, serial, ticket, sharers; then the operation (kind,
/// size, u16 offset, operand, expected) or the value. Returns the bytes written.
size_t encode(const Message& message, std::span<uint8_t, kMaxWire> out) noexcept;

/// Takes `wire_size` bytes of the front of `in`, nothing when they are not a message: too short, an unknown
/// kind or flag, a reserved byte that is not 0, a host number above 63, an operation that is not valid.
/// A message without a page must be all of `in`; what follows one with a page begins at `wire_size`.
std::optional<Message> decode(std::span<const uint8_t> in) noexcept;

}  // namespace coremesh::coherence
