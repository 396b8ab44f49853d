// SPDX-License-Identifier: GPL-2.0-or-later
// The error of everything that a host refuses.
#pragma once

#include <stdexcept>

namespace coremesh {

/// The host cannot do what was asked: a kernel feature, a limit, a permission. The text ends with the way
/// out.
class PlatformError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace coremesh
