// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/frame.hpp"

#include "base/wire.hpp"

namespace coremesh::link {
using wire::get;
using wire::put;

namespace {

constexpr uint32_t kMagic = 0x48534d43;  // "CMSH"
constexpr uint8_t kVersion = 1;

}  // namespace

void encode(const Header& header, std::span<uint8_t, kHeaderBytes> to) noexcept {
    put(to.data() + 0, kMagic);
    put(to.data() + 4, kVersion);
    put(to.data() + 5, static_cast<uint8_t>(header.type));
    put(to.data() + 6, header.source);
    put(to.data() + 7, header.destination);
    put(to.data() + 8, header.machine);
    put(to.data() + 16, header.epoch);
    put(to.data() + 20, header.length);
    put(to.data() + 24, header.sequence);
    put(to.data() + 32, header.guest_tsc);
}

Refusal decode(std::span<const uint8_t> frame, Header& header) noexcept {
    if (frame.size() < kHeaderBytes) return Refusal::kTruncated;
    if (get<uint32_t>(frame.data() + 0) != kMagic || get<uint8_t>(frame.data() + 4) != kVersion)
        return Refusal::kNotAFrame;
    header.source = get<uint8_t>(frame.data() + 6);
    header.destination = get<uint8_t>(frame.data() + 7);
    header.machine = get<uint64_t>(frame.data() + 8);
    header.epoch = get<uint32_t>(frame.data() + 16);
    header.length = get<uint32_t>(frame.data() + 20);
    header.sequence = get<uint64_t>(frame.data() + 24);
    header.guest_tsc = get<uint64_t>(frame.data() + 32);
    const size_t payload = frame.size() - kHeaderBytes;
    if (header.length > kMaxPayload || payload > kMaxPayload) return Refusal::kOversized;
    if (header.length != payload) return Refusal::kLength;
    const uint8_t type = get<uint8_t>(frame.data() + 5);
    if (type >= kTypes) return Refusal::kType;
    header.type = static_cast<Type>(type);
    return Refusal::kNone;
}

Refusal judge(const Header& header, const Identity& identity) noexcept {
    if (header.source >= identity.hosts || header.source == identity.self) return Refusal::kSource;
    if (header.destination != identity.self) return Refusal::kDestination;
    if (header.machine != identity.machine) return Refusal::kMachine;
    if (header.epoch != identity.epoch) return Refusal::kEpoch;
    return Refusal::kNone;
}

Refusal Sequence::take(uint64_t number) noexcept {
    if (number < next_) return Refusal::kReplayed;
    if (number > next_) return Refusal::kGap;
    ++next_;
    return Refusal::kNone;
}

}  // namespace coremesh::link
