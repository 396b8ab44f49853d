// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/shm.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "base/futex.hpp"
#include "link/frame.hpp"

namespace coremesh::link {
namespace {

using Drained = ProtocolThread::Drained;

constexpr size_t kPage = 4096;
constexpr size_t kRing = 512 << 10;  // bytes of frames under way from one host to one other
constexpr unsigned kBatch = 64;      // frames handed on before the timers are looked at
constexpr uint32_t kSkip = ~uint32_t{0};

/// Positions count bytes from the start of the machine and never wrap in practice (2^64).
struct alignas(kPage) Ring {
    alignas(64) std::atomic<uint64_t> head;  // written by the sender, after the bytes
    alignas(64) std::atomic<uint64_t> tail;  // written by the receiver, after it has copied them
    alignas(kPage) uint8_t bytes[kRing];
};

/// `sleeping` is set by the receiver before it looks at its rings for the last time, and cleared by the first
/// sender that finds it set after having moved a head: one of the two sees the other (both are seq_cst), and
/// one sender pays for the wake-up. It says how: the protocol thread sleeps on its bell among other things, a
/// thread that waits for its answer on the word itself.
struct alignas(kPage) Inbox {
    std::atomic<uint32_t> sleeping;
};
enum : uint32_t { kAwake, kOnBell, kOnWord };

static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free,
              "atomics that two processes share hold no lock");

/// A frame in a ring: its length, then its bytes, then nothing up to a multiple of eight.
constexpr size_t record_bytes(size_t frame) { return (sizeof(uint32_t) + frame + 7) & ~size_t{7}; }
static_assert(record_bytes(kHeaderBytes + kMaxPayload) <= kRing / 2, "the longest frame fits behind a skip");

class Mapping {
  public:
    Mapping(int memory, size_t bytes) : bytes_(bytes) {
        // If its maker could shorten the file, the next access of this process would be a SIGBUS.
        const int seals = fcntl(memory, F_GET_SEALS);
        struct stat status {};
        if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(memory, &status) != 0 ||
            static_cast<size_t>(status.st_size) < bytes) {
            throw std::invalid_argument("an inbox must be a sealed memory file of the full size");
        }
        base_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
        if (base_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mapping an inbox");
        madvise(base_, bytes, MADV_DONTFORK);
    }
    ~Mapping() {
        if (base_ != MAP_FAILED) munmap(base_, bytes_);
    }
    Mapping(Mapping&& other) noexcept : base_(std::exchange(other.base_, MAP_FAILED)), bytes_(other.bytes_) {}
    Mapping& operator=(Mapping&&) = delete;

    Inbox& inbox() const noexcept { return *static_cast<Inbox*>(base_); }
    Ring& ring(HostId from) const noexcept {
        return reinterpret_cast<Ring*>(static_cast<uint8_t*>(base_) + sizeof(Inbox))[from];
    }

  private:
    void* base_;
    size_t bytes_;
};

class ShmWire final : public Wire {
  public:
    ShmWire(const ShmOptions& options, const std::vector<ShmInbox>& inboxes)
        : self_(options.self), hosts_(options.hosts), bell_(inboxes[options.self].bell) {
        for (const ShmInbox& inbox : inboxes) {
            maps_.emplace_back(inbox.memory, shm_inbox_bytes(hosts_));
            bells_.push_back(inbox.bell);
        }
    }

    Put put(HostId to, std::span<const uint8_t> frame) noexcept override {
        Ring& ring = maps_[to].ring(self_);
        uint64_t& head = heads_[to];
        const size_t need = record_bytes(frame.size());
        const size_t left = kRing - head % kRing;  // up to the end of the ring, where a record may not break
        const size_t skipped = left < need ? left : 0;
        const uint64_t tail = ring.tail.load(std::memory_order_acquire);
        // A receiver that says what cannot be is broken; the order below keeps the sum from wrapping.
        if (tail > head || head - tail > kRing) return Put::kBroken;
        if (skipped + need > kRing - (head - tail)) return Put::kFull;
        if (skipped) {
            std::memcpy(ring.bytes + head % kRing, &kSkip, sizeof kSkip);
            head += skipped;
        }
        const auto length = static_cast<uint32_t>(frame.size());
        uint8_t* const place = ring.bytes + head % kRing;
        std::memcpy(place, &length, sizeof length);
        std::memcpy(place + sizeof length, frame.data(), frame.size());
        head += need;
        ring.head.store(head, std::memory_order_seq_cst);
        return Put::kTaken;
    }

    void notify(HostId to) noexcept override {
        std::atomic<uint32_t>& sleeping = maps_[to].inbox().sleeping;
        if (sleeping.load(std::memory_order_seq_cst) == kAwake) return;
        const uint32_t how = sleeping.exchange(kAwake, std::memory_order_seq_cst);
        if (how == kAwake) return;
        if (how == kOnWord) return futex_wake_shared(sleeping);
        const uint8_t ring = 1;
        // A full pipe has rung already; a broken one is a host that is gone, which the lease finds out.
        [[maybe_unused]] const ssize_t rung = write(bells_[to], &ring, 1);
    }

    std::span<const int> descriptors() const noexcept override { return {&bell_, 1}; }

    Drained drain(int64_t, unsigned ready, Sink& sink) noexcept override {
        silence(ready);
        kept_ = false;
        const unsigned taken = take_all(sink);
        return taken == kBatch ? Drained::kSome : taken == 0 ? Drained::kNothing : Drained::kAll;
    }

    bool arm() noexcept override {
        sleeping().store(kOnBell, std::memory_order_seq_cst);
        return !pending();
    }

    void awake() noexcept override { sleeping().store(kAwake, std::memory_order_relaxed); }

    bool lends() const noexcept override { return true; }

    bool arm_lent() noexcept override {
        sleeping().store(kOnWord, std::memory_order_seq_cst);
        return !pending();
    }

    void sleep_lent() noexcept override { futex_wait_shared(sleeping(), kOnWord); }

    Lent drain_lent(int64_t, Sink& sink) noexcept override {
        awake();
        kept_ = false;
        const unsigned taken = take_all(sink);
        return kept_ ? Lent::kKept : taken == 0 ? Lent::kNothing : Lent::kSome;
    }

    void give_back() noexcept override { sleeping().store(kOnBell, std::memory_order_seq_cst); }

    bool pending() const noexcept override {
        for (unsigned from = 0; from < hosts_; ++from) {
            if (from == self_ || is_broken(from)) continue;
            const Ring& ring = maps_[self_].ring(static_cast<HostId>(from));
            if (ring.head.load(std::memory_order_seq_cst) != tails_[from].load(std::memory_order_relaxed)) {
                return true;
            }
        }
        return false;
    }

    void recall() noexcept override {
        uint32_t how = kOnWord;
        if (sleeping().load(std::memory_order_seq_cst) == kOnWord &&
            sleeping().compare_exchange_strong(how, kAwake, std::memory_order_seq_cst)) {
            futex_wake_shared(sleeping());
        }
    }

    bool silence(unsigned ready) noexcept override {
        if (ready == 0) return false;
        uint8_t rings[64];
        while (read(bell_, rings, sizeof rings) == static_cast<ssize_t>(sizeof rings)) {
        }
        return true;
    }

    void describe(LinkFacts& facts) const noexcept override { facts.wire = "shm"; }

  private:
    std::atomic<uint32_t>& sleeping() const noexcept { return maps_[self_].inbox().sleeping; }
    bool is_broken(unsigned from) const noexcept {
        return (broken_.load(std::memory_order_relaxed) >> from & 1) != 0;
    }

    /// Hands on a batch at most; returns how many.
    unsigned take_all(Sink& sink) noexcept {
        unsigned taken = 0;
        // Each host gets its turn: the next round begins behind the one that this ended with.
        for (unsigned step = 0; step < hosts_ && taken < kBatch && !kept_; ++step) {
            const auto from = static_cast<HostId>((first_ + step) % hosts_);
            if (from == self_ || is_broken(from)) continue;
            taken += take(from, kBatch - taken, sink);
            if (taken == kBatch) first_ = static_cast<HostId>((from + 1) % hosts_);
        }
        return taken;
    }

    /// Hands on at most `most` frames of one host. What is in the ring is the peer's, which may write on
    /// while it is looked at: lengths are read once, and a frame is copied before it is judged.
    unsigned take(HostId from, unsigned most, Sink& sink) noexcept {
        Ring& ring = maps_[self_].ring(from);
        uint64_t tail = tails_[from].load(std::memory_order_relaxed);
        unsigned taken = 0;
        const uint64_t head = ring.head.load(std::memory_order_acquire);
        if (head < tail || head - tail > kRing) return broken(from, sink);
        while (tail != head && taken < most) {
            const uint8_t* const place = ring.bytes + tail % kRing;
            uint32_t length = 0;
            std::memcpy(&length, place, sizeof length);
            const size_t left = kRing - tail % kRing;
            if (length == kSkip) {
                if (head - tail < left) return broken(from, sink);
                tail += left;
                continue;
            }
            if (length > sizeof frame_ || record_bytes(length) > left || record_bytes(length) > head - tail) {
                return broken(from, sink);
            }
            std::memcpy(frame_.data(), place + sizeof length, length);
            if (!sink.arrived(std::span<const uint8_t>(frame_).first(length), from)) {
                kept_ = true;
                break;
            }
            tail += record_bytes(length);
            ++taken;
            moved(from, tail);
        }
        moved(from, tail);
        return taken;
    }

    void moved(HostId from, uint64_t tail) noexcept {
        if (tails_[from].load(std::memory_order_relaxed) == tail) return;
        tails_[from].store(tail, std::memory_order_relaxed);
        maps_[self_].ring(from).tail.store(tail, std::memory_order_release);
    }

    /// A ring that holds what no host writes is not looked at again; the peer's silence then ends the
    /// machine.
    unsigned broken(HostId from, Sink& sink) noexcept {
        broken_.fetch_or(bit(from), std::memory_order_relaxed);
        sink.stranger(Refusal::kNotAFrame);
        return 0;
    }

    const HostId self_;
    const unsigned hosts_;
    const int bell_;
    std::vector<Mapping> maps_;
    std::vector<int> bells_;
    std::array<uint64_t, kMaxHosts> heads_{};  // by peer, under its send lock
    // With the receiver's role; pending() reads the first two without.
    std::array<std::atomic<uint64_t>, kMaxHosts> tails_{};
    std::atomic<uint64_t> broken_{0};
    HostId first_ = 0;
    bool kept_ = false;  // the sink has left a frame to the protocol thread
    std::array<uint8_t, kHeaderBytes + kMaxPayload> frame_;
};

}  // namespace

size_t shm_inbox_bytes(unsigned hosts) noexcept { return sizeof(Inbox) + hosts * sizeof(Ring); }

std::unique_ptr<Wire> make_shm_wire(const ShmOptions& options, const std::vector<ShmInbox>& inboxes) {
    if (options.hosts < 2 || options.hosts > kMaxHosts || options.self >= options.hosts ||
        inboxes.size() != options.hosts) {
        throw std::invalid_argument("an inbox for each of 2 to 64 hosts, and self one of them");
    }
    return std::make_unique<ShmWire>(options, inboxes);
}

}  // namespace coremesh::link
