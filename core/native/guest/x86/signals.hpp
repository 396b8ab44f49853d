// SPDX-License-Identifier: GPL-2.0-or-later
// NMI, INIT and SIPI on their way to a core, among the requests to its vCPU (SDM vol. 3A 9.4).
#pragma once

#include <atomic>
#include <cstdint>

#include "base/requests.hpp"

namespace coremesh::x86 {

class Signals {
  public:
    enum : uint32_t { kNmi = kRequestOfCore, kInit = kRequestOfCore << 1, kSipi = kRequestOfCore << 2 };

    /// `requests` outlives this.
    explicit Signals(Requests& requests) : requests_(requests) {}

    // ---- any thread

    void post_nmi() noexcept { requests_.post(kNmi); }

    /// An INIT undoes a SIPI that was sent before it and has not been taken: the processor would have started
    /// and been reset at once. One that is sent after it stays.
    void post_init() noexcept { requests_.post_instead(kInit, kSipi); }

    void post_sipi(uint8_t vector) noexcept {
        sipi_vector_.store(vector, std::memory_order_relaxed);
        requests_.post(kSipi);
    }

    uint32_t pending() const noexcept { return requests_.pending(); }
    uint32_t peek() const noexcept { return requests_.peek(); }

    // ---- the vCPU's thread

    bool take_nmi() noexcept { return (requests_.peek() & kNmi) && requests_.take(kNmi); }
    bool take_init() noexcept { return requests_.take(kInit) != 0; }

    /// Takes a SIPI, but not before the INIT that it came with: between a look at INIT and one at SIPI both
    /// may be posted, and a processor started by the second would be reset by the first and wait for ever.
    bool take_sipi_unless_init() noexcept { return requests_.take_unless(kSipi, kInit); }

    /// Drops a SIPI that finds the core running; one that follows an INIT stays.
    void drop_sipi_unless_init() noexcept { take_sipi_unless_init(); }

    /// RESET: what waits is gone.
    void drop_all() noexcept { requests_.take(kNmi | kInit | kSipi); }

    uint8_t sipi_vector() const noexcept { return sipi_vector_.load(std::memory_order_relaxed); }

  private:
    Requests& requests_;
    std::atomic<uint8_t> sipi_vector_{0};  ///< stored before the request is posted
};

}  // namespace coremesh::x86
