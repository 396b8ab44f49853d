// SPDX-License-Identifier: GPL-2.0-or-later
// Threads that receive their own answers beside the protocol thread, over the real wires: nothing is lost,
// nothing is handed on twice or by two threads at once, and a stop finds none of them waiting.
#include "link/receiver_role.hpp"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "base/futex.hpp"
#include "check.hpp"
#include "link/libsodium.hpp"
#include "link/shm.hpp"
#include "link/tcp.hpp"
#include "link/tcp_connection.hpp"
#include "link/wired_link.hpp"

using coremesh::futex_wait_until;
using coremesh::futex_wake;
using coremesh::HostId;
using namespace coremesh::link;
using namespace std::chrono_literals;

namespace {

constexpr unsigned kHosts = 3, kThreads = 2;

enum class What : uint32_t { kAsk, kAskSilently, kAnswer, kNote };
struct Words {
    What what;
    uint32_t thread, number;
};
std::span<const uint8_t> bytes_of(const Words& words) {
    return {reinterpret_cast<const uint8_t*>(&words), sizeof words};
}

int64_t in_two_seconds() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec + 2) * 1'000'000'000LL + now.tv_nsec;
}

/// A host that answers what it is asked, and notes what only its protocol thread may see.
class Answering final : public Receiver {
  public:
    std::unique_ptr<Link> link;
    std::array<std::atomic<uint32_t>, kThreads> answered{};
    std::atomic<uint64_t> notes{0}, by_waiting{0}, lost{0};
    std::atomic<bool> overlap{false};

    void received(HostId from, Type, uint64_t, std::span<const uint8_t> payload) noexcept override {
        handle(from, payload);
    }
    bool takes_waiting(Type type, uint64_t) noexcept override { return type == Type::kCoherence; }
    void received_waiting(HostId from, Type type, uint64_t,
                          std::span<const uint8_t> payload) noexcept override {
        if (type != Type::kCoherence) overlap = true;
        ++by_waiting;
        handle(from, payload);
    }
    int64_t due(int64_t) noexcept override { return -1; }
    uint64_t stamp() noexcept override { return 1; }
    void peer_lost(HostId, Loss) noexcept override { ++lost; }

    /// Asks, and waits as a vCPU does.
    void ask(HostId peer, uint32_t thread, uint32_t number) {
        std::atomic<uint32_t>& word = answered[thread];
        const What what = number % 5 == 0 ? What::kAskSilently : What::kAsk;
        const Words words{what, thread, number};
        CHECK(link->send(peer, Type::kCoherence, bytes_of(words)));
        if (number % 7 == 0) {
            const Words note{What::kNote, thread, number};
            CHECK(link->send(peer, Type::kControl, bytes_of(note)));
        }
        while (word.load() != number) {
            if (!link->receive_while(word, number - 1)) futex_wait_until(word, number - 1, in_two_seconds());
        }
    }

  private:
    void handle(HostId from, std::span<const uint8_t> payload) noexcept {
        if (inside_++ != 0) overlap = true;  // not atomic: the sanitizer sees two threads at once too
        Words words;
        std::memcpy(&words, payload.data(), sizeof words);
        if (words.what == What::kAsk || words.what == What::kAskSilently) {
            // Some answers come behind a frame that no waiting thread takes.
            const Words note{What::kNote, words.thread, words.number};
            if (words.what == What::kAsk && words.number % 3 == 0) {
                link->send(from, Type::kControl, bytes_of(note));
            }
            words.what = What::kAnswer;
            link->send(from, Type::kCoherence, bytes_of(words));
        } else if (words.what == What::kAnswer) {
            std::atomic<uint32_t>& word = answered[words.thread];
            word.store(words.number);
            futex_wake(word, INT_MAX);
            link->word_changed(word);
        } else {
            ++notes;
        }
        --inside_;
    }

    int inside_ = 0;
};

/// Files that are closed with it.
class Files {
  public:
    ~Files() {
        for (const int file : files_) close(file);
    }
    int keep(int file) {
        CHECK(file >= 0);
        files_.push_back(file);
        return file;
    }

  private:
    std::vector<int> files_;
};

struct Machine {
    explicit Machine(const std::string& wire) {
        std::vector<std::unique_ptr<Wire>> wires = wire == "shm" ? over_shm() : over_tcp();
        for (unsigned host = 0; host < kHosts; ++host) {
            hosts.push_back(std::make_unique<Answering>());
            const LinkOptions options{.identity = {static_cast<HostId>(host), kHosts, 7, 1}};
            hosts[host]->link = make_link(options, std::move(wires[host]));
        }
        for (const auto& host : hosts) host->link->start(*host);
    }
    ~Machine() {
        for (const auto& host : hosts) host->link->stop();
    }

    std::vector<std::unique_ptr<Wire>> over_shm() {
        std::vector<int> memory, rings, ropes;
        for (unsigned host = 0; host < kHosts; ++host) {
            memory.push_back(files.keep(memfd_create("inbox", MFD_CLOEXEC | MFD_ALLOW_SEALING)));
            CHECK(ftruncate(memory.back(), static_cast<off_t>(shm_inbox_bytes(kHosts))) == 0);
            CHECK(fcntl(memory.back(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
            std::array<int, 2> ends{};
            CHECK(pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) == 0);
            rings.push_back(files.keep(ends[0]));
            ropes.push_back(files.keep(ends[1]));
        }
        std::vector<std::unique_ptr<Wire>> wires;
        for (unsigned self = 0; self < kHosts; ++self) {
            std::vector<ShmInbox> inboxes;
            for (unsigned host = 0; host < kHosts; ++host) {
                inboxes.push_back({memory[host], host == self ? rings[host] : ropes[host]});
            }
            wires.push_back(make_shm_wire({static_cast<HostId>(self), kHosts}, inboxes));
        }
        return wires;
    }

    std::vector<std::unique_ptr<Wire>> over_tcp() {
        const char* const library = std::getenv("COREMESH_LIBSODIUM");
        CHECK(library != nullptr);
        const LibSodium sodium(library);
        std::vector<TcpOptions> options(kHosts);
        std::vector<ChannelKey> open(kHosts);
        std::vector<sockaddr_storage> places;
        for (unsigned host = 0; host < kHosts; ++host) {
            sodium.keypair(open[host].data(), options[host].keys.own_secret.data());
            sockaddr_storage place = socket_address("127.0.0.1", 0);
            options[host].listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
            auto* const address = reinterpret_cast<sockaddr*>(&place);
            socklen_t length = sizeof(sockaddr_in);
            CHECK(bind(options[host].listener, address, length) == 0);
            CHECK(listen(options[host].listener, 8) == 0);
            CHECK(getsockname(options[host].listener, address, &length) == 0);
            places.push_back(place);
        }
        std::vector<std::unique_ptr<Wire>> wires;
        for (unsigned host = 0; host < kHosts; ++host) {
            options[host].self = static_cast<HostId>(host);
            options[host].hosts = kHosts;
            options[host].libsodium = library;
            options[host].keys.own_public = open[host];
            options[host].keys.of_hosts = open;
            options[host].source = socket_address("127.0.0.1", 0);
            options[host].peers = places;
            wires.push_back(make_tcp_wire(options[host]));
        }
        return wires;
    }

    Files files;  // after the links, which use them
    std::vector<std::unique_ptr<Answering>> hosts;
};

void many_ask(const std::string& wire, uint32_t asks) {
    Machine machine(wire);
    std::vector<std::thread> threads;
    for (unsigned host = 0; host < kHosts; ++host) {
        for (uint32_t thread = 0; thread < kThreads; ++thread) {
            threads.emplace_back([&machine, host, thread, asks] {
                for (uint32_t number = 1; number <= asks; ++number) {
                    const unsigned peer = (host + 1 + (number + thread) % (kHosts - 1)) % kHosts;
                    machine.hosts[host]->ask(static_cast<HostId>(peer), thread, number);
                }
            });
        }
    }
    for (std::thread& thread : threads) thread.join();
    uint64_t notes = 0, received = 0, lent = 0, by_waiting = 0;
    for (unsigned host = 0; host < kHosts; ++host) {
        const Answering& one = *machine.hosts[host];
        CHECK(!one.overlap);
        CHECK_EQ(one.lost.load(), 0u);
        lent += one.link->facts().lent;
        by_waiting += one.by_waiting;
    }
    CHECK(lent > asks / 10 && by_waiting > asks / 10);
    // Each ask sends one note for every third that is not a fifth too, and one itself for every seventh.
    uint64_t expected = 0;
    for (uint32_t number = 1; number <= asks; ++number) {
        expected += kHosts * kThreads * ((number % 3 == 0 && number % 5 != 0) + (number % 7 == 0));
    }
    for (int tries = 0; tries < 5000 && notes != expected; ++tries) {
        std::this_thread::sleep_for(1ms);
        notes = 0;
        for (const auto& host : machine.hosts) notes += host->notes;
    }
    CHECK_EQ(notes, expected);
    for (unsigned host = 0; host < kHosts; ++host) {
        for (unsigned peer = 0; peer < kHosts; ++peer) {
            if (peer == host) continue;
            const LinkCounters counters = machine.hosts[host]->link->counters(static_cast<HostId>(peer));
            received += counters.received_frames;
            for (const uint64_t refused : counters.refused) CHECK_EQ(refused, 0u);
        }
    }
    CHECK_EQ(received, notes + uint64_t{2} * asks * kHosts * kThreads);
}

void stop_while_waiting(const std::string& wire) {
    Machine machine(wire);
    Answering& host = *machine.hosts[0];
    host.ask(1, 0, 1);  // the links are up
    std::atomic<uint32_t> never{0};
    std::atomic<bool> begun{false}, over{false};
    std::atomic<unsigned> late{0};
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < 3; ++thread) {
        threads.emplace_back([&] {
            while (!over) {
                const bool before = !begun;
                if (!host.link->receive_while(never, 0)) {
                    std::this_thread::yield();
                } else if (!before) {
                    ++late;
                }
            }
        });
    }
    std::this_thread::sleep_for(20ms);
    begun = true;
    host.link->stop();
    CHECK(!host.link->receive_while(never, 0));
    over = true;
    for (std::thread& thread : threads) thread.join();
    // A thread that has just begun may still get the role; more, and they would keep it from the thread that
    // stops.
    CHECK(late <= threads.size());
}

void changed_by_another_thread(const std::string& wire) {
    Machine machine(wire);
    Answering& host = *machine.hosts[0];
    host.ask(1, 0, 1);
    std::atomic<uint32_t> word{0};
    std::thread waiting([&] {
        for (uint32_t value = 0; value < 2000; ++value) {
            while (word.load() == value) {
                if (!host.link->receive_while(word, value)) {
                    futex_wait_until(word, value, in_two_seconds());
                }
            }
        }
    });
    for (uint32_t value = 1; value <= 2000; ++value) {
        if (value % 3 == 0) std::this_thread::sleep_for(20us);
        word.store(value);
        futex_wake(word, INT_MAX);
        host.link->word_changed(word);
        // The next only when the thread waits for it, or is on its way there.
        if (value % 64 == 0) std::this_thread::sleep_for(200us);
    }
    waiting.join();
}

}  // namespace

STORY(
    "given shared memory, when threads of three hosts ask and receive in turn, then each frame arrives "
    "once") {
    many_ask("shm", 2000);
}

STORY("given TCP, when threads of three hosts ask and receive in turn, then each frame arrives once") {
    many_ask("tcp", 1000);
}

STORY("given threads that wait for what never comes, when the link stops, then none of them holds it up") {
    for (int round = 0; round < 10; ++round) {
        stop_while_waiting("shm");
        stop_while_waiting("tcp");
    }
}

STORY("given a thread that receives, when another changes its word, then it returns") {
    changed_by_another_thread("shm");
    changed_by_another_thread("tcp");
}

STORY("given a role that the protocol thread has claimed, then no waiting thread gets it before") {
    ReceiverRole role;
    CHECK(!role.borrow());  // the first turn
    CHECK(role.take());
    CHECK(!role.take() && !role.borrow());
    role.give();
    CHECK(role.borrow());
    role.claim();
    CHECK(role.claimed());
    role.give();
    CHECK(!role.borrow());
    CHECK(role.take());
    CHECK(!role.claimed());
    role.give();
    CHECK(role.borrow());
}

RUN_STORIES()
