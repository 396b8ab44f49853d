// SPDX-License-Identifier: GPL-2.0-or-later
#include "link/protocol_thread.hpp"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <string_view>
#include <system_error>

#include "base/masked_signals.hpp"

namespace coremesh::link {
namespace {

// The I/O threads of the wire stand below (core/links/zmq.py): one that is woken by a send must not interrupt
// the sender, which holds the protocol lock and may have more to send.
constexpr int kLevel = 11;
constexpr uint64_t kSliceNs = 100'000;  // the least that Linux takes
constexpr size_t kMaxDescriptors = 8, kOwn = 2;

int64_t monotonic_ns() noexcept {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

timespec timespec_of(int64_t ns) noexcept {
    return {static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
}

/// A wish: the thread runs as well where it is not granted.
void stay_on(int cpu) noexcept {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<unsigned>(cpu), &one);
    sched_setaffinity(0, sizeof one, &one);
}

/// struct sched_attr of sched_setattr(2), which the C library does not declare: its first version.
struct SchedAttributes {
    uint32_t size = sizeof(SchedAttributes);
    uint32_t policy = SCHED_OTHER;
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t runtime = 0;  // of SCHED_OTHER since Linux 6.12: the thread's slice
    uint64_t deadline = 0;
    uint64_t period = 0;
};

/// A thread with a shorter slice gets its turn earlier after it wakes, and no more of the CPU in all.
bool shorten_slice() noexcept {
    SchedAttributes wanted;
    if (syscall(SYS_sched_getattr, 0, &wanted, sizeof wanted, 0) != 0) return false;
    wanted.size = sizeof wanted;
    wanted.flags = 0;
    wanted.runtime = kSliceNs;
    if (syscall(SYS_sched_setattr, 0, &wanted, 0) != 0) return false;
    // An older kernel takes the number and forgets it.
    SchedAttributes got;
    return syscall(SYS_sched_getattr, 0, &got, sizeof got, 0) == 0 && got.runtime == kSliceNs;
}

}  // namespace

const char* raise_priority(int level) noexcept {
    sched_param parameter{};
    parameter.sched_priority = level;
    // RESET_ON_FORK: a child made from this thread has no claim to the privilege.
    if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &parameter) == 0) return "fifo";
    // On Linux a nice value is the thread's, not the process's (setpriority(2), C library/kernel
    // differences).
    if (setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), -20) == 0) return "nice";
    if (shorten_slice()) return "slice";
    return "none";
}

bool outranks(std::string_view priority) noexcept { return priority == "fifo" || priority == "nice"; }

const char* probe_priority() {
    const char* answer = "none";
    std::thread([&] { answer = raise_priority(kLevel); }).join();
    return answer;
}

ProtocolThread::ProtocolThread()
    : event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      timer_(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)) {
    if (event_ >= 0 && timer_ >= 0) return;
    const int error = errno;
    if (event_ >= 0) close(event_);
    throw std::system_error(error, std::generic_category(), "a descriptor for the protocol thread");
}

ProtocolThread::~ProtocolThread() {
    stop();
    close(event_);
    close(timer_);
}

void ProtocolThread::start(Work& work, std::span<const int> descriptors, int64_t spin_ns, int cpu) {
    descriptors_.assign(descriptors.begin(), descriptors.end());
    descriptors_.resize(std::min(descriptors_.size(), kMaxDescriptors - kOwn));
    spin_ns_ = spin_ns;
    cpu_ = cpu;
    const MaskedSignals masked;
    thread_ = std::thread([this, &work] { run(work); });
}

void ProtocolThread::stop() noexcept {
    stopping_.store(true, std::memory_order_seq_cst);
    wake();
    if (thread_.joinable()) thread_.join();
}

void ProtocolThread::wake() noexcept {
    pending_.store(true, std::memory_order_seq_cst);
    if (!sleeping_.load(std::memory_order_seq_cst)) return;
    const int saved = errno;  // the caller may be a fault handler
    eventfd_write(event_, 1);
    errno = saved;
}

void ProtocolThread::wake_at(int64_t deadline_ns) noexcept {
    pending_.store(true, std::memory_order_seq_cst);
    if (!sleeping_.load(std::memory_order_seq_cst)) return;
    if (deadline_ns >= until_.load(std::memory_order_seq_cst)) return;
    int64_t armed = armed_.load(std::memory_order_seq_cst);
    do {
        if (deadline_ns >= armed) return;
    } while (!armed_.compare_exchange_weak(armed, deadline_ns, std::memory_order_seq_cst));
    const int saved = errno;
    for (int64_t set = deadline_ns;;) {
        // Nought would stop the timer; the past lets it fire at once.
        const itimerspec when{.it_interval = {}, .it_value = timespec_of(std::max<int64_t>(set, 1))};
        timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr);
        const int64_t wanted = armed_.load(std::memory_order_seq_cst);
        if (wanted == set || wanted == kNever) break;
        set = wanted;
    }
    errno = saved;
}

void ProtocolThread::run(Work& work) noexcept {
    pthread_setname_np(pthread_self(), "cm-protocol");
    // Faults of this thread itself must still end the process with a word, not hang it.
    sigset_t faults;
    sigemptyset(&faults);
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigaddset(&faults, signal);
    pthread_sigmask(SIG_UNBLOCK, &faults, nullptr);
    prctl(PR_SET_TIMERSLACK, 1);  // holds are tens of microseconds, the default slack is fifty
    const char* const priority = raise_priority(kLevel);
    priority_.store(priority, std::memory_order_release);
    if (cpu_ >= 0 && outranks(priority)) stay_on(cpu_);
    work.begins();
    unsigned ready = 0;
    for (;;) {
        // In this order: stop() sets the two words the other way about, so one of them is seen here.
        pending_.store(false, std::memory_order_seq_cst);
        if (stopping_.load(std::memory_order_seq_cst)) break;
        const Drained drained = work.drain(monotonic_ns(), ready);
        ready = 0;
        const int64_t deadline = work.due(monotonic_ns());
        if (drained == Drained::kSome) continue;
        if (spin_ns_ > 0 && spin(work)) continue;
        ready = sleep(work, deadline);
    }
}

/// True when there is something to do. Timers are left to the caller: a spin is shorter than a hold.
bool ProtocolThread::spin(Work& work) noexcept {
    const uint64_t before = spins_.load(std::memory_order_relaxed);
    for (int64_t now = monotonic_ns(), end = now + spin_ns_; now < end; now = monotonic_ns()) {
        if (pending_.load(std::memory_order_relaxed)) return true;
        if (work.drain(now, 0) != Drained::kNothing) {
            spins_.store(before + 1, std::memory_order_relaxed);
            return true;
        }
    }
    return false;
}

/// Returns the descriptors that are readable, bit by bit.
unsigned ProtocolThread::sleep(Work& work, int64_t deadline_ns) noexcept {
    unsigned ready = 0;
    until_.store(deadline_ns >= 0 ? deadline_ns : kNever, std::memory_order_seq_cst);
    sleeping_.store(true, std::memory_order_seq_cst);
    if (!pending_.load(std::memory_order_seq_cst) && work.arm()) {
        std::array<pollfd, kMaxDescriptors> polled;
        size_t count = 0;
        polled[count++] = {event_, POLLIN, 0};
        polled[count++] = {timer_, POLLIN, 0};
        for (const int descriptor : descriptors_) polled[count++] = {descriptor, POLLIN, 0};
        timespec timeout{};
        if (deadline_ns >= 0) {
            timeout = timespec_of(std::max<int64_t>(0, deadline_ns - monotonic_ns()));
        }
        const int found = ppoll(polled.data(), count, deadline_ns >= 0 ? &timeout : nullptr, nullptr);
        wakeups_.fetch_add(1, std::memory_order_relaxed);
        for (size_t index = kOwn; found > 0 && index < count; ++index) {
            if (polled[index].revents != 0) ready |= 1U << (index - kOwn);
        }
        if (found > 0 && polled[0].revents != 0) {
            eventfd_t ignored;
            eventfd_read(event_, &ignored);
        }
        if (found > 0 && polled[1].revents != 0) {
            uint64_t expired = 0;
            if (read(timer_, &expired, sizeof expired) > 0) armed_.store(kNever, std::memory_order_seq_cst);
        }
    }
    work.awake();
    sleeping_.store(false, std::memory_order_seq_cst);
    return ready;
}

}  // namespace coremesh::link
