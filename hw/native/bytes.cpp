// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/bytes.hpp"

#include "base/clock.hpp"

namespace coremesh::virtio {
namespace {

/// Everything available, at most about `most` bytes. False: broken.
bool drain(VirtQueue& queue, size_t most, std::string& bytes) noexcept {
    const VirtQueue::Visit visit(queue);
    if (!visit.open()) return true;
    Chain chain;
    do {
        queue.suppress_notifications();
        for (;;) {
            if (!queue.running()) return true;
            if (bytes.size() >= most) return true;
            const SplitQueue::Next next = queue.pop(chain);
            if (next == SplitQueue::Next::kEmpty) break;
            bool sound = next == SplitQueue::Next::kChain && chain.readable_bytes <= kLongestText;
            if (sound) {
                const size_t before = bytes.size();
                bytes.resize(before + chain.readable_bytes);
                sound =
                    queue.gather(chain.readable, 0, bytes.data() + before, chain.readable_bytes).has_value();
                if (!sound) bytes.resize(before);
            }
            if (!sound || !queue.push(chain.head, 0)) {
                queue.fail(QueueFault::kMemory);
                queue.stop();
                return false;
            }
        }
    } while (queue.allow_notifications());
    return true;
}

}  // namespace

Text take_text(VirtQueue& queue, size_t most, int64_t linger_ns) noexcept {
    Text text;
    int64_t now = 0, deadline = -1;  // for ever, until there is a first byte
    do {
        queue.wait(deadline);
        if (!drain(queue, most, text.bytes)) {
            text.broken = true;
            return text;
        }
        if (text.bytes.empty()) return text;
        now = Clock::monotonic_ns();
        if (deadline < 0) deadline = now + linger_ns;
    } while (text.bytes.size() < most && now < deadline);
    // One interrupt for all: Linux's console spins until its buffer comes back, and is not told of it.
    queue.notify();
    if (text.bytes.size() >= most) queue.wake();  // there may be more
    return text;
}

}  // namespace coremesh::virtio
