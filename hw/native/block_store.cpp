// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/block_store.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>

namespace coremesh {
namespace {

/// Calls `move(done)`, which answers as read(2), until `length` bytes are moved.
template <typename Move>
int whole(uint64_t length, Move move) noexcept {
    for (uint64_t done = 0; done < length;) {
        const ssize_t piece = move(done);
        if (piece > 0) {
            done += static_cast<uint64_t>(piece);
        } else if (piece == 0) {
            return -EIO;  // the file has become shorter than it was when it was opened
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

/// Calls `move(offset, first, count)`, which answers as preadv(2), until all buffers are moved.
template <typename Move>
int whole(uint64_t offset, std::vector<iovec>& buffers, Move move) noexcept {
    size_t first = 0;
    while (first < buffers.size()) {
        const auto count = static_cast<int>(std::min<size_t>(buffers.size() - first, IOV_MAX));
        const ssize_t piece = move(static_cast<off_t>(offset), &buffers[first], count);
        if (piece == 0) return -EIO;
        if (piece < 0) {
            if (errno == EINTR) continue;
            return -errno;
        }
        offset += static_cast<uint64_t>(piece);
        auto left = static_cast<size_t>(piece);
        while (first < buffers.size() && left >= buffers[first].iov_len) left -= buffers[first++].iov_len;
        if (left) {
            buffers[first].iov_base = static_cast<uint8_t*>(buffers[first].iov_base) + left;
            buffers[first].iov_len -= left;
        }
    }
    return 0;
}

int allocate(int fd, int mode, uint64_t offset, uint64_t length) noexcept {
    int result;
    do {
        result = fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length));
    } while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : -errno;
}

}  // namespace

int BlockStore::read(uint64_t, std::vector<iovec>&) noexcept { return -ENOTSUP; }
int BlockStore::write(uint64_t, std::vector<iovec>&) noexcept { return -ENOTSUP; }

int FileStore::read(uint64_t offset, void* to, uint64_t length) noexcept {
    return whole(length, [&](uint64_t done) {
        return pread(fd_, static_cast<uint8_t*>(to) + done, length - done, static_cast<off_t>(offset + done));
    });
}

int FileStore::write(uint64_t offset, const void* from, uint64_t length) noexcept {
    return whole(length, [&](uint64_t done) {
        return pwrite(fd_, static_cast<const uint8_t*>(from) + done, length - done,
                      static_cast<off_t>(offset + done));
    });
}

int FileStore::read(uint64_t offset, std::vector<iovec>& buffers) noexcept {
    return whole(offset, buffers,
                 [this](off_t at, iovec* first, int count) { return preadv(fd_, first, count, at); });
}

int FileStore::write(uint64_t offset, std::vector<iovec>& buffers) noexcept {
    return whole(offset, buffers,
                 [this](off_t at, iovec* first, int count) { return pwritev(fd_, first, count, at); });
}

int FileStore::flush() noexcept {
    int result;
    do {
        result = fdatasync(fd_);
    } while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : -errno;
}

int FileStore::discard(uint64_t offset, uint64_t length) noexcept {
    if (!can_discard_ || length == 0) return 0;
    return allocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

int FileStore::zeroes(uint64_t offset, uint64_t length, bool unmap) noexcept {
    if (length == 0) return 0;
    const int mode =
        (unmap && can_discard_ ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
    const int result = allocate(fd_, mode, offset, length);
    if (result != -EOPNOTSUPP && result != -ENOSYS && result != -EINVAL) return result;
    static const std::array<uint8_t, 65536> kZeroes{};
    for (uint64_t done = 0; done < length; done += kZeroes.size()) {
        const int error =
            write(offset + done, kZeroes.data(), std::min<uint64_t>(kZeroes.size(), length - done));
        if (error) return error;
    }
    return 0;
}

}  // namespace coremesh
