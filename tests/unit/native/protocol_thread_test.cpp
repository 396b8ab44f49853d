// SPDX-License-Identifier: GPL-2.0-or-later
// The thread of the protocol ends when it is told to, whatever it is about to do.
#include "link/protocol_thread.hpp"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "check.hpp"

using coremesh::link::ProtocolThread;
using namespace std::chrono_literals;

namespace {

/// Work without end and without a timer: once it is over, only a wake-up ends the sleep.
class Busy final : public ProtocolThread::Work {
  public:
    using Drained = ProtocolThread::Drained;
    std::atomic<bool> over{false};
    std::atomic<uint64_t> rounds{0};

    Drained drain(int64_t, unsigned) noexcept override {
        ++rounds;
        return over ? Drained::kNothing : Drained::kSome;
    }
    int64_t due(int64_t) noexcept override { return -1; }
};

/// Ends the program when what it guards takes longer than a minute.
class Watch {
  public:
    Watch() : thread_([this] { look(); }) {}
    ~Watch() {
        done_ = true;
        thread_.join();
    }

  private:
    void look() {
        for (int tenth = 0; tenth < 600; ++tenth) {
            if (done_) return;
            std::this_thread::sleep_for(100ms);
        }
        std::cout << "\n  the thread sleeps on" << std::endl;
        std::_Exit(1);
    }

    std::atomic<bool> done_{false};
    std::thread thread_;
};

}  // namespace

STORY(
    "given work that ends as the thread is told to, when it is anywhere in its loop, then it does not sleep "
    "on") {
    const Watch watch;
    for (int round = 0; round < 1000; ++round) {
        Busy busy;
        ProtocolThread thread;
        thread.start(busy, {});
        while (busy.rounds < 10 + static_cast<unsigned>(round % 50)) std::this_thread::yield();
        busy.over = true;
        thread.stop();
    }
}

RUN_STORIES()
