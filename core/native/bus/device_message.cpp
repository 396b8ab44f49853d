// SPDX-License-Identifier: GPL-2.0-or-later
#include "bus/device_message.hpp"

#include "base/wire.hpp"

namespace coremesh {
using wire::get;
using wire::put;

namespace {

constexpr uint64_t kPorts = 0x1'0000;
constexpr uint64_t kMemory = uint64_t{1} << 52;  // no processor has more physical address bits

bool possible(const DeviceRequest& request) noexcept {
    switch (request.kind) {
        case DeviceRequest::Kind::kAccess: {
            const unsigned size = request.size;
            const bool port = request.space == Space::kPort;
            if (size != 1 && size != 2 && size != 4 && (size != 8 || port)) return false;
            if (request.address >= (port ? kPorts : kMemory)) return false;
            return (request.value & ~(request.write ? all_ones(size) : 0)) == 0;
        }
        case DeviceRequest::Kind::kEndOfInterrupt:
        case DeviceRequest::Kind::kAcknowledge:
            return request.space == Space::kPort && !request.write && request.size == 1 &&
                   request.address == 0 &&
                   request.value <= (request.kind == DeviceRequest::Kind::kEndOfInterrupt ? 0xFF : 0);
    }
    return false;
}

}  // namespace

std::array<uint8_t, DeviceRequest::kBytes> DeviceRequest::encode() const noexcept {
    std::array<uint8_t, kBytes> bytes{};
    put(&bytes[0], ticket);
    bytes[8] = static_cast<uint8_t>(kind);
    bytes[9] = static_cast<uint8_t>(space);
    bytes[10] = write ? 1 : 0;
    put(&bytes[12], size);
    put(&bytes[16], address);
    put(&bytes[24], value);
    return bytes;
}

std::optional<DeviceRequest> DeviceRequest::decode(std::span<const uint8_t> bytes) noexcept {
    if (bytes.size() != kBytes || bytes[8] > 2 || bytes[9] > 1 || bytes[10] > 1 || bytes[11] != 0) return {};
    const DeviceRequest request{.ticket = get<uint64_t>(&bytes[0]),
                                .kind = static_cast<Kind>(bytes[8]),
                                .space = static_cast<Space>(bytes[9]),
                                .write = bytes[10] != 0,
                                .size = get<uint32_t>(&bytes[12]),
                                .address = get<uint64_t>(&bytes[16]),
                                .value = get<uint64_t>(&bytes[24])};
    if (!possible(request)) return {};
    return request;
}

std::array<uint8_t, DeviceReply::kBytes> DeviceReply::encode() const noexcept {
    std::array<uint8_t, kBytes> bytes;
    put(&bytes[0], ticket);
    put(&bytes[8], value);
    return bytes;
}

std::optional<DeviceReply> DeviceReply::decode(std::span<const uint8_t> bytes) noexcept {
    if (bytes.size() != kBytes) return {};
    return DeviceReply{get<uint64_t>(&bytes[0]), get<uint64_t>(&bytes[8])};
}

}  // namespace coremesh
