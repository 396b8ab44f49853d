// SPDX-License-Identifier: GPL-2.0-or-later
// Keeps all vCPUs out of guest code: for a pause, and for the moment of a locked access over two pages.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>

namespace coremesh {

/// Each vCPU says when it enters and leaves guest code. «Inside» and `closed_` are the two words of Dekker's
/// scheme, both seq_cst: a vCPU sets inside and then reads closed, a closer sets closed and then reads
/// inside. One of the two sees the other. Everything under `mutex_` is rare.
///
/// Two kinds close it. A *pause* comes from any other thread, and holds every vCPU between two instructions.
/// An *exclusive section* is a vCPU's own, in the midst of an instruction. It may begin while a pause waits,
/// and the vCPU then runs on to the next block head: what the instruction has begun is finished before a
/// pause counts as reached, or registers and memory would be read that never belonged together.
class Gate {
  public:
    using Inside = std::atomic<bool>;

    /// vCPU thread, between two instructions: waits while the gate is closed.
    void enter(Inside& inside) {
        for (;;) {
            inside.store(true, std::memory_order_seq_cst);
            if (!closed_.load(std::memory_order_seq_cst)) return;
            leave(inside);
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [this] { return !closed_.load(std::memory_order_relaxed); });
        }
    }

    /// vCPU thread, between two instructions.
    void leave(Inside& inside) {
        inside.store(false, std::memory_order_seq_cst);
        if (closed_.load(std::memory_order_seq_cst)) {
            std::lock_guard lock(mutex_);
            changed_.notify_all();
        }
    }

    /// Any thread that is no vCPU's. Closes the gate, calls `kick_insiders` once, and returns when no vCPU is
    /// inside (`anybody_inside` says so) and none is in the midst of an instruction. A second pause waits for
    /// the end of the first.
    template <typename Kick, typename Anybody>
    void pause(Kick&& kick_insiders, Anybody&& anybody_inside) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !paused_; });
        paused_ = true;
        update();
        kick_insiders();
        changed_.wait(lock, [&] { return midway_ == 0 && !anybody_inside(); });
    }

    void end_pause() {
        std::lock_guard lock(mutex_);
        paused_ = false;
        update();
        changed_.notify_all();
    }

    /// vCPU thread, inside and in the midst of an instruction. Returns when no other vCPU is inside. A second
    /// one waits for the end of the first.
    template <typename Kick, typename Anybody>
    void begin_exclusive(Inside& inside, Kick&& kick_insiders, Anybody&& anybody_inside) {
        std::unique_lock lock(mutex_);
        ++midway_;
        inside.store(false, std::memory_order_seq_cst);
        changed_.notify_all();
        changed_.wait(lock, [this] { return !exclusive_; });
        exclusive_ = true;
        update();
        kick_insiders();
        changed_.wait(lock, [&] { return !anybody_inside(); });
    }

    /// The vCPU is inside again. True: a pause waits, and the vCPU must come to its next block head.
    bool end_exclusive(Inside& inside) {
        std::lock_guard lock(mutex_);
        exclusive_ = false;
        --midway_;
        inside.store(true, std::memory_order_seq_cst);
        update();
        changed_.notify_all();
        return paused_;
    }

    bool closed() const noexcept { return closed_.load(std::memory_order_seq_cst); }

  private:
    void update() noexcept { closed_.store(paused_ || exclusive_, std::memory_order_seq_cst); }

    std::mutex mutex_;
    std::condition_variable changed_;
    bool paused_ = false, exclusive_ = false;
    unsigned midway_ = 0;  // vCPUs between begin_exclusive and end_exclusive
    std::atomic<bool> closed_{false};
};

}  // namespace coremesh
