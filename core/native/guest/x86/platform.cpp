// SPDX-License-Identifier: GPL-2.0-or-later
#include "guest/x86/platform.hpp"

namespace coremesh::x86 {

Platform::Platform(Options options, const PlatformParts& parts)
    : options_(std::move(options)), parts_(parts), fabric_(*this, options_.total_vcpus) {}

std::unique_ptr<GuestCore> Platform::make_core(unsigned index, CoreVcpu& vcpu) {
    const uint32_t id = options_.apic_ids.at(index);
    const CoreParts parts{parts_.bus, parts_.clock, parts_.timers, fabric_, options_.timer_hz};
    auto core =
        std::make_unique<Core>(vcpu, parts, id, options_.bootstrap == id,
                               index < options_.cpus.size() ? options_.cpus[index] : CpuDescription{});
    fabric_.attach(core->lapic());
    return core;
}

void Platform::join(HostId self, unsigned hosts, const std::vector<std::pair<uint32_t, HostId>>& core_hosts,
                    HostId devices, InterruptSender& sender) {
    sender_ = &sender;
    InterruptPort& port = *this;
    router_.emplace(self, hosts, core_hosts, port, devices);
}

void Platform::received(HostId from, std::span<const uint8_t> payload) noexcept {
    if (router_) router_->received(from, payload);
}

InterruptCounters Platform::counters() const noexcept {
    return router_ ? router_->counters() : InterruptCounters{};
}

void Platform::forward(const IpiMessage& message) noexcept {
    if (router_) router_->forward(message);
}

void Platform::on_extint(bool asserted) noexcept {
    if (router_) router_->extint(asserted);
}

void Platform::on_nmi_line() noexcept {
    if (router_) router_->nmi_line();
}

void Platform::on_eoi(uint8_t vector) noexcept {
    if (parts_.bus.node()) parts_.bus.node()->end_of_interrupt(vector);
}

bool Platform::send(HostId to, std::span<const uint8_t> payload) noexcept {
    return sender_->send_interrupt(to, payload);
}

}  // namespace coremesh::x86
