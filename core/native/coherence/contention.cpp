// SPDX-License-Identifier: GPL-2.0-or-later
#include "coherence/contention.hpp"

#include <algorithm>

namespace coremesh::coherence {

// Moments are 32-bit milliseconds; differences are right across a wrap (49 days).

void Contention::cool(Heat& heat, uint32_t now_ms) noexcept {
    const uint32_t halvings = (now_ms - heat.cooled_ms) / kHalfLifeMs;
    if (halvings == 0) return;
    heat.heat = halvings < 16 ? static_cast<uint16_t>(heat.heat >> halvings) : uint16_t{0};
    heat.cooled_ms += halvings * kHalfLifeMs;
}

void Contention::asked(Heat& heat, HostId requester, uint32_t now_ms) noexcept {
    if (heat.contended && now_ms - heat.asked_ms > kForgetMs) {
        heat.contended = false;
        heat.returned = false;
        heat.heat = 0;
        heat.patience = 0;
    }
    heat.asked_ms = now_ms;
    if (heat.returned && requester != heat.runner) {
        heat.returned = false;
        const uint32_t kept = now_ms - heat.returned_ms;
        if (kept < kSoonMs) {
            heat.patience = std::min<uint8_t>(heat.patience + 1, kMaxPatience);
        } else {
            if (heat.patience > 0) --heat.patience;
            if (kept >= 8 * kSoonMs) {
                heat.contended = false;
                heat.heat = 0;
            }
        }
    }
    if (requester != heat.runner) {
        heat.runner = requester;
        heat.run = 0;
    }
}

bool Contention::remote(Heat& heat, HostId requester, bool losing, uint32_t now_ms, bool& marked,
                        bool& returns) noexcept {
    cool(heat, now_ms);
    if (!heat.contended) {
        if (!losing && heat.heat < kContended) return false;
        heat.contended = true;
        heat.run = heat.sent = 0;
        heat.runner = requester;
        marked = true;
    }
    ++heat.sent;
    if (++heat.run < (kRow << heat.patience) && heat.sent < kTurn) return true;
    heat.run = heat.sent = 0;
    heat.returned = true;
    heat.returned_ms = now_ms;
    returns = true;
    return false;
}

void Contention::moved(Heat& heat, uint32_t now_ms) noexcept {
    cool(heat, now_ms);
    heat.heat = static_cast<uint16_t>(std::min<unsigned>(heat.heat + kPerMove, 0xffff));
}

bool Contention::warm(Heat& heat, uint32_t now_ms) noexcept {
    cool(heat, now_ms);
    return heat.contended ? now_ms - heat.asked_ms <= kForgetMs : heat.heat >= kContended / 2;
}

}  // namespace coremesh::coherence
