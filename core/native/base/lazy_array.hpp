// SPDX-License-Identifier: GPL-2.0-or-later
// An array of zeros as large as address space allows, paid for only where it is touched.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "base/platform_error.hpp"

namespace coremesh {

/// T must be valid when all its bytes are zero (lock-free atomics are).
template <typename T>
class LazyArray {
    static_assert(std::is_trivially_destructible_v<T>);

  public:
    explicit LazyArray(uint64_t count) : bytes_(count * sizeof(T)) {
        void* at =
            mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) {
            throw PlatformError(
                "no address space for " + std::to_string(bytes_ >> 20) +
                " MiB of page tables: " + std::strerror(errno) +
                "; give the machine less memory, raise 'ulimit -v', or set vm.overcommit_memory to 0 or 1");
        }
        madvise(at, bytes_, MADV_DONTDUMP);
        madvise(at, bytes_, MADV_NOHUGEPAGE);  // sparse by nature: a huge page would commit 2 MiB for 8 bytes
        data_ = static_cast<T*>(at);
    }
    ~LazyArray() { munmap(data_, bytes_); }
    LazyArray(const LazyArray&) = delete;
    LazyArray& operator=(const LazyArray&) = delete;

    T& operator[](uint64_t index) noexcept { return data_[index]; }
    const T& operator[](uint64_t index) const noexcept { return data_[index]; }

  private:
    uint64_t bytes_;
    T* data_;
};

}  // namespace coremesh
