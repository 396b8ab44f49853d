// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/ata/ide_channel.hpp"

#include <pthread.h>

#include <algorithm>
#include <utility>

#include "base/clock.hpp"
#include "base/futex.hpp"
#include "base/masked_signals.hpp"

namespace coremesh::ata {
namespace {

constexpr uint64_t kPiece = uint64_t{1} << 20;  // read at once where a command wants no data

std::array<Drive*, Channel::kDrives> drives_of(const std::vector<std::shared_ptr<Unit>>& units) {
    std::array<Drive*, Channel::kDrives> drives{};
    for (size_t i = 0; i < drives.size() && i < units.size(); ++i) {
        if (units[i]) drives[i] = units[i]->drive.get();
    }
    return drives;
}

}  // namespace

IdeChannel::IdeChannel(std::shared_ptr<BusMaster> memory, std::vector<std::shared_ptr<Unit>> units, Line line)
    : units_(std::move(units)),
      line_(std::move(line)),
      channel_(drives_of(units_)),
      mover_(*memory),
      memory_(std::move(memory)) {
    publish();
}

// ---- accesses

IdeChannel::Lock IdeChannel::lock() noexcept {
    Lock held(mutex_, std::try_to_lock);
    if (held.owns_lock()) return held;
    const int64_t begin = Clock::monotonic_ns();
    held.lock();
    ++counters_.contended;
    counters_.waited_ns += static_cast<uint64_t>(Clock::monotonic_ns() - begin);
    return held;
}

bool IdeChannel::settle() noexcept {
    const bool before = channel_.line(), level = channel_.settle_line();
    publish();
    if (level != before) line_.drive(level);
    return !moving_ && channel_.has_work();
}

void IdeChannel::publish() noexcept {
    const uint8_t status = channel_.alternate_status();
    // Written when it changes: those that poll it keep their copy of the cache line meanwhile.
    if (alternate_status_.load(std::memory_order_relaxed) != status) {
        alternate_status_.store(status, std::memory_order_release);
    }
}

void IdeChannel::wake() noexcept {
    if (word_.exchange(1, std::memory_order_seq_cst) == 0) futex_wake(word_);
}

uint32_t IdeChannel::read(unsigned offset, unsigned size) noexcept {
    if (offset == kControl && size == 1) return alternate_status_.load(std::memory_order_acquire);
    Lock held = lock();
    const uint32_t value = channel_.read(offset, size);
    const bool has_work = settle();
    held.unlock();
    if (has_work) wake();
    return value;
}

void IdeChannel::write(unsigned offset, unsigned size, uint32_t value) noexcept {
    Lock held = lock();
    while (moving_ && channel_.stops(offset, size, value)) idle_.wait(held);
    channel_.write(offset, size, value);
    const bool has_work = settle();
    held.unlock();
    if (has_work) wake();
}

void IdeChannel::allow(bool allowed) noexcept {
    Lock held = lock();
    channel_.allow(allowed);
    while (moving_ && !allowed) idle_.wait(held);
    const bool has_work = settle();
    held.unlock();
    if (has_work) wake();
}

void IdeChannel::reset() noexcept {
    Lock held = lock();
    while (moving_) idle_.wait(held);
    channel_.reset();
    settle();
}

// ---- the worker

void IdeChannel::start(const std::string& name) {
    if (thread_.joinable()) return;
    stopping_.store(false);
    const MaskedSignals masked;
    thread_ = std::thread([this, name] {
        pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
        if (line_.thread_begins) line_.thread_begins();
        run();
        if (line_.thread_ends) line_.thread_ends();
    });
}

void IdeChannel::stop() noexcept {
    stopping_.store(true);
    wake();
    if (thread_.joinable()) thread_.join();
    stopping_.store(false);
}

void IdeChannel::run() noexcept {
    while (!stopping_.load()) {
        serve();  // at first what came while no worker ran
        if (word_.load(std::memory_order_seq_cst) == 0) futex_wait_until(word_, 0, -1);
        word_.store(0, std::memory_order_seq_cst);
    }
}

void IdeChannel::serve() noexcept {
    Lock held = lock();
    while (!moving_ && !stopping_.load() && channel_.has_work()) {
        Work work = channel_.next();
        const Unit& unit = *units_[work.drive];
        const int64_t begin = Clock::monotonic_ns();
        moving_ = true;
        held.unlock();
        JobResult result;
        Outcome outcome;
        Job* const job = std::get_if<Job>(&work.what);
        if (job) {
            result = this->work(unit, *job);
        } else {
            const auto& dma = std::get<Work::Dma>(work.what);
            outcome = mover_.move(dma.transfer, unit.store.get(), unit.sectors, dma.table);
            if (outcome.bus_error && line_.bus_error) line_.bus_error();
        }
        const int error = job ? result.error : outcome.medium_error;
        if (error && unit.unreadable) unit.unreadable();
        held.lock();
        counters_.bytes_moved += job ? (error ? 0 : job->length) : outcome.moved;
        if (error == kStoreMistake) ++counters_.faults;
        if (job) {
            channel_.done(work, std::move(result));
        } else {
            channel_.done(work, outcome);
        }
        moving_ = false;
        counters_.busy_ns += static_cast<uint64_t>(Clock::monotonic_ns() - begin);
        settle();
        idle_.notify_all();
    }
}

JobResult IdeChannel::work(const Unit& unit, Job& job) noexcept {
    JobResult result;
    const bool needs_medium = job.kind != Job::Kind::kIdentify && job.kind != Job::Kind::kPacket;
    if (needs_medium && !unit.store) {
        result.error = -ENOMEDIUM;
        return result;
    }
    switch (job.kind) {
        case Job::Kind::kRead:
            result.data.resize(job.length);
            result.error = unit.store->read(job.offset, result.data.data(), job.length);
            if (result.error) result.data.clear();
            break;
        case Job::Kind::kWrite:
            result.error = unit.store->write(job.offset, job.data.data(), job.data.size());
            if (!result.error && job.through) result.error = unit.store->flush();
            break;
        case Job::Kind::kVerify:
            result.error = verify(*unit.store, job.offset, job.length);
            break;
        case Job::Kind::kFlush:
            result.error = unit.store->flush();
            break;
        case Job::Kind::kIdentify:
            return identify(unit, job.settings);
        case Job::Kind::kPacket:
            if (auto answer = unit.packet ? unit.packet(job.data) : std::nullopt) {
                result.answer = std::move(*answer);
            } else {
                result.error = kStoreMistake;
            }
            break;
    }
    return result;
}

JobResult IdeChannel::identify(const Unit& unit, const Settings& settings) noexcept {
    JobResult result;
    auto data = unit.identify ? unit.identify(settings) : std::nullopt;
    if (data && data->size() == kSector) {
        result.data = std::move(*data);
    } else {
        result.error = kStoreMistake;
    }
    return result;
}

int IdeChannel::verify(BlockStore& store, uint64_t offset, uint64_t length) noexcept {
    buffer_.resize(std::min(length, kPiece));
    for (uint64_t done = 0; done < length; done += kPiece) {
        const int error = store.read(offset + done, buffer_.data(), std::min(kPiece, length - done));
        if (error) return error;
    }
    return 0;
}

// ---- the board

IdeChannel::Saved IdeChannel::save() noexcept {
    const Lock held = lock();
    Saved saved{channel_.state(), {}};
    for (const auto& unit : units_) {
        if (unit) saved.drives.push_back(unit->drive->state());
    }
    return saved;
}

bool IdeChannel::load(const Saved& saved, bool line) noexcept {
    const Lock held = lock();
    size_t next = 0;
    for (const auto& unit : units_) {
        if (!unit) continue;
        if (next == saved.drives.size() || !unit->drive->load(saved.drives[next++])) return false;
    }
    const bool loaded = next == saved.drives.size() && channel_.load(saved.channel, line);
    publish();
    return loaded;
}

IdeChannel::Counters IdeChannel::counters() noexcept {
    const Lock held = lock();
    Counters counters = counters_;
    counters.commands = channel_.commands();
    return counters;
}

}  // namespace coremesh::ata
