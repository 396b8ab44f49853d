// SPDX-License-Identifier: GPL-2.0-or-later
// The Python face of the IDE channel. Every call gives the interpreter's lock up: the worker may hold the
// channel while it waits for that lock, to drive the interrupt line.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <limits>
#include <string>

#include "hw/native/ata/cdrom.hpp"
#include "hw/native/ata/disk.hpp"
#include "hw/native/ata/ide_channel.hpp"
#include "hw/native/python_parts.hpp"

namespace coremesh {
namespace {

using namespace ata;

/// Calls Python on the worker's thread; nothing when it raises, which is a mistake of ours and is shown.
template <typename Answer, typename Call>
std::optional<Answer> ask(const char* whose, Call call) {
    const Interpreter interpreter;
    try {
        return call();
    } catch (nb::python_error& error) {
        error.discard_as_unraisable(whose);
    } catch (const std::exception&) {
    }
    return std::nullopt;
}

std::vector<uint8_t> bytes_of(const nb::bytes& data) {
    const auto* begin = reinterpret_cast<const uint8_t*>(data.c_str());
    return {begin, begin + data.size()};
}

/// `identify(multiple, per_track, heads, transfer_mode, write_cache)` returns the 512 bytes.
auto identifier(nb::object callable) {
    return [held = kept(std::move(callable))](const Settings& s) {
        return ask<std::vector<uint8_t>>("drive's identification", [&] {
            return bytes_of(nb::cast<nb::bytes>(
                (*held)(s.multiple, s.per_track, s.heads, s.transfer_mode, s.write_cache)));
        });
    };
}

/// `packet(packet)` returns (sense key, data, first block, blocks).
auto packets(nb::object callable) {
    return [held = kept(std::move(callable))](const std::vector<uint8_t>& packet) {
        return ask<PacketAnswer>("CD-ROM drive's packet", [&] {
            const auto [key, data, lba, blocks] =
                nb::cast<std::tuple<uint8_t, nb::bytes, uint32_t, uint32_t>>(
                    (*held)(nb::bytes(packet.data(), packet.size())));
            return PacketAnswer{key, bytes_of(data), lba, blocks};
        });
    };
}

std::shared_ptr<Unit> disk(nb::object backend, uint64_t sectors, bool read_only, bool can_trim,
                           nb::object identify, std::optional<int> fd) {
    auto unit = std::make_shared<Unit>();
    unit->drive = std::make_unique<Disk>(sectors, read_only, can_trim);
    unit->store = store_of(std::move(backend), fd, can_trim);
    unit->sectors = sectors;
    unit->identify = identifier(std::move(identify));
    return unit;
}

std::shared_ptr<Unit> cdrom(nb::object backend, uint32_t blocks, nb::object identify, nb::object packet,
                            nb::object unreadable, std::optional<int> fd) {
    auto unit = std::make_shared<Unit>();
    unit->drive = std::make_unique<Cdrom>(blocks);
    if (!backend.is_none()) unit->store = store_of(std::move(backend), fd, false);
    unit->sectors = uint64_t{blocks} * (Cdrom::kBlock / kSector);
    unit->identify = identifier(std::move(identify));
    unit->packet = packets(std::move(packet));
    unit->unreadable = safely<>(std::move(unreadable), "CD-ROM drive");
    return unit;
}

/// Ends its worker without the interpreter's lock, which the worker may be waiting for.
class BoundIdeChannel final : public IdeChannel {
  public:
    using IdeChannel::IdeChannel;
    ~BoundIdeChannel() override {
        nb::gil_scoped_release unlocked;
        stop();
    }
};

// ---- saved state: names, and a visitor that goes through them one way or the other

template <typename State, typename Visit>
void visit_channel(State& s, Visit visit) {
    visit("control", s.control);
    visit("bmicom", s.bus_command);
    visit("bmista", s.bus_status);
    visit("bmidtp", s.table);
    visit("selected", s.selected);
}

template <typename State, typename Visit>
void visit_drive(State& s, Visit visit) {
    visit("last", s.task_file.last);
    visit("previous", s.task_file.previous);
    visit("status", s.status);
    visit("error", s.error);
    visit("command", s.command);
    visit("intrq", s.intrq);
    visit("phase", s.phase);
    visit("buffer", s.buffer);
    visit("position", s.position);
    visit("burst", s.burst);
    visit("transfer_mode", s.transfer_mode);
    visit("lba", s.lba);
    visit("left", s.left);
    visit("block", s.block);
    visit("multiple", s.multiple);
    visit("per_track", s.per_track);
    visit("heads", s.heads);
    visit("write_cache", s.write_cache);
    visit("limit", s.limit);
    visit("dma", s.dma);
    visit("in_packet", s.in_packet);
}

/// Into a dictionary of numbers, truth values and byte strings.
struct Saver {
    nb::dict& out;
    void operator()(const char* name, bool value) const { out[name] = value; }
    void operator()(const char* name, Phase value) const { out[name] = static_cast<unsigned>(value); }
    void operator()(const char* name, const std::vector<uint8_t>& value) const {
        out[name] = nb::bytes(value.data(), value.size());
    }
    void operator()(const char* name, const std::array<uint8_t, 7>& value) const {
        out[name] = nb::bytes(value.data(), value.size());
    }
    template <typename Number>
    void operator()(const char* name, Number value) const {
        out[name] = uint64_t{value};
    }
};

/// And back. Throws for what has another type, or does not fit.
struct Loader {
    const nb::dict& in;
    void operator()(const char* name, bool& value) const { value = nb::cast<bool>(in[name]); }
    void operator()(const char* name, Phase& value) const {
        value = static_cast<Phase>(number<uint8_t>(name));
    }
    void operator()(const char* name, std::vector<uint8_t>& value) const {
        value = bytes_of(nb::cast<nb::bytes>(in[name]));
    }
    void operator()(const char* name, std::array<uint8_t, 7>& value) const {
        const std::vector<uint8_t> bytes = bytes_of(nb::cast<nb::bytes>(in[name]));
        if (bytes.size() != value.size()) throw nb::value_error(name);
        std::copy(bytes.begin(), bytes.end(), value.begin());
    }
    template <typename Number>
    void operator()(const char* name, Number& value) const {
        value = number<Number>(name);
    }

  private:
    template <typename Number>
    Number number(const char* name) const {
        const auto wide = nb::cast<uint64_t>(in[name]);
        if (wide > std::numeric_limits<Number>::max()) throw nb::value_error(name);
        return static_cast<Number>(wide);
    }
};

using Dicts = std::tuple<AnyDict, std::vector<AnyDict>>;

Dicts save(IdeChannel& channel) {
    IdeChannel::Saved saved;
    {
        nb::gil_scoped_release unlocked;
        saved = channel.save();
    }
    AnyDict registers;
    visit_channel(saved.channel, Saver{registers});
    std::vector<AnyDict> drives;
    for (DriveState& state : saved.drives) {
        AnyDict drive;
        visit_drive(state, Saver{drive});
        drives.push_back(std::move(drive));
    }
    return {std::move(registers), std::move(drives)};
}

bool load(IdeChannel& channel, const AnyDict& registers, const std::vector<AnyDict>& drives, bool line) {
    IdeChannel::Saved saved;
    visit_channel(saved.channel, Loader{registers});
    for (const AnyDict& drive : drives) visit_drive(saved.drives.emplace_back(), Loader{drive});
    nb::gil_scoped_release unlocked;
    return channel.load(saved, line);
}

AnyDict counters_of(IdeChannel& channel) {
    IdeChannel::Counters c;
    {
        nb::gil_scoped_release unlocked;
        c = channel.counters();
    }
    nb::dict out;
    out["commands"] = c.commands;
    out["bytes_moved"] = c.bytes_moved;
    out["busy_ns"] = c.busy_ns;
    out["contended"] = c.contended;
    out["waited_ns"] = c.waited_ns;
    out["faults"] = c.faults;
    return out;
}

void bind_ports(nb::module_& m) {
    nb::class_<NativeDevice>(m, "NativeDevice", "A device whose registers are native.");
    nb::class_<NativePortWindow>(m, "NativePortWindow",
                                 "Where one native device answers; the guest moves it.")
        .def(
            "move",
            [](NativePortWindow& self,
               const std::vector<std::tuple<uint16_t, uint16_t, uint16_t, std::vector<unsigned>>>& ranges) {
                std::vector<NativePortWindow::Range> list;
                for (const auto& [first, last, offset, sizes] : ranges) {
                    unsigned mask = 0;
                    for (const unsigned size : sizes) mask |= size & 7;
                    list.push_back({first, last, offset, static_cast<uint16_t>(mask)});
                }
                self.move(list);
            },
            "ranges"_a, "(first, last, offset of the first, sizes in bytes) each. ValueError for too many.");
    nb::class_<NativePorts>(m, "NativePorts", "The native devices of a machine, which need no Python.")
        .def(nb::init<>())
        .def("add", &NativePorts::add, "device"_a);
}

}  // namespace

void bind_ide(nb::module_& m) {
    using release = nb::call_guard<nb::gil_scoped_release>;
    bind_ports(m);
    nb::class_<Unit>(m, "IdeDrive", "A drive on an IDE channel: its registers, and what stands behind it.")
        .def_static("disk", &disk, "backend"_a, "sectors"_a, "read_only"_a, "can_trim"_a, "identify"_a,
                    "fd"_a.none())
        .def_static("cdrom", &cdrom, "backend"_a.none(), "blocks"_a, "identify"_a, "packet"_a, "unreadable"_a,
                    "fd"_a.none());
    nb::class_<BoundIdeChannel, NativeDevice>(m, "NativeIdeChannel",
                                              "A channel of an IDE controller: hw/native/ata.")
        .def(
            "__init__",
            [](BoundIdeChannel* self, std::shared_ptr<BusMaster> memory,
               const std::vector<std::optional<std::shared_ptr<Unit>>>& drives, nb::object line,
               nb::object bus_error) {
                std::vector<std::shared_ptr<Unit>> units;
                for (const auto& drive : drives) units.push_back(drive.value_or(nullptr));
                new (self) BoundIdeChannel(std::move(memory), std::move(units),
                                           {safely<bool>(std::move(line), "interrupt line"),
                                            safely<>(std::move(bus_error), "IDE bus master"),
                                            &Interpreter::thread_begins, &Interpreter::thread_ends});
            },
            "memory"_a, "drives"_a, "line"_a.sig("collections.abc.Callable[[bool], None]"),
            "bus_error"_a.sig("collections.abc.Callable[[], None]"))
        .def("read", &IdeChannel::read, release(), "offset"_a, "size"_a)
        .def("write", &IdeChannel::write, release(), "offset"_a, "size"_a, "value"_a)
        .def("allow", &IdeChannel::allow, release(), "allowed"_a)
        .def("reset", &IdeChannel::reset, release())
        .def("start", &IdeChannel::start, release(), "name"_a)
        .def("stop", &IdeChannel::stop, release())
        .def("serve", &IdeChannel::serve, release())
        .def("save", [](BoundIdeChannel& self) { return save(self); })
        .def(
            "load",
            [](BoundIdeChannel& self, const AnyDict& registers, const std::vector<AnyDict>& drives,
               bool line) { return load(self, registers, drives, line); },
            "registers"_a, "drives"_a, "line"_a)
        .def("counters", [](BoundIdeChannel& self) { return counters_of(self); });
}

}  // namespace coremesh
