// SPDX-License-Identifier: GPL-2.0-or-later
// A thread that other threads may overtake after each of its instructions, where the host's scheduler would
// need days to find the one that matters. Hosts of x86-64, without ThreadSanitizer (it steps into its
// runtime).
#pragma once

#include <ucontext.h>

#include <csignal>
#include <cstdint>
#include <functional>

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define HAS_STEPPED 1

namespace check {

inline thread_local const std::function<void()>* overtaken_by = nullptr;

/// For `pause`: the address of the instruction that its thread executes next.
inline thread_local uintptr_t next_instruction = 0;

inline void on_step(int, siginfo_t*, void* context) {
    if (overtaken_by == nullptr) return;
    const auto* stopped = static_cast<const ucontext_t*>(context);
    next_instruction = static_cast<uintptr_t>(stopped->uc_mcontext.gregs[REG_RIP]);
    (*overtaken_by)();
}

/// From now on this thread calls `pause` after each of its instructions, in a signal's handler: `pause` may
/// only spin, sleep and touch atomics.
inline void begin_steps(const std::function<void()>& pause) {
    // For good: another thread may be stepped when this one is done.
    struct sigaction action {};
    action.sa_sigaction = on_step;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGTRAP, &action, nullptr);
    overtaken_by = &pause;
    // The trap flag is bit 8 of RFLAGS. The red zone is stepped over.
    asm volatile("lea -128(%%rsp), %%rsp; pushfq; orq $0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
                     : "cc", "memory");
}

inline void end_steps() {
    asm volatile("lea -128(%%rsp), %%rsp; pushfq; andq $~0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
                     : "cc", "memory");
    overtaken_by = nullptr;
}

/// Calls `body`, and `pause` after each instruction of it.
template <typename Body>
void stepped(const std::function<void()>& pause, Body&& body) {
    begin_steps(pause);
    body();
    end_steps();
}

}  // namespace check
#endif
