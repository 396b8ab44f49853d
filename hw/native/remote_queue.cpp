// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/remote_queue.hpp"

#include <algorithm>
#include <bit>
#include <mutex>
#include <optional>

#include "base/clock.hpp"
#include "hw/native/bytes.hpp"
#include "hw/native/frames.hpp"
#include "hw/native/segments.hpp"

namespace coremesh::virtio {
namespace {

constexpr int64_t kMostLingers = 10;             // of a driver that does not pause
constexpr uint8_t kEventIdx = 1, kIndirect = 2;  // flags of a layout

void put_position(Writer& out, const SplitQueue& queue) {
    const QueuePosition& position = queue.position();
    out.put(position.next_available);
    out.put(position.next_used);
    out.put(position.signalled);
    out.put(static_cast<uint8_t>(queue.fault()));
}

void put_segments(Writer& out, const std::vector<Segment>& segments) {
    out.put(static_cast<uint16_t>(segments.size()));
    for (const Segment& segment : segments) {
        out.put(segment.gpa);
        out.put(segment.length);
    }
}

/// Their bytes together.
uint64_t get_segments(Reader& in, std::vector<Segment>& segments) {
    uint64_t bytes = 0;
    segments.clear();
    for (unsigned left = in.get<uint16_t>(); left != 0 && in.good(); --left) {
        const auto gpa = in.get<uint64_t>();
        const auto length = in.get<uint32_t>();
        segments.push_back({gpa, length});
        bytes += length;
    }
    return bytes;
}

// ---- on the host of the driver

bool get_queue(Reader& in, SplitQueue& queue) {
    QueueLayout layout;
    layout.size = in.get<uint16_t>();
    const auto flags = in.get<uint8_t>();
    layout.event_idx = flags & kEventIdx;
    layout.indirect = flags & kIndirect;
    layout.descriptors = in.get<uint64_t>();
    layout.available = in.get<uint64_t>();
    layout.used = in.get<uint64_t>();
    QueuePosition position;
    QueueFault fault{};
    if (!get_position(in, position, fault) || fault != QueueFault::kNone) return false;
    if (layout.size == 0 || layout.size > SplitQueue::kLargest || !std::has_single_bit(layout.size))
        return false;
    queue.configure(layout, position);
    return true;
}

/// Text that is taken for a while. A vCPU that rings takes its own: its driver spins for the buffer, and to
/// wake a thread takes longer.
class TextStep final : public LocalDoorbells::Work {
  public:
    TextStep(BusMaster& here, SplitQueue& queue, size_t most) : here_(here), queue_(queue), most_(most) {}

    bool rung() noexcept override {
        const std::unique_lock lock(mutex_, std::try_to_lock);
        return lock && drain_locked() && bytes_.size() < most_;
    }
    /// The thread of the step. How much there is; nothing when the driver did what no driver does.
    std::optional<size_t> drain() noexcept {
        const std::lock_guard lock(mutex_);
        if (!drain_locked()) return std::nullopt;
        return bytes_.size();
    }
    /// No vCPU rings here any more.
    const std::string& bytes() const { return bytes_; }

  private:
    bool drain_locked() noexcept {
        whole_ = whole_ && drain_text(queue_, here_, most_, bytes_);
        return whole_;
    }

    BusMaster& here_;
    const size_t most_;
    std::mutex mutex_;
    SplitQueue& queue_;  // with the lock, as the next
    std::string bytes_;
    bool whole_ = true;
};

/// Takes text until none has come for long enough, or there is `most`; see `take_text`.
std::string text(BusMaster& here, SplitQueue& queue, LocalDoorbells& bells, Reader& in) {
    const auto address = in.get<uint64_t>();
    const auto most = in.get<uint32_t>();
    const auto linger_ns = in.get<int64_t>();
    const int64_t begin = Clock::monotonic_ns();
    int64_t deadline = begin + linger_ns;
    TextStep step(here, queue, most);
    LocalDoorbells::Here bell(bells, address, step);
    for (size_t before = 0;;) {
        const auto taken = step.drain();
        const int64_t now = Clock::monotonic_ns();
        if (!taken) break;
        // While the driver goes on it is answered from here: the next message would cost it more.
        if (*taken != before) deadline = std::min(now, begin + kMostLingers * linger_ns) + linger_ns;
        before = *taken;
        if (!bell.open() || before >= most || now >= deadline) break;
        bell.wait(deadline);
    }
    if (bell.close()) step.drain();
    return step.bytes();
}

/// Requests until there are no more, which the last byte tells, or many.
bool take(BusMaster& here, SplitQueue& queue, std::vector<uint8_t>& chains, uint32_t& count) {
    Writer out(chains);
    RemoteChain taken;
    for (;;) {
        const SplitQueue::Next next = queue.pop(taken.chain);
        if (next == SplitQueue::Next::kBroken) return true;
        if (next == SplitQueue::Next::kEmpty) {
            if (queue.allow_notifications()) continue;
            return true;
        }
        taken.whole =
            taken.chain.readable_bytes <= kMostRemoteBytes && taken.chain.writable_bytes <= kMostRemoteBytes;
        taken.data.resize(taken.whole ? taken.chain.readable_bytes : 0);
        if (!gather(here, taken.chain.readable, 0, taken.data.data(), taken.data.size())) {
            queue.fail(QueueFault::kMemory);
            return true;
        }
        put_taken(out, taken);
        ++count;
        // What is long goes alone, and the device may begin.
        if (chains.size() >= kMostRemoteBytes / 4) return false;
    }
}

bool give(BusMaster& here, SplitQueue& queue, Reader& in) {
    std::vector<Segment> segments;
    for (auto left = in.get<uint32_t>(); left != 0 && in.good(); --left) {
        const auto head = in.get<uint16_t>();
        const auto written = in.get<uint32_t>();
        get_segments(in, segments);
        for (auto pieces = in.get<uint32_t>(); pieces != 0 && in.good(); --pieces) {
            const auto offset = in.get<uint64_t>();
            const auto bytes = in.get_bytes();
            if (!scatter(here, segments, offset, bytes.data(), bytes.size())) queue.fail(QueueFault::kMemory);
        }
        if (!in.good() || !queue.push(head, written)) return false;
    }
    return queue.wants_interrupt();
}

}  // namespace

void put_queue(Writer& out, RemoteStep step, const SplitQueue& queue) {
    const QueueLayout& layout = queue.layout();
    out.put(static_cast<uint8_t>(step));
    out.put(layout.size);
    out.put(static_cast<uint8_t>((layout.event_idx ? kEventIdx : 0) | (layout.indirect ? kIndirect : 0)));
    out.put(layout.descriptors);
    out.put(layout.available);
    out.put(layout.used);
    put_position(out, queue);
}

bool get_position(Reader& in, QueuePosition& position, QueueFault& fault) {
    position.next_available = in.get<uint16_t>();
    position.next_used = in.get<uint16_t>();
    position.signalled = in.get<uint16_t>();
    const auto number = in.get<uint8_t>();
    if (!in.good() || number > static_cast<uint8_t>(QueueFault::kOrder)) return false;
    fault = static_cast<QueueFault>(number);
    return true;
}

void put_taken(Writer& out, const RemoteChain& taken) {
    out.put(taken.chain.head);
    put_segments(out, taken.chain.readable);
    put_segments(out, taken.chain.writable);
    out.put(static_cast<uint8_t>(taken.whole));
    out.put_bytes(taken.data);
}

bool get_taken(Reader& in, RemoteChain& taken) {
    taken.chain.head = in.get<uint16_t>();
    taken.chain.readable_bytes = get_segments(in, taken.chain.readable);
    taken.chain.writable_bytes = get_segments(in, taken.chain.writable);
    taken.whole = in.get<uint8_t>();
    const auto data = in.get_bytes();
    taken.data.assign(data.begin(), data.end());
    taken.answers.clear();
    taken.written = 0;
    return in.good() && (!taken.whole || taken.data.size() == taken.chain.readable_bytes);
}

void put_given(Writer& out, const RemoteChain& given) {
    out.put(given.chain.head);
    out.put(given.written);
    put_segments(out, given.chain.writable);
    out.put(static_cast<uint32_t>(given.answers.size()));
    for (const Written& piece : given.answers) {
        out.put(piece.offset);
        out.put_bytes(piece.bytes);
    }
}

bool serve_remote_queue(BusMaster& here, LocalDoorbells& bells, std::span<const uint8_t> call,
                        std::vector<uint8_t>& answer) {
    Reader in(call);
    const auto step = in.get<uint8_t>();
    SplitQueue queue(here);
    if (!get_queue(in, queue)) return false;
    std::vector<uint8_t> result;
    Writer out(result);
    switch (static_cast<RemoteStep>(step)) {
        case RemoteStep::kText: {
            const std::string bytes = text(here, queue, bells, in);
            out.put(static_cast<uint8_t>(queue.wants_interrupt()));
            out.put_bytes({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
            break;
        }
        case RemoteStep::kTake: {
            std::vector<uint8_t> chains;
            uint32_t count = 0;
            out.put(static_cast<uint8_t>(take(here, queue, chains, count)));
            out.put(count);
            result.insert(result.end(), chains.begin(), chains.end());
            break;
        }
        case RemoteStep::kGive:
            out.put(static_cast<uint8_t>(give(here, queue, in)));
            break;
        case RemoteStep::kFrames: {
            const Sent sent = drain_frames(queue, here, in.get<uint32_t>());
            out.put(static_cast<uint8_t>(queue.wants_interrupt()));
            out.put(static_cast<uint8_t>(sent.more));
            out.put(static_cast<uint32_t>(sent.refused));
            out.put(static_cast<uint32_t>(sent.frames.size()));
            for (const std::string& frame : sent.frames) {
                out.put_bytes({reinterpret_cast<const uint8_t*>(frame.data()), frame.size()});
            }
            break;
        }
        case RemoteStep::kDeliver: {
            std::vector<std::string_view> frames;
            for (auto left = in.get<uint32_t>(); left != 0 && in.good(); --left) {
                const auto frame = in.get_bytes();
                frames.emplace_back(reinterpret_cast<const char*>(frame.data()), frame.size());
            }
            if (!in.good()) return false;
            const Delivered done = fill_frames(queue, here, frames);
            out.put(static_cast<uint8_t>(queue.wants_interrupt()));
            out.put(static_cast<uint32_t>(done.frames));
            out.put(static_cast<uint32_t>(done.refused));
            break;
        }
        default:
            return false;
    }
    if (!in.good()) return false;
    Writer head(answer);
    put_position(head, queue);
    answer.insert(answer.end(), result.begin(), result.end());
    return true;
}

}  // namespace coremesh::virtio
