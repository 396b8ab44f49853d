// SPDX-License-Identifier: GPL-2.0-or-later
// The Python face of the devices' hot paths. Every call gives the interpreter's lock up: a worker may hold a
// queue while it waits for that lock, to drive an interrupt pin for example.
#include <nanobind/nanobind.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "base/clock.hpp"
#include "hw/native/block_worker.hpp"
#include "hw/native/bytes.hpp"
#include "hw/native/flows.hpp"
#include "hw/native/frames.hpp"
#include "hw/native/interrupts.hpp"
#include "hw/native/python_parts.hpp"
#include "hw/native/virt_queue.hpp"
#include "python/module.hpp"

namespace coremesh {
namespace {

using namespace virtio;

/// A request that a device written in Python has taken.
struct Request {
    Chain chain;
    uint64_t life = 0;
};

using Position = std::tuple<uint16_t, uint16_t, uint16_t>;

Position position_of(VirtQueue& queue) {
    const SplitQueue::Position p = queue.position();
    return {p.next_available, p.next_used, p.signalled};
}

std::optional<Request> take(VirtQueue& queue) {
    const VirtQueue::Visit visit(queue);
    Request request;
    request.life = queue.life();
    if (!visit.open() || queue.pop(request.chain) != SplitQueue::Next::kChain) return std::nullopt;
    return request;
}

/// What the device may read of a request: at most `limit` bytes. Nothing when the queue was stopped since, or
/// the buffers are not RAM.
std::optional<std::string> data_of(VirtQueue& queue, const Request& request, uint64_t limit) {
    const VirtQueue::Visit visit(queue);
    if (!visit.open() || queue.life() != request.life) return std::nullopt;
    std::string data(std::min(limit, request.chain.readable_bytes), '\0');
    if (!queue.gather(request.chain.readable, 0, data.data(), data.size())) {
        queue.fail(QueueFault::kMemory);
        return std::nullopt;
    }
    return data;
}

/// The request goes back with as much of `data` as fits. False: the queue was stopped since, or its buffers
/// are not RAM.
bool complete(VirtQueue& queue, const Request& request, const char* data, size_t length) {
    const VirtQueue::Visit visit(queue);
    if (!visit.open() || queue.life() != request.life) return false;
    const auto written = queue.scatter(request.chain.writable, 0, data,
                                       std::min<uint64_t>(length, request.chain.writable_bytes));
    if (!written) queue.fail(QueueFault::kMemory);
    return written && queue.push(request.chain.head, static_cast<uint32_t>(*written));
}

AnyDict counters_of(const BlockWorker& worker) {
    const BlockWorker::Counters c = worker.counters();
    nb::dict out;
    out["reads"] = c.reads;
    out["writes"] = c.writes;
    out["flushes"] = c.flushes;
    out["discards"] = c.discards;
    out["other_requests"] = c.others;
    out["errors"] = c.errors;
    out["bytes_read"] = c.bytes_read;
    out["bytes_written"] = c.bytes_written;
    out["service_ns"] = c.service_ns;
    out["deepest"] = c.deepest;
    return out;
}

void bind_remote(nb::module_& m) {
    m.def(
        "serve_remote_queues", [](BusMaster& bus) { bus.serve_calls(serve_remote_queue); }, "bus"_a,
        "Let the devices of another host work on their queues in this host's memory. Before it is linked.");
}

void bind_interrupts(nb::module_& m) {
    using release = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<Interrupts>(m, "Interrupts", "MSI-X, ISR status and INTx of a virtio function on PCI.")
        .def(
            "__init__",
            [](Interrupts* self, std::shared_ptr<BusMaster> bus, unsigned vectors, nb::object drive) {
                if (vectors == 0 || vectors > Interrupts::kMostVectors)
                    throw nb::value_error("too many vectors");
                new (self)
                    Interrupts(std::move(bus), vectors, safely<bool>(std::move(drive), "interrupt pin"));
            },
            "bus"_a, "vectors"_a, "drive"_a.sig("collections.abc.Callable[[bool], None]"))
        .def_prop_ro("vectors", &Interrupts::vectors)
        .def("queue", &Interrupts::queue, release(), "vector"_a)
        .def("configuration", &Interrupts::configuration, release(), "vector"_a)
        .def("take_isr", &Interrupts::take_isr, release())
        .def("control", &Interrupts::control, release(), "enabled"_a, "masked"_a)
        .def("allow_messages", &Interrupts::allow_messages, release(), "allowed"_a)
        .def("read", &Interrupts::read, release(), "offset"_a, "size"_a)
        .def("write", &Interrupts::write, release(), "offset"_a, "size"_a, "value"_a)
        .def("reset", &Interrupts::reset, release())
        .def("save",
             [](Interrupts& self) {
                 Interrupts::Saved s;
                 {
                     nb::gil_scoped_release unlocked;
                     s = self.save();
                 }
                 return std::make_tuple(s.table, s.pending, s.isr, s.enabled, s.masked);
             })
        .def(
            "load",
            [](Interrupts& self,
               const std::tuple<std::vector<uint32_t>, std::vector<uint64_t>, uint8_t, bool, bool>& s) {
                nb::gil_scoped_release unlocked;
                return self.load(
                    {std::get<0>(s), std::get<1>(s), std::get<2>(s), std::get<3>(s), std::get<4>(s)});
            },
            "saved"_a)
        .def("counters", [](Interrupts& self) -> AnyDict {
            Interrupts::Counters c;
            {
                nb::gil_scoped_release unlocked;
                c = self.counters();
            }
            nb::dict out;
            out["messages"] = c.messages;
            out["messages_held"] = c.held_back;
            out["pin_interrupts"] = c.pins;
            return out;
        });
}

void bind_queue(nb::module_& m) {
    using release = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<Request>(m, "Request", "A request of a driver, taken from its queue.")
        .def_prop_ro("readable", [](const Request& r) { return r.chain.readable_bytes; })
        .def_prop_ro("writable", [](const Request& r) { return r.chain.writable_bytes; })
        .def_prop_ro("head", [](const Request& r) { return r.chain.head; });
    nb::class_<VirtQueue, Doorbell>(m, "VirtQueue", "A split virtqueue between its threads: hw/native.")
        .def(nb::init<std::shared_ptr<BusMaster>, std::shared_ptr<Interrupts>>(), "bus"_a, "interrupts"_a)
        .def(
            "start",
            [](VirtQueue& self, uint16_t size, uint64_t descriptors, uint64_t available, uint64_t used,
               bool event_idx, bool indirect, const Position& position) {
                if (size == 0 || (size & (size - 1)) || size > SplitQueue::kLargest)
                    throw nb::value_error("a queue has a power of two of entries");
                nb::gil_scoped_release unlocked;
                self.start({size, descriptors, available, used, event_idx, indirect},
                           {std::get<0>(position), std::get<1>(position), std::get<2>(position)});
            },
            "size"_a, "descriptors"_a, "available"_a, "used"_a, "event_idx"_a, "indirect"_a,
            "position"_a = Position{0, 0, 0})
        .def("stop", &VirtQueue::stop, release())
        .def("reset", &VirtQueue::reset, release())
        .def("hold", &VirtQueue::hold, release(), "held"_a)
        .def_prop_ro("held", &VirtQueue::held)
        .def_prop_ro("enabled", &VirtQueue::enabled)
        .def_prop_ro("idle", &VirtQueue::idle)
        .def("set_vector", &VirtQueue::set_vector, "vector"_a)
        .def("position",
             [](VirtQueue& self) {
                 nb::gil_scoped_release unlocked;
                 return position_of(self);
             })
        .def("ring", &VirtQueue::ring, release())
        .def("wake", &VirtQueue::wake, release())
        .def(
            "wait",
            [](VirtQueue& self, double seconds) {
                Unlocked unlocked;
                self.wait(seconds < 0 ? -1 : Clock::monotonic_ns() + static_cast<int64_t>(seconds * 1e9));
            },
            "seconds"_a)
        .def("take", &take, release())
        .def(
            "data",
            [](VirtQueue& self, const Request& request, uint64_t limit) -> std::optional<nb::bytes> {
                std::optional<std::string> data;
                {
                    nb::gil_scoped_release unlocked;
                    data = data_of(self, request, limit);
                }
                if (!data) return std::nullopt;
                return nb::bytes(data->data(), data->size());
            },
            "request"_a, "limit"_a)
        .def(
            "complete",
            [](VirtQueue& self, const Request& request, const nb::bytes& data) {
                nb::gil_scoped_release unlocked;
                return complete(self, request, data.c_str(), data.size());
            },
            "request"_a, "data"_a)
        .def("notify", &VirtQueue::notify, release())
        .def(
            "refuse",
            [](VirtQueue& self, const Request& request) {
                const VirtQueue::Visit visit(self);
                if (visit.open() && self.life() == request.life) self.fail(QueueFault::kLength);
            },
            release(), "request"_a)
        .def_prop_ro("broken", &VirtQueue::broken)
        .def("suppress_notifications", &VirtQueue::suppress_notifications, release())
        .def("allow_notifications", &VirtQueue::allow_notifications, release())
        .def("fault",
             [](VirtQueue& self) {
                 nb::gil_scoped_release unlocked;
                 return std::string(name_of(self.fault()));
             })
        .def("counters", [](const VirtQueue& self) -> AnyDict {
            const VirtQueue::Counters c = self.counters();
            nb::dict out;
            out["kicks"] = c.kicks;
            out["requests"] = c.requests;
            out["interrupts"] = c.interrupts;
            out["queue_faults"] = c.faults;
            return out;
        });
}

void bind_frames(nb::module_& m) {
    m.def(
        "take_frames",
        [](VirtQueue& queue, size_t most) {
            Sent sent;
            {
                nb::gil_scoped_release unlocked;
                sent = take_frames(queue, most);
            }
            nb::typed<nb::list, nb::bytes> frames;
            for (const std::string& frame : sent.frames) frames.append(nb::bytes(frame.data(), frame.size()));
            return std::make_tuple(frames, sent.refused, sent.broken, sent.more);
        },
        "queue"_a, "most"_a,
        "Frames that the driver sends: (frames, refused, broken, whether there may be more).");
    m.def(
        "deliver_frames",
        [](VirtQueue& queue, const std::vector<nb::bytes>& frames) {
            std::vector<std::string_view> views;
            for (const nb::bytes& frame : frames) views.emplace_back(frame.c_str(), frame.size());
            nb::gil_scoped_release unlocked;
            const Delivered done = deliver_frames(queue, views);
            return std::make_tuple(done.frames, done.refused, done.broken);
        },
        "queue"_a, "frames"_a, "Frames for the driver: (how many it has, or were dropped; dropped; broken).");
}

std::string_view view_of(const nb::bytes& frame) { return {frame.c_str(), frame.size()}; }

void bind_flows(nb::module_& m) {
    nb::class_<FlowTable>(m, "FlowTable", "Which pair of queues a conversation last sent on.")
        .def(nb::init<>())
        .def("forget", &FlowTable::forget)
        .def(
            "sent",
            [](FlowTable& self, const std::vector<nb::bytes>& frames, uint8_t pair) {
                for (const nb::bytes& frame : frames) self.sent(view_of(frame), pair);
            },
            "frames"_a, "pair"_a)
        .def(
            "split",
            [](const FlowTable& self, const std::vector<nb::bytes>& frames, uint8_t pairs) {
                if (pairs == 0) throw nb::value_error("no queue");
                std::vector<nb::typed<nb::list, nb::bytes>> parts(pairs);
                for (const nb::bytes& frame : frames)
                    parts[self.pair_of(view_of(frame), pairs)].append(frame);
                return parts;
            },
            "frames"_a, "pairs"_a, "The frames for each of the first `pairs` receive queues, in order.");
}

void bind_bytes(nb::module_& m) {
    m.def(
        "take_text",
        [](VirtQueue& queue, size_t most, double linger) {
            Text text;
            {
                Unlocked unlocked;
                text = take_text(queue, most, static_cast<int64_t>(linger * 1e9));
            }
            return std::make_tuple(nb::bytes(text.bytes.data(), text.bytes.size()), text.broken);
        },
        "queue"_a, "most"_a, "linger"_a,
        "What the driver sends as bytes: waits for the first, then `linger` seconds for more: (bytes, "
        "broken).");
}

void bind_block(nb::module_& m) {
    using release = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<BlockDisk>(m, "BlockDisk", "What the queues of one virtio block device share.")
        .def(
            "__init__",
            [](BlockDisk* self, nb::object backend, uint64_t sectors, bool read_only, std::string serial,
               std::optional<int> fd, bool can_discard) {
                new (self) BlockDisk;
                self->store = store_of(std::move(backend), fd, can_discard);
                self->sectors = sectors;
                self->read_only = read_only;
                self->serial = std::move(serial);
            },
            "backend"_a, "sectors"_a, "read_only"_a, "serial"_a, "fd"_a.none(), "can_discard"_a)
        .def_prop_rw(
            "write_back", [](const BlockDisk& self) { return self.write_back.load(); },
            [](BlockDisk& self, bool value) { self.write_back.store(value); });
    nb::class_<BlockWorker>(m, "BlockWorker", "Serves one request queue on a native thread.")
        .def(
            "__init__",
            [](BlockWorker* self, std::shared_ptr<VirtQueue> queue, std::shared_ptr<BlockDisk> disk,
               nb::object broken) {
                new (self) BlockWorker(std::move(queue), std::move(disk),
                                       safely(std::move(broken), "virtio block device"));
            },
            "queue"_a, "disk"_a, "broken"_a.sig("collections.abc.Callable[[], None]"))
        .def("start", &BlockWorker::start, release(), "name"_a)
        .def("stop", &BlockWorker::stop, release())
        .def("counters", &counters_of)
        .def_ro_static("MOST_SEGMENTS", &BlockWorker::kMostSegments)
        .def_ro_static("MOST_DISCARD_SECTORS", &BlockWorker::kMostDiscardSectors)
        .def_ro_static("MOST_DISCARD_SEGMENTS", &BlockWorker::kMostDiscardSegments);
}

}  // namespace

void bind_devices(nb::module_& m) {
    nb::class_<BusMaster>(m, "BusMaster", "Guest RAM and interrupt messages, for devices that do DMA.");
    nb::class_<PythonBusMaster, BusMaster>(m, "PythonBusMaster", "One written in Python, for tests.")
        .def(nb::init<nb::object, nb::object>(), "ram"_a, "fabric"_a);
    nb::class_<Doorbell>(m, "Doorbell", "A register that only wakes a worker.");
    nb::class_<DoorbellWindow>(m, "DoorbellWindow", "The doorbells of one device; the guest moves them.")
        .def(
            "move", [](DoorbellWindow& self, uint64_t base) { self.move(base); }, "base"_a);
    nb::class_<Doorbells>(m, "Doorbells", "The doorbells of a machine, which vCPUs ring without Python.")
        .def(nb::init<>())
        .def(
            "add",
            [](Doorbells& self, std::vector<std::shared_ptr<Doorbell>> bells, uint64_t stride) {
                auto window = std::make_shared<DoorbellWindow>(std::move(bells), stride);
                self.add(window);
                return window;
            },
            "bells"_a, "stride"_a);
    bind_remote(m);
    bind_interrupts(m);
    bind_queue(m);
    bind_frames(m);
    bind_flows(m);
    bind_bytes(m);
    bind_block(m);
    bind_ide(m);
}

}  // namespace coremesh
