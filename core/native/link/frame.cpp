// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/frame.hpp"

#include <bit>
#include <cstring>

namespace coremesh::link {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire is little endian, and so are the hosts");

constexpr uint32_t kMagic = 0x48534d43;  // "CMSH"
constexpr uint8_t kVersion = 1;

template <typename T>
void put(std::span<uint8_t, kHeaderBytes> to, size_t at, T value) noexcept {
    std::memcpy(to.data() + at, &value, sizeof value);
}

template <typename T>
T get(std::span<const uint8_t> from, size_t at) noexcept {
    T value;
    std::memcpy(&value, from.data() + at, sizeof value);
    return value;
}

}  // namespace

void encode(const Header& header, std::span<uint8_t, kHeaderBytes> to) noexcept {
    put(to, 0, kMagic);
    put(to, 4, kVersion);
    put(to, 5, static_cast<uint8_t>(header.type));
    put(to, 6, header.source);
    put(to, 7, header.destination);
    put(to, 8, header.machine);
    put(to, 16, header.epoch);
    put(to, 20, header.length);
    put(to, 24, header.sequence);
    put(to, 32, header.guest_tsc);
}

Refusal decode(std::span<const uint8_t> frame, Header& header) noexcept {
    if (frame.size() < kHeaderBytes) return Refusal::kTruncated;
    if (get<uint32_t>(frame, 0) != kMagic || get<uint8_t>(frame, 4) != kVersion) return Refusal::kNotAFrame;
    header.source = get<uint8_t>(frame, 6);
    header.destination = get<uint8_t>(frame, 7);
    header.machine = get<uint64_t>(frame, 8);
    header.epoch = get<uint32_t>(frame, 16);
    header.length = get<uint32_t>(frame, 20);
    header.sequence = get<uint64_t>(frame, 24);
    header.guest_tsc = get<uint64_t>(frame, 32);
    const size_t payload = frame.size() - kHeaderBytes;
    if (header.length > kMaxPayload || payload > kMaxPayload) return Refusal::kOversized;
    if (header.length != payload) return Refusal::kLength;
    const uint8_t type = get<uint8_t>(frame, 5);
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
