// SPDX-License-Identifier: GPL-2.0-or-later
#include "ram/fault_handler.hpp"

#include <pthread.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>

#include "ram/protection.hpp"

namespace coremesh {
namespace {

/// One registered range. `turn` is a sequence lock: odd while the slot changes, so that the handler, which
/// cannot wait, either reads one consistent registration or sees that there is none.
struct Slot {
    std::atomic<uint32_t> turn{0};
    std::atomic<uintptr_t> begin{0};
    std::atomic<uintptr_t> end{0};
    std::atomic<int> signal{0};
    std::atomic<int> code{0};
    std::atomic<FaultTarget*> target{nullptr};
};

constexpr unsigned kSlots = 64;
std::array<Slot, kSlots> slots;
std::mutex registry_lock;  // guards changes of slots and of handlers; never taken in the handler

/// What a signal did before us. Only ever replaced as a whole, by publishing another element: the handler may
/// be reading the old one.
struct Previous {
    struct sigaction action;
};
constexpr int kHistory = 16;

struct Handled {
    int signal;
    std::array<Previous, kHistory> history;
    int used;
    std::atomic<Previous*> previous;
};
std::array<Handled, 2> handled{{{SIGSEGV, {}, 0, nullptr}, {SIGBUS, {}, 0, nullptr}}};

/// Initial-exec: other models may allocate on first use, which a signal handler must not.
[[gnu::tls_model("initial-exec")]] thread_local int chain_depth = 0;

void change(Slot& slot, uintptr_t begin, uintptr_t end, int signal, int code, FaultTarget* target) {
    slot.turn.fetch_add(1);
    slot.begin = begin;
    slot.end = end;
    slot.signal = signal;
    slot.code = code;
    slot.target = target;
    slot.turn.fetch_add(1);
}

FaultTarget* find(uintptr_t address, int signal, int code) {
    for (Slot& slot : slots) {
        const uint32_t before = slot.turn.load();
        FaultTarget* const target = slot.target.load();
        if (!target || before % 2 || address < slot.begin.load() || address >= slot.end.load()) continue;
        if (signal != slot.signal.load() || code != slot.code.load()) continue;
        if (slot.turn.load() == before) return target;
    }
    return nullptr;
}

/// The default action of SIGSEGV and SIGBUS: the process ends, with a core of the faulting instruction, which
/// runs again on return. A signal that a process sent has no such instruction and is sent again.
void default_action(int signal, const siginfo_t* info) {
    struct sigaction action {};
    action.sa_handler = SIG_DFL;
    sigaction(signal, &action, nullptr);
    if (info->si_code <= 0) raise(signal);
}

void chain(int signal, siginfo_t* info, void* context) {
    const Previous* previous = nullptr;
    for (const Handled& each : handled) {
        if (each.signal == signal) previous = each.previous.load();
    }
    // A handler before us may give the signal back to whom it had replaced, which can be us (faulthandler
    // does): the second time round no other handler is left.
    if (!previous || chain_depth > 0) return default_action(signal, info);
    const struct sigaction& action = previous->action;
    if (!(action.sa_flags & SA_SIGINFO)) {
        if (action.sa_handler == SIG_IGN && info->si_code <= 0) return;
        // A fault cannot be ignored: the instruction would fault for ever (the kernel ends the process too).
        if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) return default_action(signal, info);
    }
    sigset_t mask = action.sa_mask;
    if (!(action.sa_flags & SA_NODEFER)) sigaddset(&mask, signal);
    sigset_t saved;
    pthread_sigmask(SIG_BLOCK, &mask, &saved);
    chain_depth++;
    if (action.sa_flags & SA_SIGINFO) {
        action.sa_sigaction(signal, info, context);
    } else {
        action.sa_handler(signal);
    }
    chain_depth--;
    pthread_sigmask(SIG_SETMASK, &saved, nullptr);
}

void on_signal(int signal, siginfo_t* info, void* context) {
    const int saved_errno = errno;
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    FaultTarget* const target = info->si_code > 0 ? find(address, signal, info->si_code) : nullptr;
    if (!target || !target->on_fault(address, context)) chain(signal, info, context);
    errno = saved_errno;
}

bool ours(const struct sigaction& action) {
    return (action.sa_flags & SA_SIGINFO) && action.sa_sigaction == on_signal;
}

void install(Handled& handled_signal) {
    struct sigaction now {};
    sigaction(handled_signal.signal, nullptr, &now);
    if (ours(now)) return;
    if (handled_signal.used < kHistory) {
        Previous& previous = handled_signal.history[handled_signal.used++];
        previous.action = now;
        handled_signal.previous.store(&previous);
    }  // else another thread replaces the handler again and again: we keep the last one we knew
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    // NODEFER: the engine may leave by siglongjmp, and the handler's own locks are never held when it faults.
    // ONSTACK: a thread that set an alternative stack did so to survive the overflow of its own, which
    // arrives as a SIGSEGV here first; vCPU threads have none and run the handler on their own.
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(handled_signal.signal, &action, nullptr);
}

}  // namespace

void ensure_fault_handlers() {
    const std::lock_guard lock(registry_lock);
    for (Handled& each : handled) install(each);
}

FaultRange::FaultRange(const uint8_t* begin, size_t length, int signal, int code, FaultTarget& target) {
    ensure_fault_handlers();
    const std::lock_guard lock(registry_lock);
    for (slot_ = 0; slot_ < kSlots; slot_++) {
        if (slots[slot_].target.load()) continue;
        const auto from = reinterpret_cast<uintptr_t>(begin);
        change(slots[slot_], from, from + length, signal, code, &target);
        return;
    }
    throw PlatformError("64 guest memories live in this process; stop some machines first");
}

FaultRange::~FaultRange() {
    const std::lock_guard lock(registry_lock);
    change(slots[slot_], 0, 0, 0, 0, nullptr);
}

}  // namespace coremesh
