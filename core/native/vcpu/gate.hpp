// SPDX-License-Identifier: GPL-2.0-or-later
// Keeps all vCPUs out of guest code: for a pause, and for the moment of a locked access over two pages.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>

namespace coremesh {

/// Each vCPU says when it enters and leaves guest code. «Inside» and `closed_` are the two words of Dekker's
/// scheme, both seq_cst: a vCPU sets inside and then reads closed, who closes sets closed and then reads
/// inside. One of the two sees the other. Everything under `mutex_` is rare.
class Gate {
  public:
    using Inside = std::atomic<bool>;

    /// vCPU thread: waits while the gate is closed.
    void enter(Inside& inside) {
        for (;;) {
            inside.store(true, std::memory_order_seq_cst);
            if (!closed_.load(std::memory_order_seq_cst)) return;
            leave(inside);
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [this] { return !closed_.load(std::memory_order_relaxed); });
        }
    }

    /// vCPU thread.
    void leave(Inside& inside) {
        inside.store(false, std::memory_order_seq_cst);
        if (closed_.load(std::memory_order_seq_cst)) {
            std::lock_guard lock(mutex_);
            changed_.notify_all();
        }
    }

    /// Any thread that is not inside. Closes the gate, calls `kick_insiders` once, and returns when nobody is
    /// inside (`anybody_inside` says so). A second closer waits for its turn.
    template <typename Kick, typename Anybody>
    void close(Kick&& kick_insiders, Anybody&& anybody_inside) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !closed_.load(std::memory_order_relaxed); });
        closed_.store(true, std::memory_order_seq_cst);
        kick_insiders();
        changed_.wait(lock, [&] { return !anybody_inside(); });
    }

    void open() {
        std::lock_guard lock(mutex_);
        closed_.store(false, std::memory_order_seq_cst);
        changed_.notify_all();
    }

    bool closed() const noexcept { return closed_.load(std::memory_order_seq_cst); }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::atomic<bool> closed_{false};
};

}  // namespace coremesh
