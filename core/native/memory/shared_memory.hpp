// SPDX-License-Identifier: GPL-2.0-or-later
// Guest RAM that several hosts share, as the threads of one host use it: the page protocol's driver and the
// memory-transaction service.
//
// The protocol itself decides (coherence/node.hpp); this does what it says: sends, installs, maps, wakes.
// One priority-inheriting lock guards both, because a vCPU and the protocol thread meet here and outrank each
// other. Under it no thread sleeps or touches the guest view.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/lazy_array.hpp"
#include "base/pi_mutex.hpp"
#include "coherence/node.hpp"
#include "coherence/page_codec.hpp"
#include "coherence/trace.hpp"
#include "memory/counters.hpp"
#include "ram/guest_ram.hpp"

namespace coremesh {

/// How messages leave this host: in the order of the calls of `send`, which are made with the protocol lock
/// held, by any thread; `flush` follows without it, and only there may a thread be woken that could take the
/// CPU.
struct MessageSender {
    virtual void send_message(HostId to, std::span<const uint8_t> message) noexcept = 0;
    virtual void send_page(HostId to, std::span<const uint8_t> message,
                           std::span<const uint8_t> page) noexcept = 0;
    /// Lets what was sent go. Bit n: to host n.
    virtual void flush(uint64_t hosts) noexcept = 0;
    /// Bit n: the link to host n has more to carry than it can.
    virtual uint64_t congested() const noexcept = 0;
    /// Receives on this thread while `word` holds `value`, which word_changed() ends; may return for no
    /// reason. False, at once: this thread cannot.
    virtual bool receive_while(const std::atomic<uint32_t>& /*word*/, uint32_t /*value*/) noexcept {
        return false;
    }
    /// With or without the protocol lock.
    virtual void word_changed(const std::atomic<uint32_t>& /*word*/) noexcept {}
    /// A timer was set that ends before those the protocol thread knows; `due_ns` on CLOCK_MONOTONIC.
    virtual void timer_set(int64_t due_ns) noexcept = 0;

  protected:
    ~MessageSender() = default;
};

class SharedMemory {
  public:
    using Wide = coherence::Wide;

    /// Throws what coherence::Node throws. `ram` is coherent and outlives this.
    SharedMemory(GuestRam& ram, const coherence::Options& options, MessageSender& sender);

    // ---- any thread that may sleep, also inside the fault handler

    /// Sleeps until this host has `want` of the page; `atomic`: for an atomic instruction. `place`: the
    /// guest-virtual address of the instruction, or 0. False: the machine stops, and no answer will ever
    /// come.
    bool obtain(uint64_t page, Access want, bool atomic = false, uint64_t place = 0) noexcept;
    /// A valid operation on RAM at page * 4096 + operation.offset. True: it was executed elsewhere, `old` is
    /// what was there. False: the page is here now; execute it here.
    bool transact_elsewhere(uint64_t page, const coherence::Operation& operation, Wide& old,
                            uint64_t place = 0) noexcept;
    /// The same wherever the page is; `old` as of coherence::execute. False: the machine stops.
    bool transact(uint64_t page, const coherence::Operation& operation, Wide& old) noexcept;
    /// Copies to and from RAM as a coherent participant, page by page. The range is RAM in one block. False:
    /// the machine stops.
    bool read(uint64_t offset, void* to, uint64_t length) noexcept;
    bool write(uint64_t offset, const void* from, uint64_t length) noexcept;
    /// Both pages are writable here until `release`, which the same thread calls. The time between is short
    /// and touches no other page. ~0 is a device's address: then nothing is held, and the time may be as long
    /// as the device likes. False: the machine stops; nothing is held.
    bool hold(uint64_t first, uint64_t second) noexcept;
    void release() noexcept;

    /// This host may write the page at this moment. Lock-free.
    bool here(uint64_t page) const noexcept { return node_.access(page) == Access::kWrite; }
    /// An Access for each page, which changes at any moment.
    const uint8_t* access_bytes() const noexcept { return node_.access_bytes(); }

    // ---- the thread that receives: the protocol thread, or one that waits for an answer

    /// A message of the protocol; with the bytes of a page behind it, if it has any.
    void receive(HostId from, std::span<const uint8_t> bytes) noexcept;

    // ---- the protocol thread

    /// Runs the holds that have ended; the next moment (CLOCK_MONOTONIC, ns) or -1.
    int64_t run_timers(int64_t now_ns) noexcept;

    // ---- any thread

    /// Every wait ends, now and from now on.
    void cancel() noexcept;

    coherence::Counters protocol_counters() noexcept;
    std::vector<coherence::ContendedPage> contended(size_t count);
    /// The last messages to and from other hosts, oldest first. Without the protocol lock: also of a machine
    /// in which a thread has stopped with it.
    std::vector<coherence::TraceEntry> trace(size_t count) const { return trace_.last(count); }
    MemoryCounters counters() const noexcept { return read_counters(counters_); }

  private:
    struct Timer {
        int64_t due_ns;
        uint64_t page;
        bool operator>(const Timer& other) const noexcept { return due_ns > other.due_ns; }
    };
    /// A futex wait queue, shared by all pages that hash to it, or private to one ticket. seq_cst: the waker
    /// changes the sequence and then looks for sleepers; a sleeper counts itself, and then the kernel looks
    /// at the sequence.
    struct WaitQueue {
        std::atomic<uint32_t> sequence{0};
        std::atomic<uint32_t> sleepers{0};
        void wait(uint32_t while_sequence) noexcept;
        void wake() noexcept;
    };
    /// One transaction under way.
    struct Ticket {
        bool done = false;
        WaitQueue wait_queue;
        coherence::Outcome outcome{};
        Wide value = 0;
        uint64_t number = 0;  // 0: free
    };
    static constexpr size_t kWaitQueues = 256;
    static constexpr size_t kTickets = 512;

    /// The protocol lock for a scope.
    class Locked {
      public:
        explicit Locked(SharedMemory& memory) noexcept : memory_(memory) { memory_.lock_.lock(); }
        ~Locked() { memory_.unlock(); }
        Locked(const Locked&) = delete;
        Locked& operator=(const Locked&) = delete;

      private:
        SharedMemory& memory_;
    };
    /// What was sent under the lock leaves after it.
    void unlock() noexcept;
    void lock_again() noexcept;

    /// Without the lock.
    void wait_on(WaitQueue& wait_queue, uint32_t while_sequence) noexcept;
    void wake(WaitQueue& wait_queue) noexcept;
    uint64_t now_us() noexcept;
    WaitQueue& wait_queue_of(uint64_t page) noexcept { return wait_queues_[page % kWaitQueues]; }
    uint8_t* frame(uint64_t page) noexcept { return ram_.protocol_base() + page * GuestRam::kPage; }

    coherence::Options with_looks(coherence::Options options);

    // All with the lock held.
    bool wait_for(uint64_t page, Access want, bool atomic = false) noexcept;
    void perform(std::span<const uint8_t> arrived) noexcept;
    void do_one(const coherence::Action& action, std::span<const uint8_t> arrived) noexcept;
    void send_page(const coherence::Action& action) noexcept;
    Wide execute(const coherence::Operation& operation, uint64_t page) noexcept;
    void note_sent(HostId to, const coherence::Message& message) noexcept;
    void note_unreadable(HostId from) noexcept;
    void set_timer(uint64_t page, uint32_t delay_us) noexcept;
    Ticket* take_ticket() noexcept;

    GuestRam& ram_;
    MessageSender& sender_;
    PiMutex lock_;                 // all below but the atomics
    LazyArray<uint64_t> digests_;  // of pages that came with more than was asked for
    coherence::Node node_;
    coherence::Actions actions_;
    std::vector<coherence::Message> to_self_;
    int64_t now_ns_ = 0;         // when now_us() was last asked
    coherence::Trace trace_;     // written under the lock, read without
    uint64_t sent_to_ = 0;       // hosts that messages under this lock are for
    std::vector<Timer> timers_;  // a heap, soonest first
    std::array<WaitQueue, kWaitQueues> wait_queues_;
    std::array<Ticket, kTickets> tickets_;
    uint64_t last_ticket_ = 0;
    std::array<uint64_t, 2> held_{~uint64_t{0}, ~uint64_t{0}};  // of the one thread that holds
    std::array<uint8_t, coherence::kMaxEncodedPage> encoded_;
    std::atomic<bool> cancelled_{false};
    MemoryAtomics counters_;
};

}  // namespace coremesh
