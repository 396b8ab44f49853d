// SPDX-License-Identifier: GPL-2.0-or-later
#include "coherence/prefetch.hpp"

#include <algorithm>

namespace coremesh::coherence {

unsigned Prefetch::missed(uint64_t page) noexcept {
    if (depth_ == 0) return 0;
    Stream* stream = &streams_[0];
    for (Stream& one : streams_) {
        if (one.stamp != 0 && one.next == page) {
            stream = &one;
            break;
        }
        if (one.stamp < stream->stamp) stream = &one;
    }
    const bool known = stream->stamp != 0 && stream->next == page;
    stream->run = known ? stream->run + 1 : 0;
    stream->stamp = ++stamp_;
    const unsigned ahead = known ? std::min(depth_, 1u << std::min(stream->run, 16u)) : 0;
    stream->next = page + ahead + 1;
    return ahead;
}

}  // namespace coremesh::coherence
