// SPDX-License-Identifier: GPL-2.0-or-later
// What devices let another host do: calls and answers of any length, refusals, and the end of every wait.
#include "host/remote_calls.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "check.hpp"

using namespace coremesh;

namespace {

using Bytes = RemoteCalls::Bytes;

/// Hosts 0, which has the devices, and 1. A frame arrives within `send`; `frames` counts them.
struct Pair {
    Pair() {
        leader = std::make_unique<RemoteCalls>(HostId{0}, HostId{0}, [this](HostId, auto head, auto body) {
            return arrive(*other, 0, head, body);
        });
        other = std::make_unique<RemoteCalls>(HostId{1}, HostId{0}, [this](HostId, auto head, auto body) {
            return arrive(*leader, 1, head, body);
        });
    }
    ~Pair() {
        leader->stop();
        other->stop();
    }
    bool arrive(RemoteCalls& at, HostId from, std::span<const uint8_t> head, std::span<const uint8_t> body) {
        if (cut) return true;
        Bytes frame(head.begin(), head.end());
        frame.insert(frame.end(), body.begin(), body.end());
        ++frames;
        at.received(from, frame);
        return true;
    }
    std::unique_ptr<RemoteCalls> leader, other;
    std::atomic<unsigned> frames{0};
    std::atomic<bool> cut{false};
};

bool backwards(std::span<const uint8_t> call, Bytes& answer) {
    answer.assign(call.rbegin(), call.rend());
    return true;
}

}  // namespace

STORY(
    "given calls of any length from several threads, then each has its own answer, in as many frames as it "
    "needs") {
    Pair hosts;
    hosts.other->serve(backwards);
    std::vector<std::thread> threads;
    std::atomic<unsigned> wrong{0};
    for (unsigned number = 0; number < 6; ++number) {
        threads.emplace_back([&, number] {
            for (const size_t length :
                 {size_t{0}, size_t{1}, size_t{61439}, size_t{61440}, size_t{61441}, size_t{500'000}}) {
                Bytes call(length, static_cast<uint8_t>(number)), answer;
                if (length != 0) call[0] = 0xEE;
                Bytes expected(call.rbegin(), call.rend());
                if (!hosts.leader->call(1, call, answer) || answer != expected) ++wrong;
            }
        });
    }
    for (auto& thread : threads) thread.join();
    CHECK_EQ(wrong.load(), 0u);
    // Two frames for each of the four that fit into one, the empty one too; 2 x 2 and 2 x 9 for the others.
    CHECK_EQ(hosts.frames.load(), 6u * (4 * 2 + 4 + 18));
}

STORY("given a host that cannot do it, or does not serve, then the caller is told and does not wait") {
    Pair hosts;
    Bytes answer;
    CHECK(!hosts.leader->call(1, Bytes{1}, answer));  // no one serves yet
    CHECK(!hosts.leader->call(0, Bytes{1}, answer));  // itself
    hosts.other->serve([](std::span<const uint8_t> call, Bytes&) { return !call.empty(); });
    CHECK(!hosts.leader->call(1, Bytes{}, answer));
    CHECK(hosts.leader->call(1, Bytes{1}, answer));
}

STORY("given frames that no host sends, then they are dropped") {
    Pair hosts;
    std::atomic<unsigned> served{0};
    hosts.other->serve([&](std::span<const uint8_t>, Bytes&) { return ++served != 0; });
    hosts.other->received(0, Bytes{});
    hosts.other->received(0, Bytes(8));                           // short
    hosts.other->received(0, Bytes(9, 0xFF));                     // no such part
    hosts.other->received(5, Bytes{1, 0, 0, 0, 0, 0, 0, 0, 1});   // not from the one that calls
    hosts.leader->received(1, Bytes{9, 0, 0, 0, 0, 0, 0, 0, 3});  // nothing was asked
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK_EQ(served.load(), 0u);
}

STORY("given an answer that never comes, when the machine stops, then the wait ends") {
    Pair hosts;
    hosts.cut = true;
    std::thread stopper([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        hosts.leader->cancel();
    });
    Bytes answer;
    CHECK(!hosts.leader->call(1, Bytes{1}, answer));
    stopper.join();
    CHECK(!hosts.leader->call(1, Bytes{1}, answer));
}

RUN_STORIES()
