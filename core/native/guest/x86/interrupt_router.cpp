// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/x86/interrupt_router.hpp"

#include <bit>
#include <cstring>
#include <stdexcept>

namespace coremesh::x86 {
namespace {

constexpr uint8_t kLevel = 1, kAssert = 2, kLogical = 4, kWide = 8, kRedirect = 16, kAllFlags = 31;
constexpr uint8_t kReservedMode = 3;

}  // namespace

std::array<uint8_t, InterruptFrame::kBytes> InterruptFrame::encode() const noexcept {
    std::array<uint8_t, kBytes> bytes{};
    bytes[0] = static_cast<uint8_t>(kind);
    bytes[1] = static_cast<uint8_t>(message.mode);
    bytes[2] = message.vector;
    bytes[3] = static_cast<uint8_t>((message.trigger == Trigger::kLevel ? kLevel : 0) |
                                    (message.assert_level ? kAssert : 0) | (message.logical ? kLogical : 0) |
                                    (message.wide ? kWide : 0) | (message.redirect ? kRedirect : 0));
    bytes[4] = static_cast<uint8_t>(message.shorthand);
    std::memcpy(&bytes[8], &message.destination, 4);
    std::memcpy(&bytes[12], &message.source, 4);
    std::memcpy(&bytes[16], &visited, 8);
    return bytes;
}

std::optional<InterruptFrame> InterruptFrame::decode(std::span<const uint8_t> bytes) noexcept {
    if (bytes.size() != kBytes || bytes[0] < 1 || bytes[0] > 4) return {};
    if (bytes[1] > 7 || bytes[1] == kReservedMode || bytes[3] > kAllFlags || bytes[4] > 3) return {};
    if (bytes[5] != 0 || bytes[6] != 0 || bytes[7] != 0) return {};
    InterruptFrame frame;
    frame.kind = static_cast<Kind>(bytes[0]);
    IpiMessage& message = frame.message;
    message.mode = static_cast<DeliveryMode>(bytes[1]);
    message.vector = bytes[2];
    message.trigger = bytes[3] & kLevel ? Trigger::kLevel : Trigger::kEdge;
    message.assert_level = bytes[3] & kAssert;
    message.logical = bytes[3] & kLogical;
    message.wide = bytes[3] & kWide;
    message.redirect = bytes[3] & kRedirect;
    message.shorthand = static_cast<Shorthand>(bytes[4]);
    std::memcpy(&message.destination, &bytes[8], 4);
    std::memcpy(&message.source, &bytes[12], 4);
    std::memcpy(&frame.visited, &bytes[16], 8);

    switch (frame.kind) {
        case Kind::kMessage:
            if (frame.visited != 0 || for_one_of_several(message)) return {};
            break;
        case Kind::kSearch:
            if (frame.visited == 0 || !for_one_of_several(message)) return {};
            break;
        case Kind::kExtInt:
        case Kind::kNmi: {
            InterruptFrame line{.kind = frame.kind, .message = {}, .visited = 0};
            line.message.assert_level = message.assert_level;
            if (std::memcmp(line.encode().data(), bytes.data(), kBytes) != 0) return {};
            break;
        }
    }
    if (message.shorthand == Shorthand::kSelf) return {};  // never leaves its host
    return frame;
}

InterruptRouter::InterruptRouter(HostId self, unsigned hosts,
                                 const std::vector<std::pair<uint32_t, HostId>>& homes, InterruptPort& port,
                                 HostId devices)
    : self_(self), hosts_(hosts), devices_(devices), port_(port) {
    if (hosts > kMaxHosts || self >= hosts || devices >= hosts)
        throw std::invalid_argument("no such host in the machine");
    for (const auto& [apic_id, host] : homes) {
        if (apic_id >= kMostApicIds || host >= hosts)
            throw std::invalid_argument("APIC ID or host out of range");
        if (apic_id >= host_of_.size()) host_of_.resize(apic_id + 1, kNoHost);
        if (host_of_[apic_id] != kNoHost) throw std::invalid_argument("APIC ID used twice");
        host_of_[apic_id] = host;
        with_vcpus_ |= bit(host);
    }
}

uint64_t InterruptRouter::hosts_of(const IpiMessage& message) const noexcept {
    switch (message.shorthand) {
        case Shorthand::kSelf:
            return bit(self_);
        case Shorthand::kAllIncludingSelf:
        case Shorthand::kAllExcludingSelf:
            return with_vcpus_;
        case Shorthand::kNone:
            break;
    }
    const auto host_bit = [this](uint32_t apic_id) {
        const HostId host = host_of(apic_id);
        return host == kNoHost ? 0 : bit(host);
    };
    if (message.destination == kBroadcast) return with_vcpus_;
    if (!message.logical) return host_bit(message.destination);
    // 8-bit logical addresses are as software assigned them, anywhere.
    if (!message.wide) return with_vcpus_;
    uint64_t hosts = 0;
    const uint32_t cluster = (message.destination >> 16) << 4;
    for (uint32_t members = message.destination & 0xFFFF; members != 0; members &= members - 1) {
        hosts |= host_bit(cluster + static_cast<uint32_t>(std::countr_zero(members)));
    }
    return hosts;
}

void InterruptRouter::forward(const IpiMessage& message) noexcept {
    if (message.shorthand == Shorthand::kSelf) return;
    if (!for_one_of_several(message)) {
        send_to_others(hosts_of(message), {InterruptFrame::Kind::kMessage, message, 0});
        return;
    }
    // Equals take turns (11.6.2.4 leaves the choice open): each search begins at another host.
    search({InterruptFrame::Kind::kSearch, message, 0}, turn_.fetch_add(1, std::memory_order_relaxed));
}

void InterruptRouter::extint(bool asserted) noexcept {
    if (self_ != devices_) return;  // the 8259A is with the devices
    InterruptFrame frame{.kind = InterruptFrame::Kind::kExtInt, .message = {}, .visited = 0};
    frame.message.assert_level = asserted;
    send_to_others(with_vcpus_, frame);
}

void InterruptRouter::nmi_line() noexcept {
    if (self_ != devices_) return;
    send_to_others(with_vcpus_, {.kind = InterruptFrame::Kind::kNmi, .message = {}, .visited = 0});
}

void InterruptRouter::received(HostId from, std::span<const uint8_t> payload) noexcept {
    const auto frame = InterruptFrame::decode(payload);
    if (!frame || !believable(from, *frame)) {
        counters_.interrupts_refused.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    counters_.interrupts_received.fetch_add(1, std::memory_order_relaxed);
    switch (frame->kind) {
        case InterruptFrame::Kind::kMessage:
            port_.deliver(frame->message);
            return;
        case InterruptFrame::Kind::kSearch:
            if (port_.deliver(frame->message)) return;
            counters_.interrupts_passed_on.fetch_add(1, std::memory_order_relaxed);
            search(*frame, self_ + 1u);
            return;
        case InterruptFrame::Kind::kExtInt:
            port_.set_extint(frame->message.assert_level);
            return;
        case InterruptFrame::Kind::kNmi:
            port_.pulse_nmi();
            return;
    }
}

/// Whether that host can have sent it: its own vCPUs' messages, the devices' from their host, and searches
/// that it has taken part in and that were not here.
bool InterruptRouter::believable(HostId from, const InterruptFrame& frame) const noexcept {
    if (from >= hosts_ || from == self_) return false;
    const IpiMessage& message = frame.message;
    const HostId origin = message.source == kNoSource ? devices_ : host_of(message.source);
    switch (frame.kind) {
        case InterruptFrame::Kind::kMessage:
            return origin == from;
        case InterruptFrame::Kind::kSearch: {
            const uint64_t visited = frame.visited;
            return origin != kNoHost && (visited & ~all_hosts(hosts_)) == 0 && (visited & bit(from)) != 0 &&
                   (visited & bit(origin)) != 0 && (visited & bit(self_)) == 0;
        }
        default:
            return from == devices_;
    }
}

/// On to the next host that may have a taker and has not been asked; from `start` on, round the machine.
void InterruptRouter::search(InterruptFrame frame, unsigned start) noexcept {
    frame.visited |= bit(self_);
    uint64_t left = hosts_of(frame.message) & ~frame.visited;
    while (left != 0) {
        const uint64_t above = left & ~all_hosts(start % hosts_);
        const auto to = static_cast<HostId>(std::countr_zero(above != 0 ? above : left));
        if (send(to, frame)) return;
        left &= ~bit(to);
    }
    counters_.interrupts_unclaimed.fetch_add(1, std::memory_order_relaxed);
}

void InterruptRouter::send_to_others(uint64_t hosts, const InterruptFrame& frame) noexcept {
    hosts &= ~bit(self_);
    for (; hosts != 0; hosts &= hosts - 1) send(static_cast<HostId>(std::countr_zero(hosts)), frame);
}

bool InterruptRouter::send(HostId to, const InterruptFrame& frame) noexcept {
    const auto bytes = frame.encode();
    const bool sent = port_.send(to, bytes);
    (sent ? counters_.interrupts_sent : counters_.interrupts_lost).fetch_add(1, std::memory_order_relaxed);
    return sent;
}

}  // namespace coremesh::x86
