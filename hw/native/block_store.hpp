// SPDX-License-Identifier: GPL-2.0-or-later
// What stands behind a disk, as native workers use it: bytes that are read and written by position.
#pragma once

#include <sys/uio.h>

#include <cerrno>
#include <cstdint>
#include <vector>

namespace coremesh {

/// What a call answers when our own code failed, and not the host's disk.
constexpr int kStoreMistake = -ENOTRECOVERABLE;

/// A disk's content. Any thread, several at once. Each call answers 0 or a negative errno; a range lies
/// within the disk.
class BlockStore {
  public:
    virtual ~BlockStore() = default;
    virtual int read(uint64_t offset, void* to, uint64_t length) noexcept = 0;
    virtual int write(uint64_t offset, const void* from, uint64_t length) noexcept = 0;
    /// The same with several buffers, one behind the other; the array is used up. By default -ENOTSUP: copy.
    virtual int read(uint64_t offset, std::vector<iovec>& buffers) noexcept;
    virtual int write(uint64_t offset, std::vector<iovec>& buffers) noexcept;
    virtual int flush() noexcept = 0;
    virtual int discard(uint64_t offset, uint64_t length) noexcept = 0;
    virtual int zeroes(uint64_t offset, uint64_t length, bool unmap) noexcept = 0;
};

/// A file by its descriptor, without the interpreter. The descriptor stays its opener's.
class FileStore final : public BlockStore {
  public:
    FileStore(int fd, bool can_discard) noexcept : fd_(fd), can_discard_(can_discard) {}
    int read(uint64_t offset, void* to, uint64_t length) noexcept override;
    int write(uint64_t offset, const void* from, uint64_t length) noexcept override;
    int read(uint64_t offset, std::vector<iovec>& buffers) noexcept override;
    int write(uint64_t offset, std::vector<iovec>& buffers) noexcept override;
    int flush() noexcept override;
    int discard(uint64_t offset, uint64_t length) noexcept override;
    int zeroes(uint64_t offset, uint64_t length, bool unmap) noexcept override;

  private:
    const int fd_;
    const bool can_discard_;
};

}  // namespace coremesh
