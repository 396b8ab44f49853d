// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/frames.hpp"

#include <algorithm>

#include "hw/native/segments.hpp"

namespace coremesh::virtio {
namespace {

/// A queue of the driver's host, as the steps below use one.
class QueueHere {
  public:
    QueueHere(SplitQueue& queue, BusMaster& bus) : queue_(queue), bus_(bus) {}
    bool running() const { return true; }
    SplitQueue::Next pop(Chain& chain) { return queue_.pop(chain); }
    bool push(uint16_t head, uint32_t written) { return queue_.push(head, written); }
    void suppress_notifications() { queue_.suppress_notifications(); }
    bool allow_notifications() { return queue_.allow_notifications(); }
    std::optional<uint64_t> gather(const std::vector<Segment>& from, uint64_t offset, void* to,
                                   uint64_t length) {
        return virtio::gather(bus_, from, offset, to, length);
    }
    std::optional<uint64_t> scatter(const std::vector<Segment>& to, uint64_t offset, const void* from,
                                    uint64_t length) {
        return virtio::scatter(bus_, to, offset, from, length);
    }
    void fail() { queue_.fail(QueueFault::kMemory); }

  private:
    SplitQueue& queue_;
    BusMaster& bus_;
};

template <typename Queue>
Sent take(Queue& queue, size_t most) {
    Sent sent;
    Chain chain;
    do {
        queue.suppress_notifications();
        for (;;) {
            if (!queue.running()) return sent;
            if (sent.frames.size() + sent.refused >= most) {
                sent.more = true;
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
                sent.broken = true;
                return sent;
            }
        }
    } while (queue.allow_notifications());
    return sent;
}

template <typename Queue>
Delivered deliver(Queue& queue, const std::vector<std::string_view>& frames) {
    Delivered done;
    Chain chain;
    std::string whole;
    const auto broken = [&] {
        done.broken = true;
        return done;
    };
    while (done.frames < frames.size() && queue.running()) {
        const SplitQueue::Next next = queue.pop(chain);
        if (next == SplitQueue::Next::kBroken) return broken();
        if (next == SplitQueue::Next::kEmpty) {
            if (queue.allow_notifications()) continue;
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
    return done;
}

void stop(VirtQueue& queue) noexcept {
    queue.fail(QueueFault::kMemory);
    queue.stop();
}

}  // namespace

Sent drain_frames(SplitQueue& queue, BusMaster& bus, size_t most) noexcept {
    QueueHere here(queue, bus);
    Sent sent = take(here, most);
    if (sent.broken) here.fail();
    return sent;
}

Delivered fill_frames(SplitQueue& queue, BusMaster& bus,
                      const std::vector<std::string_view>& frames) noexcept {
    QueueHere here(queue, bus);
    const Delivered done = deliver(here, frames);
    if (done.broken) here.fail();
    return done;
}

Sent take_frames(VirtQueue& queue, size_t most) noexcept {
    Sent sent;
    const VirtQueue::Visit visit(queue);
    if (!visit.open()) return sent;
    if (queue.take_frames_there(most, sent.frames, sent.refused, sent.more)) {
        sent.broken = queue.broken();
    } else {
        sent = take(queue, most);
        if (!sent.broken && sent.frames.size() + sent.refused != 0 && queue.running()) queue.notify();
    }
    if (sent.broken) stop(queue);
    return sent;
}

Delivered deliver_frames(VirtQueue& queue, const std::vector<std::string_view>& frames) noexcept {
    Delivered done;
    const VirtQueue::Visit visit(queue);
    if (!visit.open()) return done;
    if (queue.deliver_frames_there(frames, done.frames, done.refused)) {
        done.broken = queue.broken();
    } else {
        done = deliver(queue, frames);
        if (!done.broken) queue.notify();
    }
    if (done.broken) stop(queue);
    return done;
}

}  // namespace coremesh::virtio
