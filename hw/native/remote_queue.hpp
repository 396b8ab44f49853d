// SPDX-License-Identifier: GPL-2.0-or-later
// Steps of a virtqueue, done on the host whose vCPUs use it: by messages, and not by moving its pages.
//
// A queue's rings and the buffers in it are written by a driver and read by the device. Between hosts each
// page of them goes to the device and back, several times for one request. So the device, when another host
// has rung its bell, sends the queue's layout and position there (bus/bus_master.hpp, `call`), and that host
// makes the steps of the same state machine beside the driver. The position stays the device's: between two
// calls the other host knows nothing of the queue, and a step here and one there may follow each other.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "bus/bus_master.hpp"
#include "hw/native/split_queue.hpp"

namespace coremesh::virtio {

enum class RemoteStep : uint8_t {
    kText,     ///< take text for a while, and answer its buffers (bytes.hpp)
    kTake,     ///< take requests, with what the device may read of them
    kGive,     ///< give requests back, with what the device has written
    kFrames,   ///< take frames, and give their buffers back (frames.hpp)
    kDeliver,  ///< lay frames into buffers
};

/// Requests with more bytes than this to read or to write are moved by the device itself.
constexpr uint64_t kMostRemoteBytes = uint64_t{4} << 20;

/// What is written into the buffers of a request, from byte `offset` of the writable ones on.
struct Written {
    uint64_t offset = 0;
    std::vector<uint8_t> bytes;
};

/// A request that another host has taken.
struct RemoteChain {
    Chain chain;
    bool whole = false;         ///< `data` is all that the device may read, and it may answer by `answers`
    std::vector<uint8_t> data;  ///< of a whole one
    std::vector<Written> answers;
    uint32_t written = 0;
};

class Writer {
  public:
    explicit Writer(std::vector<uint8_t>& out) : out_(out) {}
    template <typename T>
    void put(T value) {
        static_assert(std::is_trivially_copyable_v<T>);
        const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
        out_.insert(out_.end(), bytes, bytes + sizeof value);
    }
    void put_bytes(std::span<const uint8_t> bytes) {
        put(static_cast<uint32_t>(bytes.size()));
        out_.insert(out_.end(), bytes.begin(), bytes.end());
    }

  private:
    std::vector<uint8_t>& out_;
};

/// Zeros after the end, and then not `good`.
class Reader {
  public:
    explicit Reader(std::span<const uint8_t> bytes) : left_(bytes) {}
    template <typename T>
    T get() {
        T value{};
        if (left_.size() < sizeof value) {
            good_ = false;
            left_ = {};
            return value;
        }
        std::memcpy(&value, left_.data(), sizeof value);
        left_ = left_.subspan(sizeof value);
        return value;
    }
    std::span<const uint8_t> get_bytes() {
        const auto length = get<uint32_t>();
        if (left_.size() < length) {
            good_ = false;
            left_ = {};
        }
        const auto bytes = left_.first(good_ ? length : 0);
        left_ = left_.subspan(bytes.size());
        return bytes;
    }
    bool good() const { return good_; }

  private:
    std::span<const uint8_t> left_;
    bool good_ = true;
};

/// The queue as the first part of a call, and its position and fault as that of the answer.
void put_queue(Writer& out, RemoteStep step, const SplitQueue& queue);
bool get_position(Reader& in, QueuePosition& position, QueueFault& fault);

void put_taken(Writer& out, const RemoteChain& taken);
bool get_taken(Reader& in, RemoteChain& taken);
void put_given(Writer& out, const RemoteChain& given);

/// BusMaster::Serve for queues: on the host of the driver, for the device of another host.
bool serve_remote_queue(BusMaster& here, LocalDoorbells& bells, std::span<const uint8_t> call,
                        std::vector<uint8_t>& answer);

}  // namespace coremesh::virtio
