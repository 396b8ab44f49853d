// SPDX-License-Identifier: GPL-2.0-or-later
// A thread that other threads may overtake after each of its instructions, where the host's scheduler would
// need days to find the one that matters. Hosts of x86-64, without ThreadSanitizer (it steps into its
// runtime).
#pragma once

#include <csignal>
#include <cstdint>
#include <functional>

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define HAS_STEPPED 1

namespace check {

inline thread_local const std::function<void()>* overtaken_by = nullptr;

inline void on_step(int) {
    if (overtaken_by != nullptr) (*overtaken_by)();
}

/// Calls `body`, and `pause` after each instruction of it, in a signal's handler: `pause` may only spin and
/// touch atomics.
template <typename Body>
void stepped(const std::function<void()>& pause, Body&& body) {
    struct sigaction action {};
    struct sigaction before {};
    action.sa_handler = on_step;
    sigaction(SIGTRAP, &action, &before);
    overtaken_by = &pause;
    // The trap flag is bit 8 of RFLAGS. The red zone is stepped over.
    asm volatile("lea -128(%%rsp), %%rsp; pushfq; orq $0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
                     : "cc", "memory");
    body();
    asm volatile("lea -128(%%rsp), %%rsp; pushfq; andq $~0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::
                     : "cc", "memory");
    overtaken_by = nullptr;
    sigaction(SIGTRAP, &before, nullptr);
}

}  // namespace check
#endif
