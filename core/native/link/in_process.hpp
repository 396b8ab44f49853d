// SPDX-License-Identifier: GPL-2.0-or-later
// Links between hosts that live in one process: for tests, and as the reference of what a link promises.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "link/link.hpp"

namespace coremesh::link {

struct Wires;

/// Connects the hosts of one machine in this process. Frames are built, delayed, checked and counted as on a
/// network; only the wire is a queue.
class Switch {
  public:
    struct Options {
        unsigned hosts = 2;  // 2 .. 64
        uint64_t machine = 1;
        uint32_t epoch = 1;
        int64_t min_delay_ns = 0;  // each frame arrives this much later ..
        int64_t max_delay_ns = 0;  // .. at the latest; uniform, order within a pair is kept
        uint64_t seed = 1;
        size_t queue_limit = 65536;     // frames under way between two hosts; more wait at their sender ..
        size_t overflow_limit = 16384;  // .. and beyond that the peer is given up
    };

    explicit Switch(const Options& options);
    ~Switch();
    Switch(const Switch&) = delete;
    Switch& operator=(const Switch&) = delete;

    const Options& options() const noexcept { return options_; }

    /// The end of one host. It keeps the wires alive by itself: the switch may go first. Any thread.
    std::shared_ptr<Link> link(HostId host) const;

    /// Swallows all frames from one host to another, or lets them through again (a cut is one-sided: call it
    /// twice). What is swallowed is lost, as with a broken connection. Any thread.
    void cut(HostId from, HostId to, bool is_cut = true) noexcept;

    /// Puts raw bytes on the wire, as a hostile or broken peer would. Any thread.
    void inject(HostId to, std::span<const uint8_t> frame);

  private:
    const Options options_;
    std::shared_ptr<Wires> wires_;
    std::vector<std::shared_ptr<Link>> links_;
};

}  // namespace coremesh::link
