// SPDX-License-Identifier: GPL-2.0-or-later
#include "memory/shared_memory.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/clock.hpp"
#include "base/futex.hpp"
#include "coherence/outbox.hpp"

namespace coremesh {

using coherence::Action;
using coherence::Operation;
using coherence::Outcome;

namespace {

constexpr uint64_t kNoPage = ~uint64_t{0};
constexpr int kTries = 200;

void pause_briefly() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

SharedMemory::SharedMemory(GuestRam& ram, const coherence::Options& options, MessageSender& sender)
    : ram_(ram), sender_(sender), digests_(ram.pages()), node_(with_looks(options)) {
    // Filled inside fault handlers: never grown there as long as this is enough.
    timers_.reserve(4096);
    to_self_.reserve(64);
}

/// What the protocol asks of the pages' bytes.
coherence::Options SharedMemory::with_looks(coherence::Options options) {
    // A page that has no memory behind it was used by no CPU of this host.
    options.unused = [this](uint64_t page) { return ram_.untouched(page); };
    options.unchanged = [this](uint64_t page) {
        return coherence::page_digest(frame(page)) == digests_[page];
    };
    return options;
}

uint64_t SharedMemory::now_us() noexcept {
    now_ns_ = Clock::monotonic_ns();
    return static_cast<uint64_t>(now_ns_) / 1000;
}

void SharedMemory::unlock() noexcept {
    const uint64_t hosts = std::exchange(sent_to_, 0);
    lock_.unlock();
    if (hosts != 0) sender_.flush(hosts);
}

/// After a wait: the thread that wakes another holds the lock for a moment more, and to sleep for it costs
/// two context switches.
void SharedMemory::lock_again() noexcept {
    for (int tries = 0; tries < kTries; ++tries) {
        if (lock_.try_lock()) return;
        pause_briefly();
    }
    lock_.lock();
}

void SharedMemory::WaitQueue::wait(uint32_t while_sequence) noexcept {
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    futex_wait_until(sequence, while_sequence, -1);
    sleepers.fetch_sub(1, std::memory_order_relaxed);
}

void SharedMemory::WaitQueue::wake() noexcept {
    sequence.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) != 0) futex_wake(sequence, INT_MAX);
}

/// The thread that waits receives its answer itself, if no other receives: so one thread less is woken.
void SharedMemory::wait_on(WaitQueue& wait_queue, uint32_t while_sequence) noexcept {
    if (sender_.receive_while(wait_queue.sequence, while_sequence)) {
        counters_.own_receives.fetch_add(1, std::memory_order_relaxed);
    } else {
        wait_queue.wait(while_sequence);
    }
}

void SharedMemory::wake(WaitQueue& wait_queue) noexcept {
    wait_queue.wake();
    sender_.word_changed(wait_queue.sequence);
}

// ---- threads that wait
// ---------------------------------------------------------------------------------------------

/// Gives the lock up while it sleeps. False: cancelled.
bool SharedMemory::wait_for(uint64_t page, Access want, bool atomic) noexcept {
    const int64_t start = Clock::monotonic_ns();
    bool slept = false;
    for (;;) {
        if (cancelled_.load(std::memory_order_relaxed)) return false;
        node_.congested(sender_.congested());
        const bool wait = node_.need(page, want, atomic, now_us(), actions_);
        WaitQueue& wait_queue = wait_queue_of(page);
        // Before the actions: one of them may be the wake.
        const uint32_t sequence = wait_queue.sequence.load(std::memory_order_relaxed);
        perform({});
        if (!wait || node_.access(page) >= want) break;
        slept = true;
        unlock();
        wait_on(wait_queue, sequence);
        lock_again();
    }
    if (slept) {
        counters_.waits.fetch_add(1, std::memory_order_relaxed);
        counters_.wait_ns.fetch_add(static_cast<uint64_t>(Clock::monotonic_ns() - start),
                                    std::memory_order_relaxed);
    }
    return true;
}

bool SharedMemory::obtain(uint64_t page, Access want, bool atomic, uint64_t place) noexcept {
    const Locked hold(*this);
    if (!wait_for(page, want, atomic)) return false;
    if (place != 0) node_.used(page, place);
    node_.resumed(page, now_us(), actions_);
    perform({});
    return true;
}

SharedMemory::Ticket* SharedMemory::take_ticket() noexcept {
    for (size_t tried = 0; tried < kTickets; ++tried) {
        const uint64_t number = ++last_ticket_;
        Ticket& ticket = tickets_[number % kTickets];
        if (ticket.number != 0) continue;
        ticket.number = number;
        ticket.done = false;
        return &ticket;
    }
    return nullptr;  // more threads than a host has vCPUs: the caller moves the page instead
}

bool SharedMemory::transact_elsewhere(uint64_t page, const Operation& operation, Wide& old,
                                      uint64_t place) noexcept {
    const Locked hold(*this);
    if (place != 0) node_.used(page, place);
    Ticket* ticket = take_ticket();
    if (!ticket) return false;
    node_.rmw(page, operation, ticket->number, now_us(), actions_);
    perform({});
    while (!ticket->done && !cancelled_.load(std::memory_order_relaxed)) {
        const uint32_t sequence = ticket->wait_queue.sequence.load(std::memory_order_relaxed);
        unlock();
        wait_on(ticket->wait_queue, sequence);
        lock_again();
    }
    const bool executed = ticket->done && ticket->outcome == Outcome::kValue;
    old = ticket->value;
    ticket->number = 0;
    if (!executed) {
        node_.resumed(page, now_us(), actions_);
        perform({});
    }
    return executed;
}

bool SharedMemory::transact(uint64_t page, const Operation& operation, Wide& old) noexcept {
    if (!here(page) && transact_elsewhere(page, operation, old)) return true;
    const Locked hold(*this);
    const bool reads = operation.reads_only() && operation.size < 16;
    if (!wait_for(page, reads ? Access::kRead : Access::kWrite, true)) return false;
    old = execute(operation, page);
    node_.resumed(page, now_us(), actions_);
    perform({});
    return true;
}

bool SharedMemory::read(uint64_t offset, void* to, uint64_t length) noexcept {
    auto* bytes = static_cast<uint8_t*>(to);
    while (length > 0) {
        const uint64_t page = offset / GuestRam::kPage;
        const uint64_t piece = std::min(length, (page + 1) * GuestRam::kPage - offset);
        const Locked hold(*this);
        if (!wait_for(page, Access::kRead)) return false;
        std::memcpy(bytes, ram_.protocol_base() + offset, piece);
        node_.resumed(page, now_us(), actions_);
        perform({});
        offset += piece;
        bytes += piece;
        length -= piece;
    }
    return true;
}

bool SharedMemory::write(uint64_t offset, const void* from, uint64_t length) noexcept {
    const auto* bytes = static_cast<const uint8_t*>(from);
    while (length > 0) {
        const uint64_t page = offset / GuestRam::kPage;
        const uint64_t piece = std::min(length, (page + 1) * GuestRam::kPage - offset);
        const Locked hold(*this);
        if (!wait_for(page, Access::kWrite)) return false;
        ram_.page_table()->write(offset, bytes, piece);
        node_.resumed(page, now_us(), actions_);
        perform({});
        offset += piece;
        bytes += piece;
        length -= piece;
    }
    return true;
}

bool SharedMemory::hold(uint64_t first, uint64_t second) noexcept {
    // A device is accessed in the section: the answer of a node on another host comes by the protocol thread,
    // and a local one may do DMA, on this very thread. Neither could take the lock. Of an access over RAM and
    // a device no page is held either: the RAM's half is one store, which fetches the page again if it has
    // left.
    if (first == kNoPage || second == kNoPage) return true;
    if (first > second) std::swap(first, second);
    lock_.lock();
    // Rising order on every host: the host with the lower page is sent the upper one, and keeps the lower one
    // meanwhile because its hold has not begun to run out.
    for (;;) {
        bool complete = true;
        for (const uint64_t page : {first, second}) {
            if (node_.access(page) == Access::kWrite) continue;
            complete = false;
            if (!wait_for(page, Access::kWrite)) {
                unlock();
                return false;
            }
        }
        if (complete) break;
    }
    held_ = {first, second};
    return true;
}

void SharedMemory::release() noexcept {
    if (held_[0] == kNoPage) return;
    for (const uint64_t page : std::exchange(held_, {kNoPage, kNoPage}))
        node_.resumed(page, now_us(), actions_);
    perform({});
    unlock();
}

void SharedMemory::cancel() noexcept {
    const Locked hold(*this);
    cancelled_.store(true, std::memory_order_relaxed);
    for (WaitQueue& wait_queue : wait_queues_) wake(wait_queue);
    for (Ticket& ticket : tickets_) {
        if (ticket.number == 0 || ticket.done) continue;
        ticket.outcome = Outcome::kRetry;
        ticket.done = true;
        wake(ticket.wait_queue);
    }
}

// ---- the protocol thread
// -------------------------------------------------------------------------------------------

void SharedMemory::receive(HostId from, std::span<const uint8_t> bytes) noexcept {
    const auto message = coherence::decode(bytes);
    std::span<const uint8_t> page;
    if (message && message->has_page()) page = bytes.subspan(coherence::wire_size(message->kind));
    if (!message || (message->has_page() && !coherence::valid_page(page))) {
        counters_.malformed.fetch_add(1, std::memory_order_relaxed);
        note_unreadable(from);
        return;
    }
    const Locked hold(*this);
    node_.congested(sender_.congested());
    const Access before = node_.access(message->page);
    const uint64_t violations = node_.violations();
    node_.receive(from, *message, now_us(), actions_);
    // Before what follows from it is sent.
    trace_.note({.time_ns = now_ns_,
                 .page = message->page,
                 .serial = message->serial,
                 .kind = static_cast<uint8_t>(message->kind),
                 .rejected = node_.violations() != violations,
                 .peer = from,
                 .requester = message->requester,
                 .flags = message->flags,
                 .before = before,
                 .after = node_.access(message->page)});
    perform(page);
}

int64_t SharedMemory::run_timers(int64_t now_ns) noexcept {
    const Locked hold(*this);
    while (!timers_.empty() && timers_.front().due_ns <= now_ns) {
        const uint64_t page = timers_.front().page;
        std::pop_heap(timers_.begin(), timers_.end(), std::greater<>{});
        timers_.pop_back();
        node_.timer(page, now_us(), actions_);
        perform({});
    }
    return timers_.empty() ? -1 : timers_.front().due_ns;
}

// ---- what the protocol says
// ----------------------------------------------------------------------------------------

/// `arrived`: the encoded page that came with the message, for kInstall.
void SharedMemory::perform(std::span<const uint8_t> arrived) noexcept {
    for (;;) {
        for (size_t index = 0; index < actions_.size(); ++index) do_one(actions_[index], arrived);
        actions_.clear();
        if (to_self_.empty()) return;
        // A result of an operation executed for ourselves.
        const coherence::Message message = to_self_.back();
        to_self_.pop_back();
        node_.receive(node_.self(), message, now_us(), actions_);
        arrived = {};
    }
}

void SharedMemory::do_one(const Action& action, std::span<const uint8_t> arrived) noexcept {
    std::array<uint8_t, coherence::kMaxWire> wire;
    switch (action.kind) {
        case Action::Kind::kSend:
            sent_to_ |= bit(action.to);
            note_sent(action.to, action.message);
            sender_.send_message(action.to, {wire.data(), coherence::encode(action.message, wire)});
            return;
        case Action::Kind::kSendPage:
            send_page(action);
            return;
        case Action::Kind::kInstall:
            // A page of zeros that has no memory here yet needs none.
            if (!coherence::zero_page(arrived) || !ram_.untouched(action.page)) {
                coherence::decode_page(arrived, frame(action.page));
            }
            return;
        case Action::Kind::kRemember:
            digests_[action.page] = coherence::page_digest(frame(action.page));
            return;
        case Action::Kind::kSetAccess:
            ram_.page_table()->set_access(action.page, action.access);
            return;
        case Action::Kind::kExecute: {
            coherence::Message result = action.message;
            result.value = execute(result.operation, action.page);
            if (action.to == node_.self()) {
                to_self_.push_back(result);
            } else {
                sent_to_ |= bit(action.to);
                note_sent(action.to, result);
                sender_.send_message(action.to, {wire.data(), coherence::encode(result, wire)});
            }
            return;
        }
        case Action::Kind::kWake: {
            wake(wait_queue_of(action.page));
            return;
        }
        case Action::Kind::kComplete: {
            Ticket& ticket = tickets_[action.ticket % kTickets];
            if (ticket.number != action.ticket) return;
            ticket.outcome = action.outcome;
            ticket.value = action.value;
            ticket.done = true;
            wake(ticket.wait_queue);
            return;
        }
        case Action::Kind::kTimer:
            set_timer(action.page, action.delay_us);
            return;
    }
}

void SharedMemory::send_page(const Action& action) noexcept {
    std::array<uint8_t, coherence::kMaxWire> wire;
    const size_t head = coherence::encode(action.message, wire);
    const uint64_t page = action.message.page;
    size_t length = 1;
    if (ram_.untouched(page)) {
        encoded_[0] = static_cast<uint8_t>(coherence::PageForm::kZero);
    } else {
        length = coherence::encode_page(frame(page), encoded_);
    }
    auto& form = length == 1                            ? counters_.pages_sent_zero
                 : length == coherence::kMaxEncodedPage ? counters_.pages_sent_raw
                                                        : counters_.pages_sent_sparse;
    form.fetch_add(1, std::memory_order_relaxed);
    counters_.page_bytes.fetch_add(length, std::memory_order_relaxed);
    sent_to_ |= bit(action.to);
    note_sent(action.to, action.message);
    sender_.send_page(action.to, {wire.data(), head}, {encoded_.data(), length});
}

/// The page is here, and stays while the lock is held. Post, kick, then write, if it holds translated code.
SharedMemory::Wide SharedMemory::execute(const Operation& operation, uint64_t page) noexcept {
    PageTable& table = *ram_.page_table();
    const uint64_t offset = page * GuestRam::kPage + operation.offset;
    if (!operation.reads_only()) table.announce_write(offset, operation.size);
    const Wide old = coherence::execute(operation, frame(page));
    if (!operation.reads_only()) table.announce_write(offset, operation.size);
    return old;
}

void SharedMemory::note_sent(HostId to, const coherence::Message& message) noexcept {
    const Access access = node_.access(message.page);
    trace_.note({.time_ns = now_ns_,
                 .page = message.page,
                 .serial = message.serial,
                 .kind = static_cast<uint8_t>(message.kind),
                 .sent = true,
                 .peer = to,
                 .requester = message.requester,
                 .flags = message.flags,
                 .before = access,
                 .after = access});
}

void SharedMemory::note_unreadable(HostId from) noexcept {
    const Locked hold(*this);
    now_us();
    trace_.note({.time_ns = now_ns_, .rejected = true, .peer = from});
}

void SharedMemory::set_timer(uint64_t page, uint32_t delay_us) noexcept {
    const int64_t due = Clock::monotonic_ns() + int64_t{delay_us} * 1000;
    const bool soonest = timers_.empty() || due < timers_.front().due_ns;
    timers_.push_back({due, page});
    std::push_heap(timers_.begin(), timers_.end(), std::greater<>{});
    if (soonest) sender_.timer_set(due);
}

coherence::Counters SharedMemory::protocol_counters() noexcept {
    const Locked hold(*this);
    return node_.counters();
}

std::vector<coherence::ContendedPage> SharedMemory::contended(size_t count) {
    const Locked hold(*this);
    return node_.contended(count);
}

}  // namespace coremesh
