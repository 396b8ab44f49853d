// SPDX-License-Identifier: GPL-2.0-or-later
// Words of messages between hosts, at any alignment.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace coremesh::wire {

// Little endian, as every host of a machine is: the build hash says that they run the same code.
static_assert(std::endian::native == std::endian::little);

template <typename T>
void put(uint8_t* at, T value) noexcept {
    std::memcpy(at, &value, sizeof value);
}

template <typename T>
T get(const uint8_t* at) noexcept {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

}  // namespace coremesh::wire
