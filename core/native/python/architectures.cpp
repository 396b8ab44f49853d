// SPDX-License-Identifier: GPL-2.0-or-later
#include "python/architectures.hpp"

namespace coremesh {

namespace x86 {
extern const Architecture kArchitecture;  // x86/platform.cpp, which stands above this folder
}

std::span<const Architecture* const> architectures() noexcept {
    static constexpr const Architecture* all[] = {&x86::kArchitecture};
    return all;
}

}  // namespace coremesh
