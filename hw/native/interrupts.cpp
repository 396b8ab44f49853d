// SPDX-License-Identifier: GPL-2.0-or-later
#include "hw/native/interrupts.hpp"

#include <algorithm>

namespace coremesh::virtio {

void Interrupts::signal(uint16_t vector, uint8_t isr) noexcept {
    const std::lock_guard lock(mutex_);
    if (!enabled_) {
        // 4.1.5.3: with MSI-X enabled the ISR status says nothing of queues, and the pin is quiet.
        const bool before = isr_ != 0;
        isr_ |= isr;
        if (!before) {
            ++counters_.pins;
            drive_(true);
        }
        return;
    }
    if (vector >= table_.size()) return;  // NO_VECTOR: the driver wants none
    if (masked(table_[vector])) {
        pending_[vector / 64] |= uint64_t{1} << vector % 64;
        ++counters_.held_back;
    } else {
        send(vector);
    }
}

void Interrupts::send(size_t index) noexcept {
    const Vector& vector = table_[index];
    ++counters_.messages;
    bus_->message(uint64_t{vector.address_high} << 32 | vector.address_low, vector.data);
}

void Interrupts::release() noexcept {
    if (!enabled_) return;
    for (size_t index = 0; index < table_.size(); ++index) {
        const uint64_t bit = uint64_t{1} << index % 64;
        if (!(pending_[index / 64] & bit) || masked(table_[index])) continue;
        pending_[index / 64] &= ~bit;
        send(index);
    }
}

uint8_t Interrupts::take_isr() noexcept {
    const std::lock_guard lock(mutex_);
    const uint8_t isr = std::exchange(isr_, 0);
    if (isr) drive_(false);
    return isr;
}

void Interrupts::control(bool enabled, bool masked) noexcept {
    const std::lock_guard lock(mutex_);
    if (enabled && !enabled_ && isr_) {
        isr_ = 0;
        drive_(false);
    }
    enabled_ = enabled;
    masked_ = masked;
    release();
}

void Interrupts::allow_messages(bool allowed) noexcept {
    const std::lock_guard lock(mutex_);
    allowed_ = allowed;
    release();
}

uint32_t Interrupts::read_word(uint64_t offset) const noexcept {
    if (offset >= kPendingOffset) {
        const uint64_t word = (offset - kPendingOffset) / 4;
        return word / 2 < pending_.size() ? static_cast<uint32_t>(pending_[word / 2] >> 32 * (word % 2)) : 0;
    }
    if (offset / 16 >= table_.size()) return 0;
    const Vector& vector = table_[offset / 16];
    const uint32_t words[4] = {vector.address_low, vector.address_high, vector.data, vector.control};
    return words[offset % 16 / 4];
}

void Interrupts::write_word(uint64_t offset, uint32_t value) noexcept {
    if (offset >= kPendingOffset || offset / 16 >= table_.size()) return;  // the pending bits are read only
    Vector& vector = table_[offset / 16];
    switch (offset % 16 / 4) {
        case 0:
            vector.address_low = value & ~3u;
            break;
        case 1:
            vector.address_high = value;
            break;
        case 2:
            vector.data = value;
            break;
        case 3:
            vector.control = value & 1;
            release();
            break;
    }
}

uint64_t Interrupts::read(uint64_t offset, unsigned size) noexcept {
    const std::lock_guard lock(mutex_);
    const uint64_t low = read_word(offset);
    return size == 8 ? low | uint64_t{read_word(offset + 4)} << 32 : low;
}

void Interrupts::write(uint64_t offset, unsigned size, uint64_t value) noexcept {
    const std::lock_guard lock(mutex_);
    write_word(offset, static_cast<uint32_t>(value));
    if (size == 8) write_word(offset + 4, static_cast<uint32_t>(value >> 32));
}

void Interrupts::reset() noexcept {
    const std::lock_guard lock(mutex_);
    std::fill(table_.begin(), table_.end(), Vector{});
    std::fill(pending_.begin(), pending_.end(), 0);
    enabled_ = masked_ = false;
    if (std::exchange(isr_, 0)) drive_(false);
}

Interrupts::Saved Interrupts::save() noexcept {
    const std::lock_guard lock(mutex_);
    Saved saved{{}, pending_, isr_, enabled_, masked_};
    for (const Vector& v : table_) {
        saved.table.insert(saved.table.end(), {v.address_low, v.address_high, v.data, v.control});
    }
    return saved;
}

bool Interrupts::load(const Saved& saved) noexcept {
    const std::lock_guard lock(mutex_);
    if (saved.table.size() != 4 * table_.size() || saved.pending.size() != pending_.size()) return false;
    for (size_t i = 0; i < table_.size(); ++i) {
        const uint32_t* words = &saved.table[4 * i];
        table_[i] = {words[0], words[1], words[2], words[3]};
    }
    pending_ = saved.pending;
    isr_ = saved.isr;
    enabled_ = saved.enabled;
    masked_ = saved.masked;
    return true;
}

Interrupts::Counters Interrupts::counters() noexcept {
    const std::lock_guard lock(mutex_);
    return counters_;
}

}  // namespace coremesh::virtio
