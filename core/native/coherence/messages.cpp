// SPDX-License-Identifier: GPL-2.0-or-later
#include "coherence/messages.hpp"

#include <bit>

#include "base/wire.hpp"

namespace coremesh::coherence {

using wire::get;
using wire::put;

namespace {

static_assert(std::endian::native == std::endian::little, "the wire is little endian");

constexpr size_t kOperationBytes = 36;
constexpr size_t kValueBytes = 16;

bool has_operation(Message::Kind kind) noexcept {
    return kind == Message::Kind::kRmw || kind == Message::Kind::kExec;
}

uint8_t flags_of(Message::Kind kind) noexcept {
    switch (kind) {
        case Message::Kind::kGetS:
            return Message::kPrefetch;
        case Message::Kind::kGetM:
            return Message::kAtomic | Message::kPrefetch;
        case Message::Kind::kRmw:
            return Message::kLosing;
        case Message::Kind::kDataS:
        case Message::Kind::kDataM:
        case Message::Kind::kDone:
            return Message::kUnwritten;
        default:
            return 0;
    }
}

}  // namespace

size_t wire_size(Message::Kind kind) noexcept {
    if (has_operation(kind)) return kWireHead + kOperationBytes;
    if (kind == Message::Kind::kResult) return kWireHead + kValueBytes;
    return kWireHead;
}

size_t encode(const Message& message, std::span<uint8_t, kMaxWire> out) noexcept {
    uint8_t* const at = out.data();
    put<uint64_t>(at, 0);
    at[0] = static_cast<uint8_t>(message.kind);
    at[1] = message.requester;
    at[2] = message.flags;
    put(at + 8, message.page);
    put(at + 16, message.serial);
    put(at + 24, message.ticket);
    put(at + 32, message.sharers);
    if (has_operation(message.kind)) {
        at[40] = static_cast<uint8_t>(message.operation.kind);
        at[41] = message.operation.size;
        put(at + 42, message.operation.offset);
        put(at + 44, message.operation.operand);
        put(at + 60, message.operation.expected);
    } else if (message.kind == Message::Kind::kResult) {
        put(at + 40, message.value);
    }
    return wire_size(message.kind);
}

std::optional<Message> decode(std::span<const uint8_t> in) noexcept {
    if (in.size() < kWireHead) return std::nullopt;
    const uint8_t* const at = in.data();
    if (at[0] < 1 || at[0] > Message::kKinds) return std::nullopt;
    Message message;
    message.kind = static_cast<Message::Kind>(at[0]);
    const size_t size = wire_size(message.kind);
    if (in.size() < size || (in.size() != size && !message.has_page())) return std::nullopt;
    message.requester = at[1];
    message.flags = at[2];
    if (message.requester >= kMaxHosts) return std::nullopt;
    if ((message.flags & ~flags_of(message.kind)) != 0) return std::nullopt;
    if (at[3] != 0 || get<uint32_t>(at + 4) != 0) return std::nullopt;
    message.page = get<uint64_t>(at + 8);
    message.serial = get<uint64_t>(at + 16);
    message.ticket = get<uint64_t>(at + 24);
    message.sharers = get<uint64_t>(at + 32);
    if (has_operation(message.kind)) {
        message.operation.kind = static_cast<Operation::Kind>(at[40]);
        message.operation.size = at[41];
        message.operation.offset = get<uint16_t>(at + 42);
        message.operation.operand = get<Wide>(at + 44);
        message.operation.expected = get<Wide>(at + 60);
        if (!valid(message.operation)) return std::nullopt;
    } else if (message.kind == Message::Kind::kResult) {
        message.value = get<Wide>(at + 40);
    }
    return message;
}

}  // namespace coremesh::coherence
