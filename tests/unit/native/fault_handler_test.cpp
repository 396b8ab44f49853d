// SPDX-License-Identifier: GPL-2.0-or-later
// Faults that are not ours go to whom they belong.
#include "ram/fault_handler.hpp"

#include <unistd.h>

#include <csignal>
#include <cstdint>

#include "check.hpp"
#include "child_process.hpp"
#include "ram_layouts.hpp"
#include "ram/guest_ram.hpp"

// Processes that die of a signal: ThreadSanitizer has handlers of its own in between.
#ifndef __SANITIZE_THREAD__

using namespace coremesh;

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

class NoEngines final : public CodeSink {
    void code_written(unsigned, uint64_t) noexcept override {}
    void self_write(const FaultContext&) noexcept override {}
};

void write_to_nothing() {
    static volatile uintptr_t nowhere = 64;
    *reinterpret_cast<volatile int*>(nowhere) = 1;
}

void install(int signal, void (*handler)(int), int flags = 0) {
    struct sigaction action {};
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigaction(signal, &action, nullptr);
}

}  // namespace

STORY("given a crash handler installed before us, when somebody else's access faults, then it is called") {
    const int status = in_a_child([] {
        install(SIGSEGV, [](int) { _exit(42); });
        const GuestRam ram(one_block(kMiB), Protection::mprotect);
        ensure_fault_handlers();
        write_to_nothing();
    });
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

STORY(
    "given a crash handler installed after us, when handlers are ensured, then ours answers and it gets the "
    "rest") {
    const int status = in_a_child([] {
        GuestRam ram(one_block(kMiB), Protection::mprotect);
        NoEngines sink;
        PageTable& code = ram.track_code(sink, 1);
        install(SIGSEGV, [](int) { _exit(42); });
        ensure_fault_handlers();
        if (!code.begin_translation(0, 1)) _exit(1);
        ram.guest_base()[4096] = 1;
        if (code.counters().faults != 1) _exit(2);
        write_to_nothing();
    });
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 42);
}

STORY(
    "given nobody before us, when somebody else's access faults or a signal is sent, then the process dies "
    "of it") {
    const int fault = in_a_child([] {
        install(SIGSEGV, SIG_DFL);
        ensure_fault_handlers();
        write_to_nothing();
    });
    CHECK(WIFSIGNALED(fault) && WTERMSIG(fault) == SIGSEGV);
    const int sent = in_a_child([] {
        install(SIGBUS, SIG_DFL);
        ensure_fault_handlers();
        kill(getpid(), SIGBUS);
    });
    CHECK(WIFSIGNALED(sent) && WTERMSIG(sent) == SIGBUS);
    const int ignored = in_a_child([] {
        install(SIGBUS, SIG_IGN);
        ensure_fault_handlers();
        kill(getpid(), SIGBUS);
        _exit(7);
    });
    CHECK(WIFEXITED(ignored) && WEXITSTATUS(ignored) == 7);
}

STORY(
    "given a crash handler that gives the signal back to whom it replaced, then the process dies, not "
    "loops") {
    // What Python's faulthandler does: it restores the previous handler, which is ours, and raises again.
    const int status = in_a_child([] {
        static struct sigaction before {};
        ensure_fault_handlers();
        sigaction(SIGSEGV, nullptr, &before);
        install(
            SIGSEGV,
            [](int signal) {
                sigaction(signal, &before, nullptr);
                raise(signal);
            },
            SA_NODEFER);
        ensure_fault_handlers();
        alarm(5);
        write_to_nothing();
    });
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

STORY("given a jump into guest memory, then the host process ends by SIGSEGV instead of faulting for ever") {
    const int status = in_a_child([] {
        install(SIGSEGV, SIG_DFL);
        GuestRam ram(one_block(kMiB), Protection::mprotect);
        NoEngines sink;
        ram.track_code(sink, 1);
        alarm(5);
        reinterpret_cast<void (*)()>(ram.guest_base())();
    });
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

#endif

RUN_STORIES()
