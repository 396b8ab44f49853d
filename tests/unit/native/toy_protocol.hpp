// SPDX-License-Identifier: GPL-2.0-or-later
// The smallest page protocol there is: hosts in one process, one lock, no messages, no waiting.
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/pi_mutex.hpp"
#include "ram/guest_ram.hpp"

namespace coremesh {

class ToyProtocol {
  public:
    /// What a run leaves out, so that its check can be seen to fail.
    enum class Flaw { none, copy_before_revoke };

    explicit ToyProtocol(Flaw flaw = Flaw::none) : flaw_(flaw) {}

    /// All hosts join before anything runs; the first has all pages.
    void join(GuestRam& ram) {
        hosts_.push_back(std::make_unique<Host>(*this, static_cast<unsigned>(hosts_.size()), ram));
        ram.set_page_sink(hosts_.back().get());
        if (hosts_.size() == 1) ram.page_table()->set_access(0, ram.pages(), Access::kWrite);
    }

    void need(unsigned host, uint64_t page, Access want) noexcept {
        const std::lock_guard hold(lock_);
        bring(host, page, want);
    }
    /// A disk of this host writes.
    void write(unsigned host, uint64_t offset, const void* from, uint64_t length) noexcept {
        const std::lock_guard hold(lock_);
        bring(host, offset / GuestRam::kPage, Access::kWrite);
        hosts_[host]->ram.write(offset, from, length);
    }
    uint64_t moves() const { return moves_; }

    /// Whether this thread is taking a page from a host.
    static inline thread_local bool revoking = false;

  private:
    struct Host final : PageSink {
        Host(ToyProtocol& protocol_, unsigned index_, GuestRam& ram_)
            : protocol(protocol_), index(index_), ram(ram_) {}
        void page_needed(const FaultContext&, uint64_t page, Access want) noexcept override {
            protocol.need(index, page, want);
        }
        uint8_t* bytes(uint64_t page) const { return ram.protocol_base() + page * GuestRam::kPage; }
        ToyProtocol& protocol;
        const unsigned index;
        GuestRam& ram;
    };

    void bring(unsigned host, uint64_t page, Access want) noexcept {
        Host& self = *hosts_[host];
        if (self.ram.page_table()->access(page) >= want) return;
        Host* source = nullptr;
        for (auto& other : hosts_) {
            if (other.get() == &self || other->ram.page_table()->access(page) == Access::kNone) continue;
            source = other.get();
            if (flaw_ == Flaw::copy_before_revoke) copy(self, *source, page);
            revoking = true;
            if (want == Access::kWrite) {
                other->ram.page_table()->set_access(page, Access::kNone);
            } else if (other->ram.page_table()->access(page) == Access::kWrite) {
                other->ram.page_table()->set_access(page, Access::kRead);
            }
            revoking = false;
        }
        if (self.ram.page_table()->access(page) == Access::kNone && flaw_ == Flaw::none)
            copy(self, *source, page);
        self.ram.page_table()->set_access(page, want);
        moves_++;
    }
    void copy(const Host& to, const Host& from, uint64_t page) const noexcept {
        if (to.ram.page_table()->access(page) != Access::kNone) return;
        std::memcpy(to.bytes(page), from.bytes(page), GuestRam::kPage);
        if (flaw_ == Flaw::copy_before_revoke) std::this_thread::yield();
    }

    const Flaw flaw_;
    PiMutex lock_;
    std::vector<std::unique_ptr<Host>> hosts_;
    uint64_t moves_ = 0;
};

}  // namespace coremesh
