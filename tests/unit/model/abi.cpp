// SPDX-License-Identifier: GPL-2.0-or-later
// The simulated network of hosts as a shared library: Python decides what happens next and judges what it
// sees. The protocol in it is the machine's own, compiled from the same files.
#include <cstdint>
#include <cstring>

#include "coherence_network.hpp"

using namespace coherence_network;

extern "C" {

void* mesh_new(unsigned hosts, uint64_t pages, unsigned policy, unsigned hold_us, unsigned cap_us,
               unsigned prefetch) {
    Options options;
    options.policy = static_cast<Policy>(policy);
    options.hold_us = hold_us;
    options.hold_cap_us = cap_us;
    options.prefetch = options.first_touch = prefetch;
    return new Network(hosts, pages, options);
}
void mesh_free(void* mesh) { delete static_cast<Network*>(mesh); }

unsigned mesh_thread(void* mesh, unsigned host) { return static_cast<Network*>(mesh)->add_thread(host); }
/// does: 1 read, 2 write, 3 add, 4 write two pages.
void mesh_begin(void* mesh, unsigned thread, unsigned does, uint64_t page, uint64_t other) {
    static_cast<Network*>(mesh)->begin(thread, static_cast<Thread::Does>(does), page, other);
}
int mesh_run(void* mesh, unsigned thread) { return static_cast<Network*>(mesh)->run(thread); }
int mesh_deliver(void* mesh, unsigned from, unsigned to) {
    return static_cast<Network*>(mesh)->deliver(from, to);
}
void mesh_advance(void* mesh, uint64_t us) { static_cast<Network*>(mesh)->advance(us); }
int mesh_fire(void* mesh) { return static_cast<Network*>(mesh)->fire(); }
/// Microseconds until the next timer; -1: there is none.
int64_t mesh_next_timer(void* mesh) {
    auto& network = *static_cast<Network*>(mesh);
    const auto next = network.next_timer();
    if (!next) return -1;
    return *next <= network.now() ? 0 : static_cast<int64_t>(*next - network.now());
}

unsigned mesh_waiting(void* mesh, unsigned from, unsigned to) {
    return static_cast<unsigned>(static_cast<Network*>(mesh)->channel(from, to).size());
}
/// The kind of the oldest message on the way; 0: none.
unsigned mesh_kind(void* mesh, unsigned from, unsigned to) {
    const auto& queue = static_cast<Network*>(mesh)->channel(from, to);
    return queue.empty() ? 0 : queue.front().bytes[0];
}
/// 0 none, 1 read, 2 write: what the CPUs of the host can do.
unsigned mesh_mapped(void* mesh, unsigned host, uint64_t page) {
    return static_cast<unsigned>(static_cast<Network*>(mesh)->mapped(host, page));
}
uint64_t mesh_word(void* mesh, unsigned host, uint64_t page) {
    return static_cast<Network*>(mesh)->word(host, page);
}
uint64_t mesh_done(void* mesh, unsigned thread) {
    return static_cast<Network*>(mesh)->threads()[thread].done;
}
/// 0 idle, 1 asleep, 2 in a transaction, 3 ready.
unsigned mesh_is(void* mesh, unsigned thread) {
    return static_cast<unsigned>(static_cast<Network*>(mesh)->threads()[thread].is);
}
uint64_t mesh_violations(void* mesh) { return static_cast<Network*>(mesh)->violations(); }
int mesh_idle(void* mesh, unsigned host) { return static_cast<Network*>(mesh)->node(host).idle(); }
uint64_t mesh_holders(void* mesh, uint64_t page, int* writable, int* busy) {
    auto& network = *static_cast<Network*>(mesh);
    const Holders holders = network.node(network.node(0).home(page)).holders(page);
    *writable = holders.writable;
    *busy = holders.busy;
    return holders.hosts;
}
/// The home has sent what makes the host one of those that it lists, and it has not come yet.
int mesh_arriving(void* mesh, unsigned host, uint64_t page) {
    auto& network = *static_cast<Network*>(mesh);
    return network.answer_under_way(network.node(0).home(page), host, page);
}
/// What the network itself found wrong, or "".
const char* mesh_broken(void* mesh) { return static_cast<Network*>(mesh)->broken().c_str(); }
}
