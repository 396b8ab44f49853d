// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/virt_queue.hpp"

#include "base/futex.hpp"
#include "hw/native/segments.hpp"

namespace coremesh::virtio {

void VirtQueue::start(const SplitQueue::Layout& layout, const SplitQueue::Position& position) noexcept {
    {
        const std::lock_guard lock(mutex_);
        queue_.configure(layout, position);
        broken_.store(false, std::memory_order_relaxed);
        life_.fetch_add(1, std::memory_order_relaxed);
    }
    enabled_.store(true, std::memory_order_seq_cst);
    wake();  // a driver may have made buffers available before the queue was enabled
}

void VirtQueue::wake() noexcept {
    if (word_.exchange(1, std::memory_order_seq_cst) == 0) futex_wake(word_);
}

void VirtQueue::wait(int64_t deadline_ns) noexcept {
    if (word_.load(std::memory_order_seq_cst) == 0) futex_wait_until(word_, 0, deadline_ns);
    word_.store(0, std::memory_order_seq_cst);
}

SplitQueue::Next VirtQueue::pop(Chain& chain) noexcept {
    const std::lock_guard lock(mutex_);
    const SplitQueue::Next next = queue_.pop(chain);
    if (next == SplitQueue::Next::kChain) requests_.fetch_add(1, std::memory_order_relaxed);
    look_for_fault();
    return next;
}

bool VirtQueue::push(uint16_t head, uint32_t written) noexcept {
    const std::lock_guard lock(mutex_);
    const bool pushed = queue_.push(head, written);
    look_for_fault();
    return pushed;
}

void VirtQueue::fail(QueueFault fault) noexcept {
    const std::lock_guard lock(mutex_);
    queue_.fail(fault);
    look_for_fault();
}

void VirtQueue::look_for_fault() noexcept {
    if (queue_.fault() == QueueFault::kNone || broken_.exchange(true, std::memory_order_relaxed)) return;
    faults_.fetch_add(1, std::memory_order_relaxed);
}

void VirtQueue::notify() noexcept {
    {
        const std::lock_guard lock(mutex_);
        if (!queue_.wants_interrupt()) return;
    }
    interrupt_driver();
}

void VirtQueue::interrupt_driver() noexcept {
    notified_.fetch_add(1, std::memory_order_relaxed);
    interrupts_->queue(vector_.load(std::memory_order_relaxed));
}

void VirtQueue::suppress_notifications() noexcept {
    if (held()) return;
    const std::lock_guard lock(mutex_);
    queue_.suppress_notifications();
}

bool VirtQueue::allow_notifications() noexcept {
    if (held()) return false;
    const std::lock_guard lock(mutex_);
    return queue_.allow_notifications();
}

std::optional<uint64_t> VirtQueue::gather(const std::vector<Segment>& segments, uint64_t offset, void* data,
                                          uint64_t length) noexcept {
    return virtio::gather(*bus_, segments, offset, data, length);
}

std::optional<uint64_t> VirtQueue::scatter(const std::vector<Segment>& segments, uint64_t offset,
                                           const void* data, uint64_t length) noexcept {
    return virtio::scatter(*bus_, segments, offset, data, length);
}

bool VirtQueue::direct(const std::vector<Segment>& segments, uint64_t offset, uint64_t length, bool to_write,
                       std::vector<iovec>& places) noexcept {
    places.clear();
    const auto done = each_piece(segments, offset, length, [&](uint64_t gpa, uint64_t, uint64_t piece) {
        uint8_t* const place = bus_->direct(gpa, piece, to_write);
        if (place != nullptr) places.push_back({place, piece});
        return place != nullptr;
    });
    return done == length;
}

void VirtQueue::wrote(const std::vector<Segment>& segments, uint64_t offset, uint64_t length) noexcept {
    each_piece(segments, offset, length, [&](uint64_t gpa, uint64_t, uint64_t piece) {
        bus_->wrote(gpa, piece);
        return true;
    });
}

// ---- on the host of the driver

void VirtQueue::ring_from(HostId host, uint64_t address) noexcept {
    const uint64_t driver = address << 8 | host;
    if (driver_.load(std::memory_order_relaxed) != driver) driver_.store(driver, std::memory_order_relaxed);
    ring();
}

std::optional<HostId> VirtQueue::driver_elsewhere() const noexcept {
    const auto host = static_cast<HostId>(driver_.load(std::memory_order_relaxed));
    if (host == kNoHost) return std::nullopt;
    return host;
}

/// Nothing where that host did not do it: then it is done here.
template <typename Put, typename Get>
bool VirtQueue::at_driver(RemoteStep step, Put put, Get get) noexcept {
    const auto host = driver_elsewhere();
    if (!host) return false;
    const std::lock_guard lock(mutex_);
    if (queue_.fault() != QueueFault::kNone || queue_.layout().size == 0) return false;
    std::vector<uint8_t> call, answer;
    Writer out(call);
    put_queue(out, step, queue_);
    put(out);
    if (bus_->call(*host, call, answer)) {
        Reader in(answer);
        SplitQueue::Position position;
        QueueFault fault{};
        if (get_position(in, position, fault) && get(in) && in.good()) {
            queue_.configure(SplitQueue::Layout(queue_.layout()), position);
            queue_.fail(fault);
            look_for_fault();
            return true;
        }
    }
    driver_.store(kNoHost, std::memory_order_relaxed);
    return false;
}

bool VirtQueue::take_text_there(size_t most, int64_t linger_ns, std::string& bytes) noexcept {
    bool interrupt = false;
    const uint64_t address = driver_.load(std::memory_order_relaxed) >> 8;
    const auto put = [&](Writer& out) {
        out.put(address);
        out.put(static_cast<uint32_t>(most));
        out.put(linger_ns);
    };
    const auto get = [&](Reader& in) {
        interrupt = in.get<uint8_t>();
        const auto taken = in.get_bytes();
        bytes.append(taken.begin(), taken.end());
        return true;
    };
    if (!at_driver(RemoteStep::kText, put, get)) return false;
    if (interrupt) interrupt_driver();
    return true;
}

bool VirtQueue::take_there(std::vector<RemoteChain>& chains, bool& more) noexcept {
    chains.clear();
    const auto get = [&](Reader& in) {
        more = !in.get<uint8_t>();
        for (auto left = in.get<uint32_t>(); left != 0; --left) {
            if (!get_taken(in, chains.emplace_back())) return false;
        }
        return true;
    };
    if (!at_driver(
            RemoteStep::kTake, [](Writer&) {}, get))
        return false;
    requests_.fetch_add(chains.size(), std::memory_order_relaxed);
    return true;
}

bool VirtQueue::take_frames_there(size_t most, std::vector<std::string>& frames, size_t& refused,
                                  bool& more) noexcept {
    bool interrupt = false;
    const auto put = [&](Writer& out) { out.put(static_cast<uint32_t>(most)); };
    const auto get = [&](Reader& in) {
        interrupt = in.get<uint8_t>();
        more = in.get<uint8_t>();
        refused = in.get<uint32_t>();
        for (auto left = in.get<uint32_t>(); left != 0 && in.good(); --left) {
            const auto frame = in.get_bytes();
            frames.emplace_back(frame.begin(), frame.end());
        }
        return true;
    };
    if (!at_driver(RemoteStep::kFrames, put, get)) {
        frames.clear();
        return false;
    }
    requests_.fetch_add(frames.size() + refused, std::memory_order_relaxed);
    if (interrupt) interrupt_driver();
    return true;
}

bool VirtQueue::deliver_frames_there(std::span<const std::string_view> frames, size_t& done,
                                     size_t& refused) noexcept {
    bool interrupt = false;
    const auto put = [&](Writer& out) {
        out.put(static_cast<uint32_t>(frames.size()));
        for (const std::string_view frame : frames) {
            out.put_bytes({reinterpret_cast<const uint8_t*>(frame.data()), frame.size()});
        }
    };
    const auto get = [&](Reader& in) {
        interrupt = in.get<uint8_t>();
        done = in.get<uint32_t>();
        refused = in.get<uint32_t>();
        return done <= frames.size() && refused <= done;
    };
    if (!at_driver(RemoteStep::kDeliver, put, get)) return false;
    requests_.fetch_add(done, std::memory_order_relaxed);
    if (interrupt) interrupt_driver();
    return true;
}

bool VirtQueue::give_there(std::span<const RemoteChain> chains) noexcept {
    bool interrupt = false;
    const auto put = [&](Writer& out) {
        out.put(static_cast<uint32_t>(chains.size()));
        for (const RemoteChain& chain : chains) put_given(out, chain);
    };
    const auto get = [&](Reader& in) {
        interrupt = in.get<uint8_t>();
        return true;
    };
    if (!at_driver(RemoteStep::kGive, put, get)) return give_here(chains);
    if (interrupt) interrupt_driver();
    return true;
}

/// A vCPU of this host has rung since they were taken, or that host does not help any more.
bool VirtQueue::give_here(std::span<const RemoteChain> chains) noexcept {
    for (const RemoteChain& chain : chains) {
        for (const Written& piece : chain.answers) {
            if (scatter(chain.chain.writable, piece.offset, piece.bytes.data(), piece.bytes.size())) continue;
            fail(QueueFault::kMemory);
            return false;
        }
        if (!push(chain.chain.head, chain.written)) return false;
    }
    notify();
    return true;
}

}  // namespace coremesh::virtio
