// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/frames.hpp"

#include <cstring>

namespace coremesh::virtio {

Sent take_frames(VirtQueue& queue, size_t most) noexcept {
    Sent sent;
    const VirtQueue::Visit visit(queue);
    if (!visit.open()) return sent;
    Chain chain;
    bool took = false;
    do {
        queue.suppress_notifications();
        for (;;) {
            if (!queue.running()) return sent;
            if (sent.frames.size() + sent.refused >= most) {
                sent.more = true;
                if (took) queue.notify();
                return sent;
            }
            const SplitQueue::Next next = queue.pop(chain);
            if (next == SplitQueue::Next::kEmpty) break;
            bool sound = next == SplitQueue::Next::kChain;
            if (sound) {
                const uint64_t bytes = chain.readable_bytes;
                if (bytes <= kFrameHeader || bytes > kFrameHeader + kLongestFrame) {
                    ++sent.refused;
                } else {
                    std::string frame(bytes - kFrameHeader, '\0');
                    sound =
                        queue.gather(chain.readable, kFrameHeader, frame.data(), frame.size()).has_value();
                    if (sound) sent.frames.push_back(std::move(frame));
                }
            }
            if (!sound || !queue.push(chain.head, 0)) {
                queue.fail(QueueFault::kMemory);
                queue.stop();
                sent.broken = true;
                return sent;
            }
            took = true;
        }
    } while (queue.allow_notifications());
    if (took) queue.notify();
    return sent;
}

Delivered deliver_frames(VirtQueue& queue, const std::vector<std::string_view>& frames) noexcept {
    Delivered done;
    const VirtQueue::Visit visit(queue);
    if (!visit.open()) return done;
    Chain chain;
    std::string whole;
    const auto broken = [&] {
        queue.fail(QueueFault::kMemory);
        queue.stop();
        done.broken = true;
        return done;
    };
    while (done.frames < frames.size() && queue.running()) {
        const SplitQueue::Next next = queue.pop(chain);
        if (next == SplitQueue::Next::kBroken) return broken();
        if (next == SplitQueue::Next::kEmpty) {
            if (queue.allow_notifications()) continue;
            queue.notify();
            return done;
        }
        const std::string_view frame = frames[done.frames++];
        uint32_t written = 0;
        if (chain.writable_bytes < kFrameHeader + frame.size()) {
            ++done.refused;
        } else {
            // 5.1.6.4: num_buffers is 1; there is no other field without offloads.
            whole.assign(kFrameHeader, '\0');
            whole[10] = 1;
            whole.append(frame);
            if (!queue.scatter(chain.writable, 0, whole.data(), whole.size())) return broken();
            written = static_cast<uint32_t>(whole.size());
        }
        if (!queue.push(chain.head, written)) return broken();
    }
    queue.suppress_notifications();
    queue.notify();
    return done;
}

}  // namespace coremesh::virtio
