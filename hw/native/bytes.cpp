// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/bytes.hpp"

#include "base/clock.hpp"
#include "base/go_first.hpp"
#include "hw/native/segments.hpp"

namespace coremesh::virtio {
namespace {

/// Everything available while `runs`, at most about `most` bytes. False: no driver sends that.
template <typename Queue, typename Runs, typename Gather>
bool drain_from(Queue& queue, size_t most, std::string& bytes, Runs runs, Gather gathered) noexcept {
    Chain chain;
    do {
        queue.suppress_notifications();
        for (;;) {
            if (!runs() || bytes.size() >= most) return true;
            const SplitQueue::Next next = queue.pop(chain);
            if (next == SplitQueue::Next::kEmpty) break;
            if (next != SplitQueue::Next::kChain || chain.readable_bytes > kLongestText) return false;
            const size_t before = bytes.size();
            bytes.resize(before + chain.readable_bytes);
            if (!gathered(chain.readable, bytes.data() + before, chain.readable_bytes)) {
                bytes.resize(before);
                return false;
            }
            if (!queue.push(chain.head, 0)) return false;
        }
    } while (queue.allow_notifications());
    return true;
}

bool drain(VirtQueue& queue, size_t most, std::string& bytes) noexcept {
    const VirtQueue::Visit visit(queue);
    if (!visit.open()) return true;
    const auto gathered = [&](const std::vector<Segment>& from, void* to, uint64_t length) {
        return queue.gather(from, 0, to, length).has_value();
    };
    if (drain_from(
            queue, most, bytes, [&] { return queue.running(); }, gathered))
        return true;
    queue.fail(QueueFault::kMemory);
    queue.stop();
    return false;
}

/// The same by the host that rang, for as long as `take_text` lasts. Nothing: not there.
std::optional<Text> taken_there(VirtQueue& queue, size_t most, int64_t linger_ns) noexcept {
    const VirtQueue::Visit visit(queue);
    Text text;
    if (!visit.open() || !queue.take_text_there(most, linger_ns, text.bytes)) return std::nullopt;
    text.broken = queue.broken();
    if (text.broken) queue.stop();
    return text;
}

}  // namespace

bool drain_text(SplitQueue& queue, BusMaster& bus, size_t most, std::string& bytes) noexcept {
    const auto gathered = [&](const std::vector<Segment>& from, void* to, uint64_t length) {
        return gather(bus, from, 0, to, length).has_value();
    };
    if (drain_from(
            queue, most, bytes, [] { return true; }, gathered))
        return true;
    queue.fail(QueueFault::kMemory);
    return false;
}

Text take_text(VirtQueue& queue, size_t most, int64_t linger_ns) noexcept {
    thread_local const bool first = go_first();  // once for each thread
    static_cast<void>(first);
    Text text;
    int64_t now = 0, deadline = -1;  // for ever, until there is a first byte
    do {
        queue.wait(deadline);
        if (queue.driver_elsewhere()) {
            if (auto there = taken_there(queue, most, linger_ns)) {
                text.bytes += there->bytes;
                text.broken = there->broken;
                if (text.bytes.size() >= most) queue.wake();  // there may be more
                return text;
            }
        }
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
