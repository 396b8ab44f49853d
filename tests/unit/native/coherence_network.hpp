// SPDX-License-Identifier: GPL-2.0-or-later
// Hosts, their page protocol and the network between them, in one thread: whoever holds it decides what
// happens next. Pages have bytes and mappings, and every step checks what a guest may rely on.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "check.hpp"
#include "coherence/node.hpp"
#include "coherence/page_codec.hpp"

namespace coherence_network {

using namespace coremesh::coherence;
using coremesh::Access;
using coremesh::bit;
using coremesh::HostId;
using coremesh::kMaxHosts;

struct alignas(4096) PageBytes {
    std::array<uint64_t, 512> words{};
};

/// What a simulated thread does: one instruction at a time.
struct Thread {
    enum class Does : uint8_t { kNothing, kRead, kWrite, kAdd, kBoth };
    enum class Is : uint8_t { kIdle, kAsleep, kTransaction, kReady };

    HostId host = 0;
    Does does = Does::kNothing;
    Is is = Is::kIdle;
    uint64_t page = 0;
    uint64_t other = 0;   ///< kBoth: the page that the same instruction writes
    uint64_t asleep = 0;  ///< kAsleep: for which of them
    uint64_t ticket = 0;
    uint64_t done = 0;   ///< instructions that have ended
    bool woken = false;  ///< has slept since the last instruction: it tells the protocol that it runs again
};

class Network {
  public:
    struct Packet {
        std::vector<uint8_t> bytes;
    };
    struct Timer {
        uint64_t due;
        HostId host;
        uint64_t page;
    };

    Network(unsigned hosts, uint64_t pages, Options options = {}) : hosts_(hosts), pages_(pages) {
        options.hosts = hosts;
        options.pages = pages;
        if (options.homes.empty()) {
            for (unsigned host = 0; host < hosts; ++host) {
                options.homes.push_back(
                    {pages * host / hosts, pages * (host + 1) / hosts, static_cast<HostId>(host)});
            }
        }
        for (unsigned host = 0; host < hosts; ++host) {
            options.self = static_cast<HostId>(host);
            options.unused = [this, host](uint64_t page) { return word(host, page) == 0; };
            options.unchanged = [this, host](uint64_t page) {
                return remembered_[host][page] == word(host, page);
            };
            remembered_.emplace_back(pages);
            nodes_.push_back(std::make_unique<Node>(options));
            memory_.push_back(std::make_unique<PageBytes[]>(pages));
            mapped_.emplace_back(pages);
            for (uint64_t page = 0; page < pages; ++page) mapped_[host][page] = nodes_[host]->access(page);
        }
        channels_.resize(hosts * hosts);
        truth_.resize(pages);
    }

    Node& node(unsigned host) { return *nodes_[host]; }
    unsigned hosts() const { return hosts_; }
    uint64_t pages() const { return pages_; }
    uint64_t now() const { return now_us_; }
    Access mapped(unsigned host, uint64_t page) const { return mapped_[host][page]; }
    uint64_t truth(uint64_t page) const { return truth_[page]; }
    uint64_t word(unsigned host, uint64_t page) const { return memory_[host][page].words[0]; }
    std::deque<Packet>& channel(unsigned from, unsigned to) { return channels_[from * hosts_ + to]; }
    std::vector<Thread>& threads() { return threads_; }
    const std::string& broken() const { return broken_; }
    uint64_t sent() const { return sent_; }
    uint64_t pages_on_wire() const { return pages_on_wire_; }

    unsigned add_thread(unsigned host) {
        threads_.push_back({});
        threads_.back().host = static_cast<HostId>(host);
        return static_cast<unsigned>(threads_.size() - 1);
    }

    // ---- what may happen next

    /// Begins an instruction of an idle thread, and runs it as far as it goes.
    void begin(unsigned number, Thread::Does does, uint64_t page, uint64_t other = 0) {
        Thread& thread = threads_[number];
        if (thread.is != Thread::Is::kIdle) return;
        thread.does = does;
        thread.page = page;
        thread.other = other;
        thread.is = Thread::Is::kReady;
        run(number);
    }

    /// A thread that is ready runs: its instruction ends, or it sleeps for a page.
    bool run(unsigned number) {
        Thread& thread = threads_[number];
        if (thread.is != Thread::Is::kReady) return false;
        if (thread.woken) {
            thread.woken = false;
            nodes_[thread.host]->resumed(thread.asleep, now_us_, out_);
            perform(thread.host, {});
        }
        const Access want = thread.does == Thread::Does::kRead ? Access::kRead : Access::kWrite;
        if (mapped_[thread.host][thread.page] < want) {
            if (thread.does == Thread::Does::kAdd) {
                transact(number);
            } else {
                sleep(number, thread.page, want);
            }
            return true;
        }
        if (thread.does == Thread::Does::kBoth && mapped_[thread.host][thread.other] < Access::kWrite) {
            sleep(number, thread.other, Access::kWrite);
            return true;
        }
        use(thread.host, thread.page, thread.does);
        if (thread.does == Thread::Does::kBoth) use(thread.host, thread.other, thread.does);
        end(thread);
        return true;
    }

    /// The oldest message from one host to another arrives. False: there is none.
    bool deliver(unsigned from, unsigned to) {
        auto& queue = channel(from, to);
        if (queue.empty()) return false;
        const Packet packet = std::move(queue.front());
        queue.pop_front();
        const std::optional<Message> message = decode(packet.bytes);
        if (!message) {
            fail("a message that was sent cannot be decoded");
            return true;
        }
        std::span<const uint8_t> payload;
        if (message->has_page()) {
            payload = std::span(packet.bytes).subspan(wire_size(message->kind));
            if (!valid_page(payload)) fail("a page that was sent cannot be decoded");
        }
        nodes_[to]->receive(static_cast<HostId>(from), *message, now_us_, out_);
        perform(to, payload);
        return true;
    }

    void advance(uint64_t us) { now_us_ += us; }

    /// Fires one timer that is due. False: none is.
    bool fire() {
        for (size_t n = 0; n < timers_.size(); ++n) {
            if (timers_[n].due > now_us_) continue;
            const Timer timer = timers_[n];
            timers_.erase(timers_.begin() + static_cast<long>(n));
            nodes_[timer.host]->timer(timer.page, now_us_, out_);
            perform(timer.host, {});
            return true;
        }
        return false;
    }
    std::optional<uint64_t> next_timer() const {
        std::optional<uint64_t> next;
        for (const Timer& timer : timers_) next = std::min(next.value_or(timer.due), timer.due);
        return next;
    }

    /// Whatever can happen without the clock has happened.
    void settle() {
        for (bool more = true; more && broken_.empty();) {
            more = false;
            for (unsigned from = 0; from < hosts_; ++from) {
                for (unsigned to = 0; to < hosts_; ++to) more |= deliver(from, to);
            }
            for (unsigned number = 0; number < threads_.size(); ++number) more |= run(number);
            more |= fire();
        }
    }
    /// Nothing is left to happen: timers too. Every thread has then ended its instruction, or never will.
    void finish() {
        settle();
        while (broken_.empty()) {
            const auto next = next_timer();
            if (!next) break;
            now_us_ = std::max(now_us_, *next);
            settle();
        }
        for (const Thread& thread : threads_) {
            if (thread.is != Thread::Is::kIdle) fail("a thread waits, and nothing is on its way");
        }
        for (const auto& node : nodes_) {
            if (!node->idle()) fail("a host keeps something under way, and nothing is");
        }
    }

    /// At every moment: one writer or readers, and who can see a page sees the last write. At rest the
    /// directory knows exactly who, but for those whom it has sent the answer just now.
    void check() {
        for (uint64_t page = 0; page < pages_; ++page) {
            unsigned writers = 0;
            unsigned readers = 0;
            for (unsigned host = 0; host < hosts_; ++host) {
                const Access access = mapped_[host][page];
                if (access != nodes_[host]->access(page)) fail("the mapping is not what the protocol says");
                writers += access == Access::kWrite;
                readers += access == Access::kRead;
                if (access != Access::kNone && word(host, page) != truth_[page]) fail("a stale read");
            }
            if (writers > 1 || (writers == 1 && readers != 0)) fail("a writer beside another user");
            const Holders holders = nodes_[nodes_[0]->home(page)]->holders(page);
            if (holders.busy) continue;
            for (unsigned host = 0; host < hosts_; ++host) {
                if (answer_under_way(nodes_[0]->home(page), host, page)) continue;
                const bool listed = (holders.hosts >> host & 1) != 0;
                if (listed != (mapped_[host][page] != Access::kNone))
                    fail("the directory lists the wrong hosts");
                if (listed && holders.writable != (mapped_[host][page] == Access::kWrite)) {
                    fail("the directory has the wrong state");
                }
            }
        }
    }

    /// Whether the home has sent what makes the host one of those that it lists.
    bool answer_under_way(unsigned home, unsigned host, uint64_t page) {
        const auto& packets = channel(home, host);
        return std::any_of(packets.begin(), packets.end(), [&](const Packet& packet) {
            const auto message = decode(packet.bytes);
            return message && message->page == page && settles(true, message->sharers) &&
                   (message->has_page() || message->kind == Message::Kind::kGrant);
        });
    }

    /// A message that the protocol did not ask for.
    void inject(unsigned from, unsigned to, const Message& message) {
        Packet packet;
        std::array<uint8_t, kMaxWire> wire{};
        packet.bytes.assign(wire.begin(), wire.begin() + static_cast<long>(encode(message, wire)));
        if (message.has_page()) packet.bytes.push_back(static_cast<uint8_t>(PageForm::kZero));
        channel(from, to).push_back(std::move(packet));
    }

    uint64_t violations() const {
        uint64_t total = 0;
        for (const auto& node : nodes_) total += node->counters().violations;
        return total;
    }

    void fail(const char* what) {
        if (broken_.empty()) broken_ = what;
    }

  private:
    void sleep(unsigned number, uint64_t page, Access want) {
        Thread& thread = threads_[number];
        thread.is = Thread::Is::kAsleep;
        thread.asleep = page;
        const bool wait = nodes_[thread.host]->need(page, want, false, now_us_, out_);
        perform(thread.host, {});
        if (!wait) {
            thread.is = Thread::Is::kReady;
            thread.woken = true;
        }
    }

    void transact(unsigned number) {
        Thread& thread = threads_[number];
        thread.is = Thread::Is::kTransaction;
        thread.asleep = thread.page;
        thread.ticket = ++tickets_;
        Operation add;
        add.kind = Operation::Kind::kAdd;
        add.size = 8;
        add.operand = 1;
        nodes_[thread.host]->rmw(thread.page, add, thread.ticket, now_us_, out_);
        perform(thread.host, {});
    }

    /// The instruction itself: its host may do it, and it is done.
    void use(unsigned host, uint64_t page, Thread::Does does) {
        uint64_t& word = memory_[host][page].words[0];
        if (word != truth_[page]) fail("a thread saw an old value");
        if (does == Thread::Does::kRead) return;
        ++word;
        ++truth_[page];
    }

    static void end(Thread& thread) {
        thread.is = Thread::Is::kIdle;
        thread.does = Thread::Does::kNothing;
        ++thread.done;
    }

    /// Does what the protocol asks, in order.
    void perform(unsigned host, std::span<const uint8_t> payload) {
        for (size_t n = 0; n < out_.size(); ++n) {
            Action& action = out_[n];
            switch (action.kind) {
                case Action::Kind::kSend:
                    send(host, action.to, action.message, false);
                    break;
                case Action::Kind::kSendPage:
                    send(host, action.to, action.message, true);
                    break;
                case Action::Kind::kInstall:
                    if (!decode_page(payload, &memory_[host][action.page])) fail("installed without a page");
                    break;
                case Action::Kind::kRemember:
                    remembered_[host][action.page] = word(host, action.page);
                    break;
                case Action::Kind::kSetAccess:
                    mapped_[host][action.page] = action.access;
                    break;
                case Action::Kind::kExecute:
                    if (mapped_[host][action.page] != Access::kWrite)
                        fail("executed where it may not be written");
                    action.message.value = execute(action.message.operation, &memory_[host][action.page]);
                    ++truth_[action.page];
                    send(host, action.to, action.message, false);
                    break;
                case Action::Kind::kWake:
                    for (Thread& thread : threads_) {
                        if (thread.host != host || thread.is != Thread::Is::kAsleep ||
                            thread.asleep != action.page) {
                            continue;
                        }
                        thread.is = Thread::Is::kReady;
                        thread.woken = true;
                    }
                    break;
                case Action::Kind::kComplete:
                    complete(host, action);
                    break;
                case Action::Kind::kTimer:
                    timers_.push_back({now_us_ + action.delay_us, static_cast<HostId>(host), action.page});
                    break;
            }
        }
        out_.clear();
    }

    void complete(unsigned host, const Action& action) {
        for (Thread& thread : threads_) {
            if (thread.ticket != action.ticket || thread.is != Thread::Is::kTransaction) continue;
            if (thread.host != host) fail("completed on another host");
            if (action.outcome == Outcome::kValue) {
                end(thread);
            } else {
                thread.is = Thread::Is::kReady;
                thread.woken = true;
            }
            return;
        }
        fail("completed what nobody waits for");
    }

    void send(unsigned from, unsigned to, const Message& message, bool with_page) {
        if (from == to || to >= hosts_) return fail("sent to nowhere");
        if (message.has_page() != with_page) return fail("a page is missing, or too many");
        Packet packet;
        std::array<uint8_t, kMaxWire> wire{};
        packet.bytes.assign(wire.begin(), wire.begin() + static_cast<long>(encode(message, wire)));
        if (with_page) {
            std::array<uint8_t, kMaxEncodedPage> page{};
            const size_t size = encode_page(&memory_[from][message.page], page);
            packet.bytes.insert(packet.bytes.end(), page.begin(), page.begin() + static_cast<long>(size));
            ++pages_on_wire_;
        }
        ++sent_;
        channel(from, to).push_back(std::move(packet));
    }

    unsigned hosts_;
    uint64_t pages_;
    uint64_t now_us_ = 1000;
    uint64_t tickets_ = 0;
    uint64_t sent_ = 0;
    uint64_t pages_on_wire_ = 0;
    std::vector<std::unique_ptr<Node>> nodes_;
    std::vector<std::unique_ptr<PageBytes[]>> memory_;
    std::vector<std::vector<Access>> mapped_;
    std::vector<std::vector<uint64_t>> remembered_;
    std::vector<std::deque<Packet>> channels_;
    std::vector<Timer> timers_;
    std::vector<Thread> threads_;
    std::vector<uint64_t> truth_;
    std::string broken_;
    Actions out_;
};

// ---- words of the stories

/// All pages have their home, and at the start their bytes, on host 0.
inline Options homed_on_0(uint64_t pages, Policy policy = Policy::kAdaptive) {
    Options options;
    options.homes = {{0, pages, 0}};
    options.policy = policy;
    options.prefetch = 0;
    options.first_touch = 0;
    return options;
}

/// What is on its way from one host to another, oldest first.
inline std::vector<Message::Kind> on_the_way(Network& network, unsigned from, unsigned to) {
    std::vector<Message::Kind> kinds;
    for (const auto& packet : network.channel(from, to)) kinds.push_back(decode(packet.bytes)->kind);
    return kinds;
}

inline bool is_idle(Network& network, unsigned thread) {
    return network.threads()[thread].is == Thread::Is::kIdle;
}

/// Everything ends, and all is as it must be.
inline void let_holds_end(Network& network) {
    network.finish();
    network.advance(10'000);
    network.check();
    CHECK_EQ(network.broken(), std::string());
    CHECK_EQ(network.violations(), 0u);
}

}  // namespace coherence_network
